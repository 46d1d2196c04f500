"""Calibration: one pass of data through the float graph, and what is kept of it.

Kept per distinct site input: the second moment ``G = E[x xᵀ]`` and a sample of rows. The effect of every transform
and format is then computed (``G ↦ T G Tᵀ``), not run again.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median_low
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from qcompile.analysis.stacks import Route
from qcompile.errors import InputError
from qcompile.ir.required import constant
from qcompile.notes import Decline, Progress
from qcompile.run.data import Data
from qcompile.run.taps import expose
from qcompile.statistics.second_moment import SecondMoment

if TYPE_CHECKING:
    import torch

    from qcompile.run.executor import Hook
    from qcompile.run.memory_budget import Memory

__all__ = ["DEVICE_ROWS", "FINE_ROWS", "MAX_ROWS", "Routed", "Statistics", "collect", "rows_of_value", "spread"]

#: Rows of each site input that are learned from; with a quarter of them, the shipped language model
#: diverges 6 % more in NVFP4.
MAX_ROWS = 32768

#: The same on a GPU, to which more rows cost little.
DEVICE_ROWS = 1 << 18

#: The same where all formats have 8 bits or more, whose steps leave little to learn: the shipped language model errs
#: 4 % more in INT8 than with six times the rows (0.0058, 0.0055), in half the processor time; a larger one in a third.
FINE_ROWS = 4096

#: Rows of each site input that are kept.
SAMPLE_ROWS = 512

#: Rows of all sequences together that are held out and judged by.
HELD_OUT_ROWS = 1024


@dataclass(frozen=True)
class Routed:
    """Rows of one value and the experts that multiply them.

    Args:
        parts: rows ``[rows, size]`` float32 and their owners ``[rows, choices]``, batch by batch.
        held_out: the same for the sequences that are held out.
    """

    parts: Sequence[tuple[np.ndarray, np.ndarray]]
    held_out: Sequence[tuple[np.ndarray, np.ndarray]] = ()

    def of(self, expert: int) -> Statistics | None:
        """The statistics of the rows that one expert saw; ``None`` if it saw none."""
        import torch

        own, held_out = ([x[(o == expert).any(1)] for x, o in parts] for parts in (self.parts, self.held_out))
        moment = SecondMoment()
        for part in own:
            moment.add(torch.from_numpy(part))
        if not moment.rows:
            return None
        sample = np.concatenate(own)[:SAMPLE_ROWS]
        held_out = [rows for rows in held_out if len(rows)]
        return Statistics(moment.array, sample, moment.rows, held_out, moment.effective)


@dataclass(frozen=True)
class Statistics:
    """The statistics of one site input of ``size`` features.

    Args:
        second_moment: ``E[x xᵀ]``, ``[size, size]`` float64, or float32 where it is large.
        sample: ``[rows, size]`` float32, of the rows that the second moment has seen.
        rows: how many these were.
        held_out: ``[rows, size]`` float32 for each sequence that it has not seen.
        effective: how many independent rows they are worth; see ``SecondMoment``.
        batches: how many of the data they come from.
        sequences: to how many the data was thinned; 0 for all.
        routed: the rows by how stacks of experts share them.
    """

    second_moment: np.ndarray
    sample: np.ndarray
    rows: int
    held_out: Sequence[np.ndarray] = ()
    effective: float = 0.0
    batches: int = 0
    sequences: int = 0
    routed: Mapping[Route, Routed] = field(default_factory=dict)


def collect(
    model: ir.Model, inputs: Mapping[str, int], data: Data, *, routes: Mapping[str, Sequence[Route]] | None = None,
    max_rows: int = MAX_ROWS, moments: bool = True, device: str = "cpu", memory: Memory | None = None,
    decline: Decline | None = None, progress: Progress | None = None,
    wanted: Collection[str] | None = None,
) -> dict[str, Statistics]:  # fmt: skip
    """Run the data through the graph, on the engine, and keep the statistics of site inputs.

    Args:
        model: the float graph.
        inputs: the axis of the features, by name of the value.
        data: batches; sequences are left out that most values need not for ``max_rows`` rows, as those say which are
            held out.
        routes: by name of the value, how experts share its rows.
        moments: whether second moments are wanted, which are large; without, they are empty.
        device: where it runs.
        memory: the budget of activations.
        decline: told which operators onnxruntime runs.
        wanted: names of the values whose statistics are kept; all without. Of the others, rows are counted alone, so
            that what is learned of one value does not depend on which are wanted beside it.

    Returns:
        by name of the value; one that got no row at all, such as the input of an expert without a token, is left out,
        and one in a body that cannot be seen from outside (``run.taps``).

    Raises:
        InputError: if a value is NaN or infinite on that data.
    """
    from qcompile.run.executor import Executor, dtype_for  # need torch
    from qcompile.run.stream import Stream

    outer = ir.convenience.create_value_mapping(model.graph, include_subgraphs=False)
    inner = {name: axis for name, axis in inputs.items() if name not in outer}
    model, places = expose(model, inner) if inner else (model, {})
    axes = {name: axis for name, axis in inputs.items() if name not in inner} | dict.fromkeys(places, -1)
    routes = routes or {}
    indices = {route.indices for own in routes.values() for route in own if route.indices is not None}
    expected = float("inf") if data.random else len(data.batches)  # random rows teach little: one a batch is enough
    found = {name: _Collected(axis, routes.get(name, ()), max_rows, expected, moments) for name, axis in axes.items()}
    for name, one in found.items():
        one.wanted = wanted is None or name in wanted
    seen_at = {places.get(name, name): one for name, one in found.items()}
    fixed = {name: constant(v).numpy() for name, v in model.graph.initializers.items() if name in indices}
    chosen: dict[tuple[str, int], np.ndarray] = {}
    hooked = {*seen_at, *indices} - {*fixed}
    engine = Executor(model, outputs=[], hooked=hooked, dtype=dtype_for(model, device), device=device)
    if decline is not None:
        engine.tell(decline)
    stream = Stream(engine, memory=memory)

    def run(batches: Sequence[Mapping[str, np.ndarray]], kept: int) -> None:
        def hooks(number: int) -> dict[str, Hook]:
            key = number if kept == 0 else -1 - number

            def at(name: str) -> Hook:
                def see(value: torch.Tensor) -> None:
                    if name in indices:
                        chosen[name, key] = value.cpu().numpy()
                    if name in seen_at:
                        seen_at[name].see(value, key, kept)

                return see

            return {name: at(name) for name in stream.engine.hooked}

        def settle() -> None:
            for name, one in found.items():
                if not one.settled():
                    raise InputError(f"{data.about} gives NaN or infinity at '{name}'")

        if batches:
            collections.deque(stream.run(batches, hooks, passed=passed, behind=settle), maxlen=0)

    def passed(done: int, _: int) -> None:
        if progress is not None:
            whole = len(stream.sections) * (len(data.held_out) + len(data.batches))
            progress("calibrating", done + (began[0]), whole)

    began, sequences = [0], 0
    run(data.held_out, HELD_OUT_ROWS // max(len(data.held_out), 1))
    began[0] = len(stream.sections) * len(data.held_out)
    if data.held_out and found:
        sequences = _enough([one.judged for one in found.values()], len(data.held_out), max_rows)
        data = data.thinned(sequences)
    run(data.batches, 0)
    looked_up = {
        (name, key): array for name, array in fixed.items() for key in range(-len(data.held_out), len(data.batches))
    }
    kept = {name: one for name, one in found.items() if one.wanted and one.rows}
    return {name: one.statistics(sequences, looked_up | chosen) for name, one in kept.items()}


def _enough(rows: Sequence[int], sequences: int, wanted: int) -> int:
    """Sequences that give most values so many rows, by how many each has of some sequences; 0 for all there are.

    A value with a row for each sequence, such as the input of a pooler, does not make the others see more.
    """
    usual = median_low(rows)
    return math.ceil(wanted * sequences / usual) if usual else 0


def rows_of_value(value: torch.Tensor, axis: int) -> torch.Tensor:
    """``[rows, size]`` in bfloat16 if it is so, else in float32, of a value whose features lie along an axis."""
    import torch

    moved = value.movedim(axis, -1)
    dtype = torch.bfloat16 if value.dtype is torch.bfloat16 else torch.float32
    return moved.to(dtype).reshape(-1, moved.shape[-1])


class _Collected:
    """The statistics of one value, as its rows come in.

    Args:
        axis: where its features lie.
        routes: how experts share its rows.
        most: rows that are learned from.
        batches: of these, as far as it is known.
        moments: whether the second moment is wanted.
    """

    def __init__(self, axis: int, routes: Sequence[Route], most: int, batches: float, moments: bool) -> None:
        self.axis, self.routes = axis, routes
        self.most, self.batches, self.moments, self.moment = most, batches, moments, SecondMoment()
        self.rows = self.taken = self.judged = 0
        self.wanted = True  # else rows are counted alone
        self.sample: list[torch.Tensor] = []
        self.held_out: list[np.ndarray] = []
        self._shared: list[tuple[int, np.ndarray, tuple[int, ...]]] = []  # batches: their rows, and their shape
        self._finite: list[torch.Tensor] = []

    def see(self, value: torch.Tensor, key: int, kept: int) -> None:
        """Take a value in.

        Args:
            key: of its batch: negative for what is held out.
            kept: rows to keep of it if it is held out, else 0.
        """
        x = rows_of_value(value, self.axis)
        if kept:
            self.judged += len(x)
        if not self.wanted:
            return
        self._finite.append(x.isfinite().all())
        if kept:
            self.held_out.append(spread(x, kept).float().cpu().numpy())
        else:
            self._add(x)
        if self.routes:
            self._shared.append((key, x.float().cpu().numpy(), tuple(value.movedim(self.axis, -1).shape)))

    def _add(self, x: torch.Tensor) -> None:
        if self.moments:
            self.moment.add(x)
        self.rows += len(x)
        part = spread(x, int(len(x) * SAMPLE_ROWS / max(min(self.most, len(x) * self.batches), 1)))
        self.sample.append(part.float().cpu().clone())
        self.taken += 1

    def settled(self) -> bool:
        """Move to RAM what has been learned; whether all of it was finite."""
        finite = not self._finite or all(map(bool, self._finite))
        self._finite.clear()
        self.moment.settle()
        return finite

    def statistics(self, sequences: int, chosen: Mapping[tuple[str, int], np.ndarray]) -> Statistics:
        """The result after the last row of so many sequences, with what looks experts up in each batch."""
        import torch

        return Statistics(
            self.moment.array, torch.cat(self.sample).numpy(), self.rows,
            [rows for rows in self.held_out if len(rows)], self.moment.effective, self.taken, sequences,
            {route: self._routed(route, chosen) for route in self.routes},
        )  # fmt: skip

    def _routed(self, route: Route, chosen: Mapping[tuple[str, int], np.ndarray]) -> Routed:
        parts: tuple[list[tuple[np.ndarray, np.ndarray]], ...] = ([], [])
        for key, x, shape in self._shared:
            looked_up = None if route.indices is None else chosen[route.indices, key]
            parts[key < 0].append((x, route.owners(x.reshape(shape), looked_up)))
        return Routed(*parts)


def spread(x: torch.Tensor, count: int) -> torch.Tensor:
    """A number of rows, but at least one if there is any, evenly spread."""
    import torch

    return x[torch.linspace(0, len(x) - 1, min(max(1, count), len(x))).long().to(x.device)]
