"""Formats with a structure of their own, beyond groups with a scale."""
