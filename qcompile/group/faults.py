"""Faults of one process as all processes of a group raise them."""

from __future__ import annotations

from dataclasses import dataclass

from qcompile import errors
from qcompile.errors import InternalError, QCompileError, first_line

__all__ = ["Fault", "is_told", "told"]

_TOLD = "told_to_group"


@dataclass(frozen=True)
class Fault:
    """An exception in a form that goes to other processes.

    Args:
        kind: the name of its class.
        text: the sentence.
        rank: of the process that raised it.
    """

    kind: str
    text: str
    rank: int

    @staticmethod
    def of(error: BaseException, rank: int) -> Fault:
        """The fault of a process."""
        text = str(error) if isinstance(error, QCompileError | InternalError) else first_line(error)
        return Fault(type(error).__name__, text, rank)

    def error(self) -> Exception:
        """The exception for another process: of the same class if it is ours, else a bug that says where it was."""
        kind = getattr(errors, self.kind, None)
        if isinstance(kind, type) and issubclass(kind, QCompileError | InternalError):
            found: Exception = kind.__new__(kind)
            found.args = (self.text,)
        else:
            found = InternalError(f"process {self.rank} of the group failed: {self.kind}: {self.text}")
        return told(found)


def told(error: Exception) -> Exception:
    """The same exception, marked as one that all processes raise."""
    setattr(error, _TOLD, True)
    return error


def is_told(error: BaseException) -> bool:
    """Whether all processes raise it."""
    return getattr(error, _TOLD, False)
