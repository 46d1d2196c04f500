"""The files of an export, and the pages that show them."""
