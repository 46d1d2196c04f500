"""What data teaches: second moments and samples of inputs, and how much each site matters."""
