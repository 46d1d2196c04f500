"""The time of an artifact and of its source on this machine: in turn, on one thread, the median of a few runs.

A time differs from run to run, so no file of an artifact has it: artifacts are the same wherever they are made.

The online transforms' part of it is the difference to the artifact without them: its graph with each of them taken
out, which computes other numbers with the same weights in the time of a model that has none. Their gain is predicted:
the errors of all sites with the chosen transforms, and without any.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from qcompile.checks.equivalence import source_session
from qcompile.errors import reason_of
from qcompile.run.compare import number
from qcompile.run.session import Session
from qcompile.targets.registry import backend
from qcompile.targets.target import Target

if TYPE_CHECKING:
    from qcompile.choice.selection import Choice
    from qcompile.ir.capture import Source

__all__ = ["Transformed", "interleaved", "latency"]

#: Timing ends after this many seconds, warming up apart, or after so many runs of each.
SECONDS, RUNS = 1.5, 25

#: A source of more bytes is not loaded once more to be timed.
MOST_BYTES = 1 << 30

#: Times that differ by less are the same; so are sizes.
SAME_TIME, SAME_SIZE = 1.05, 1.01


@dataclass(frozen=True)
class Transformed:
    """The use of transforms, as it was predicted.

    Args:
        gain: the predicted error of all sites without transforms over that with them, as a ratio of relative L2.
        online: whether some of them stay in the graph.
    """

    gain: float
    online: bool

    @staticmethod
    def of(choice: Choice) -> Transformed:
        """The errors of all sites, weighted by their sensitivities where these are known."""
        have = math.fsum(choice.losses.values())
        plain = math.fsum((choice.losses | choice.plain_losses).values())
        online = bool(choice.placement.online or choice.placement.boundaries)
        return Transformed(math.sqrt(plain / have) if have > 0 else 1.0, online)


def latency(
    source: Source, target: Target, folder: Path, size: int, inputs: Mapping[str, np.ndarray], transformed: Transformed,
    own: Mapping[str, np.ndarray],
) -> dict[str, Any]:  # fmt: skip
    """Measure an artifact and its source in turn; ``not_measured`` says why there are no times.

    Args:
        folder: of the artifact.
        size: bytes of its own files.
        inputs: one batch, on which both run.
        own: the same as the artifact takes it.
        transformed: the gain that is compared with the cost of the online transforms.
    """
    reason = _not_here(source, target)
    if reason is not None:
        return {"not_measured": reason}
    try:
        return _measured(source, target, folder, size, (inputs, own), transformed)
    except Exception as error:  # whatever it is: the artifact is made, and as good as without a time
        return {"not_measured": reason_of(error)}


_Inputs = Mapping[str, np.ndarray]


def _not_here(source: Source, target: Target) -> str | None:
    if not target.runs_here:
        return f"an artifact for '{target.name}' runs on other hardware"
    if target.emulated:
        return f"the formats of '{target.name}' are emulated here, whose time says nothing of that on its hardware"
    if source.bytes > MOST_BYTES:
        return f"the source has {source.bytes / 1e9:.1f} GB; up to {MOST_BYTES / 1e9:.1f} GB are loaded once more"
    return None


def _measured(
    source: Source, target: Target, folder: Path, size: int, given: tuple[_Inputs, _Inputs],
    transformed: Transformed,
) -> dict[str, Any]:  # fmt: skip
    own = source_session(source, threads=1)
    if not isinstance(own, Session):
        return {"not_measured": "onnxruntime does not run the source"}
    lowering = backend(target.backends[0])
    without = lowering.load_untransformed(folder, threads=1)
    inputs, packed = given
    runs = [lowering.load(folder, threads=1), *([] if without is None else [without[0]])]
    calls: list[Callable[[], Any]] = [partial(own.run, inputs), *(partial(run, packed) for run in runs)]
    times, count = interleaved(calls, SECONDS)
    found: dict[str, Any] = {
        "source_ms": number(1e3 * times[0]), "artifact_ms": number(1e3 * times[1]), "threads": 1, "runs": count,
        "inputs": {name: list(array.shape) for name, array in inputs.items()}, "warnings": [],
    }  # fmt: skip
    if without is None:
        fixed = {"online_transforms": {"not_measured": "the runtime's files do not let them be taken out"}}
        return found | (fixed if transformed.online else {})
    costs = times[1] / times[2], size / max(size - without[1], 1)
    online = {"without_ms": number(1e3 * times[2]), "bytes": without[1], "predicted_gain": number(transformed.gain)}
    return found | {"online_transforms": online, "warnings": _warnings(*costs, transformed.gain)}


def _warnings(time: float, size: float, gain: float) -> list[str]:
    """Where online transforms cost more than they are predicted to gain: all three are ratios."""
    costs = (("slower", time, SAME_TIME), ("larger", size, SAME_SIZE))
    gains = f"for a predicted error that is {gain:.2f}x larger without transforms"
    return [
        f"its online transforms make it {cost:.2f}x {word}, {gains}: compare --transforms none"
        for word, cost, same in costs
        if cost > max(gain, same)
    ]  # fmt: skip


def interleaved(
    runs: Sequence[Callable[[], Any]], seconds: float, most: int = RUNS, clock: Callable[[], float] = perf_counter
) -> tuple[list[float], int]:
    """The median time of each function in seconds, and the number of times that each ran.

    They run in turn, so that whatever else the machine does falls on all of them; the first round does not count.

    Args:
        most: rounds at most.
        clock: by which a run is timed; ``time.thread_time`` leaves out what others do on a machine that is shared.
    """
    for run in runs:
        run()
    times: list[list[float]] = [[] for _ in runs]
    began = perf_counter()
    while not times[0] or (len(times[0]) < most and perf_counter() - began < seconds):
        for own, run in zip(times, runs, strict=True):
            start = clock()
            run()
            own.append(clock() - start)
    return [statistics.median(own) for own in times], len(times[0])
