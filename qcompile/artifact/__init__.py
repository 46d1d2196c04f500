"""What an export writes, and what is shown of it."""
