"""The results of the stages. Each is frozen and holds the one before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from qcompile.analysis.inventory import Weight
from qcompile.analysis.siblings import Siblings
from qcompile.analysis.spaces import Analysis, Site
from qcompile.analysis.value_products import Product
from qcompile.checks.equivalence import Equivalence, Observed
from qcompile.checks.fake_quantized import Departure
from qcompile.checks.losses import FloatModel, Measured
from qcompile.checks.plain_rounding import Plain
from qcompile.checks.sites import Checked, Sampled
from qcompile.choice.export_options import Options
from qcompile.choice.placement import Placement
from qcompile.choice.selection import Choice
from qcompile.effort import Effort
from qcompile.group.group import ALONE, Group
from qcompile.ir.capture import Source
from qcompile.learning.taught import Taught
from qcompile.passes.state import State
from qcompile.run.data import Data
from qcompile.targets.cache_plans import CachePlan
from qcompile.targets.fake_quantization import Rounded
from qcompile.targets.plans import Plan
from qcompile.targets.registry import Backend, Lowered
from qcompile.targets.scheme import Scheme
from qcompile.targets.target import Target
from qcompile.work import Work

__all__ = ["Captured", "Chosen", "Compared", "Prepared", "Quantized", "Request", "Rotated", "Written", "float_model"]


@dataclass(frozen=True)
class Request:
    """The wish of the user, checked as far as that is possible without the model.

    Args:
        options: as the user gave them.
        target: the target, for the machine that was asked for.
        schemes: the candidates for each site.
        lowering: the target's own backend.
        progress: called with a step, the part of it that is done, and the whole; it takes the time of each.
        work: what earlier exports computed.
        rotates_caches: whether keys and queries may be rotated; this is fitted to nothing.
    """

    options: Options
    target: Target
    schemes: Sequence[Scheme]
    lowering: Backend
    progress: Effort
    work: Work = field(default_factory=Work)
    rotates_caches: bool = True

    def tell(self, step: str) -> None:
        """Report that a step is done."""
        self.progress(step, 1, 1)


@dataclass(frozen=True)
class Captured:
    """A model as it came.

    Args:
        source: the graph, its file and its digest.
        data: calibration data; ``None`` if nothing is to be run.
        seed: of random inputs.
        keep: patterns of sites that no pass may change.
        device: where the engine computes.
    """

    source: Source
    data: Data | None = None
    seed: int = 0
    keep: Sequence[str] = ()
    device: str = "cpu"


@dataclass(frozen=True)
class Prepared:
    """The graph in canonical form, with its norms folded, and its analysis; still the same function.

    Args:
        source: the graph as it came.
        state: the graph, and everything that was left alone.
        analysis: sites, spaces and freedoms.
        weights: every constant of the source, with the sites that hold it.
        observed: the data that the source takes, and its outputs; ``None`` if nothing is to be run.
        products: those of attention and of scans, which have no weights.
    """

    source: Source
    state: State
    analysis: Analysis
    weights: Sequence[Weight]
    observed: Observed | None = None
    products: Sequence[Product] = ()

    @property
    def model(self) -> ir.Model:
        """The graph."""
        return self.state.model

    @property
    def seen(self) -> Observed:
        """The outputs of the source, if it was run."""
        assert self.observed is not None, "the source was prepared without data"
        return self.observed


@dataclass(frozen=True)
class Chosen:
    """A scheme for every site, and a transform for every space and site that takes one.

    Args:
        prepared: the stage before.
        request: what was asked for.
        sites: the sites that the target can quantize.
        choice: schemes and transforms, with their predicted errors.
        yardstick: the float model that what becomes of the graph is measured against.
        held_out: the evaluation data, if there is any.
        plain: the errors of plain rounding without transforms, on the data on which the artifact is measured; ``None``
            if they were not measured.
        work: what earlier exports computed of this graph and the calibration data.
        taught: how learning of transforms went, where that was asked for.
    """

    prepared: Prepared
    request: Request
    sites: Sequence[Site]
    choice: Choice
    yardstick: FloatModel
    held_out: Data | None
    plain: Plain | None
    work: Work = field(default_factory=Work)
    taught: Sequence[Taught] = ()


@dataclass(frozen=True)
class Rotated:
    """The graph in its new basis; still the same function.

    Args:
        prepared: the graph and its analysis.
        siblings: the sites that may have changed basis.
        placement: the transforms.
        chosen: the stage before; ``None`` if nothing is to be quantized.
        equivalence: the distance from the source; ``None`` until it has been checked.
    """

    prepared: Prepared
    siblings: Sequence[Siblings]
    placement: Placement
    chosen: Chosen | None = None
    equivalence: Equivalence | None = None

    @property
    def model(self) -> ir.Model:
        """The graph."""
        return self.prepared.model

    @property
    def checked(self) -> Equivalence:
        """The distance from the source, where it has been measured."""
        assert self.equivalence is not None, "the rotated graph was not checked"
        return self.equivalence

    @property
    def wanted(self) -> Chosen:
        """The choice, if something is to be quantized."""
        assert self.chosen is not None, "the graph was rotated alone"
        return self.chosen


@dataclass(frozen=True)
class Quantized:
    """Every weight rounded, and the rotated graph checked against its source.

    Args:
        rotated: the stage before, checked; its graph is planned until it is lowered.
        plans: what that graph says, by name of the site: lowering replaces the operators that have the plans.
        checks: the sites whose lowering will be checked, as they stand in the float graph.
        caches: the plans of caches, in the order of the graph.
        taught: how learning of codes went, where that was asked for.
    """

    rotated: Rotated
    plans: Mapping[str, Plan]
    checks: Sequence[Sampled]
    caches: Sequence[CachePlan] = ()
    taught: Sequence[Taught] = ()

    @property
    def chosen(self) -> Chosen:
        """The stage in which schemes and transforms were chosen."""
        return self.rotated.wanted

    @property
    def equivalence(self) -> Equivalence:
        """The distance of the rotated graph from its source."""
        return self.rotated.checked


@dataclass(frozen=True)
class Written:
    """The target's files.

    Args:
        quantized: the stage before.
        folder: the folder that holds them.
        lowered: the result of the target's own backend; ``None`` where another process writes.
        rounded: the planned graph for the engine, made before it was lowered.
        before: the planned graph before it was lowered; ``None`` if no other runtime is compared with it.
    """

    quantized: Quantized
    folder: Path
    lowered: Lowered | None
    rounded: Rounded
    before: ir.Model | None

    @property
    def done(self) -> Lowered:
        """The result of the target's own backend, in the process that writes."""
        assert self.lowered is not None, "another process writes"
        return self.lowered


@dataclass(frozen=True)
class Compared:
    """The artifact against the float model, and against the definition of its formats.

    Args:
        written: the stage before.
        runtimes: by runtime, its files, or the reason why it has none; the target's own comes first.
        measured: quantization error.
        departure: how far what was lowered is from the engine; ``None`` if that could not measure it.
        checked: implementation error; ``None`` if it is not known.
    """

    written: Written
    runtimes: Mapping[str, dict[str, Any]]
    measured: Measured
    departure: Departure | None
    checked: Checked | None


def float_model(prepared: Prepared, device: str, group: Group = ALONE) -> FloatModel:
    """The float model, against which what becomes of a graph is measured."""
    own = FloatModel.of(prepared.source, prepared.analysis, prepared.seen, prepared.state.decline, device)
    return replace(own, group=group)
