"""Chooses a transform and a format for every site, by predicted error under budgets."""
