"""Numbers that the generated program computes on the host: shapes, axes, bounds. Arrays of literals and expressions.

A host value is a numpy array of objects, each a Python number or a ``Symbol``: the text of a Python expression. What
is known when the program is generated folds, so ``Shape → Slice → Concat → Reshape`` becomes ``x.reshape(x.shape[0], 6,
32)`` and costs the GPU nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["ARITHMETIC", "Symbol", "as_array", "cast", "host_array", "text_of", "texts_of"]

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


Item = Any  # int | float | bool | Symbol


def host_array(content: Any) -> np.ndarray:
    """An array of objects: Python numbers and symbols."""
    array = np.asarray(content)
    if array.dtype == object:
        return array
    out = np.empty(array.shape, object)
    out[...] = array.tolist()
    return out


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


def _literal(*items: Item) -> bool:
    return not any(isinstance(item, Symbol) for item in items)


def _source(item: Item, level: int) -> str:
    return item.at(level) if isinstance(item, Symbol) else text_of(item)


def _natural(item: Item) -> bool:
    return item.natural if isinstance(item, Symbol) else isinstance(item, int) and item >= 0


def _infix(sign: str, level: int, compute: Callable[[Item, Item], Item], natural: bool = False) -> Callable:
    def apply(a: Item, b: Item) -> Item:
        if _literal(a, b):
            return compute(a, b)
        known = natural and _natural(a) and _natural(b)
        return Symbol(f"{_source(a, level)} {sign} {_source(b, level + 1)}", level, known)

    return apply


def _add(a: Item, b: Item) -> Item:
    if _literal(b) and b == 0 or _literal(a) and a == 0:
        return a if _literal(b) and b == 0 else b
    return _plus(a, b)


def _multiply(a: Item, b: Item) -> Item:
    if _literal(a) and a == 1 or _literal(b) and b == 1:
        return b if _literal(a) and a == 1 else a
    return _times(a, b)


_plus = _infix("+", _SUM, lambda a, b: a + b, natural=True)
_times = _infix("*", _PRODUCT, lambda a, b: a * b, natural=True)
_floor_divide = _infix("//", _PRODUCT, lambda a, b: a // b, natural=True)
_true_divide = _infix("/", _PRODUCT, lambda a, b: a / b)


def _truncate_divide(a: Item, b: Item) -> Item:
    """Integer division as ONNX has it, towards zero; on sizes it is Python's."""
    if _literal(b) and b == 1:
        return a
    if _natural(a) and _natural(b):
        return _floor_divide(a, b)
    if _literal(a, b):
        return int(a / b)
    return Symbol(f"int({_source(a, _PRODUCT)} / {_source(b, _PRODUCT + 1)})")


def _call(name: str, compute: Callable[..., Item], natural: bool = False) -> Callable:
    def apply(*items: Item) -> Item:
        if _literal(*items):
            return compute(*items)
        known = natural and all(map(_natural, items))
        return Symbol(f"{name}({', '.join(_source(item, _LOOSE) for item in items)})", _ATOM, known)

    return apply


def _compare(sign: str, compute: Callable[[Item, Item], bool]) -> Callable:
    def apply(a: Item, b: Item) -> Item:
        if _literal(a, b):
            return compute(a, b)
        if sign == "==" and (_natural(a) and _literal(b) and b < 0 or _natural(b) and _literal(a) and a < 0):
            return False
        return Symbol(f"{_source(a, _SUM)} {sign} {_source(b, _SUM)}", _LOOSE)

    return apply


def _negate(a: Item) -> Item:
    return -a if _literal(a) else Symbol(f"-{_source(a, _ATOM)}", _SUM)


def _where(condition: Item, a: Item, b: Item) -> Item:
    if _literal(condition):
        return a if condition else b
    natural = _natural(a) and _natural(b)
    parts = (_source(item, _SUM) for item in (a, condition, b))
    return Symbol("{} if {} else {}".format(*parts), _LOOSE, natural)


def cast(item: Item, kind: type) -> Item:
    """The number as ``int``, ``float`` or ``bool``."""
    if _literal(item):
        return kind(item)
    if kind is int and item.natural:
        return item
    return Symbol(f"{kind.__name__}({item.text})", _ATOM, False)


def _ufunc(function: Callable, inputs: int) -> Callable[..., np.ndarray]:
    elementwise = np.frompyfunc(function, inputs, 1)
    return lambda *arrays: as_array(elementwise(*arrays))


def as_array(result: Any) -> np.ndarray:
    """An array of objects, also where numpy took out the one element."""
    if isinstance(result, np.ndarray):
        return result
    out = np.empty((), object)
    out[()] = result
    return out


#: Elementwise operators by name: ``(arrays of objects) -> array of objects``. ``Div`` is that of integers.
ARITHMETIC: dict[str, Callable[..., np.ndarray]] = {
    "Add": _ufunc(_add, 2),
    "Sub": _ufunc(_infix("-", _SUM, lambda a, b: a - b), 2),
    "Mul": _ufunc(_multiply, 2),
    "Div": _ufunc(_truncate_divide, 2),
    "TrueDiv": _ufunc(_true_divide, 2),
    "Mod": _ufunc(_infix("%", _PRODUCT, lambda a, b: a % b, natural=True), 2),
    "Pow": _ufunc(_call("pow", pow), 2),
    "Max": _ufunc(_call("max", max, natural=True), 2),
    "Min": _ufunc(_call("min", min, natural=True), 2),
    "Equal": _ufunc(_compare("==", lambda a, b: a == b), 2),
    "Less": _ufunc(_compare("<", lambda a, b: a < b), 2),
    "LessOrEqual": _ufunc(_compare("<=", lambda a, b: a <= b), 2),
    "Greater": _ufunc(_compare(">", lambda a, b: a > b), 2),
    "GreaterOrEqual": _ufunc(_compare(">=", lambda a, b: a >= b), 2),
    "And": _ufunc(_infix("and", _LOOSE, lambda a, b: a and b), 2),
    "Or": _ufunc(_infix("or", _LOOSE, lambda a, b: a or b), 2),
    "Not": _ufunc(lambda a: (not a) if _literal(a) else Symbol(f"not {a.at(_SUM)}", _LOOSE), 1),
    "Neg": _ufunc(_negate, 1),
    "Abs": _ufunc(lambda a: a if _natural(a) else _call("abs", abs)(a), 1),
    "Sqrt": _ufunc(_call("math.sqrt", math.sqrt), 1),
    "Reciprocal": _ufunc(lambda a: _true_divide(1.0, a), 1),
    "Floor": _ufunc(lambda a: cast(_call("math.floor", math.floor)(a), float), 1),
    "Ceil": _ufunc(lambda a: cast(_call("math.ceil", math.ceil)(a), float), 1),
    "Where": _ufunc(_where, 3),
}
