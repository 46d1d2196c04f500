"""Calls of the command line in tests: what is done, and what is refused with nothing written."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner, Result

from qcompile.cli.commands import app

__all__ = ["call", "done", "refused"]


def call(*arguments: object) -> Result:
    """Run a command."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def done(*arguments: object) -> Result:
    """Run a command that must succeed."""
    result = call(*arguments)
    assert result.exit_code == 0, result.stderr or result.exception
    return result


def refused(folder: Path, *arguments: object) -> str:
    """The sentence that a command refuses with; the folder must be as it was."""
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    result = call(*arguments)
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert result.exit_code == 2, (result.exit_code, result.stdout, result.stderr, result.exception)
    assert "Traceback" not in result.stderr + result.stdout
    assert result.stdout == ""
    assert before == after
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")
