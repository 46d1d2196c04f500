"""Checks that the rotated model is the same function as its source, before anything is quantized."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from qcompile.analysis.folding import EAGER_BYTES, total_bytes
from qcompile.errors import VerificationError
from qcompile.ir.capture import Source
from qcompile.run.data import Data, accepted
from qcompile.run.segments import Segments
from qcompile.run.session import Session, compare, evaluate_double

if TYPE_CHECKING:
    from qcompile.preparation import Prepared
    from qcompile.statistics.calibration import Progress

__all__ = [
    "Equivalence", "begin_equivalence", "begin_source", "by_position", "equivalence", "settle", "source_outputs",
    "source_session",
]  # fmt: skip

#: Data, and what a model computes for some of its batches, by identity of the batch.
Outputs = tuple[Data, dict[int, dict[str, np.ndarray]]]

#: Relative L2 that a float-equivalent stage may differ by, by type of the weights.
TOLERANCE = {"float64": 1e-10, "float32": 1e-5, "float16": 1e-2, "bfloat16": 5e-2}


@dataclass(frozen=True)
class Equivalence:
    """How far the rotated float model is from its source.

    ``in_double`` is the relative L2 of both in float64, where they differ by more than usual: rounding by itself, if
    that is small.
    """

    rel_l2: float
    max_abs: float
    checked_inputs: int
    in_double: float | None = None
    tapped: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)  # values asked for, on the first input


def source_session(source: Source, *, optimize: bool = True) -> Session:
    """The captured model, ready to run."""
    return Session(source.path if _from_file(source) else source.model, optimize=optimize)


def _from_file(source: Source) -> bool:
    return Path(source.path).suffix == ".onnx" and Path(source.path).is_file() and not source.widened


def by_position(names: Sequence[str], values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs under other names: passes keep the order of outputs."""
    return dict(zip(names, values.values(), strict=True))


def source_outputs(source: Source, data: Data, seed: int = 0) -> Outputs:
    """The data that the source takes, and what it computes for the first batch, by identity of the batch."""
    return begin_source(source, data, seed)()


def begin_source(source: Source, data: Data, seed: int = 0) -> Callable[[], Outputs]:
    """``source_outputs`` in two parts: what is returned does the rest, and reads no tensor of the graph."""
    large = total_bytes(source.model) >= EAGER_BYTES
    session = Segments(source.model) if large else source_session(source, optimize=False)

    def run() -> Outputs:
        _ = session.inputs  # what cannot be loaded is not tried with other inputs
        taken, outputs = accepted(source.model, data, session.run, seed)
        return taken, {id(taken.batches[0]): outputs}

    return run if not large and _from_file(source) else _at_once(run)


def _at_once(run: Callable[[], Any]) -> Callable[[], Any]:
    """For graphs whose tensors are read while they run."""
    result = run()
    return lambda: result


def equivalence(
    prepared: Prepared, data: Data, progress: Progress | None = None, taps: Sequence[str] = ()
) -> Equivalence:
    """Compare the rewritten float graph with its source on the first input.

    Args:
        taps: names of values to keep from that run.

    Raises:
        VerificationError: if they differ by more than rounding.
    """
    if not prepared.outputs:
        data, prepared.outputs = source_outputs(prepared.source, data)
    return settle(prepared, data, begin_equivalence(prepared, data, progress, taps)())


def begin_equivalence(
    prepared: Prepared, data: Data, progress: Progress | None = None, taps: Sequence[str] = ()
) -> Callable[[], Equivalence]:
    """``equivalence`` in parts, once ``prepared.outputs`` are known: what is returned runs it; then ``settle``."""
    prepared.release_source()
    large = total_bytes(prepared.model) >= EAGER_BYTES
    rewritten = Segments(prepared.model, taps) if large else Session(prepared.model, taps, optimize=False)
    wanted = _checked(prepared, data)

    def run() -> Equivalence:
        relative = absolute = 0.0
        tapped: dict[str, np.ndarray] = {}
        for batch, want in wanted:
            have = rewritten.run(batch)
            tapped = tapped or {name: have[name] for name in taps}
            own = {name: have[name] for name in rewritten.outputs[: len(want)]}
            l2, largest = compare(want, by_position(list(want), own))
            relative, absolute = max(relative, l2), max(absolute, largest)
        if progress is not None:
            progress("checking equivalence", 1, 1)
        return Equivalence(relative, absolute, len(wanted), tapped=tapped)

    return _at_once(run) if large else run


def settle(prepared: Prepared, data: Data, found: Equivalence) -> Equivalence:
    """Refuse a rewritten graph that is another function.

    Some graphs amplify rounding beyond any tolerance: where they differ in float32, float64 decides.

    Raises:
        VerificationError: if the graph and its source differ by more than rounding.
    """
    allowed, in_double = _tolerance(prepared.model), None
    if found.rel_l2 <= allowed:
        return found
    if total_bytes(prepared.model) < EAGER_BYTES and np.isfinite(found.rel_l2):
        in_double = max(_in_double(prepared, batch) for batch, _ in _checked(prepared, data))
    if in_double is None or not in_double <= allowed:
        also = "" if in_double is None else f", {in_double:.2e} in float64"
        raise VerificationError(
            f"the rotated model differs from its source by a relative L2 of {found.rel_l2:.2e}{also}, "
            f"more than {allowed:.0e}"
        )
    return replace(found, in_double=in_double)


def _checked(prepared: Prepared, data: Data) -> list[tuple[Mapping[str, np.ndarray], dict[str, np.ndarray]]]:
    """The batches of which the outputs of the source are known, with these."""
    return [(batch, prepared.outputs[id(batch)]) for batch in data.batches if id(batch) in prepared.outputs]


def _in_double(prepared: Prepared, batch: Mapping[str, np.ndarray]) -> float:
    """Relative L2 between the rotated model and its source, both computed in float64."""
    want, have = (evaluate_double(model, batch) for model in (prepared.source.model, prepared.model))
    return compare(want, by_position(list(want), have))[0]


def _tolerance(model: ir.Model) -> float:
    kinds = {value.dtype.name.lower() for value in model.graph.initializers.values() if value.dtype is not None}
    names = {"float": "float32", "double": "float64"}
    found = [TOLERANCE[names.get(kind, kind)] for kind in kinds if names.get(kind, kind) in TOLERANCE]
    return max(found, default=TOLERANCE["float32"])
