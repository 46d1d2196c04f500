"""Hadamard matrices: which orders there are, and how each is made."""
