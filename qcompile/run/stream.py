"""Graphs of any size on the engine: section by section, with the weights of one section at a time on the device.

All batches pass a section before the next one begins, so that each weight is read once, while those of the next section
are read beside. Between sections activations wait on a shelf.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from qcompile.ir.required import name_of
from qcompile.run.executor import Executor, Hook, Section, dtype_for
from qcompile.run.memory_budget import Memory
from qcompile.run.shelf import Shelf
from qcompile.threads import threads

__all__ = ["Stream", "Streamed"]

#: Bytes of weights that are on the device at a time, where not all are; a single larger one is alone.
SECTION_BYTES = 512 << 20

#: Bytes of weights, all of which may stay on the device.
RESIDENT_BYTES = 2 << 30

#: Threads that read weights beside.
READERS = 8


class Stream:
    """A graph on the engine, in sections.

    Args:
        engine: the graph; where all its weights are few, they stay loaded.
        begins: names of operators at each of which a section begins, whatever weights are before.
        memory: the budget of activations.
    """

    def __init__(self, engine: Executor, begins: Collection[str] = (), memory: Memory | None = None) -> None:
        self.engine, self._memory = engine, memory or Memory()
        self.large = engine.weight_bytes > RESIDENT_BYTES
        more = engine.cuts(SECTION_BYTES) if self.large else ()
        self.sections = engine.sections({*begins, *more})
        needed, later = [], set(engine.result_variables)
        for section in reversed(self.sections):
            needed.append(frozenset(later))
            later |= {*section.reads}
        self._needed = needed[::-1]

    def shelf(self) -> Shelf:
        """An empty shelf."""
        return Shelf(self.engine.device, self._memory)

    def walk(self, *, backwards: bool = False) -> Iterator[Section]:
        """The sections, each with its weights, those of the next on their way."""
        sections = self.sections[::-1] if backwards else self.sections
        if not self.large:
            yield from sections
            return
        with threads(min(READERS, os.cpu_count() or 1)) as beside:
            waiting: list[Future[None]] = []
            for section, later in zip(sections, [*sections[1:], None], strict=True):
                for reading in waiting or self._begin(beside, section):
                    reading.result()
                waiting = [] if later is None else self._begin(beside, later)
                yield section
                self.engine.forget(section, later)

    def _begin(self, beside: Any, section: Section) -> list[Future[None]]:
        return [beside.submit(self.engine.weight, name) for name in section.constants]

    def run(
        self, batches: Sequence[Mapping[str, np.ndarray]], hooks: Callable[[int], Mapping[str, Hook]] = lambda _: {},
        *, passed: Callable[[int, int], None] = lambda done, total: None,
        behind: Callable[[Section], None] = lambda section: None,
    ) -> Iterator[dict[str, Tensor]]:  # fmt: skip
        """The outputs for each batch, in turn; no gradients are kept.

        Args:
            batches: inputs by name.
            hooks: those of a batch, by its number.
            passed: called when a batch has passed a section: how many have, and how many will.
            behind: called with a section that all batches have passed.
        """
        total, done = len(self.sections) * len(batches), 0
        with self.shelf() as shelf:
            for index, section in enumerate(self.walk()):
                for number, batch in enumerate(batches):
                    with torch.no_grad():
                        before = self.engine.arguments(batch) if index == 0 else shelf.take(number)
                        variables = self.after(index, before, hooks(number))
                        last = index + 1 == len(self.sections)
                        results = self.engine.results(variables) if last else {}
                    done += 1
                    passed(done, total)
                    if last:
                        yield results
                    else:
                        shelf.put(number, variables)
                behind(section)

    def after(
        self, index: int, variables: dict[str, Any], hooks: Mapping[str, Hook] | None = None,
        weights: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """The variables that are needed behind a section; the arguments are those of ``Executor.step``."""
        section = self.sections[index]
        made = self.engine.step(section, variables, hooks, weights)
        return {name: value for name, value in (variables | made).items() if name in self._needed[index]}


class Streamed:
    """A large graph with the interface of ``session.Session``.

    Args:
        model: the graph.
        taps: names of further values to return.
        device: where it computes, in float32, or in float64 if the graph has it.
    """

    def __init__(self, model: ir.Model, taps: Sequence[str] = (), device: str = "cpu") -> None:
        outputs = list(dict.fromkeys([*map(name_of, model.graph.outputs), *taps]))
        dtype = torch.promote_types(dtype_for(model, "cpu"), torch.float32)
        self._stream = Stream(Executor(model, outputs=outputs, dtype=dtype, device=device))
        self.inputs, self.outputs = self._stream.engine.inputs, outputs

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name.

        Raises:
            InputError: if inputs are missing, unknown, or refused by an operator.
        """
        (found,) = self._stream.run([inputs])
        return {name: value.cpu().numpy() for name, value in found.items()}
