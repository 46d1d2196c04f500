"""Numbers of the host fold where they are known and read well where they are not."""

from __future__ import annotations

import numpy as np
import pytest

from qcompile.operators.symbols import ARITHMETIC, Symbol, cast, host_array, text_of, texts_of

N = Symbol("n", natural=True)


def one(item: object) -> np.ndarray:
    return host_array(np.array([item, None], object)[:1])


@pytest.mark.parametrize(
    "op, operands, text",
    [
        ("Add", (2, 3), "5"),
        ("Add", (N, 0), "n"),
        ("Mul", (1, N), "n"),
        ("Mul", (Symbol("a + b", 1), 4), "(a + b) * 4"),
        ("Sub", (N, Symbol("a - b", 1)), "n - (a - b)"),
        ("Div", (-7, 2), "-3"),
        ("Div", (N, 2), "n // 2"),
        ("Div", (Symbol("d"), 2), "int(d / 2)"),
        ("Equal", (N, -1), "False"),
        ("Max", (N, 1), "max(n, 1)"),
        ("Where", (False, N, 3), "3"),
        ("Where", (Symbol("n == 1", 0), N, 3), "n if (n == 1) else 3"),
        ("Not", (Symbol("n == 1", 0),), "not (n == 1)"),
    ],
)
def test_arithmetic(op: str, operands: tuple, text: str) -> None:
    assert texts_of(ARITHMETIC[op](*map(one, operands))) == [text]


def test_sizes_stay_natural_numbers_under_what_keeps_them_so() -> None:
    assert ARITHMETIC["Mul"](one(N), one(6))[0].natural
    assert not ARITHMETIC["Sub"](one(N), one(6))[0].natural
    assert cast(N, int) is N
    assert cast(N, float).text == "float(n)"


@pytest.mark.parametrize("number", [-1, -2.5, float("inf"), -float("inf"), True, 1e30])
def test_literals_are_read_back_as_operands(number: float) -> None:
    assert eval(f"0 + {text_of(number)}") == number
    assert eval(texts_of(one(number))[0]) == number
