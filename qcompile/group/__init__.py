"""The processes that share an export, and what they tell each other."""
