"""The plan of each site: what quantization decided, as backends read it."""

from __future__ import annotations

from dataclasses import dataclass

from qcompile.formats.quantizer import Quantized
from qcompile.targets.scheme import Scheme

__all__ = ["Plan"]


@dataclass(frozen=True)
class Plan:
    """One site, ready to be lowered.

    Args:
        site: the name of its operator in the graph.
        scheme: how it computes.
        weight: the quantized weight as ``[out, in]`` with groups along ``in``; for an embedding table
            ``[rows, features]`` with groups along the features. ``None`` where the weight stays as it is.
    """

    site: str
    scheme: Scheme
    weight: Quantized | None
