"""Weights to codes: GPTQ, from statistics or site by site in the order of the graph."""
