"""Functions that generated source calls; they ship with every program of torch."""
