"""The loss of plain rounding to nearest without transforms: the yardstick of everything that an export does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from qcompile.passes.pipeline import run_pass
from qcompile.passes.quantize import Quantize
from qcompile.passes.state import State
from qcompile.targets.plans import drop_plans
from qcompile.targets.registry import lowered_to
from qcompile.targets.scheme import Scheme

if TYPE_CHECKING:
    from qcompile.checks.losses import FloatModel
    from qcompile.choice.selection import Choice
    from qcompile.run.data import Data
    from qcompile.targets.target import Target

__all__ = ["plain_loss"]


def plain_loss(
    yardstick: FloatModel, model: ir.Model, target: Target, runs_on: Target, choice: Choice, data: Data
) -> float | None:  # fmt: skip
    """The loss of a graph whose sites are rounded to nearest.

    Sites that got the target's default scheme get the scheme that the target names for this, the others theirs. They
    are sites of the graph, which is planned for as long as it takes to clone it.

    Args:
        yardstick: the float model.
        model: the prepared graph.
        runs_on: the target that runs the result on this machine.
    """
    plain = Scheme.parse(target.plain or target.default)
    own = {name: plain if s.name == target.default else s for name, s in choice.schemes.items()}
    rounding = Quantize([(siblings, None) for siblings in choice.siblings], choice.tables, own, {}, "rtn")
    run_pass(rounding, State(model))
    rounded = model.clone()
    drop_plans(model)
    with lowered_to(runs_on, rounded) as run:
        return yardstick.loss(run, data)
