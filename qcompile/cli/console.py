"""Parts that the commands share: errors as exit statuses, progress bars, tables, and the syntax of options."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from typer.core import TyperGroup

from qcompile.errors import InputError, QCompileError

if TYPE_CHECKING:
    import rich.progress

__all__ = ["CommandGroup", "Progress", "budgets", "names", "pairs", "ranges", "say", "tell"]

#: Between two lines of progress where there is no terminal.
SECONDS = 5.0

#: Of reports that the time left is estimated by: more than one part of a large model takes.
SPEED_SECONDS = 600.0

logger = logging.getLogger(__name__)

_MISTAKE, _BUG, _INTERRUPTED = 2, 1, 130

#: Errors of the operating system that no program can do anything about.
_SYSTEM = (PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError)

_UNITS = {"k": 1e3, "m": 1e6, "g": 1e9}


class CommandGroup(TyperGroup):
    """Commands that answer a mistake of the user with one sentence and status 2; other errors keep their traceback."""

    def main(
        self, args: Sequence[str] | None = None, prog_name: str | None = None, complete_var: str | None = None,
        standalone_mode: bool = True, windows_expand_args: bool = True, **extra: Any,
    ) -> Any:  # fmt: skip
        """Run a command. Without ``standalone_mode``, errors reach the caller."""
        run = partial(super().main, args, prog_name, complete_var, False, windows_expand_args, **extra)
        if not standalone_mode:
            return run()
        try:
            status = run()
        except Exception as error:
            message = mistake(error)
            if message is None:
                raise
            if speaks():
                print(f"error: {message}", file=sys.stderr)
            sys.exit(getattr(error, "status", _MISTAKE))
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(_INTERRUPTED)
        sys.exit(status if isinstance(status, int) else 0)


def speaks() -> bool:
    """Whether this process speaks to the user: of those that ``torchrun`` starts the first alone."""
    return int(os.environ.get("RANK", "0")) == 0


def mistake(error: Exception) -> str | None:
    """The mistake of the user in one sentence; ``None`` for any other error."""
    if isinstance(error, QCompileError):
        return " ".join(str(error).split())
    if hasattr(error, "format_message"):  # usage errors of the parser
        return " ".join(error.format_message().split())
    if isinstance(error, _SYSTEM) or (isinstance(error, OSError) and error.errno in _full()):
        return f"{error.strerror}: '{error.filename}'" if error.filename else f"{error.strerror}; nothing was written"
    return None


def _full() -> set[int]:
    import errno

    return {errno.ENOSPC, errno.EROFS, errno.EDQUOT}


# -- output ----------------------------------------------------------------------------------------------------------


def say(*things: Any, quiet: bool = False) -> None:
    """Print text and tables on the standard output."""
    from rich.console import Console

    if not quiet and speaks():
        console = Console(highlight=False)
        if not console.is_terminal:
            console = Console(width=max(console.width, 160), highlight=False)
        for thing in things:
            console.print(thing)


def tell(json: Path | None, summary: Mapping[str, Any], *things: Any, quiet: bool = False) -> None:
    """Print tables, or write a summary as JSON; one that is printed takes their place."""
    from qcompile.ir.files import STDOUT, write_json

    if json is not None and speaks():
        write_json(json, summary)
    say(*things, quiet=quiet or json == STDOUT)


class Progress:
    """Bars on the standard error, one for each step; called with a step, the part of it that is done, and the whole.

    Both estimate the time that is left of a step. Where that is no terminal there are lines in the place of bars, few
    enough for the log of a long run.
    """

    def __init__(self, quiet: bool = False) -> None:
        quiet = quiet or not speaks()
        self._silent, self._quiet = quiet, quiet or not sys.stderr.isatty()
        self._spoke = time.monotonic()
        self._bars: rich.progress.Progress | None = None
        self._steps: dict[str, rich.progress.TaskID] = {}
        self._began: dict[str, tuple[float, int]] = {}  # when a step was first told of, and how far it was then

    def __enter__(self) -> Progress:
        if not self._quiet:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as Bars

            name, left = TextColumn("{task.description}"), (TextColumn("left:"), TimeRemainingColumn())
            columns = name, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), *left
            console = Console(stderr=True)
            self._bars = Bars(*columns, console=console, transient=True, speed_estimate_period=SPEED_SECONDS)
            self._bars.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, step: str, done: int, total: int) -> None:
        """Show the progress of a step."""
        if done >= total:
            logger.info("%s: done", step)
        now = time.monotonic()
        began, first = self._began.setdefault(step, (now, done))
        if self._bars is None and not self._silent and now - self._spoke >= SECONDS:
            pace = (now - began) / (done - first) if done > first else None
            left = "" if pace is None or done >= total else f", about {pace * (total - done):.0f} s left"
            print(f"{step}: {done} of {total}{left}", file=sys.stderr, flush=True)
            self._spoke = now
        if self._bars is not None:
            if step not in self._steps:
                self._steps[step] = self._bars.add_task(step, total=total)
            self._bars.update(self._steps[step], completed=done, total=total)


# -- the syntax of options -------------------------------------------------------------------------------------------


def names(given: Sequence[str] | None) -> list[str]:
    """The names of ``a,b`` and of repeated options, as one list."""
    return [name for text in given or () for name in (part.strip() for part in text.split(",")) if name]


def budgets(given: Sequence[str] | None) -> dict[str, float]:
    """The budgets of ``bits=4.25,bytes=80M``, as numbers by unit.

    Raises:
        InputError: if it is not of that form.
    """
    found: dict[str, float] = {}
    for text in names(given):
        unit, equals, bound = text.partition("=")
        if not equals or unit in found:
            raise InputError(f"budget '{text}' is not of the form bits=4.25 or bytes=80e6, each given once")
        found[unit] = _bound(text, bound)
    return found


def ranges(given: Sequence[str] | None) -> dict[str, tuple[float, float]]:
    """The ranges of ``bits=3.5..8,bytes=80M``, as their ends by unit; one number is both.

    Raises:
        InputError: if it is not of that form.
    """
    found: dict[str, tuple[float, float]] = {}
    for text in names(given):
        unit, equals, bound = text.partition("=")
        low, dots, high = bound.partition("..")
        if not equals or unit in found:
            raise InputError(f"budget '{text}' is not of the form bits=3.5..8 or bytes=80e6, each given once")
        found[unit] = _bound(text, low), _bound(text, high if dots else low)
    return found


def pairs(given: Sequence[str] | None, what: str, of: str = "PATTERN") -> dict[str, str]:
    """The words of ``PATTERN=WORD``, by pattern, or by what else comes first.

    Raises:
        InputError: if one is not of that form.
    """
    found: dict[str, str] = {}
    for text in given or ():
        pattern, _, word = text.rpartition("=")
        if not pattern or not word:
            raise InputError(f"'{text}' is not of the form {of}={what}")
        found.pop(pattern, None)  # the last counts, and comes last
        found[pattern] = word
    return found


def whole(given: Mapping[str, str]) -> dict[str, int]:
    """Words that are whole numbers.

    Raises:
        InputError: if one is not.
    """
    for name, word in given.items():
        if not word.isdecimal():
            raise InputError(f"'{name}={word}' has no whole number behind its equals sign")
    return {name: int(word) for name, word in given.items()}


def _bound(text: str, bound: str) -> float:
    digits = bound.lower().removesuffix("ms").removesuffix("b")
    scale = _UNITS.get(digits[-1:], 1.0)
    try:
        return float(digits if scale == 1.0 else digits[:-1]) * scale
    except ValueError:
        raise InputError(f"budget '{text}' has no number behind its equals sign") from None
