"""Sizes of what was made: of a weight, of all of them, of files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from qcompile.artifact.entries import bits_of, count_of

if TYPE_CHECKING:
    from qcompile.analysis.spaces import Analysis, Site
    from qcompile.formats import Quantized
    from qcompile.targets.plans import Plan
    from qcompile.targets.registry import Lowered

__all__ = ["bits_per_weight", "bytes_in", "stored"]


def stored(site: Site, plan: Plan, lowered: Lowered) -> float:
    """Bits that a lowered weight takes: as the backend says, or as the format needs."""
    known = lowered.sites.get(site.name, {}).get("stored_bytes")
    return _stored_bits(plan.weight) if known is None else 8 * known


def _stored_bits(weight: Quantized) -> float:
    """The bits that a quantized weight takes: codes, scales, zero points and the second-level scale."""
    fmt = weight.format
    bits = weight.codes.numel() * fmt.bits + weight.scales.numel() * fmt.scale.bits / fmt.rows
    bits += weight.zero_points.numel() * fmt.bits if weight.zero_points is not None else 0
    return bits + (32 if weight.tensor_scale is not None else 0)


def bits_per_weight(analysis: Analysis, plans: Mapping[str, Plan], lowered: Lowered) -> float:
    """Stored bits of all site weights over their number; what is shared in one format counts once."""
    bits, counts = {}, {}
    for site in analysis.sites:
        plan = plans.get(site.name)
        key = (site.stored, plan.scheme.weight.name if plan and plan.scheme.weight else "float")
        bits[key] = bits_of(site) * count_of(site) if plan is None else stored(site, plan, lowered)
        counts[key] = count_of(site)
    return math.fsum(bits.values()) / max(sum(counts.values()), 1)


def bytes_in(folder: Path, lowered: Lowered) -> int:
    """Bytes of the files that a backend wrote."""
    return sum((folder / name).stat().st_size for name in lowered.files)
