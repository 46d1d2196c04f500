"""Numbers that the generated program computes on the host: shapes, axes, bounds. Arrays of literals and expressions.

A host value is a numpy array of objects, each a Python number or a ``Symbol``: the text of a Python expression. What
is known when the program is generated folds, so ``Shape → Slice → Concat → Reshape`` becomes ``x.reshape(x.shape[0], 6,
32)`` and costs the GPU nothing. ``qcompile.shapes`` computes with numbers; here is what becomes of text.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from qcompile.shapes.arithmetic import FLOATS, Arithmetic, Scalar, Undecided, is_number

__all__ = ["ARITHMETIC", "KINDS", "Symbol", "cast", "host_array", "text_of", "texts_of"]

_ATOM, _PRODUCT, _SUM, _LOOSE = 3, 2, 1, 0


@dataclass(frozen=True)
class Symbol:
    """An expression of the generated program.

    Args:
        text: Python source.
        level: how tightly it binds.
        natural: whether it is known to be an integer that is not negative, as every size is.
    """

    text: str
    level: int = _ATOM
    natural: bool = False

    def at(self, level: int) -> str:
        """The source, in parentheses where its context binds tighter."""
        return self.text if self.level >= level else f"({self.text})"


Item = Scalar  # int | float | bool | Symbol

#: The types that numbers of the host stand for, as Python has them.
KINDS: dict[ir.DataType, type] = {
    ir.DataType.INT64: int, ir.DataType.INT32: int, ir.DataType.BOOL: bool, **dict.fromkeys(FLOATS, float),
}  # fmt: skip


def host_array(content: Any) -> np.ndarray:
    """An array of objects: Python numbers and symbols."""
    return np.asarray(content).astype(object)


def text_of(item: Item) -> str:
    """Python source of one number, safe as an operand."""
    if isinstance(item, Symbol):
        return item.at(_ATOM)
    if isinstance(item, float) and not math.isfinite(item):
        return "float('nan')" if math.isnan(item) else ("float('inf')" if item > 0 else "(-float('inf'))")
    return f"({item!r})" if not isinstance(item, bool) and item < 0 else repr(item)


def texts_of(array: np.ndarray) -> list[str]:
    """Python source of each number of a vector or scalar, for an argument list."""
    return [item.text if isinstance(item, Symbol) else _bare(item) for item in array.reshape(-1)]


def _bare(item: Item) -> str:
    return repr(item) if isinstance(item, int) or math.isfinite(item) else text_of(item)


# ---- arithmetic --------------------------------------------------------------------------------------------------


def _source(item: Item, level: int) -> str:
    return item.at(level) if isinstance(item, Symbol) else text_of(item)


def _natural(item: Item) -> bool:
    return item.natural if isinstance(item, Symbol) else isinstance(item, int) and item >= 0


def _infix(sign: str, level: int, natural: bool = False) -> Callable[[Item, Item], Item]:
    def apply(a: Item, b: Item) -> Item:
        known = natural and _natural(a) and _natural(b)
        return Symbol(f"{_source(a, level)} {sign} {_source(b, level + 1)}", level, known)

    return apply


def _add(a: Item, b: Item) -> Item:
    if 0 in (a, b):
        return a if b == 0 else b
    return _plus(a, b)


def _multiply(a: Item, b: Item) -> Item:
    if 1 in (a, b):
        return b if a == 1 else a
    return _times(a, b)


_plus = _infix("+", _SUM, natural=True)
_times = _infix("*", _PRODUCT, natural=True)
_floor_divide = _infix("//", _PRODUCT, natural=True)
_modulo = _infix("%", _PRODUCT, natural=True)
_true_divide = _infix("/", _PRODUCT)


def _truncate_divide(a: Item, b: Item) -> Item:
    """Integer division as ONNX has it, towards zero; on sizes it is Python's."""
    if b == 1:
        return a
    if _natural(a) and _natural(b):
        return _floor_divide(a, b)
    return Symbol(f"int({_source(a, _PRODUCT)} / {_source(b, _PRODUCT + 1)})")


def _remainder(a: Item, b: Item) -> Item:
    """The rest of that division; on sizes it is Python's."""
    if not (_natural(a) and _natural(b)):
        raise Undecided
    return _modulo(a, b)


def _call(name: str, natural: bool = False) -> Callable[..., Item]:
    def apply(*items: Item) -> Item:
        known = natural and all(map(_natural, items))
        return Symbol(f"{name}({', '.join(_source(item, _LOOSE) for item in items)})", _ATOM, known)

    return apply


def _loose(sign: str) -> Callable[[Item, Item], Item]:
    return lambda a, b: Symbol(f"{_source(a, _SUM)} {sign} {_source(b, _SUM)}", _LOOSE)


def _equal(a: Item, b: Item) -> Item:
    if _natural(a) and is_number(b) and b < 0 or _natural(b) and is_number(a) and a < 0:
        return False
    return _loose("==")(a, b)


def _where(condition: Item, a: Item, b: Item) -> Item:
    natural = _natural(a) and _natural(b)
    parts = (_source(item, _SUM) for item in (a, condition, b))
    return Symbol("{} if {} else {}".format(*parts), _LOOSE, natural)


def cast(item: Item, kind: type) -> Item:
    """The number as ``int``, ``float`` or ``bool``."""
    if is_number(item):
        return kind(item)
    if kind is int and item.natural:
        return item
    return Symbol(f"{kind.__name__}({item.text})", _ATOM, False)


def _cast(item: Item, dtype: ir.DataType) -> Item:
    if dtype not in KINDS:
        raise Undecided
    return cast(item, KINDS[dtype])


#: Elementwise operators on host values. Those that are not here run on the GPU unless they fold.
ARITHMETIC = Arithmetic({
    "Add": _add,
    "Sub": _infix("-", _SUM),
    "Mul": _multiply,
    "Div": _truncate_divide,
    "TrueDiv": _true_divide,
    "Mod": _modulo,
    "Fmod": _remainder,
    "Pow": _call("pow"),
    "Max": _call("max", natural=True),
    "Min": _call("min", natural=True),
    "Equal": _equal,
    "Less": _loose("<"),
    "LessOrEqual": _loose("<="),
    "Greater": _loose(">"),
    "GreaterOrEqual": _loose(">="),
    "And": _loose("and"),
    "Or": _loose("or"),
    "Not": lambda a: Symbol(f"not {a.at(_SUM)}", _LOOSE),
    "Neg": lambda a: Symbol(f"-{_source(a, _ATOM)}", _SUM),
    "Abs": lambda a: a if a.natural else _call("abs")(a),
    "Sqrt": _call("math.sqrt"),
    "Reciprocal": lambda a: _true_divide(1.0, a),
    "Floor": lambda a: cast(_call("math.floor")(a), float),
    "Ceil": lambda a: cast(_call("math.ceil")(a), float),
    "Where": _where,
    "Cast": _cast,
})  # fmt: skip
