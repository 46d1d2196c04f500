"""Read-only knowledge of a graph: sites, spaces, freedoms, and how transforms fold."""
