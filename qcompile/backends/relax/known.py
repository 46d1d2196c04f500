"""Arithmetic on what is known while compiling: constants, and integers made of the sizes of dynamic axes.

A known value is a NumPy array. One of dtype ``object`` holds Python integers and TVM expressions of sizes, so that
``Shape``, ``Gather``, ``Concat`` and the like need no code of their own: NumPy does them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tvm
from tvm import tirx

__all__ = ["Undecided", "expression", "prove", "quotient", "same", "simplify", "tidy"]

Size = Any  # int or tirx.Expr


class Undecided(Exception):
    """A question about sizes whose answer depends on them."""


_ANALYZER = tvm.sym.Analyzer()


def bound(symbol: tirx.Var) -> None:
    """Tell that a size is positive."""
    _ANALYZER.update(symbol, tvm.sym.ConstIntBound(1, 1 << 40))


def simplify(size: Size) -> Size:
    """An integer where the expression is one."""
    if isinstance(size, int | np.integer):
        return int(size)
    simple = _ANALYZER.simplify(size)
    return int(simple) if isinstance(simple, tirx.IntImm) else simple


def same(a: Size, b: Size) -> bool:
    """Whether two sizes are equal whatever the symbols are."""
    return simplify(a - b) == 0 if not (isinstance(a, int) and isinstance(b, int)) else a == b


def expression(size: Size) -> tirx.Expr:
    """A size as TVM takes it."""
    return size if isinstance(size, tirx.Expr) else tirx.const(int(size), "int64")


def prove(condition: Any) -> bool:
    """Whether a condition holds or fails for all sizes.

    Raises:
        Undecided: if that depends.
    """
    if isinstance(condition, bool | np.bool_ | int):
        return bool(condition)
    if _ANALYZER.can_prove(condition):
        return True
    if _ANALYZER.can_prove(tirx.Not(condition)):
        return False
    raise Undecided


def product(sizes: Sequence[Size]) -> Size:
    """Of all."""
    return simplify(math.prod(sizes)) if sizes else 1


def quotient(whole: Sequence[Size], parts: Sequence[Size]) -> Size:
    """The product of some sizes over that of others, which divides it: what a -1 of Reshape stands for."""
    count, symbols = _factors(whole)
    divisor, others = _factors(parts)
    for other in list(others):
        found = next((i for i, symbol in enumerate(symbols) if same(symbol, other)), None)
        if found is not None:
            symbols.pop(found)
            others.remove(other)
    if not others and count % divisor == 0:
        return product([count // divisor, *symbols])
    return simplify(tirx.floordiv(product([count, *symbols]), product([divisor, *others])))


def _factors(sizes: Sequence[Size]) -> tuple[int, list[Size]]:
    """The integer and the symbolic factors of a product."""
    count, symbols = 1, []
    queue = list(sizes)
    while queue:
        size = queue.pop()
        if isinstance(size, int | np.integer | tirx.IntImm):
            count *= int(size)
        elif isinstance(size, tirx.Mul):
            queue += [size.a, size.b]
        else:
            symbols.append(size)
    return count, symbols


def tidy(array: np.ndarray) -> np.ndarray:
    """Simplified; a plain int64 array where nothing symbolic is left."""
    if array.dtype != object:
        return array
    flat = [simplify(v) if not isinstance(v, float) else v for v in array.reshape(-1)]
    if all(isinstance(v, bool) for v in flat) and flat:
        return np.array(flat, bool).reshape(array.shape)
    if all(isinstance(v, int) for v in flat):
        return np.array(flat, np.int64).reshape(array.shape)
    out = np.empty(len(flat), object)
    out[:] = flat
    return out.reshape(array.shape)
