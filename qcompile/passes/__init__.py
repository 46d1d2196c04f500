"""The passes of qcompile: one file is one pass is its name on the command line."""

if __name__ != "qcompile.passes":
    raise ImportError("import this package as qcompile.passes")
