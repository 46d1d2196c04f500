"""Calibration: one pass of data through the float graph, and what is kept of it.

Kept per distinct site input: the second moment ``G = E[x xᵀ]`` and a sample of rows. The effect of every transform
and format is then computed (``G ↦ T G Tᵀ``), not run again.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median_low
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from qcompile.analysis.stacks import Route
from qcompile.errors import InputError
from qcompile.ir.required import constant
from qcompile.notes import Progress
from qcompile.run.data import Data
from qcompile.run.session import Session
from qcompile.run.taps import expose
from qcompile.statistics.second_moment import SecondMoment

if TYPE_CHECKING:
    import torch

__all__ = ["FINE_ROWS", "MAX_ROWS", "Routed", "Statistics", "collect", "rows_of_value", "spread"]

#: Rows of each site input that are learned from; with a quarter of them, the shipped language model
#: diverges 6 % more in NVFP4.
MAX_ROWS = 32768

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
        return Statistics(moment.matrix.numpy(), sample, moment.rows, held_out, moment.effective)


@dataclass(frozen=True)
class Statistics:
    """The statistics of one site input of ``size`` features.

    Args:
        second_moment: ``E[x xᵀ]``, ``[size, size]`` float64.
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
    max_rows: int = MAX_ROWS, moments: bool = True, progress: Progress | None = None,
) -> dict[str, Statistics]:  # fmt: skip
    """Run the data through the graph and keep the statistics of site inputs.

    Args:
        model: the float graph.
        inputs: the axis of the features, by name of the value.
        routes: by name of the value, how experts share its rows.
        moments: whether second moments are wanted, which are large; without, they are empty.
        data: batches; they stop once ``max_rows`` rows of every value were seen, but for those held out. These say how
            many rows a sequence has, and so how many sequences suffice for most values.

    Returns:
        by name of the value; one that got no row at all, such as the input of an expert without a token, is left out,
        and one in a body that cannot be seen from outside (``run.taps``).

    Raises:
        InputError: if a value is NaN or infinite on that data.
    """

    outer = ir.convenience.create_value_mapping(model.graph, include_subgraphs=False)
    inner = {name: axis for name, axis in inputs.items() if name not in outer}
    model, places = expose(model, inner) if inner else (model, {})
    inputs = {name: axis for name, axis in inputs.items() if name not in inner} | dict.fromkeys(places, -1)
    names, routes = [*inputs], routes or {}
    indices = [route.indices for value in routes.values() for route in value if route.indices is not None]
    given = {value.name for value in model.graph.inputs} | set(model.graph.initializers)
    taps = [*(name for name in names if name not in places), *(name for name in indices if name not in given)]
    session = Session(model, list(dict.fromkeys(taps)), optimize=not data.random)  # a few rows: loading counts
    fixed = {name: constant(v).numpy() for name, v in model.graph.initializers.items() if name in indices}
    expected = float("inf") if data.random else len(data.batches)  # random rows teach little: one a batch is enough
    found = {name: _Collected(max_rows, expected, moments) for name in names}
    total = len(data.batches) + len(data.held_out)
    sequences = 0
    for done in range(total):
        held_out = done < len(data.held_out)
        if done == len(data.held_out) > 0 and names:
            sequences = _enough([one.judged for one in found.values()], len(data.held_out), max_rows)
            data = data.thinned(sequences)
        batch = data.held_out[done] if held_out else data.batches[done - len(data.held_out)]
        if names and not held_out and min(one.rows for one in found.values()) >= max_rows:
            continue
        results = {**fixed, **batch, **session.run(batch)}
        for name, axis in inputs.items():
            x = rows_of_value(results[places.get(name, name)], axis)
            if not x.isfinite().all():
                raise InputError(f"{data.about} gives NaN or infinity at '{name}'")
            if held_out:
                found[name].judged += len(x)
                found[name].held_out.append(spread(x, HELD_OUT_ROWS // len(data.held_out)).numpy().copy())
            else:
                found[name].add(x)
            for route in routes.get(name, ()):
                looked_up = None if route.indices is None else results.get(route.indices)
                found[name].share(x, route, route.owners(results[name], looked_up), held_out=held_out)
        if progress is not None:
            progress("calibrating", done + 1, total)
    return {name: one.statistics(sequences) for name, one in found.items() if one.rows}


def _enough(rows: Sequence[int], sequences: int, wanted: int) -> int:
    """Sequences that give most values so many rows, by how many each has of some sequences; 0 for all there are.

    A value with a row for each sequence, such as the input of a pooler, does not make the others see more.
    """
    usual = median_low(rows)
    return math.ceil(wanted * sequences / usual) if usual else 0


def rows_of_value(array: np.ndarray, axis: int) -> torch.Tensor:
    """``[rows, size]`` float32, of a value whose features lie along an axis."""
    import torch

    moved = np.ascontiguousarray(np.moveaxis(array, axis, -1))
    return torch.from_numpy(moved).float().reshape(-1, moved.shape[-1])


class _Collected:
    """The statistics of one value, as its rows come in."""

    def __init__(self, most: int, batches: float, moments: bool) -> None:
        self.most, self.batches, self.moments, self.moment = most, batches, moments, SecondMoment()
        self.rows = self.taken = self.judged = 0
        self.sample: list[torch.Tensor] = []
        self.held_out: list[np.ndarray] = []
        self.routed: dict[tuple[Route, bool], list[tuple[np.ndarray, np.ndarray]]] = defaultdict(list)

    def share(self, x: torch.Tensor, route: Route, owners: np.ndarray, *, held_out: bool) -> None:
        """Keep rows ``[rows, size]`` with the experts that multiply them."""
        self.routed[route, held_out].append((x.numpy().copy(), owners))

    def add(self, x: torch.Tensor) -> None:
        """Take ``[rows, size]`` in."""
        if self.moments:
            self.moment.add(x)
        self.rows += len(x)
        self.sample.append(spread(x, int(len(x) * SAMPLE_ROWS / max(min(self.most, len(x) * self.batches), 1))))
        self.taken += 1

    def statistics(self, sequences: int) -> Statistics:
        """The result after the last row of so many sequences."""
        import torch

        routes = {route for route, _ in self.routed}
        routed = {route: Routed(self.routed[route, False], self.routed[route, True]) for route in routes}
        return Statistics(
            self.moment.matrix.numpy(), torch.cat(self.sample).numpy(), self.rows,
            [rows for rows in self.held_out if len(rows)], self.moment.effective, self.taken, sequences, routed,
        )  # fmt: skip


def spread(x: torch.Tensor, count: int) -> torch.Tensor:
    """A number of rows, but at least one if there is any, evenly spread."""
    import torch

    return x[torch.linspace(0, len(x) - 1, min(max(1, count), len(x))).long()]
