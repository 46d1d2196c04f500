"""Grids that are optimal for a distribution: the points that table and vector formats round to."""
