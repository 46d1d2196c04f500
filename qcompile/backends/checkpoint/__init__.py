"""Checkpoints: folders and files that programs of others load, with the parameters of the source's own modules."""
