"""Every pass alone, on graphs and results that can be read: ``tests/golden``.

QCOMPILE_UPDATE_GOLDEN=1 pytest tests/passes/test_golden.py     # rewrites results; read the difference
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import pytest
from checked import Checked, written
from golden import FOLDER, Case, cases, save

from qcompile.checks.equivalence import by_position
from qcompile.errors import InputError, QCompileError
from qcompile.ir.required import name_of
from qcompile.ir.text import graph_text
from qcompile.passes.index import all_passes
from qcompile.passes.pipeline import Pipeline
from qcompile.passes.state import State
from qcompile.run.compare import compare
from qcompile.run.data import example_inputs
from qcompile.run.session import evaluate
from qcompile.targets.plans import planned

CASES = [case for path in sorted(FOLDER.glob("*.txt")) for case in cases(path)]


def outputs(model: ir.Model, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What a graph makes of inputs; nothing where onnxruntime does not run it: then no pass may change it."""
    try:
        return evaluate(model, inputs)
    except InputError:
        return {}


def sections_of(case: Case) -> dict[str, str]:
    """What a pass makes of the graph of a case; its function must stay, and a second application do nothing."""
    model = case.model()
    state, inputs, before = State(model), example_inputs(model), written(model)
    want = outputs(model, inputs)
    try:
        changed = Pipeline((case.make(model),)).apply(state)
    except QCompileError as error:
        assert written(model) == before
        return {"refused": f"{type(error).__name__}: {error}\n"}
    have = outputs(model, inputs)
    assert compare(want, by_position(list(want), have))[0] < 1e-5 if want else not changed
    found = {"becomes": graph_text(model)} if changed else {"stays": ""}
    if planned(model):
        found["plans"] = "".join(f"{name_of(node)}: {plan.scheme.name}\n" for node, plan in planned(model))
    if state.declined:
        found["declined"] = "".join(f"{e.site}: {e.what}: {e.reason}\n" for e in state.declined)
    after = written(model)
    assert not Pipeline((case.again(model),)).apply(State(model), [Checked(model, run=False)])
    assert written(model) == after
    return found


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_pass_makes_what_its_golden_file_says(case: Case) -> None:
    found = sections_of(case)
    if os.environ.get("QCOMPILE_UPDATE_GOLDEN"):
        save(case, found)
    else:
        assert found == case.sections


def test_every_pass_has_a_golden_file() -> None:
    assert {case.file for case in CASES} == set(all_passes())


def test_no_two_cases_of_a_pass_have_one_title() -> None:
    assert len({str(case) for case in CASES}) == len(CASES)
