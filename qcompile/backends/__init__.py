"""The targets of qcompile: one folder per family, with its targets, lowering and runner."""

if __name__ != "qcompile.backends":
    raise ImportError("import this package as qcompile.backends")
