"""Calibration: one pass of data through the float graph, and what is kept of it.

Kept per distinct site input: the second moment ``G = E[x xᵀ]`` and a sample of rows. The effect of every transform
and format is then computed (``G ↦ T G Tᵀ``), not run again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from qcompile.analysis.stacks import Route
from qcompile.errors import InputError
from qcompile.ir.required import constant
from qcompile.notes import Progress
from qcompile.run.data import Data
from qcompile.run.session import Session
from qcompile.run.taps import expose

if TYPE_CHECKING:
    import torch

__all__ = ["Routed", "Statistics", "collect", "held_out_from", "rows_of_value"]

#: Rows of each site input that are learned from; with a quarter of them, the shipped language model
#: diverges 6 % more in NVFP4.
MAX_ROWS = 32768

#: Rows of each site input that are kept.
SAMPLE_ROWS = 512

#: So many rows, and one in eight at most, are kept from the second moment: does what it teaches hold on others?
HELD_OUT_ROWS, HELD_OUT = 256, 8


@dataclass(frozen=True)
class Routed:
    """Rows of one value and the experts that multiply them.

    Args:
        rows: ``[rows, size]`` float32.
        owners: ``[rows, choices]``.
    """

    rows: np.ndarray
    owners: np.ndarray

    def of(self, expert: int) -> Statistics | None:
        """The statistics of the rows that one expert saw; ``None`` if it saw none."""
        own = self.rows[(self.owners == expert).any(1)]
        if not len(own):
            return None
        kept = np.arange(len(own)) % HELD_OUT != HELD_OUT - 1
        learned = own[kept]
        moment = (learned.T @ learned).astype(np.float64) / len(learned)
        return Statistics(moment, own[:SAMPLE_ROWS], len(own), own[~kept])


@dataclass(frozen=True)
class Statistics:
    """The statistics of one site input of ``size`` features.

    Args:
        second_moment: ``E[x xᵀ]``, ``[size, size]`` float64.
        sample: ``[rows, size]`` float32, of all rows.
        rows: how many rows were seen.
        held_out: ``[rows, size]`` float32, rows that the second moment has not seen.
        batches: how many of the data they come from.
        routed: the rows by how stacks of experts share them.
    """

    second_moment: np.ndarray
    sample: np.ndarray
    rows: int
    held_out: np.ndarray
    batches: int = 0
    routed: Mapping[Route, Routed] = field(default_factory=dict)


def collect(
    model: ir.Model, inputs: Mapping[str, int], data: Data, *, routes: Mapping[str, Sequence[Route]] | None = None,
    max_rows: int = MAX_ROWS, progress: Progress | None = None,
) -> dict[str, Statistics]:  # fmt: skip
    """Run the data through the graph and keep the statistics of site inputs.

    Args:
        model: the float graph.
        inputs: the axis of the features, by name of the value.
        routes: by name of the value, how experts share its rows.
        data: batches; they stop once ``max_rows`` rows of every value were seen.

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
    session = Session(model, list(dict.fromkeys(taps)))
    fixed = {name: constant(v).numpy() for name, v in model.graph.initializers.items() if name in indices}
    found = {name: _Collected(max_rows, len(data.batches)) for name in names}
    total = len(data.batches)
    for done, batch in enumerate(data.batches):
        if names and min(one.rows for one in found.values()) >= max_rows:
            break
        results = {**fixed, **batch, **session.run(batch)}
        for name, axis in inputs.items():
            x = rows_of_value(results[places.get(name, name)], axis)
            if not found[name].add(x):
                raise InputError(f"{data.about} gives NaN or infinity at '{name}'")
            for route in routes.get(name, ()):
                looked_up = None if route.indices is None else results.get(route.indices)
                found[name].share(x, route, route.owners(results[name], looked_up))
        if progress is not None:
            progress("calibrating", done + 1, total)
    return {name: one.statistics() for name, one in found.items() if one.rows}


def rows_of_value(array: np.ndarray, axis: int) -> torch.Tensor:
    """``[rows, size]`` float32, of a value whose features lie along an axis."""
    import torch

    moved = np.ascontiguousarray(np.moveaxis(array, axis, -1))
    return torch.from_numpy(moved).float().reshape(-1, moved.shape[-1])


def held_out_from(before: int, rows: int, expected: int) -> int:
    """Where the last rows of a batch begin, which are held out; as many came ``before``, so many are ``expected``."""
    every = max(HELD_OUT, expected // HELD_OUT_ROWS)
    return rows - ((before + rows) // every - before // every)


class _Collected:
    """The statistics of one value, as its rows come in."""

    def __init__(self, most: int, batches: int) -> None:
        self.most, self.batches, self.rows, self.learned = most, batches, 0, 0
        self.moment: Any = 0.0
        self.taken = 0
        self.sample: list[torch.Tensor] = []
        self.held_out: list[torch.Tensor] = []
        self.routed: dict[Route, list[tuple[np.ndarray, np.ndarray]]] = defaultdict(list)

    def share(self, x: torch.Tensor, route: Route, owners: np.ndarray) -> None:
        """Keep rows ``[rows, size]`` with the experts that multiply them."""
        self.routed[route].append((x.numpy().copy(), owners))

    def add(self, x: torch.Tensor) -> bool:
        """Take ``[rows, size]`` in, unless something in it is no number.

        The last rows of each batch are held out, so that they come from other places than those in front of them.
        """
        stop = held_out_from(self.rows, len(x), min(self.most, len(x) * self.batches))
        moment = (x[:stop].T @ x[:stop]).double()
        if not (moment.isfinite().all() and x[stop:].isfinite().all()):
            return False
        self.moment = self.moment + moment
        self.sample.append(_spread(x, len(x) * SAMPLE_ROWS // self.most))
        self.held_out.append(x[stop:].clone())
        self.rows, self.learned, self.taken = self.rows + len(x), self.learned + stop, self.taken + 1
        return True

    def statistics(self) -> Statistics:
        """The result after the last row."""
        import torch

        sample, held_out = (torch.cat(parts).numpy() for parts in (self.sample, self.held_out))
        routed = {route: Routed(*map(np.concatenate, zip(*parts))) for route, parts in self.routed.items()}
        moment = (self.moment / max(self.learned, 1)).numpy()
        return Statistics(moment, sample, self.rows, held_out, self.taken, routed)


def _spread(x: torch.Tensor, count: int) -> torch.Tensor:
    """A number of rows, but at least one if there is any, evenly spread."""
    import torch

    return x[torch.linspace(0, len(x) - 1, min(max(1, count), len(x))).long()]
