"""Calibration: one pass of data through the float graph, and what is kept of it.

Kept per distinct site input: the second moment ``G = E[x xᵀ]`` and a sample of rows. The effect of every transform
and format is then computed (``G ↦ T G Tᵀ``), not run again.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Collection, Mapping, Sequence
from statistics import median_low
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from qcompile.analysis.patches import Reading
from qcompile.analysis.stacks import Route
from qcompile.errors import InputError
from qcompile.group.group import ALONE, Group, lane_of
from qcompile.ir.required import constant
from qcompile.notes import Decline, Progress
from qcompile.run.data import Data
from qcompile.run.taps import expose
from qcompile.statistics.collected import Collected, Statistics

if TYPE_CHECKING:
    import torch

    from qcompile.run.executor import Hook, Section
    from qcompile.run.memory_budget import Memory

__all__ = ["DEVICE_ROWS", "FINE_ROWS", "HELD_OUT_ROWS", "MAX_ROWS", "collect"]

#: Rows of each site input that are learned from; with a quarter of them, the shipped language model
#: diverges 6 % more in NVFP4.
MAX_ROWS = 32768

#: The same on a GPU, to which more rows cost little.
DEVICE_ROWS = 1 << 18

#: The same where all formats have 8 bits or more, whose steps leave little to learn: the shipped language model errs
#: 4 % more in INT8 than with six times the rows (0.0058, 0.0055), in half the processor time; a larger one in a third.
FINE_ROWS = 4096

#: Rows of all sequences together that are held out and judged by.
HELD_OUT_ROWS = 1024


def collect(
    model: ir.Model, inputs: Mapping[str, Reading], data: Data, *, routes: Mapping[str, Sequence[Route]] | None = None,
    max_rows: int = MAX_ROWS, moments: bool = True, device: str = "cpu", memory: Memory | None = None,
    decline: Decline | None = None, progress: Progress | None = None,
    wanted: Collection[str] | None = None, group: Group = ALONE,
) -> dict[str, Statistics]:  # fmt: skip
    """Run the data through the graph, on the engine, and keep the statistics of site inputs.

    Args:
        model: the float graph.
        inputs: how sites read values, by a name of what they read: that of the value, where it is all of it.
        data: batches; sequences are left out that most values need not for ``max_rows`` rows, as those say which are
            held out.
        routes: by name of the value, how experts share its rows.
        moments: whether second moments are wanted, which are large; without, they are empty.
        device: where it runs.
        memory: the budget of activations.
        decline: told which operators onnxruntime runs.
        wanted: names of the values whose statistics are kept; all without. Of the others, rows are counted alone, so
            that what is learned of one value does not depend on which are wanted beside it.
        group: the processes that share the batches.

    Returns:
        by that name; one that got no row at all, such as the input of an expert without a token, is left out,
        and one in a body that cannot be seen from outside (``run.taps``).

    Raises:
        InputError: if a value is NaN or infinite on that data.
    """
    outer = ir.convenience.create_value_mapping(model.graph, include_subgraphs=False)
    inner = {name: own.axis for name, own in inputs.items() if own.value not in outer and own.patches is None}
    model, places = expose(model, inner) if inner else (model, {})
    readings = {name: own for name, own in inputs.items() if own.value in outer}
    readings |= {name: Reading(place, -1) for name, place in places.items()}
    expected = float("inf") if data.random else len(data.batches)  # random rows teach little: one a batch is enough
    found = {
        name: Collected(
            reading, (routes or {}).get(name, ()), max_rows, expected, moments=moments,
            wanted=wanted is None or name in wanted, group=group,
        )
        for name, reading in readings.items()
    }  # fmt: skip
    running = _Running(model, found, device, memory, data.about, decline, progress, group)
    running.run(data.held_out, ahead=len(data.batches), kept=HELD_OUT_ROWS // max(len(data.held_out), 1))
    sequences = 0
    if data.held_out and found:
        sequences = _enough([one.judged for one in found.values()], len(data.held_out), max_rows)
        data = data.thinned(sequences)
    running.run(data.batches)
    kept = {name: one for name, one in found.items() if one.wanted and one.rows}
    return {name: one.statistics(sequences, running.looked_up) for name, one in kept.items()}


class _Running:
    """A graph on the engine, whose values are taken in as batches pass its sections.

    Args:
        found: what takes them in, by name.
        about: the data in words.
        group: the processes that share the batches.
    """

    def __init__(
        self, model: ir.Model, found: Mapping[str, Collected], device: str,
        memory: Memory | None, about: str, decline: Decline | None, progress: Progress | None, group: Group,
    ) -> None:  # fmt: skip
        from qcompile.run.executor import Executor, dtype_for  # need torch
        from qcompile.run.stream import Stream

        self._found, self._about, self._progress, self._passed, self._group = found, about, progress, 0, group
        self._at: dict[str, list[Collected]] = collections.defaultdict(list)
        for one in found.values():
            self._at[one.reading.value].append(one)
        self._indices = {route.indices for one in found.values() for route in one.routes if route.indices is not None}
        constants = {name: value for name, value in model.graph.initializers.items() if name in self._indices}
        self._fixed = {name: constant(value).numpy() for name, value in constants.items()}
        #: What looks experts up, by its name and the key of the batch.
        self.looked_up: dict[tuple[str, int], np.ndarray] = {}
        self._new: dict[tuple[str, int], np.ndarray] = {}  # by this process, in a section
        hooked = {*self._at, *self._indices} - {*self._fixed}
        engine = Executor(model, outputs=[], hooked=hooked, dtype=dtype_for(model, device), device=device)
        if decline is not None:
            engine.tell(decline)
        self._stream = Stream(engine, memory=memory)

    def run(self, batches: Sequence[Mapping[str, np.ndarray]], ahead: int = 0, kept: int = 0) -> None:
        """Let batches pass.

        Args:
            ahead: how many more are to come, for the progress.
            kept: rows to keep of each value of a batch that is held out, else 0.
        """
        sections, count = len(self._stream.sections), len(batches)
        own = list(self._group.share(count)) if kept else self._group.lanes(count)
        whole = self._passed + sections * (len(own) + len(self._group.lanes(ahead)))

        def passed(done: int, _: int) -> None:
            if self._progress is not None:
                self._progress("calibrating", self._passed + done, whole)

        keys = [-1 - number if kept else number for number in range(count)]
        self.looked_up |= {(name, key): array for name, array in self._fixed.items() for key in keys}
        if batches:
            with self._group.together():
                outputs = self._stream.run(
                    [batches[number] for number in own],
                    lambda place: self._hooks(keys[own[place]], kept, lane_of(own[place], count)),
                    passed=passed, behind=self._settle,
                )  # fmt: skip
                collections.deque(outputs, maxlen=0)
        self._passed += sections * len(own)

    def _hooks(self, key: int, kept: int, lane: int) -> dict[str, Hook]:
        def at(name: str) -> Hook:
            def see(value: torch.Tensor) -> None:
                if name in self._indices:
                    self._new[name, key] = value.cpu().numpy()
                for one in self._at.get(name, ()):
                    one.see(value, key, kept, lane)

            return see

        return {name: at(name) for name in self._stream.engine.hooked}

    def _settle(self, section: Section) -> None:
        """Count what all processes have seen in a section."""
        here = [one for name in section.hooked for one in self._at.get(name, ())]
        found = self._group.gathered(lambda: (self._new, [one.seen() for one in here]))
        self._new = {}
        for looked_up, _ in found:
            self.looked_up |= looked_up
        for place, one in enumerate(here):
            if not one.settled([seen for _, own in found for seen in own[place]]):
                raise InputError(f"{self._about} gives NaN or infinity at '{one.reading.value}'")


def _enough(rows: Sequence[int], sequences: int, wanted: int) -> int:
    """Sequences that give most values so many rows, by how many each has of some sequences; 0 for all there are.

    A value with a row for each sequence, such as the input of a pooler, does not make the others see more.
    """
    usual = median_low(rows)
    return math.ceil(wanted * sequences / usual) if usual else 0
