"""``python -m qcompile``: the command line."""

from qcompile.cli.commands import main

if __name__ == "__main__":
    main()
