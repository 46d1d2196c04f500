"""The time that computing takes: a model that is fitted to what was measured on a machine, and graphs by it."""
