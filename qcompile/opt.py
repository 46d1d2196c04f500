"""Runs any list of passes on a model: ``qcompile opt``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qcompile.checks.equivalence import Equivalence, Observed, equivalence, observe_source
from qcompile.errors import InputError, VerificationError
from qcompile.ir.capture import Source, begin_capture
from qcompile.passes.index import parse_passes
from qcompile.passes.pipeline import Hook, Pass, Pipeline
from qcompile.passes.state import State
from qcompile.run.data import load_data
from qcompile.run.reading import Reading

__all__ = ["Optimized", "VerifyEach", "optimize", "wanted"]


@dataclass(frozen=True)
class Optimized:
    """The result of a list of passes.

    Args:
        state: the graph, and what was left alone.
        changed: whether the graph changed.
        equivalence: how far it is from its source; ``None`` where that was not asked for.
    """

    state: State
    changed: bool
    equivalence: Equivalence | None


class VerifyEach(Hook):
    """Runs the graph after each pass, on what its source was run on.

    Args:
        source: the graph before all passes.
        observed: inputs, and what the source makes of them.
    """

    def __init__(self, source: Source, observed: Observed) -> None:
        self._source, self._observed = source, observed
        self.last: Equivalence | None = None

    def after(self, step: Pass, state: State, changed: bool) -> None:
        """Compare the graph with its source.

        Raises:
            VerificationError: naming the pass, if it made another function of it or nothing that runs.
        """
        try:
            self.last = equivalence(self._source, state.model, self._observed)
        except (InputError, VerificationError) as error:
            raise VerificationError(f"pass '{step.name}' broke the model: {error}") from error


def wanted(passes: str, print_after: Sequence[str]) -> Pipeline:
    """The passes of a list, checked together with the names of those whose results are to be printed.

    Raises:
        InputError: if there is no such pass.
    """
    pipeline = parse_passes(passes)
    known = dict.fromkeys(step.name for step in pipeline.steps())
    for name in print_after:
        if name not in known:
            raise InputError(f"pass '{name}' is none of those that are to run; these are {', '.join(known)}")
    return pipeline


def optimize(
    model: Any, passes: Pipeline, hooks: Sequence[Hook] = (), *, verify: bool = False,
    calibration: str | Path | None = None, reading: Reading | None = None, seed: int = 0, **capture_options: Any,
) -> Optimized:  # fmt: skip
    """Run passes on a clone of a model.

    Args:
        model: as for ``capture``.
        hooks: called around each pass.
        verify: whether to run the graph after each pass.
        calibration: data to verify on; random inputs without it.
        reading: how such data is read.
        seed: of random inputs.

    Raises:
        VerificationError: naming the pass after which the graph was another function.
    """
    if calibration is not None and not verify:
        raise InputError("calibration data is for verifying each pass, which was not asked for")
    source = begin_capture(model, **capture_options)
    state, verifying = State(source.model.clone()), None
    if verify:
        data = load_data(calibration, source.model, seed=seed, batches=1, reading=reading)
        verifying = VerifyEach(source, observe_source(source, data, seed))
    changed = passes.apply(state, [*hooks, *([] if verifying is None else [verifying])])
    source.check()
    return Optimized(state, changed, None if verifying is None else verifying.last)
