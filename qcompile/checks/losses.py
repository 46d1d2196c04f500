"""Measures how far the quantized model is from its source.

*Quantization error* compares the artifact's outputs with those of the float source. The other error, that of the
implementation, is in ``oracle``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qcompile.checks.equivalence import by_position, source_outputs, source_session
from qcompile.errors import InputError
from qcompile.run.data import Data
from qcompile.run.session import compare
from qcompile.statistics.sensitivity import divergence, logit_outputs, next_token_loss

if TYPE_CHECKING:
    from qcompile.preparation import Prepared
    from qcompile.statistics.calibration import Progress

Run = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]

__all__ = ["Measured", "measure", "quantized_loss", "verify"]


@dataclass(frozen=True)
class Measured:
    """Quantization error: the artifact against the float source.

    Args:
        rel_l2: of the outputs.
        divergence: mean KL divergence over logits, or half the relative squared error of other outputs.
        loss: mean next-token loss, in nats, by name of the model; empty where there is nothing to measure it on.
        rows: how many inputs were used.
        loss_error: standard error of what the quantized model loses more, over those inputs; ``None`` for one input.
    """

    rel_l2: float
    divergence: float
    loss: dict[str, float]
    rows: int
    loss_error: float | None = None


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
    more = np.subtract(losses["quantized"], losses["float"])  # on each input: what is hard for both drops out
    error = float(more.std(ddof=1) / np.sqrt(len(more))) if len(more) > 1 else None
    return Measured(float(np.mean(relative)), float(np.mean(divergences)), loss, len(data.batches), error)


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
    from qcompile.artifact.artifact import Artifact
    from qcompile.preparation import prepare
    from qcompile.run.data import load_data

    artifact = Artifact.open(artifact_folder)
    stated = artifact.manifest["source"]
    prepared = prepare(against if against is not None else stated["path"])
    if prepared.source.sha256 != stated["sha256"]:
        raise InputError(f"'{prepared.source.path}' is not the model that '{artifact_folder}' was made from")
    data, prepared.outputs = source_outputs(prepared.source, load_data(inputs, prepared.model))
    return measure(prepared, artifact.load(), data)

