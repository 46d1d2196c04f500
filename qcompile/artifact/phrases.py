"""Numbers and states in words, for pages and tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = [
    "KEPT", "PACKED", "QUANTIZABLE", "QUANTIZED",
    "format_name", "human_bytes", "named_losses", "scientific", "signed", "times_smaller",
]  # fmt: skip

#: The states of a weight: in an artifact; in a model that is inspected; in both.
QUANTIZED, QUANTIZABLE, KEPT, PACKED = "quantized", "quantizable", "kept", "already quantized"

#: How losses are called, in the order in which they are shown.
LOSSES = {"float": "float", "round_to_nearest": "round-to-nearest", "quantized": "this artifact"}


def format_name(site: Mapping[str, Any]) -> str:
    """The formats of a site in a word: ``nvfp4/nvfp4``, ``int4-g32``, ``float``."""
    return site["format"] + (f"/{site['activation']}" if site["activation"] else "")


def human_bytes(count: float) -> str:
    """A number of bytes for people: ``9.2 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def times_smaller(source: float, made: float) -> str:
    """A size compared with that of the source: ``3.92x smaller``, ``1.10x larger``."""
    smaller = made <= source
    ratio = source / max(made, 1) if smaller else made / max(source, 1)
    return f"{ratio:.2f}x {'smaller' if smaller else 'larger'}"


def scientific(value: float | None) -> str:
    """A small number in few characters; a dash for none."""
    return "–" if value is None else f"{value:.3g}"


def signed(value: float) -> str:
    """A difference in few characters, its sign before it: ``+0.012``."""
    return f"{value:+.3g}"


def named_losses(losses: Mapping[str, float]) -> list[tuple[str, float]]:
    """Losses with their names for people, the float model's first."""
    order = list(LOSSES)
    known = sorted(losses, key=lambda name: order.index(name) if name in order else len(order))
    return [(LOSSES.get(name, name), losses[name]) for name in known]
