"""Static ranges of values: each calibrator's, and the one by which readers err least on data that it has not seen."""

from __future__ import annotations

import collections
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import onnx_ir as ir

from qcompile.analysis.patches import Reading
from qcompile.errors import InputError
from qcompile.formats.format import Format
from qcompile.formats.static import Range
from qcompile.notes import Decline, Progress
from qcompile.run.data import Data
from qcompile.statistics.calibrators import calibrated
from qcompile.statistics.collected import spread
from qcompile.statistics.histograms import Histogram

if TYPE_CHECKING:
    import torch

    from qcompile.run.executor import Hook
    from qcompile.run.memory_budget import Memory

__all__ = ["Calibrated", "Wanted", "learn_ranges"]

#: Rows by which calibrators are compared, of all sequences together.
ROWS = 512

#: As many single values stand for a row where nothing says what is made of them.
ALONE = 64


@dataclass(frozen=True)
class Wanted:
    """A value that gets a range.

    Args:
        format: a static one.
        readers: the way in which each site reads it, with what reads rows of its weight, ``[rows, in]``; without any,
            the errors of the value itself count.
    """

    format: Format
    readers: Sequence[tuple[Reading, Callable[[], torch.Tensor]]] = ()


@dataclass(frozen=True)
class Calibrated:
    """The range of a value, and how it was found.

    Args:
        range: the range.
        calibrator: the name of the calibrator that it is of.
        errors: by calibrator, the squared error of the outputs of readers relative to these, summed over readers.
    """

    range: Range
    calibrator: str
    errors: Mapping[str, float]


@dataclass
class _Seen:
    """All that is kept of a value."""

    wanted: Wanted
    histogram: Histogram = field(default_factory=Histogram)
    judged: dict[Reading | None, list[torch.Tensor]] = field(default_factory=lambda: defaultdict(list))

    @property
    def readings(self) -> set[Reading | None]:
        """The ways in which it is read; ``None`` for the value as it is."""
        return {reading for reading, _ in self.wanted.readers} or {None}

    def chosen(self) -> Calibrated | None:
        """The range of least error; ``None`` if no value came."""
        import torch

        if not self.histogram.counts.any():
            return None
        found = calibrated(self.histogram, self.wanted.format)
        judged = self.judged.items()
        rows = {how: spread(torch.cat(parts), ROWS if how else ROWS * ALONE) for how, parts in judged}
        pairs = [(rows[reading], read().float().T) for reading, read in self.wanted.readers]
        pairs = pairs or [(own, torch.ones(())) for own in rows.values()]
        whole = [max(_energy(x, weight), 1e-30) for x, weight in pairs]

        def error(one: Range) -> float:
            off = (_energy(one.round(x) - x, weight) for x, weight in pairs)
            return sum(lost / of for lost, of in zip(off, whole, strict=True))

        errors = {name: error(one) for name, one in found.items()}
        best = min(errors, key=errors.__getitem__)
        return Calibrated(found[best], best, errors)


def _energy(x: torch.Tensor, weight: torch.Tensor) -> float:
    """Of the product of rows with a matrix, or of the rows themselves where that is a number."""
    return float((x @ weight if weight.ndim else x).square().sum())


def learn_ranges(
    model: ir.Model, wanted: Mapping[str, Wanted], data: Data, *, device: str = "cpu", memory: Memory | None = None,
    decline: Decline | None = None, progress: Progress | None = None,
) -> dict[str, Calibrated]:  # fmt: skip
    """The ranges of values of a float graph, by one run of the data through it.

    Calibrators learn from all of the data but what is held out, by which they are compared; where nothing is, by some
    of the same.

    Args:
        model: the graph; it stays as it is.
        wanted: by name of the value.
        data: to learn from.
        device: where it runs.
        memory: the budget of activations.
        decline: told which operators onnxruntime runs.

    Returns:
        by name; a value that the data never reaches is left out.

    Raises:
        InputError: if a value is NaN or infinite on that data.
    """
    from qcompile.run.executor import Executor, dtype_for  # need torch
    from qcompile.run.stream import Stream

    seen = {name: _Seen(one) for name, one in wanted.items()}
    engine = Executor(model, outputs=[], hooked=seen, dtype=dtype_for(model, device), device=device)
    if decline is not None:
        engine.tell(decline)
    stream = Stream(engine, memory=memory)
    batches = [*data.batches, *data.held_out]
    judged = range(len(data.batches), len(batches)) if data.held_out else range(len(batches))

    def hooks(number: int) -> dict[str, Hook]:
        kept = max(ROWS // len(judged), 1) if number in judged else 0
        return {name: _hook(seen[name], number < len(data.batches), kept) for name in engine.hooked}

    def passed(done: int, total: int) -> None:
        if progress is not None:
            progress("calibrating ranges", done, total)

    collections.deque(stream.run(batches, hooks, passed=passed), maxlen=0)
    for name, one in seen.items():
        if not one.histogram.finite:
            raise InputError(f"{data.about} gives NaN or infinity at '{name}'")
    found = {name: one.chosen() for name, one in seen.items()}
    return {name: one for name, one in found.items() if one is not None}


def _hook(seen: _Seen, learned: bool, kept: int) -> Hook:
    def see(value: torch.Tensor) -> None:
        if learned:
            seen.histogram.add(value)
        for reading in seen.readings if kept else ():
            rows = value.reshape(-1, 1) if reading is None else reading.rows(value)
            seen.judged[reading].append(spread(rows, kept if reading else kept * ALONE).float().cpu().clone())

    return see
