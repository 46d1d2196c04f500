"""Sizes as TVM knows them: integers, and expressions of those of dynamic axes.

A value that is known while compiling is a NumPy array. One of dtype ``object`` holds Python integers and expressions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import tvm
from tvm import tirx

from qcompile.shapes.arithmetic import Undecided

__all__ = ["Size", "expression", "holds", "is_float", "prove", "quotient", "same", "simplify", "tidy"]

Size = Any  # int or tirx.Expr

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


def is_float(size: Size) -> bool:
    """Whether a size was cast to a float."""
    return isinstance(size, tirx.Expr) and "float" in str(size.ty.dtype)


def holds(condition: tirx.Expr) -> bool:
    """Whether a condition is known to hold for all sizes."""
    return _ANALYZER.can_prove(condition)


def prove(condition: tirx.Expr) -> bool:
    """Whether a condition holds or fails for all sizes.

    Raises:
        Undecided: if that depends.
    """
    if holds(condition):
        return True
    if holds(tirx.Not(condition)):
        return False
    raise Undecided


def product(sizes: Sequence[Size]) -> Size:
    """The product of all."""
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


def tidy(array: np.ndarray, dtype: ir.DataType | None) -> np.ndarray:
    """Simplified; an array of that type where nothing symbolic is left."""
    flat = [simplify(v) if isinstance(v, tirx.Expr) else v for v in array.flat]
    out = np.empty(len(flat), object)
    out[:] = flat
    if not any(isinstance(v, tirx.Expr) for v in flat):
        stated = np.int64 if dtype is None else dtype.numpy()
        out = out.astype(bool if dtype is None and all(isinstance(v, bool) for v in flat) else stated)
    return out.reshape(array.shape)
