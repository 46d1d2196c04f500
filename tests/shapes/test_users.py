"""Source text, expressions of TVM and axes: what each makes of sizes is what numbers give, or not known."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from shape_cases import CASES, Case

from qcompile.analysis.axes import Axes, Ref
from qcompile.analysis.rules import sizes
from qcompile.operators import symbols
from qcompile.shapes.arithmetic import Arithmetic, Undecided, as_array, is_number, settled
from qcompile.shapes.evaluate import evaluate

NUMBERS = Arithmetic({})


@dataclass(frozen=True)
class User:
    """Who computes with shapes.

    Args:
        arithmetic: the user's.
        variable: makes the scalar of a size from its name.
        value: the number that a scalar is, from the numbers by name; ``None`` where the user does not know.
    """

    arithmetic: Arithmetic
    variable: Callable[[str], Any]
    value: Callable[[Any, dict[str, int]], Any]


def source() -> User:
    def value(symbol: symbols.Symbol, numbers: dict[str, int]) -> Any:
        return eval(symbol.text, {"math": math}, numbers)

    return User(symbols.ARITHMETIC, lambda name: symbols.Symbol(name, natural=True), value)


def expressions() -> User:
    tvm = pytest.importorskip("tvm", reason="TVM is not installed: it is the extra 'tvm'")
    import tvm_ffi

    from qcompile.backends.relax import folds, known

    made: dict[str, Any] = {}

    def variable(name: str) -> Any:
        if name not in made:
            made[name] = tvm.tirx.Var(name, "int64")
            known.bound(made[name])
        return made[name]

    def value(expression: Any, numbers: dict[str, int]) -> Any:
        names = {symbol: tvm.tirx.const(numbers[name], "int64") for name, symbol in made.items() if name in numbers}
        replaced = tvm_ffi.structural_map(expression, (tvm.tirx.Var, lambda v: names.get(v, v)), order="post")
        simple = known.simplify(replaced)
        return simple if isinstance(simple, int) else simple.value

    return User(folds.ARITHMETIC, variable, value)


def axes() -> User:
    forest = Axes()
    names: dict[Any, str] = {}

    def variable(name: str) -> Ref:
        ref = forest.fresh(None)
        names[ref.node] = name
        return ref

    def value(dim: Ref | None, numbers: dict[str, int]) -> int | None:
        if dim is None:
            return None
        return math.prod(numbers[names[f.node]] if f.node in names else f.node.size for f in forest.factors(dim))

    return User(sizes.arithmetic(SimpleNamespace(axes=forest)), variable, value)


USERS = {"source": source, "expressions": expressions, "axes": axes}


def replaced(user: User, array: np.ndarray, numbers: dict[str, int]) -> list[Any]:
    return [item if is_number(item) else user.value(item, numbers) for item in array.flat]


@pytest.mark.parametrize("name", USERS)
@pytest.mark.parametrize("case", [case for case in CASES if case.op not in ("Shape", "Size")], ids=str)
def test_operators_on_sizes(case: Case, name: str) -> None:
    """Every positive integer is a size."""
    user = USERS[name]()
    for seed in range(4):
        drawn, numbers = case.drawn(seed), {}

        def sized(item: Any, late: bool, numbers: dict[str, int] = numbers) -> Any:
            if not late or type(item) is not int or item < 1:
                return item
            numbers[f"n{len(numbers)}"] = item
            return user.variable(f"n{len(numbers) - 1}")

        node, rng = drawn.node(), np.random.default_rng(seed)
        given = [None if v is None else drawn.operands[v.name].astype(object) for v in node.inputs]
        later = [None if array is None else as_array(np.frompyfunc(sized, 2, 1)(array, rng.random(array.shape) < 0.5))
                 for array in given]  # fmt: skip
        want = evaluate(node, given, NUMBERS, 64)
        for value, array, numeric in zip(node.outputs, evaluate(node, later, user.arithmetic, 64) or (), want):
            have = settled(np.array([*replaced(user, array, numbers), None], object)[:-1], value.dtype)
            assert [b if a is None else a for a, b in zip(have, numeric.flat, strict=True)] == list(numeric.flat)


#: How many of the random expressions a user follows at least.
MANY = {"source": 300, "expressions": 100, "axes": 5}

#: Operators by what they read and make: integers or truth values.
SIGNATURES = [
    *((op, "ii", "i") for op in ("Add", "Sub", "Mul", "Div", "Mod", "Fmod", "Max", "Min")),
    *((op, "ii", "b") for op in ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual")),
    ("And", "bb", "b"), ("Or", "bb", "b"), ("Not", "b", "b"), ("Neg", "i", "i"), ("Abs", "i", "i"),
    ("Where", "bii", "i"),
]  # fmt: skip


LEAVES = ("a", "b", "c", -1, 0, 1, 2, 3)


def grown(kind: str, depth: int, rng: np.random.Generator) -> Any:
    """A random expression: a name, a number, or an operator with its operands."""
    if depth <= 0 and kind == "i":
        return LEAVES[rng.integers(len(LEAVES))]
    rows = [(op, read) for op, read, made in SIGNATURES if made == kind and (depth > 0 or "b" not in read)]
    op, read = rows[rng.integers(len(rows))]
    return (op, *(grown(k, depth - 1, rng) for k in read))


def computed(expression: Any, arithmetic: Arithmetic, leaves: dict[str, Any]) -> Any:
    if not isinstance(expression, tuple):
        return leaves.get(expression, expression)
    op, *operands = expression
    return arithmetic[op](*(as_array(computed(operand, arithmetic, leaves)) for operand in operands)).item()


@pytest.mark.parametrize("name", USERS)
def test_expressions_of_sizes(name: str) -> None:
    user, found = USERS[name](), 0
    for seed in range(600):
        rng = np.random.default_rng(seed)
        expression = grown("ib"[seed % 2], 1 + seed % 3, rng)
        numbers = {letter: int(rng.integers(1, 9)) for letter in "abc"}
        try:
            want = computed(expression, NUMBERS, numbers)
            scalar = computed(expression, user.arithmetic, {letter: user.variable(letter) for letter in "abc"})
        except (Undecided, ZeroDivisionError):
            continue
        have = scalar if is_number(scalar) else user.value(scalar, numbers)
        assert have is None or have == want, expression
        found += have is not None and not is_number(scalar)
    assert found >= MANY[name]


@pytest.mark.parametrize("outer, inner", [("And", "Or"), ("Or", "And"), ("And", "And"), ("And", "Not"), ("Not", "Or")])
def test_conditions_within_conditions(outer: str, inner: str) -> None:
    """Source text needs its parentheses, on either side."""
    user, (a, b, c) = source(), (("Less", letter, 2) for letter in "abc")
    within = ("Not", a) if inner == "Not" else (inner, a, b)
    for expression in [("Not", within)] if outer == "Not" else [(outer, within, c), (outer, c, within)]:
        text = computed(expression, user.arithmetic, {letter: user.variable(letter) for letter in "abc"})
        for found in np.ndindex(2, 2, 2):
            numbers = dict(zip("abc", (size + 1 for size in found)))
            assert user.value(text, numbers) == computed(expression, NUMBERS, numbers)


@pytest.mark.parametrize("op", ["Div", "Mod"])
def test_tvm_is_asked_for_no_division_by_zero(op: str) -> None:
    user = expressions()
    with pytest.raises(Undecided):
        computed((op, "a", 0), user.arithmetic, {"a": user.variable("a")})


@pytest.mark.parametrize("name", USERS)
def test_quotients_of_products(name: str) -> None:
    """A batch times its heads may be taken apart again, and nothing else."""
    user = USERS[name]()
    for factor, divisor, size in np.ndindex(7, 7, 5):
        expression, numbers = ("Div", ("Mul", "a", factor + 1), divisor + 1), {"a": size + 1}
        scalar = computed(expression, user.arithmetic, {"a": user.variable("a")})
        have = scalar if is_number(scalar) else user.value(scalar, numbers)
        assert have in (None, computed(expression, NUMBERS, numbers))
        assert have is not None or (factor + 1) % (divisor + 1)
