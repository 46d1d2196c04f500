"""The words that backends and the core share: targets, schemes, and the plan of each site."""
