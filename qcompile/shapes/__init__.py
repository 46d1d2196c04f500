"""Shape arithmetic, for every kind of scalar that a size may be: a number, source text, an expression, an axis."""
