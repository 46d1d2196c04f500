"""Every operator of the table against onnxruntime, on random numbers; what is not certain is not known."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnxruntime
import pytest
from shape_cases import CASES, Case, Drawn

from qcompile.shapes.arithmetic import Arithmetic
from qcompile.shapes.evaluate import TABLE, evaluate

LARGEST = 64
SEEDS = 12

#: Functions of floats that libraries round differently: units in the last place of float32.
ROUNDED = {"Exp": 2, "Log": 2, "Pow": 2}


def computed(drawn: Drawn, arithmetic: Arithmetic, operands: Mapping[str, np.ndarray]) -> list[np.ndarray] | None:
    node = drawn.node()
    inputs = [None if value is None else operands[value.name] for value in node.inputs]
    return evaluate(node, inputs, arithmetic, LARGEST)


def objects(drawn: Drawn) -> dict[str, np.ndarray]:
    return {name: array.astype(object) for name, array in drawn.operands.items()}


def reference(drawn: Drawn) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(drawn.proto().SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, dict(drawn.operands))


def test_cases_cover_the_table() -> None:
    assert {case.op for case in CASES} == set(TABLE)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_numbers_are_those_of_onnxruntime(case: Case) -> None:
    for seed in range(SEEDS):
        drawn = case.drawn(seed)
        for have, want in zip(computed(drawn, Arithmetic({}), objects(drawn)), reference(drawn), strict=True):
            assert have.shape == want.shape, drawn
            assert all(isinstance(item, bool | int | float) for item in have.flat)
            if case.op in ROUNDED and want.dtype == np.float32:
                np.testing.assert_array_max_ulp(have.astype(want.dtype), want, ROUNDED[case.op])
            else:
                assert have.tolist() == want.astype(object).tolist(), drawn
