"""Which triton is needed."""

from __future__ import annotations

import importlib.metadata

from qcompile.errors import MissingExtraError, TargetError

__all__ = ["check_triton"]

_OLDEST = (3, 6)


def check_triton() -> str:
    """The version of triton that is installed.

    Raises:
        MissingExtraError: if there is none.
        TargetError: if it is too old.
    """
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        raise MissingExtraError("the triton runtime", "triton") from None
    if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST:
        raise TargetError(f"triton {version} is too old: {_OLDEST[0]}.{_OLDEST[1]} or newer is needed")
    return version
