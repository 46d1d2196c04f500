"""Measures how far the quantized model is from its source.

*Quantization error* compares the outputs of the quantized model with those of the float source. The other error, that
of the implementation, is in ``sites``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from qcompile.analysis.spaces import Analysis
from qcompile.checks.equivalence import Observed, by_position, source_session, tolerance
from qcompile.errors import VerificationError, reason_of
from qcompile.group.group import ALONE, Group
from qcompile.ir.capture import Source
from qcompile.ir.required import name_of
from qcompile.notes import FLOAT_ON_ENGINE, Decline
from qcompile.run.compare import float_tensors, relative_l2
from qcompile.run.data import Data
from qcompile.run.kept_outputs import KeptOutputs
from qcompile.statistics.sensitivity import divergence, logit_outputs, next_token_loss, next_tokens

if TYPE_CHECKING:
    from torch import Tensor

    from qcompile.notes import Progress
    from qcompile.run.session import Run
    from qcompile.run.stream import Stream

    Tensors = Mapping[str, Tensor]

__all__ = ["Batches", "FloatModel", "Measured", "Outputs", "each"]

#: Batches of named inputs.
Batches = Sequence[Mapping[str, np.ndarray]]

#: A graph as a function of batches: in a runtime, which returns arrays, or on the engine, which returns tensors.
Outputs = Callable[[Batches], Iterable[Mapping[str, Any]]]

T = TypeVar("T")

#: The engine computes another function than a source that it differs from by more, whatever the source's type rounds.
_ANOTHER = 1e-3


@dataclass(frozen=True)
class Measured:
    """Quantization error: the quantized model against the float source.

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
    """The float source that quantized models are measured against.

    It runs on the engine, or, where that does not compute what onnxruntime does, in onnxruntime.

    Args:
        source: the captured model.
        outputs: names of the graph's outputs, in order.
        logits: those that are logits.
        observed: what the source computes for some batches.
        decline: called where it does not run on the engine.
        device: where the engine computes, and the errors are.
        group: the processes that share the batches.
    """

    source: Source
    outputs: Sequence[str]
    logits: frozenset[str]
    observed: Observed
    decline: Decline
    device: str = "cpu"
    group: Group = ALONE

    @staticmethod
    def of(source: Source, analysis: Analysis, observed: Observed, decline: Decline, device: str) -> FloatModel:
        """From the analysis of the rewritten graph."""
        names = [name_of(value) for value in analysis.model.graph.outputs]
        logits = frozenset(logit_outputs(analysis.model, analysis.sites))
        return FloatModel(source, names, logits, observed, decline, device)

    def measure(self, run: Outputs, data: Data, progress: Progress | None = None) -> Measured:
        """Compare a quantized model with the float source."""
        seen = itertools.count(1)

        def compared(batch: Mapping[str, np.ndarray], want: Tensors, have: Tensors) -> tuple[Any, ...]:
            own = self.group.share(len(data.batches))
            if progress is not None:
                progress("measuring", next(seen), len(own))
            losses = [_losses(batch, outputs, self.logits) for outputs in (want, have)]
            return relative_l2(want, have), divergence(want, have, self.logits), *losses

        found = self._both(run, data, compared)
        relative, divergences = ([entry[i] for entry in found] for i in (0, 1))
        losses = {name: [loss for e in found for loss in e[i]] for i, name in ((2, "float"), (3, "quantized"))}
        loss = {name: float(np.mean(values)) for name, values in losses.items() if values}
        more = np.subtract(losses["quantized"], losses["float"])  # on each input: what is hard for both drops out
        error = float(more.std(ddof=1) / np.sqrt(len(more))) if len(more) > 1 else None
        return Measured(float(np.mean(relative)), float(np.mean(divergences)), loss, len(data.batches), error)

    def errors(self, run: Outputs, data: Data) -> list[float]:
        """The relative L2 of a quantized model's outputs for each batch."""
        return self._both(run, data, lambda _, want, have: relative_l2(want, have))

    def named(self, outputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """The outputs of a run, whatever it calls them, that hold floating-point numbers, under the graph's names."""
        return float_tensors(by_position(self.outputs, outputs))

    def _both(
        self, run: Outputs, data: Data, take: Callable[[Mapping[str, np.ndarray], Tensors, Tensors], T]
    ) -> list[T]:  # fmt: skip
        """Something of each batch, the outputs of the source and those of a quantized model."""

        def taken(batches: Batches) -> Iterator[T]:
            for batch, *outputs in zip(batches, self._wanted(batches), map(self.named, run(batches)), strict=True):
                want, have = ({name: value.to(self.device) for name, value in own.items()} for own in outputs)
                yield take(batch, want, have)

        return self.group.spread(data.batches, taken)

    def _wanted(self, batches: Batches) -> Iterator[Tensors]:
        """The source's outputs for each batch, which are computed once."""
        if all(id(batch) in self._kept for batch in batches):
            yield from (self._kept.of(batch) for batch in batches)
            return
        with self._running() as reference:
            for batch, outputs in zip(batches, reference(batches), strict=True):
                want = self.named(outputs)
                self._kept.keep(batch, want)
                yield want

    @cached_property
    def _kept(self) -> KeptOutputs:
        return KeptOutputs()

    @contextmanager
    def _running(self) -> Iterator[Outputs]:
        """The source; its weights are on the device for as long as it takes."""
        if self._stream is None:
            yield each(source_session(self.source).run)
            return
        try:
            yield self._stream.run
        finally:
            self._stream.engine.weights.clear()

    @cached_property
    def _stream(self) -> Stream | None:
        """The source on the engine, if that computes what onnxruntime computed for the first of the data."""
        from qcompile.run.executor import Executor, dtype_for
        from qcompile.run.stream import Stream

        model, ((batch, outputs), *_) = self.source.model, self.observed.known
        try:
            stream = Stream(Executor(model, dtype=dtype_for(model, "cpu"), device=self.device))
            (found,) = stream.run([batch])
            want = {name: value.to(self.device) for name, value in float_tensors(outputs).items()}
            apart = relative_l2(want, float_tensors(found))
            if not apart <= max(tolerance(model), _ANOTHER):
                raise VerificationError(f"its outputs differ from onnxruntime's by a relative L2 of {apart:.2g}")
        except Exception as error:  # whatever torch raises of a graph that it computes otherwise
            self.decline("*", FLOAT_ON_ENGINE, f"{reason_of(error)}; onnxruntime runs it")
            return None
        return stream


def each(run: Run) -> Outputs:
    """A function of one batch as a function of batches."""
    return lambda batches: map(run, batches)


def _losses(batch: Mapping[str, np.ndarray], outputs: Mapping[str, Tensor], logits: Collection[str]) -> list[float]:
    """The next-token loss of one batch, or nothing."""
    tokens = next_tokens(batch, outputs, logits)
    return [] if tokens is None else [next_token_loss(outputs[next(iter(logits))], tokens[1])]
