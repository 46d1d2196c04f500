"""All facts about an export that its manifest tells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qcompile.analysis.inventory import Weight
    from qcompile.analysis.spaces import Analysis, Site
    from qcompile.analysis.value_products import Product
    from qcompile.checks.equivalence import Equivalence
    from qcompile.checks.fake_quantized import Departure
    from qcompile.checks.losses import Measured
    from qcompile.checks.plain_rounding import Plain
    from qcompile.checks.sites import Checked
    from qcompile.choice.export_options import Options
    from qcompile.choice.selection import Choice
    from qcompile.ir.capture import Source
    from qcompile.learning.taught import Taught
    from qcompile.passes.state import State
    from qcompile.run.data import Data
    from qcompile.targets.cache_plans import CachePlan
    from qcompile.targets.plans import Plan
    from qcompile.targets.registry import Lowered
    from qcompile.targets.target import Target

__all__ = ["Facts"]


@dataclass(frozen=True)
class Facts:
    """All facts about an export.

    Args:
        source: the graph as it came.
        state: everything that was left alone, and notes of passes.
        analysis: the analysis of the graph before it changed basis.
        weights: every constant of the source, with the sites that hold it.
        sites: the sites that the target can quantize; the others appear as ``float``.
        choice: schemes and transforms.
        plans: how each site that is quantized computes, by name.
        lowered: the result of the target's own backend.
        runtimes: by runtime, its files, or the reason why it has none; the target's own comes first.
        options: as the user gave them.
        target: the target.
        equivalence: the distance of the rotated graph from its source.
        measured: quantization error.
        plain: that of plain rounding, if it was measured.
        departure: how far what was lowered is from the engine, if that measured the quantization error.
        checked: implementation error, if it is known.
        folder: the folder that holds the target's own files.
        data: what was learned from, and what was held out.
        caches: the plans of caches.
        products: those of attention and of scans.
        learned: how what was learned along gradients went, if anything was.
    """

    source: Source
    state: State
    analysis: Analysis
    weights: Sequence[Weight]
    sites: Sequence[Site]
    choice: Choice
    plans: Mapping[str, Plan]
    lowered: Lowered
    runtimes: Mapping[str, Mapping[str, Any]]
    options: Options
    target: Target
    equivalence: Equivalence
    measured: Measured
    plain: Plain | None
    departure: Departure | None
    checked: Checked | None
    folder: Path
    data: Data
    caches: Sequence[CachePlan] = ()
    products: Sequence[Product] = ()
    learned: Sequence[Taught] = ()
