"""The exceptions of qcompile.

    QCompileError                 everything that a caller may want to catch; the command line exits with 2
    ├── InputError                a model, calibration file or option that cannot be used
    │   └── GraphError            a graph that is malformed at a given node
    ├── TargetError               a target that is unknown or cannot run what was asked of it
    │   └── MissingExtraError     an optional dependency that the target needs is not installed
    └── VerificationError         a stage changed the function of the model by more than it may

Anything else that escapes is a bug of ours, and the command line exits with 1.
"""

from __future__ import annotations

__all__ = [
    "GraphError",
    "InputError",
    "MissingExtraError",
    "QCompileError",
    "TargetError",
    "VerificationError",
    "first_line",
]


def first_line(error: BaseException) -> str:
    """What a library's exception says, as a part of one sentence of ours."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]


class QCompileError(Exception):
    """A mistake of the user or a limit of the tool, said in one sentence."""


class InputError(QCompileError):
    """A model, a data file or an option that cannot be used."""


class GraphError(InputError):
    """A graph that breaks a rule of ONNX at one node.

    Args:
        node: the node's name and operator, as ``'name' (Op)``.
        reason: what is wrong and what to do.
        stage: the pass that met it.
    """

    def __init__(self, node: str, reason: str, stage: str = "capture") -> None:
        super().__init__(f"{stage}: node {node}: {reason}")


class TargetError(QCompileError):
    """A target that is unknown, or that cannot run what was asked of it."""


class MissingExtraError(TargetError):
    """An optional dependency is not installed.

    Args:
        what: the thing that needs it, in words.
        extra: the extra of this project that installs it.
    """

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs an optional dependency: pip install 'qcompile[{extra}]'")


class VerificationError(QCompileError):
    """A stage that must keep the function of the model changed it."""
