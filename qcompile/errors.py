"""The exceptions of qcompile.

    QCompileError                 everything that a caller may want to catch; the command line exits with 2
    ├── InputError                a model, calibration file or option that cannot be used
    │   └── GraphError            a graph that cannot be used because of a given node
    ├── TargetError               a target that is unknown or cannot run what was asked of it
    │   └── MissingExtraError     an optional dependency that the target needs is not installed
    ├── VerificationError         a stage changed the function of the model by more than it may
    └── LostError                 a process that worked beside this one was killed; the command line exits with 1

Anything else that escapes is a bug of ours, and the command line exits with 1; where a graph lacks what an earlier
stage must have given it, that is an ``InternalError``.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import re
from collections.abc import Iterable

__all__ = [
    "GraphError",
    "InputError",
    "InternalError",
    "LostError",
    "MissingExtraError",
    "QCompileError",
    "TargetError",
    "VerificationError",
    "first_line",
    "nearest",
    "reason_of",
    "runtime_message",
    "unknown",
]


#: What pip calls this project.
DISTRIBUTION = "qcompile-nn"

#: The most names that a sentence lists where some of them are like what was meant.
LISTED = 24


def first_line(error: BaseException, most: int = 300) -> str:
    """The message of a library's exception, short enough to be a part of one sentence."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:most]


def runtime_message(error: BaseException) -> str:
    """The message of an exception of onnxruntime, without its codes and the places in its own source."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", first_line(error, 2000))
    failed = r"^Non-zero status code returned while running (\w+) node\. Name:'(.*?)' Status Message: "
    text = re.sub(failed, r"\1 '\2': ", text)
    return re.sub(r": /\S+\.(cc|h):\d+ .*? was false\. ", ": ", text)[:300]


def nearest(word: str, known: Iterable[str], most: int = 5) -> list[str]:
    """The known names that are most like a word, the nearest first; those that hold it among them."""
    names = list(dict.fromkeys(known))
    lower = {name: name.lower() for name in names}
    near = difflib.get_close_matches(word.lower(), lower.values(), n=most, cutoff=0.5)
    found = [name for text in near for name in names if lower[name] == text]
    found += [name for name in names if word and word.lower() in lower[name]]
    return list(dict.fromkeys(found))[:most]


def unknown(what: str, word: str, known: Iterable[str]) -> str:
    """The sentence that refuses a name: those that are like it, and all where they are few or none is."""
    names = list(known)
    near = nearest(word, names)
    listed = f"; there are {', '.join(names)}" if len(names) <= LISTED or not near else ""
    return f"unknown {what} '{word}'{listed}" + (f"; the nearest: {', '.join(near)}" if near else "")


class QCompileError(Exception):
    """A mistake of the user or a limit of the tool, said in one sentence."""

    #: With which the command line exits.
    status = 2


class InputError(QCompileError):
    """A model, a data file or an option that cannot be used."""


class GraphError(InputError):
    """A graph that cannot be used because of one node, which a note shows with those around it."""


class TargetError(QCompileError):
    """A target that is unknown, or that cannot run what was asked of it."""


class MissingExtraError(TargetError):
    """An optional dependency is not installed.

    Args:
        what: the thing that needs it, in words.
        extra: the extra of this project that installs it.
    """

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs the extra '{extra}': pip install {_requirements(extra)}")


def _requirements(extra: str) -> str:
    """What an extra installs, as arguments for pip: true of a checkout as of a release."""
    try:
        known = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        known = []
    found = (line.partition(";") for line in known)
    names = [name.strip() for name, _, when in found if re.search(rf"extra == ['\"]{extra}['\"]", when)]
    if not names:  # run from a folder that pip has not installed, or not since the extra came
        return f"-e '.[{extra}]' in a checkout of qcompile"
    return " ".join(f"'{name}'" for name in names)


class VerificationError(QCompileError):
    """A stage that must keep the function of the model changed it."""


class LostError(QCompileError):
    """A process of the group that an export runs in is gone: nobody's mistake, and no bug that is known."""

    status = 1


def reason_of(error: Exception) -> str:
    """The fault in one sentence, as a note says it; one that is a bug of ours, or a library's, with its kind."""
    if isinstance(error, QCompileError):
        return " ".join(str(error).split())
    said = first_line(error)
    kind = type(error).__name__
    return kind if said == kind else f"{kind}: {said}"


class InternalError(Exception):
    """A graph lacks what an earlier stage must have given it: a bug of ours, said in one sentence."""
