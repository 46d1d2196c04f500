"""Every operator of the table against onnxruntime, on random numbers; what is not certain is not known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from shape_cases import CASES, Case, Drawn

from qcompile.shapes.arithmetic import OPERATORS, Arithmetic, as_array, settled
from qcompile.shapes.evaluate import TABLE, evaluate, measured

SEEDS = 12
LARGEST = 64

#: Functions of floats that libraries round differently: units in the last place of float32.
ROUNDED = {"Exp": 2, "Log": 2, "Pow": 2}


def computed(drawn: Drawn, arithmetic: Arithmetic, operands: Mapping[str, np.ndarray]) -> list[np.ndarray] | None:
    node = drawn.node()
    return evaluate(node, [None if v is None else operands[v.name] for v in node.inputs], arithmetic, LARGEST)


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


# ---- scalars that are known at run time --------------------------------------------------------------------------


@dataclass(frozen=True)
class Term:
    """An operator on numbers and terms, or the number that a scalar will have, which nothing may look at."""

    op: str
    items: tuple[Any, ...]

    def value(self) -> Any:
        """The number, once all are there."""
        if self.op == "later":
            return self.items[0]
        items = [item.value() if isinstance(item, Term) else item for item in self.items]
        if self.op == "Cast":
            return Arithmetic({}).cast(as_array(items[0]), items[1]).item()
        return Arithmetic({})[self.op](*map(as_array, items)).item()

    def __bool__(self) -> bool:
        raise AssertionError("a scalar that is not known has no truth value")


TERMS = Arithmetic({op: lambda *items, op=op: Term(op, items) for op in OPERATORS})


def hidden(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The array with about half of its entries known later."""
    hide = np.frompyfunc(lambda item, late: Term("later", (item,)) if late else item, 2, 1)
    return as_array(hide(array.astype(object), rng.random(array.shape) < 0.5))


def shown(array: np.ndarray, dtype: ir.DataType) -> list[Any]:
    """The array once all of its entries are known."""
    show = np.frompyfunc(lambda item: item.value() if isinstance(item, Term) else item, 1, 1)
    return settled(as_array(show(array)), dtype).tolist()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_scalars_may_be_replaced_afterwards(case: Case) -> None:
    for seed in range(SEEDS):
        drawn, rng = case.drawn(seed), np.random.default_rng(seed)
        later = {name: array if name in case.places else hidden(array, rng) for name, array in objects(drawn).items()}
        want, have = computed(drawn, Arithmetic({}), objects(drawn)), computed(drawn, TERMS, later)
        kinds = [value.dtype for value in drawn.node().outputs]
        assert [shown(array, kind) for array, kind in zip(have, kinds, strict=True)] == [a.tolist() for a in want]


@pytest.mark.parametrize("case", [case for case in CASES if case.places], ids=str)
def test_places_must_be_known(case: Case) -> None:
    drawn = case.drawn(0)
    for name in case.places:
        later = objects(drawn)
        later[name] = as_array(np.frompyfunc(lambda item: Term("later", (item,)), 1, 1)(later[name]))
        assert computed(drawn, TERMS, later) is None or not later[name].size


@pytest.mark.parametrize("case", CASES, ids=str)
def test_without_arithmetic_nothing_is_made_up(case: Case) -> None:
    """Entries may move, but what no operator was handed in for is not known."""
    drawn, rng = case.drawn(0), np.random.default_rng(0)
    have = computed(drawn, Arithmetic({}), {name: hidden(array, rng) for name, array in objects(drawn).items()})
    items = [item for array in have or () for item in array.flat]
    assert all(item.op == "later" for item in items if isinstance(item, Term))


# ---- limits ------------------------------------------------------------------------------------------------------

UNKNOWN: dict[str, tuple[str, dict[str, Any], int]] = {
    "division by zero": ("z = Div(x, y)", {"x": [4, 4], "y": [2, 0]}, 18),
    "rest of a division by zero": ("z = Mod(x, y)", {"x": [4, 4], "y": [2, 0]}, 18),
    "integers that overflow": ("z = Mul(x, y)", {"x": [2**62], "y": [4]}, 18),
    "casts that overflow": ("z = Cast<to=6>(x)", {"x": [2**40]}, 18),
    "casts of what is no number": ("z = Cast<to=7>(x)", {"x": np.array([np.nan], np.float32)}, 18),
    "casts to text": ("z = Cast<to=8>(x)", {"x": [1]}, 18),
    "roots that are no numbers": ("z = Sqrt(x)", {"x": np.array([-1], np.float32)}, 18),
    "powers of integers that are fractions": ("z = Pow(x, y)", {"x": [2], "y": [-1]}, 18),
    "powers that are complex": ("z = Pow(x, y)", {"x": np.array([-2], np.float32), "y": np.array([0.5], np.float32)},
                                18),
    "an index that is not there": ("z = Gather(x, i)", {"x": [1, 2], "i": [2]}, 18),
    "an axis that is not there": ("z = Unsqueeze(x, a)", {"x": [1, 2], "a": [3]}, 18),
    "reduction of an axis that is not there": ("z = ReduceSum(x, a)", {"x": [1, 2], "a": [1]}, 18),
    "an axis that cannot be dropped": ("z = Squeeze(x, a)", {"x": [1, 2], "a": [0]}, 18),
    "no axes, which runtimes take for none or for all": ("z = Squeeze(x, a)", {"x": [[1]], "a": []}, 18),
    "a shape that does not fit": ("z = Reshape(x, s)", {"x": [1, 2], "s": [3]}, 18),
    "parts that do not fit": ("z, w = Split(x, s)", {"x": [1, 2], "s": [1, 2]}, 18),
    "more parts than there are": ("z, v, w, u = Split<num_outputs=4>(x)", {"x": [1, 2, 3, 4, 5]}, 18),
    "shapes that do not broadcast": ("z = Add(x, y)", {"x": [1, 2], "y": [1, 2, 3]}, 18),
    "broadcasting from an axis on": ("z = Add<axis=0, broadcast=1>(x, y)", {"x": [[1, 2], [3, 4]], "y": [1, 2]}, 6),
    "steps of nothing": ("z = Range(x, y, d)", {"x": 1, "y": 2, "d": 0}, 18),
    "steps of fractions": ("z = Range(x, y, d)", {n: np.array(v, np.float32) for n, v in zip("xyd", (0, 1, 0.1))}, 18),
    "the largest of nothing": ("z = ReduceMax(x)", {"x": np.zeros(0, int)}, 18),
    "an end that runtimes differ on": ("z = Slice(x, s, e, a, t)",
                                       {"x": [1, 2], "s": [1], "e": [2**63 - 1], "a": [0], "t": [-1]}, 18),
    "too many copies": ("z = Expand(x, s)", {"x": [1], "s": [2**40, 2**40]}, 18),
    "too many equal numbers": ("z = ConstantOfShape(s)", {"s": [2**40]}, 18),
    "too many steps": ("z = Range(x, y, d)", {"x": 0, "y": 2**40, "d": 1}, 18),
    "too many classes": ("z = OneHot(x, d, v)", {"x": [1], "d": 2**40, "v": [0, 1]}, 18),
    "too many sums": ("z = Add(x, y)", {"x": np.ones((60, 1), int), "y": np.ones((1, 60), int)}, 18),
    "too many entries": ("z = Identity(x)", {"x": np.ones(65, int)}, 18),
}  # fmt: skip


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_certain_is_not_known(name: str) -> None:
    text, operands, opset = UNKNOWN[name]
    arrays = {n: np.asarray(v, None if isinstance(v, np.ndarray) else np.int64) for n, v in operands.items()}
    drawn = Drawn(text, arrays, opset)
    assert computed(drawn, Arithmetic({}), objects(drawn)) is None


def test_floats_are_rounded_to_the_type_of_the_graph() -> None:
    """Seven tenths of ten are seven in float32, and less in float64."""
    arrays = {"x": np.array([10], np.float32), "y": np.array([0.7], np.float32)}
    drawn = Drawn("z = Mul(x, y)", arrays, 18)
    assert computed(drawn, Arithmetic({}), objects(drawn))[0].tolist() == [7.0]
    node = drawn.node()
    node.outputs[0].type = None
    assert evaluate(node, [array.astype(object) for array in arrays.values()], Arithmetic({}), LARGEST) is None


def test_a_division_of_unknown_type_is_not_known() -> None:
    node = Drawn("z = Div(x, y)", {"x": np.array([7]), "y": np.array([2])}, 18).node()
    later = [as_array(Term("later", (number,))) for number in (7, 2)]
    assert evaluate(node, later, TERMS, LARGEST)[0].item().value() == 3
    node.outputs[0].type = None
    assert evaluate(node, later, TERMS, LARGEST) is None


def test_operands_that_are_not_known_leave_nothing_known() -> None:
    node = Drawn("z = Add(x, y)", {"x": np.array([1]), "y": np.array([2])}, 18).node()
    assert evaluate(node, [as_array(1), None], Arithmetic({}), LARGEST) is None


def test_other_domains_have_other_operators() -> None:
    node = ir.node("Add", [ir.Value(name="x"), ir.Value(name="y")], domain="com.example")
    assert evaluate(node, [as_array(1), as_array(2)], Arithmetic({}), LARGEST) is None


@pytest.mark.parametrize(
    "attributes, asked", [({}, [0, 1, 2]), ({"start": 1}, [1, 2]), ({"start": -2, "end": -1}, [1])]
)
def test_no_size_is_asked_for_that_is_not_needed(attributes: dict[str, int], asked: list[int]) -> None:
    seen: list[int] = []
    node = ir.node("Shape", [ir.Value(name="x")], attributes)
    assert measured(node, 3, lambda axis: seen.append(axis) or 10 + axis, TERMS).tolist() == [
        10 + axis for axis in asked
    ]
    assert seen == asked


def test_the_size_is_the_product_of_all() -> None:
    node = ir.node("Size", [ir.Value(name="x")])
    sizes = [2, Term("later", (3,)), 5]
    assert measured(node, 3, sizes.__getitem__, TERMS).item().value() == 30
    assert measured(node, 0, sizes.__getitem__, TERMS).item() == 1
