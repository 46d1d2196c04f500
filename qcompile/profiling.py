"""Measures what the artifacts of a target cost on this machine: small graphs, lowered as every other, and timed."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from time import perf_counter, thread_time
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from qcompile.choice.export_options import Options
from qcompile.compiler import plan
from qcompile.errors import InputError
from qcompile.prices.linear_model import Work, added, fit
from qcompile.prices.machine import machine
from qcompile.prices.operator_work import operator_work
from qcompile.prices.profile import (
    CONVOLUTION,
    Profile,
    input_work,
    kind_of,
    product_work,
    transform_work,
)
from qcompile.prices.profile_files import NONE, THREADS
from qcompile.prices.specimens import COUNT, Specimen, convolution, nothing, operators, products, turned
from qcompile.run.session import Session
from qcompile.run.trace import trace
from qcompile.targets.registry import backend, get_target, targets
from qcompile.targets.scheme import FLOAT, Scheme
from qcompile.transforms import BlockDiagonal, Hadamard

if TYPE_CHECKING:
    from qcompile.notes import Progress
    from qcompile.run.session import Run
    from qcompile.targets.target import Target

__all__ = ["measure_profile"]

#: Products that are measured, as the features of the input and those of each site that reads it.
SHAPES = (
    (64, (64,)),
    (192, (192, 64, 64)),
    (256, (1024,)),
    (1024, (256,)),
    (576, (576,)),
    (512, (2048, 2048)),
    (1536, (576,)),
    (1024, (4096,)),
)
ROWS = (1, 4, 16, 64, 192)

#: Convolutions: channels, groups, kernel and size of the image; and images.
CONVOLUTIONS = ((16, 1, 3, 28), (64, 1, 3, 14), (32, 1, 1, 28), (128, 1, 1, 7), (32, 32, 3, 28), (128, 128, 3, 7))
BATCHES = (1, 8)

#: Transforms that are measured: blocks of a size, as often as makes a width.
BLOCKS = ((16, 12), (32, 8), (64, 3), (64, 16), (128, 4), (192, 1), (512, 1), (1536, 1))

#: Caches of a core, and of a processor, hold nothing of the last run after so many bytes; weights of so many numbers
#: are read from memory, too.
NEAR_BYTES, FAR_BYTES, LARGE = 3 << 20, 128 << 20, 1 << 20

#: So many of the first ``ROWS`` are measured with a cold cache, too.
COLD = 3

#: Each is run for so long, or so often; a shorter time is told from none.
SHORTEST = 2e-7
SECONDS, LEAST, RUNS = 0.05, 10, 400


#: The fit of all transforms, among those of products and operators.
TRANSFORMS = "transforms"

Job = Callable[[], list[tuple[Work, float]]]
Timed = Callable[[], object]
_Inputs = Mapping[str, np.ndarray]


def measure_profile(name: str, progress: Progress | None = None) -> Profile:
    """Measure products, online transforms and operators on one thread of this machine, in some seconds.

    Raises:
        TargetError: if there is no such target.
        InputError: if its artifacts run on other hardware.
    """
    target = get_target(name)
    if target.profile is None:
        known = ", ".join(sorted({own.name for own in targets().values() if own.profile is not None}))
        raise InputError(f"the times of artifacts of '{name}' are not measured, but those of {known}")
    clock = _Clock(target)
    jobs = [*_of_products(clock), *_of_convolutions(clock), *_of_transforms(clock), *_of_operators()]
    measured: dict[str, list[tuple[Work, float]]] = {}
    for done, (kind, job) in enumerate(jobs):
        measured.setdefault(kind, []).extend(job())
        if progress is not None:
            progress("measuring", done + 1, len(jobs))
    found = {kind: fit(rows) for kind, rows in measured.items()}
    coefficients = {kind: each for kind, (each, _) in found.items()}
    transforms = coefficients.pop(TRANSFORMS)
    own = {kind: coefficients.pop(kind) for kind in [*coefficients] if kind[0] == "w" or kind == CONVOLUTION}
    apart = {kind: round(left, 3) for kind, (_, left) in found.items()}
    return Profile(target.name, machine(target.runs_in, THREADS), own, transforms, coefficients, apart)


@dataclass(frozen=True)
class _Clock:
    """Times graphs as a target's artifacts, without what calling one takes."""

    target: Target

    def load(self, model: ir.Model) -> Run:
        """A planned graph, lowered."""
        with tempfile.TemporaryDirectory(prefix="qcompile-") as folder:
            lowering = backend(self.target.backends[0])
            lowering.lower(model, self.target, Path(folder))
            return lowering.load(Path(folder), threads=THREADS)

    @cached_property
    def nothing(self) -> Timed:
        """The call of a graph that does nothing."""
        return partial(self.load(nothing()), _rows(16, 1))


def more(run: Timed, less: Timed, evict: int = 0) -> float:
    """The seconds that one function takes more than another on the one thread that computes.

    Both run in turn. Of the times of each that counts which one in ten stays below: other programs take caches and
    clock speed away, and what is above says more of them.

    Args:
        evict: bytes that are read before each run, so that caches of that size hold nothing of the last one.
    """
    times: tuple[list[float], list[float]] = [], []
    other = np.ones(evict // 8)
    began = perf_counter()
    while len(times[0]) < LEAST or (len(times[0]) < RUNS and perf_counter() - began < SECONDS):
        for own, function in zip(times, (run, less), strict=True):
            other.sum()
            start = thread_time()
            function()
            own.append(thread_time() - start)
    ours, theirs = (sorted(own)[len(own) // 10] for own in times)
    return max(ours - theirs, SHORTEST)


def _rows(width: int, rows: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(0).standard_normal((rows, width)).astype(np.float32)}


def _of_products(clock: _Clock) -> Iterator[tuple[str, Job]]:
    """Products in each kind of scheme that the target runs, and in float."""
    first: dict[str, Scheme] = {}
    for text in (clock.target.default, clock.target.edge, *clock.target.schemes):
        first.setdefault(kind_of(Scheme.parse(text)), Scheme.parse(text))
    first.setdefault(kind_of(FLOAT), FLOAT)
    for (kind, scheme), (width, outs) in itertools.product(first.items(), SHAPES):
        yield kind, partial(_products, clock, scheme, width, outs)


def _products(clock: _Clock, scheme: Scheme, width: int, outs: Sequence[int]) -> list[tuple[Work, float]]:
    model = products(width, outs)
    if scheme.weight is not None:
        everywhere = {"*": scheme.name}
        options = Options(clock.target.name, transforms="none", method="rtn", profile=NONE, format_for=everywhere)
        model = plan(model, options)
    jobs = [(rows, 0, 0.0, 0.0) for rows in ROWS] + [(rows, NEAR_BYTES, 1.0, 0.0) for rows in ROWS[:COLD]]
    jobs += [(ROWS[0], FAR_BYTES, 1.0, 1.0)] * (width * sum(outs) >= LARGE)
    run = clock.load(model)
    measured: list[tuple[Work, float]] = []
    for rows, evict, cold, far in jobs:
        taken = more(partial(run, _rows(width, rows)), clock.nothing, evict)
        own = (product_work(scheme, rows, width, out, width * out, cold=cold, far=far) for out in outs)
        measured.append((added([input_work(rows, width), *own]), taken))
    return measured


def _of_convolutions(clock: _Clock) -> Iterator[tuple[str, Job]]:
    for sizes in CONVOLUTIONS:
        yield CONVOLUTION, partial(_convolution, clock, *sizes)


def _convolution(clock: _Clock, channels: int, groups: int, kernel: int, size: int) -> list[tuple[Work, float]]:
    draw, width = np.random.default_rng(0), channels // groups * kernel**2
    measured: list[tuple[Work, float]] = []
    run = clock.load(convolution(channels, groups, kernel, size))
    for batch, cold in itertools.product(BATCHES, (0.0, 1.0)):
        given = {"x": draw.standard_normal((batch, channels, size, size)).astype(np.float32)}
        taken = more(partial(run, given), clock.nothing, int(cold) * NEAR_BYTES)
        own = product_work(FLOAT, batch * size**2, width, channels, width * channels, cold=cold)
        measured.append((added([input_work(batch * size**2, width), own]), taken))
    return measured


def _of_transforms(clock: _Clock) -> Iterator[tuple[str, Job]]:
    for block, count in BLOCKS:
        yield TRANSFORMS, partial(_transforms, clock, block, count)


def _transforms(clock: _Clock, block: int, count: int) -> list[tuple[Work, float]]:
    whole = Hadamard(block, 0)
    transform = whole if count == 1 else BlockDiagonal(whole, count)
    run = clock.load(turned(transform))
    times = (more(partial(run, _rows(transform.size, rows)), clock.nothing) for rows in ROWS)
    return [(transform_work(transform, rows), time) for rows, time in zip(ROWS, times, strict=True)]


def _of_operators() -> Iterator[tuple[str, Job]]:
    for few, many in zip(operators(1), operators(COUNT), strict=True):
        yield few.kind, partial(_operator, few, many)


def _operator(few: Specimen, many: Specimen) -> list[tuple[Work, float]]:
    """The time of an operator, and its work as a trace would state it: several of them against one."""
    sessions = [Session(own.model, threads=THREADS, optimize=False) for own in (many, few)]
    several, one = (partial(session.run, few.inputs) for session in sessions)
    taken = more(several, one)
    (step,) = trace(few.model, few.inputs)
    return [(operator_work(step), taken / (many.count - few.count))]
