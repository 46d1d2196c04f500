"""Is it still the same? The rotated graph against its source, the artifact against both."""
