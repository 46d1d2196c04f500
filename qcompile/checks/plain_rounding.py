"""Plain rounding: to nearest, in the basis that the graph came in. What is learned from data must do better."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import onnx_ir as ir

from qcompile.checks.fake_quantized import FakeQuantized, measured_on, rounded_for
from qcompile.passes.pipeline import run_pass
from qcompile.passes.quantize import Quantize
from qcompile.passes.state import State
from qcompile.statistics.evidence import errs_less
from qcompile.targets.plans import drop_plans
from qcompile.targets.registry import REFERENCE, get_target, lowered_to
from qcompile.targets.scheme import Scheme

if TYPE_CHECKING:
    from qcompile.checks.losses import FloatModel, Outputs
    from qcompile.choice.selection import Choice
    from qcompile.run.data import Data
    from qcompile.run.session import Run
    from qcompile.targets.target import Target

__all__ = ["Plain", "better_plain", "better_without", "output_errors", "plain_error", "rounded_plainly", "running"]

#: How sure it must be that plain rounding errs less as a whole, where each part was shown to help.
DOUBT = 0.75

T = TypeVar("T")


@dataclass(frozen=True)
class Plain:
    """Plain rounding against the float source, on the data on which the artifact is measured.

    Args:
        rel_l2: of the outputs.
        divergence: as ``Measured`` has it; ``None`` where outputs alone were compared.
        loss: mean next-token loss, in nats; ``None`` where there is none, or outputs alone were compared.
    """

    rel_l2: float
    divergence: float | None = None
    loss: float | None = None

    @staticmethod
    def of(errors: np.ndarray) -> Plain:
        """From the squared relative L2 of what it puts out for each batch: ``[batches]``."""
        return Plain(float(np.sqrt(errors).mean()))


def rounded_plainly(
    model: ir.Model, choice: Choice, schemes: Mapping[str, Scheme], device: str, data: Data, target: Target
) -> ir.Model:
    """A copy of a float graph whose sites are planned with weights rounded to nearest, on a device.

    The sites are those of the graph itself, which is planned for as long as it takes to clone it.

    Args:
        data: what teaches the ranges of static formats.
        target: which says what values have one, and what weights fit it.
    """
    groups = [(siblings, None) for siblings in choice.siblings]
    everywhere, neighbours = target.static == "all", target.neighbours
    rounding = Quantize(
        groups, choice.tables, schemes, {}, "rtn", device, data, everywhere=everywhere, neighbours=neighbours
    )
    run_pass(rounding, State(model))
    rounded = model.clone()
    drop_plans(model)
    return rounded


@contextmanager
def running(model: ir.Model, target: Target) -> Iterator[Run]:
    """A planned graph, lowered, as a function of named inputs: of the target, or the reference if that runs elsewhere.

    Lowering edits it.
    """
    with lowered_to(target if target.runs_here else get_target(REFERENCE), model) as run:
        yield run


def plain_error(
    yardstick: FloatModel, model: ir.Model, choice: Choice, target: Target, data: Data, calibration: Data
) -> Plain:
    """The errors of plain rounding: what the work is compared with.

    Sites that got the target's default scheme get the scheme that the target names for this, the others theirs.

    Args:
        data: to measure on.
        calibration: what teaches the ranges of static formats.
    """
    plain = Scheme.parse(target.plain or target.default)
    own = {name: plain if s.name == target.default else s for name, s in choice.schemes.items()}
    rounded = rounded_plainly(model, choice, own, yardstick.device, calibration, target)
    found = _measured(yardstick, rounded, target, lambda own, run: own.measure(run, data))
    return Plain(found.rel_l2, found.divergence, found.loss.get("quantized"))


def output_errors(yardstick: FloatModel, model: ir.Model, target: Target, data: Data) -> np.ndarray:
    """The squared relative L2 of what a planned graph puts out for each batch: ``[batches]``."""
    return np.square(_measured(yardstick, model, target, lambda own, run: own.errors(run, data)))


def _measured(yardstick: FloatModel, model: ir.Model, target: Target, work: Callable[[FloatModel, Outputs], T]) -> T:
    """The result of measuring a planned graph."""
    return measured_on(
        lambda: FakeQuantized(rounded_for(model, target), yardstick.device),
        lambda: running(model.clone(), target), yardstick, work,
    )[0]  # fmt: skip


def better_plain(ours: np.ndarray, plain: np.ndarray, data: Data) -> str | None:
    """Why to leave out what was learned, if so, by the errors of the whole on sequences, of plain rounding too.

    Sites were judged as they were fitted. So on sequences that were held out, the whole is kept unless it looks worse;
    where none were, nothing was fitted, but transforms were chosen: by sequences that must agree that this helps.
    """
    own, theirs = (f"{np.sqrt(np.mean(errors)):.3g}" for errors in (ours, plain))
    if not data.held_out:
        reason = f"{data.too_few}; on these, rounding to nearest does not clearly err more: {theirs} against {own}"
        return None if errs_less(ours, plain) else reason
    reason = f"on {len(ours)} sequences that nothing was fitted on, rounding to nearest errs less: {theirs} < {own}"
    return reason if errs_less(plain, ours, DOUBT) else None


def better_without(ours: np.ndarray, without: np.ndarray) -> str | None:
    """Why to leave transforms out where activations have static ranges, if so, by the errors of the whole on sequences.

    Predictions know the ranges of no values, nor that convolutions hand theirs on: a transform that fits what one site
    reads may cost the others that. So transforms must clearly help the whole.
    """
    if errs_less(ours, without):
        return None
    own, theirs = (f"{np.sqrt(np.mean(errors)):.3g}" for errors in (ours, without))
    return f"on {len(ours)} sequences the whole does not clearly err less with them: {own} against {theirs} without"
