"""What a backend is handed: targets, schemes, and the plan of each site."""
