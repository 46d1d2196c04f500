"""The check of named inputs; it imports nothing, so that artifacts run where only their runtime is installed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from qcompile.errors import InputError

__all__ = ["check_names"]


def check_names(inputs: Iterable[str], expected: Sequence[str]) -> None:
    """Refuse inputs whose names differ from the graph's."""
    missing = [name for name in expected if name not in inputs]
    unknown = [name for name in inputs if name not in expected]
    if missing or unknown:
        said = [f"lacks {', '.join(missing)}"] if missing else []
        said += [f"has unknown {', '.join(unknown)}"] if unknown else []
        raise InputError(f"the data {' and '.join(said)}; the model's inputs are {', '.join(expected)}")
