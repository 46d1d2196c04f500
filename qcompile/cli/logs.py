"""Logs of a command: ``--verbose`` writes them to the standard error, ``--log-file`` into a file."""

from __future__ import annotations

import logging
from pathlib import Path

import typer

from qcompile.errors import InputError

__all__ = ["log_to_file", "log_to_terminal"]

_LINE = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def log_to_terminal(context: typer.Context, verbose: bool) -> bool:
    """Log on the standard error while the command runs."""
    if verbose and not context.resilient_parsing:
        _attach(context, logging.StreamHandler(), logging.INFO)
    return verbose


def log_to_file(context: typer.Context, path: Path | None) -> Path | None:
    """Append to a file while the command runs.

    Raises:
        InputError: if it cannot be written.
    """
    if path is not None and not context.resilient_parsing:
        try:
            handler = logging.FileHandler(path, encoding="utf-8")
        except OSError as error:
            raise InputError(f"the log file '{path}' cannot be written: {error.strerror}") from error
        _attach(context, handler, logging.DEBUG)
    return path


def _attach(context: typer.Context, handler: logging.Handler, level: int) -> None:
    logger = logging.getLogger("qcompile")
    before = logger.level
    handler.setLevel(level)
    handler.setFormatter(logging.Formatter(_LINE))
    logger.addHandler(handler)
    logger.setLevel(min(level, before or level))

    def detach() -> None:
        logger.removeHandler(handler)
        logger.setLevel(before)
        handler.close()

    context.call_on_close(detach)
