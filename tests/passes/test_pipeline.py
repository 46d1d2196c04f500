"""Pipelines run passes under hooks, and say which pass an error of ours came from; the check of passes can fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from checked import Checked

from qcompile.errors import InputError, VerificationError
from qcompile.passes.hooks import Printing, Telling, Timing
from qcompile.passes.pipeline import Hook, Pass, Pipeline, run_pass
from qcompile.passes.pipelines import CANONICALIZE
from qcompile.passes.state import State

GRAPH = """g (float[2,3] x) => (float[2,3] y) <float[3] c>
    { [first] h = Add(x, c)\n [second] k = Tanh(h)\n [third] y = Neg(k) }"""


@dataclass(frozen=True)
class Edit:
    """Does what it is told, and returns what it is told."""

    edit: Callable[[ir.Model], object]
    says: bool = True
    name: ClassVar[str] = "edit"

    def apply(self, state: State) -> bool:
        """Do it."""
        self.edit(state.model)
        return self.says


class Noting(Hook):
    """Writes down what it is called with."""

    def __init__(self) -> None:
        self.notes: list[tuple[str, str, bool | None]] = []

    def before(self, step: Pass, state: State) -> None:
        """Note it."""
        self.notes.append(("before", step.name, None))

    def after(self, step: Pass, state: State, changed: bool) -> None:
        """Note it."""
        self.notes.append(("after", step.name, changed))


def nothing(model: ir.Model) -> None:
    """Leave a graph as it is."""


def rename(model: ir.Model) -> None:
    """Change a graph, but not its function."""
    model.graph[0].name = "renamed"


def negate(model: ir.Model) -> None:
    """Change what a graph computes."""
    value = model.graph.initializers["c"]
    value.const_value = ir.tensor(-value.const_value.numpy(), name="c")


def break_rules(model: ir.Model) -> None:
    """Name an operator that there is not."""
    model.graph[1].op_type = "Tanhh"


def test_hooks_are_called_around_every_pass_in_order(parse):
    hook = Noting()
    inner = Pipeline((Edit(nothing, says=False),), "inner")
    assert Pipeline((Edit(rename), inner)).apply(State(parse(GRAPH)), [hook])
    assert hook.notes == [("before", "edit", None), ("after", "edit", True)] + [
        ("before", "edit", None), ("after", "edit", False)
    ]  # fmt: skip


def test_progress_times_and_text(parse):
    told, printed, timing = [], [], Timing()
    hooks = [Telling(lambda *step: told.append(step)), timing, Printing(["fold-constants"], printed.append)]
    CANONICALIZE.apply(State(parse(GRAPH)), hooks)
    names = [step.name for step in CANONICALIZE.passes]
    assert told == [(name, 1, 1) for name in names]
    assert [row.name for row in timing.rows] == names
    assert all(row.before == row.after == 3 and row.seconds > 0 for row in timing.rows)
    heading, text = printed
    assert heading == "# after fold-constants, which changed nothing"
    assert "k = Tanh (h)" in text


def fail_at_second(model: ir.Model) -> None:
    """Fail as a bug does."""
    for node in model.graph:
        if node.name == "second":
            raise ZeroDivisionError


def test_a_bug_says_in_which_pass_and_at_which_node(parse):
    with pytest.raises(ZeroDivisionError) as caught:
        run_pass(Edit(fail_at_second), State(parse(GRAPH)))
    assert caught.value.__notes__ == [
        "in pass 'edit', which was at this node:\n"
        "   [first] h = Add (x, c)\n"
        "-> [second] k = Tanh (h)\n"
        "   [third] y = Neg (k)"
    ]  # fmt: skip


def refuse(model: ir.Model) -> None:
    """Refuse a graph."""
    raise InputError("it is too blue")


def test_a_refusal_stays_as_it_is(parse):
    with pytest.raises(InputError) as caught:
        run_pass(Edit(refuse), State(parse(GRAPH)))
    assert not hasattr(caught.value, "__notes__")


@pytest.mark.parametrize(
    "step, error",
    [
        (Edit(rename, says=False), AssertionError),
        (Edit(nothing, says=True), AssertionError),
        (Edit(break_rules), onnx.checker.ValidationError),
        (Edit(negate), VerificationError),
    ],
    ids=["silent", "boasting", "invalid", "another function"],
)
def test_what_breaks_the_contract_is_noticed(parse, step, error):
    with pytest.raises(error, match="'edit'|Tanhh"):
        run_pass(step, state := State(parse(GRAPH)), [Checked(state.model)])


def test_a_pass_that_keeps_it_is_not_in_the_way(parse):
    model = parse(GRAPH, c=np.ones(3, np.float32))
    assert run_pass(Edit(rename), State(model), [Checked(model)])
