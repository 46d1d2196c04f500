"""Verifies that the rotated model is the same function, and measures how far the quantized one is from it.

*Quantization error* compares the artifact's outputs with those of the float source. The other error, that of the
implementation, is in ``oracle``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from qcompile.calibration import divergence, logit_outputs, next_token_loss
from qcompile.capture import Source
from qcompile.data import Data, accepted
from qcompile.errors import InputError, VerificationError
from qcompile.evaluate import Session, compare, evaluate_double
from qcompile.folding import EAGER_BYTES, total_bytes
from qcompile.segments import Segments

if TYPE_CHECKING:
    from qcompile.calibration import Progress
    from qcompile.preparation import Prepared

Run = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]

__all__ = ["Equivalence", "Measured", "equivalence", "measure", "quantized_loss", "source_outputs", "verify"]

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


@dataclass(frozen=True)
class Measured:
    """Quantization error: the artifact against the float source.

    Args:
        rel_l2: of the outputs.
        divergence: mean KL divergence over logits, or half the relative squared error of other outputs.
        loss: mean next-token loss, in nats, by name of the model; empty where there is nothing to measure it on.
        rows: how many inputs were used.
    """

    rel_l2: float
    divergence: float
    loss: dict[str, float]
    rows: int


def source_session(source: Source, *, optimize: bool = True) -> Session:
    """The captured model, ready to run."""
    from_file = Path(source.path).suffix == ".onnx" and Path(source.path).is_file()
    return Session(source.path if from_file else source.model, optimize=optimize)


def by_position(names: Sequence[str], values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs under other names: passes keep the order of outputs."""
    return dict(zip(names, values.values(), strict=True))


def source_outputs(source: Source, data: Data, seed: int = 0) -> tuple[Data, dict[int, dict[str, np.ndarray]]]:
    """The data that the source takes, and what it computes for the first batch, by identity of the batch."""
    large = total_bytes(source.model) >= EAGER_BYTES
    session = Segments(source.model) if large else source_session(source, optimize=False)
    data, outputs = accepted(source.model, data, session.run, seed)
    return data, {id(data.batches[0]): outputs}


def equivalence(
    prepared: Prepared, data: Data, progress: Progress | None = None, taps: Sequence[str] = ()
) -> Equivalence:
    """Compare the rewritten float graph with its source on the first input.

    Args:
        taps: names of values to keep from that run.

    Some graphs amplify rounding beyond any tolerance: where they differ in float32, float64 decides.

    Raises:
        VerificationError: if they differ by more than rounding.
    """
    if not prepared.outputs:
        data, prepared.outputs = source_outputs(prepared.source, data)
    prepared.release_source()
    large = total_bytes(prepared.model) >= EAGER_BYTES
    rewritten = Segments(prepared.model, taps) if large else Session(prepared.model, taps, optimize=False)
    batches = [batch for batch in data.batches if id(batch) in prepared.outputs]
    relative = absolute = 0.0
    tapped: dict[str, np.ndarray] = {}
    for batch in batches:
        want, have = prepared.outputs[id(batch)], rewritten.run(batch)
        tapped = tapped or {name: have[name] for name in taps}
        own = {name: have[name] for name in rewritten.outputs[: len(want)]}
        l2, largest = compare(want, by_position(list(want), own))
        relative, absolute = max(relative, l2), max(absolute, largest)
    allowed, in_double = _tolerance(prepared.model), None
    if not relative <= allowed:
        if not large and np.isfinite(relative):
            in_double = max(_in_double(prepared, batch) for batch in batches)
        if in_double is None or not in_double <= allowed:
            also = "" if in_double is None else f", {in_double:.2e} in float64"
            raise VerificationError(
                f"the rotated model differs from its source by a relative L2 of {relative:.2e}{also}, "
                f"more than {allowed:.0e}"
            )
    if progress is not None:
        progress("checking equivalence", 1, 1)
    return Equivalence(relative, absolute, len(batches), in_double, tapped)


def _in_double(prepared: Prepared, batch: Mapping[str, np.ndarray]) -> float:
    """Relative L2 between the rotated model and its source, both computed in float64."""
    want, have = (evaluate_double(model, batch) for model in (prepared.source.model, prepared.model))
    return compare(want, by_position(list(want), have))[0]


def _tolerance(model: ir.Model) -> float:
    kinds = {value.dtype.name.lower() for value in model.graph.initializers.values() if value.dtype is not None}
    names = {"float": "float32", "double": "float64"}
    found = [TOLERANCE[names.get(kind, kind)] for kind in kinds if names.get(kind, kind) in TOLERANCE]
    return max(found, default=TOLERANCE["float32"])


# -- quantization error ------------------------------------------------------------------------------------------------


def measure(prepared: Prepared, run: Run, data: Data, progress: Progress | None = None) -> Measured:
    """Compare an artifact with the float source."""
    known = all(id(batch) in prepared.outputs for batch in data.batches)
    reference = None if known else source_session(prepared.source)
    logits = logit_outputs(prepared.model, prepared.analysis.sites)
    names = [value.name for value in prepared.model.graph.outputs]
    relative, divergences, losses = [], [], {"float": [], "quantized": []}
    for done, batch in enumerate(data.batches):
        want = by_position(names, reference.run(batch) if reference else prepared.outputs[id(batch)])
        have = by_position(names, run(batch))
        relative.append(compare(want, have)[0])
        divergences.append(divergence(want, have, logits))
        for name, outputs in (("float", want), ("quantized", have)):
            losses[name] += _losses(batch, outputs, logits)
        if progress is not None:
            progress("measuring", done + 1, len(data.batches))
    loss = {name: float(np.mean(values)) for name, values in losses.items() if values}
    return Measured(float(np.mean(relative)), float(np.mean(divergences)), loss, len(data.batches))


def quantized_loss(prepared: Prepared, run: Run, data: Data) -> float | None:
    """The mean next-token loss of an artifact alone; ``None`` where the model predicts no tokens."""
    logits = logit_outputs(prepared.model, prepared.analysis.sites)
    names = [value.name for value in prepared.model.graph.outputs]
    losses = [loss for batch in data.batches for loss in _losses(batch, by_position(names, run(batch)), logits)]
    return float(np.mean(losses)) if losses else None


def _losses(batch: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray], logits: set[str]) -> list[float]:
    """The next-token loss of one batch, or nothing."""
    tokens = _tokens(batch, outputs, logits)
    return [] if tokens is None else [next_token_loss(outputs[next(iter(logits))], tokens)]


def _tokens(batch: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray], logits: set[str]) -> np.ndarray | None:
    """The input whose next elements the logits predict: integers of the logits' leading shape."""
    if not logits:
        return None
    shape = outputs[next(iter(logits))].shape[:-1]
    found = [v for v in batch.values() if np.issubdtype(v.dtype, np.integer) and v.shape == shape and v.shape[-1] > 1]
    return found[0] if found else None


def verify(
    artifact_folder: str | Path, against: str | Path | None = None, inputs: str | Path | None = None
) -> Measured:
    """Measure an artifact against its source model again.

    Args:
        against: the source model; by default the path that the manifest names.
        inputs: an ``.npz`` file to measure on; random inputs without it.

    Raises:
        InputError: if the source is missing or is not the one that the artifact was made from.
    """
    from qcompile.artifact import Artifact
    from qcompile.data import load_data
    from qcompile.preparation import prepare

    artifact = Artifact.open(artifact_folder)
    stated = artifact.manifest["source"]
    prepared = prepare(against if against is not None else stated["path"])
    if prepared.source.sha256 != stated["sha256"]:
        raise InputError(f"'{prepared.source.path}' is not the model that '{artifact_folder}' was made from")
    data, prepared.outputs = source_outputs(prepared.source, load_data(inputs, prepared.model))
    return measure(prepared, artifact.load(), data)

