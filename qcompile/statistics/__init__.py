"""Lessons from data: second moments and samples of inputs, and how much each site matters."""
