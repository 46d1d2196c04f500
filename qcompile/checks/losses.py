"""Measures how far the quantized model is from its source.

*Quantization error* compares the artifact's outputs with those of the float source. The other error, that of the
implementation, is in ``sites``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from qcompile.analysis.spaces import Analysis
from qcompile.checks.equivalence import Observed, by_position, source_session
from qcompile.ir.capture import Source
from qcompile.ir.required import name_of
from qcompile.run.compare import compare
from qcompile.run.data import Data
from qcompile.run.sequences import tensors
from qcompile.run.session import Run
from qcompile.statistics.sensitivity import divergence, logit_outputs, next_token_loss

if TYPE_CHECKING:
    from qcompile.notes import Progress

__all__ = ["FloatModel", "Measured"]


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


@dataclass(frozen=True)
class FloatModel:
    """The float source that artifacts are measured against.

    Args:
        source: the captured model.
        outputs: names of the graph's outputs, in order.
        logits: those that are logits.
        observed: what the source computes for some batches.
    """

    source: Source
    outputs: Sequence[str]
    logits: frozenset[str]
    observed: Observed

    @staticmethod
    def of(source: Source, analysis: Analysis, observed: Observed) -> FloatModel:
        """From the analysis of the rewritten graph."""
        names = [name_of(value) for value in analysis.model.graph.outputs]
        return FloatModel(source, names, frozenset(logit_outputs(analysis.model, analysis.sites)), observed)

    def measure(self, run: Run, data: Data, progress: Progress | None = None) -> Measured:
        """Compare an artifact with the float source."""
        known = self.observed.outputs
        reference = None if all(id(batch) in known for batch in data.batches) else source_session(self.source)
        relative, divergences = [], []
        losses: dict[str, list[float]] = {"float": [], "quantized": []}
        for done, batch in enumerate(data.batches):
            want = by_position(self.outputs, reference.run(batch) if reference else known[id(batch)])
            have = by_position(self.outputs, run(batch))
            relative.append(compare(want, have)[0])
            divergences.append(divergence(want, have, self.logits))
            for name, outputs in (("float", want), ("quantized", have)):
                losses[name] += _losses(batch, outputs, self.logits)
            if progress is not None:
                progress("measuring", done + 1, len(data.batches))
        loss = {name: float(np.mean(values)) for name, values in losses.items() if values}
        more = np.subtract(losses["quantized"], losses["float"])  # on each input: what is hard for both drops out
        error = float(more.std(ddof=1) / np.sqrt(len(more))) if len(more) > 1 else None
        return Measured(float(np.mean(relative)), float(np.mean(divergences)), loss, len(data.batches), error)

    def errors(self, run: Run, data: Data) -> list[float]:
        """The relative L2 of an artifact's outputs for each batch."""
        reference = source_session(self.source)
        return [
            compare(by_position(self.outputs, reference.run(batch)), by_position(self.outputs, run(batch)))[0]
            for batch in data.batches
        ]

    def loss(self, run: Run, data: Data) -> float | None:
        """The mean next-token loss of an artifact alone; ``None`` where the model predicts no tokens."""
        outputs = ((batch, by_position(self.outputs, run(batch))) for batch in data.batches)
        losses = [loss for batch, made in outputs for loss in _losses(batch, made, self.logits)]
        return float(np.mean(losses)) if losses else None


def _losses(batch: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray], logits: Collection[str]) -> list[float]:
    """The next-token loss of one batch, or nothing."""
    tokens = _tokens(batch, outputs, logits)
    return [] if tokens is None else [next_token_loss(outputs[next(iter(logits))], tokens)]


def _tokens(
    batch: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray], logits: Collection[str]
) -> np.ndarray | None:
    """The input whose next elements the logits predict: integers of the logits' leading shape, all of them scored."""
    if not logits:
        return None
    *shape, scored = outputs[next(iter(logits))].shape
    integers = (v for v in tensors(batch).values() if np.issubdtype(v.dtype, np.integer))
    found = (v for v in integers if v.shape == tuple(shape) and v.shape[-1] > 1)
    return next((v for v in found if not v.size or 0 <= v.min() <= v.max() < scored), None)
