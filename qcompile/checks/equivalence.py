"""Checks that the rotated model is the same function as its source, before anything is quantized."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from qcompile.errors import InputError, VerificationError
from qcompile.ir.capture import Source
from qcompile.ir.graph import is_random, label
from qcompile.ir.tensors import EAGER_BYTES, release, total_bytes
from qcompile.run.compare import compare
from qcompile.run.data import Data, accepted
from qcompile.run.session import Interpreter, Session, double_session, evaluate_double

if TYPE_CHECKING:
    from qcompile.notes import Progress
    from qcompile.run.stream import Streamed

__all__ = [
    "Equivalence", "Observed", "begin_equivalence", "begin_source", "by_position", "equivalence", "observe_source",
    "settle", "source_session", "tolerance",
]  # fmt: skip


@dataclass(frozen=True)
class Observed:
    """Data that a source takes, and what it computes for the first batches, by identity of the batch."""

    data: Data
    outputs: Mapping[int, Mapping[str, np.ndarray]]

    @property
    def known(self) -> list[tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]]:
        """The batches of which the outputs are known, with these."""
        return [(batch, self.outputs[id(batch)]) for batch in self.data.batches if id(batch) in self.outputs]


#: Operators that a message names.
SHOWN = 3

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


def source_session(source: Source, *, optimize: bool = True, threads: int = 0) -> Session | Interpreter:
    """The captured model, ready to run; onnxruntime chooses the number of threads if it is 0."""
    if _is_double(source.model):  # some operators of onnxruntime are for float32 alone
        return double_session(source.model, optimize=optimize, threads=threads)
    return Session(source.path if _from_file(source) else source.model, optimize=optimize, threads=threads)


def _is_double(model: ir.Model) -> bool:
    return any(value.dtype is ir.DataType.DOUBLE for value in (*model.graph.inputs, *model.graph.initializers.values()))


def _from_file(source: Source) -> bool:
    return Path(source.path).suffix == ".onnx" and Path(source.path).is_file() and not source.widened


def by_position(names: Sequence[str], values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs under other names: passes keep the order of outputs."""
    return dict(zip(names, values.values(), strict=True))


def observe_source(source: Source, data: Data, seed: int = 0) -> Observed:
    """Run the source on the first batch of the data, or of what it takes if the data is random."""
    return begin_source(source, data, seed)()


def begin_source(source: Source, data: Data, seed: int = 0, device: str = "cpu") -> Callable[[], Observed]:
    """``observe_source`` in two parts: what is returned does the rest, and reads no tensor of the graph.

    Args:
        device: where the engine runs graphs that are too large for onnxruntime.
    """
    large = total_bytes(source.model) >= EAGER_BYTES
    session = _streamed(source.model, device) if large else source_session(source, optimize=False)

    def run() -> Observed:
        _ = session.inputs  # what cannot be loaded is not tried with other inputs
        taken, outputs = accepted(source.model, data, session.run, seed)
        if drawing := [node for node in source.model.graph.all_nodes() if is_random(node)]:
            _check_repeats(source, drawing, outputs, session.run(taken.batches[0]))
        return Observed(taken, {id(taken.batches[0]): outputs})

    return run if not large and _from_file(source) else _at_once(run)


def _check_repeats(
    source: Source, drawing: Sequence[ir.Node], once: Mapping[str, np.ndarray], again: Mapping[str, np.ndarray]
) -> None:  # fmt: skip
    """Refuse a graph whose outputs are no function of its inputs: nothing can be compared with it.

    Raises:
        InputError: naming the operators that draw random numbers.
    """
    apart = compare(once, again)[0]
    if not apart <= tolerance(source.model):
        names = ", ".join(label(node) for node in drawing[:SHOWN])
        raise InputError(
            f"two runs of '{source.path}' on one input differ by a relative L2 of {apart:.2g}: {names} draws random "
            "numbers; export the model for inference, or make them an input"
        )


def _at_once(run: Callable[[], Any]) -> Callable[[], Any]:
    """For graphs whose tensors are read while they run."""
    result = run()
    return lambda: result


def equivalence(
    source: Source, model: ir.Model, observed: Observed, progress: Progress | None = None
) -> Equivalence:  # fmt: skip
    """Compare a rewritten float graph with its source on the first input.

    Raises:
        VerificationError: if they differ by more than rounding.
    """
    return settle(source, model, observed, begin_equivalence(source, model, observed, progress)())


def begin_equivalence(
    source: Source, model: ir.Model, observed: Observed, progress: Progress | None = None, taps: Sequence[str] = (),
    device: str = "cpu",
) -> Callable[[], Equivalence]:  # fmt: skip
    """``equivalence`` in parts: what is returned runs the graph; then ``settle``.

    Args:
        taps: names of values to keep from that run.
        device: where the engine runs graphs that are too large for onnxruntime.
    """
    for value in source.model.graph.initializers.values():  # mapped again where something still needs them
        if value.const_value is not None:
            release(value.const_value)
    large = total_bytes(model) >= EAGER_BYTES
    load = double_session if _is_double(model) else Session
    rewritten = _streamed(model, device, taps) if large else load(model, taps, optimize=False)
    wanted = observed.known

    def run() -> Equivalence:
        relative = absolute = 0.0
        tapped: dict[str, np.ndarray] = {}
        for batch, want in wanted:
            have = rewritten.run(batch)
            tapped = tapped or {name: have[name] for name in taps}
            own = {name: have[name] for name in list(have)[: len(want)]}
            l2, largest = compare(want, by_position(list(want), own))
            relative, absolute = max(relative, l2), max(absolute, largest)
        if progress is not None:
            progress("checking equivalence", 1, 1)
        return Equivalence(relative, absolute, len(wanted), tapped=tapped)

    return _at_once(run) if large else run


def _streamed(model: ir.Model, device: str, taps: Sequence[str] = ()) -> Streamed:
    from qcompile.run.stream import Streamed  # needs torch

    return Streamed(model, taps, device)


def settle(source: Source, model: ir.Model, observed: Observed, found: Equivalence) -> Equivalence:
    """Refuse a rewritten graph that is another function.

    Some graphs amplify rounding beyond any tolerance: where they differ in float32, float64 decides.

    Raises:
        VerificationError: if the graph and its source differ by more than rounding.
    """
    allowed, in_double, also = tolerance(model), None, ""
    if found.rel_l2 <= allowed:
        return found
    if total_bytes(model) < EAGER_BYTES and np.isfinite(found.rel_l2):
        try:
            in_double = max(_in_double(source, model, batch) for batch, _ in observed.known)
            also = f", {in_double:.2e} in float64"
        except InputError as error:
            also = f" (float64 cannot decide: {error})"
    if in_double is None or not in_double <= allowed:
        raise VerificationError(
            f"the rewritten model differs from its source by a relative L2 of {found.rel_l2:.2e}{also}, "
            f"more than {allowed:.0e}"
        )
    return replace(found, in_double=in_double)


def _in_double(source: Source, model: ir.Model, batch: Mapping[str, np.ndarray]) -> float:
    """Relative L2 between the rotated model and its source, both computed in float64."""
    want, have = (evaluate_double(graph, batch) for graph in (source.model, model))
    return compare(want, by_position(list(want), have))[0]


def tolerance(model: ir.Model) -> float:
    """The relative L2 that rounding explains between two graphs that are one function, by the types of the weights."""
    kinds = {value.dtype.name.lower() for value in model.graph.initializers.values() if value.dtype is not None}
    names = {"float": "float32", "double": "float64"}
    found = [TOLERANCE[names.get(kind, kind)] for kind in kinds if names.get(kind, kind) in TOLERANCE]
    return max(found, default=TOLERANCE["float32"])
