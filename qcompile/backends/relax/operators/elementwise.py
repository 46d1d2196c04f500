"""Operators on single elements, with broadcasting."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import numpy as np
import onnx_ir as ir
from tvm import relax, tirx

from qcompile.backends.relax import known
from qcompile.backends.relax.builder import Builder, Value
from qcompile.backends.relax.operators.registry import OPERATORS, operator, refuse

__all__ = ["binary", "broadcast_shape", "like", "unary"]

_Rule = Callable[..., relax.Expr]


def broadcast_shape(g: Builder, node: ir.Node, *tensors: relax.Expr) -> list[Any]:
    """The shape that ONNX broadcasts to. Two sizes that are not known to be equal are taken to be.

    A run whose sizes differ there stops with an error: TVM checks the shapes that a kernel was compiled for.
    """
    shapes = [g.shape(t) for t in tensors]
    rank = max(map(len, shapes))
    result = []
    for axis in range(-rank, 0):
        sizes = [shape[axis] for shape in shapes if len(shape) >= -axis]
        sizes = [size for size in sizes if not (isinstance(size, int) and size == 1)]
        fixed = [size for size in sizes if isinstance(size, int)]
        if len(set(fixed)) > 1:
            raise refuse(node, f"sizes {fixed} do not broadcast")
        result.append(fixed[0] if fixed else sizes[0] if sizes else 1)
    return result


def like(g: Builder, value: Value, other: Value) -> relax.Expr:
    """A tensor; a constant takes the type of the other operand."""
    if isinstance(value, np.ndarray) and value.dtype != object and not isinstance(other, np.ndarray):
        return g.tensor(value.astype(g.dtype(other)))
    return g.tensor(value)


def elementwise(
    g: Builder, node: ir.Node, function: Callable[..., tirx.Expr], *inputs: relax.Expr, dtype: str | None = None
) -> relax.Expr:
    """``function`` of elements, broadcast."""
    shape = broadcast_shape(g, node, *inputs)
    shapes = [g.shape(x) for x in inputs]

    def element(*arguments: Any) -> tirx.Expr:
        tensors, index = arguments[: len(inputs)], arguments[len(inputs) :]
        return function(*(t(*_own(index, s, shape)) for t, s in zip(tensors, shapes, strict=True)))

    return g.compute(shape, element, node.op_type.lower(), *inputs)


def _own(index: tuple[Any, ...], shape: list[Any], whole: list[Any]) -> tuple[Any, ...]:
    """The index into an operand that is broadcast along its axes of size 1."""
    own = index[len(index) - len(shape) :]
    wide = whole[len(whole) - len(shape) :]
    return tuple(
        tirx.const(0, "int64") if size == 1 and not (isinstance(w, int) and w == 1) else i
        for i, size, w in zip(own, shape, wide, strict=True)
    )


def binary(
    g: Builder, node: ir.Node, rule: _Rule, function: Callable[..., tirx.Expr], a: Value, b: Value
) -> relax.Expr:
    """TVM's own operator where it sees that the shapes fit, else element by element."""
    a, b = like(g, a, b), like(g, b, a)
    shape = broadcast_shape(g, node, a, b)
    if all(isinstance(size, int) for size in shape) or _aligned(g, a, b, shape):
        out = g.emit(rule(a, b))
        if out.ty.shape is not None:
            return out
    return elementwise(g, node, function, a, b)


def _aligned(g: Builder, a: relax.Expr, b: relax.Expr, shape: list[Any]) -> bool:
    for x in (a, b):
        own = g.shape(x)
        for size, wanted in zip(own, shape[len(shape) - len(own) :], strict=True):
            if not (isinstance(size, int) and size == 1) and not known.same(size, wanted):
                return False
    return True


_BINARY: dict[str, tuple[_Rule, Callable[..., tirx.Expr]]] = {
    "Add": (relax.op.add, lambda a, b: a + b),
    "Sub": (relax.op.subtract, lambda a, b: a - b),
    "Mul": (relax.op.multiply, lambda a, b: a * b),
    "Equal": (relax.op.equal, tirx.EQ),
    "Less": (relax.op.less, tirx.LT),
    "LessOrEqual": (relax.op.less_equal, tirx.LE),
    "Greater": (relax.op.greater, tirx.GT),
    "GreaterOrEqual": (relax.op.greater_equal, tirx.GE),
    "And": (relax.op.logical_and, tirx.And),
    "Or": (relax.op.logical_or, tirx.Or),
    "Xor": (relax.op.logical_xor, tirx.NE),
    "BitwiseAnd": (relax.op.bitwise_and, tirx.bitwise_and),
    "BitwiseOr": (relax.op.bitwise_or, tirx.bitwise_or),
    "BitwiseXor": (relax.op.bitwise_xor, tirx.bitwise_xor),
}
for _name, (_rule, _function) in _BINARY.items():
    OPERATORS["", _name] = partial(
        lambda g, node, a, b, rule, function: binary(g, node, rule, function, a, b), rule=_rule, function=_function
    )


def _variadic(name: str, rule: _Rule, function: Callable[..., tirx.Expr]) -> None:
    def lower(g: Builder, node: ir.Node, *inputs: Value) -> Value:
        return reduce(lambda a, b: binary(g, node, rule, function, a, b), inputs)

    OPERATORS["", name] = lower


_variadic("Max", relax.op.maximum, tirx.max)
_variadic("Min", relax.op.minimum, tirx.min)
_variadic("Sum", relax.op.add, lambda a, b: a + b)


@operator("Mean")
def _mean(g: Builder, node: ir.Node, *inputs: Value) -> relax.Expr:
    total = OPERATORS["", "Sum"](g, node, *inputs)
    return g.emit(relax.op.divide(total, relax.const(float(len(inputs)), g.dtype(total))))


@operator("Div")
def _divide(g: Builder, node: ir.Node, a: Value, b: Value) -> relax.Expr:
    if g.dtype(a).startswith(("int", "uint")):
        return elementwise(g, node, tirx.truncdiv, like(g, a, b), like(g, b, a))
    return binary(g, node, relax.op.divide, lambda x, y: x / y, a, b)


@operator("Mod")
def _modulo(g: Builder, node: ir.Node, a: Value, b: Value) -> relax.Expr:
    whole = tirx.truncmod if node.attributes.get_int("fmod", 0) else tirx.floormod
    function = whole if g.dtype(a).startswith(("int", "uint")) else _remainder
    return elementwise(g, node, function, like(g, a, b), like(g, b, a))


def _remainder(x: tirx.Expr, y: tirx.Expr) -> tirx.Expr:
    return x - tirx.trunc(x / y) * y


@operator("Pow")
def _power(g: Builder, node: ir.Node, a: Value, b: Value) -> relax.Expr:
    a = g.tensor(a)
    exponent = b.reshape(-1)[0].item() if isinstance(b, np.ndarray) and b.size == 1 and b.ndim <= 1 else None
    simple = {2: lambda: relax.op.multiply(a, a), 0.5: lambda: relax.op.sqrt(a), 1: lambda: a}
    if exponent in simple:
        return g.emit(simple[exponent]())
    if exponent == 3:
        return g.emit(relax.op.multiply(g.emit(relax.op.multiply(a, a)), a))
    dtype = g.dtype(a)
    b = g.cast(g.tensor(b), dtype)
    return elementwise(g, node, lambda x, y: tirx.pow(x, y), a, b)


@operator("Where")
def _where(g: Builder, node: ir.Node, condition: Value, yes: Value, no: Value) -> relax.Expr:
    condition, yes, no = g.tensor(condition), like(g, yes, no), like(g, no, yes)
    return elementwise(g, node, lambda c, a, b: tirx.Select(c, a, b), condition, yes, no)


# ---- one operand -------------------------------------------------------------------------------------------------


def unary(g: Builder, node: ir.Node, function: Callable[[tirx.Expr], tirx.Expr], x: Value) -> relax.Expr:
    """``function`` of every element."""
    return elementwise(g, node, function, g.tensor(x))


def _f(value: float, x: tirx.Expr) -> tirx.Expr:
    return tirx.const(value, str(x.ty.dtype))


def _half_up(x: tirx.Expr) -> tirx.Expr:
    return tirx.nearbyint(x)


def _softplus(x: tirx.Expr) -> tirx.Expr:
    return tirx.max(x, _f(0.0, x)) + tirx.log1p(tirx.exp(_f(0.0, x) - tirx.abs(x)))


_UNARY: dict[str, _Rule] = {
    "Abs": relax.op.abs, "Neg": relax.op.negative, "Sqrt": relax.op.sqrt, "Exp": relax.op.exp, "Log": relax.op.log,
    "Sin": relax.op.sin, "Cos": relax.op.cos, "Tan": relax.op.tan, "Tanh": relax.op.tanh, "Erf": relax.op.erf,
    "Sigmoid": relax.op.sigmoid, "Relu": relax.op.nn.relu, "Floor": relax.op.floor, "Ceil": relax.op.ceil,
    "Sign": relax.op.sign, "Not": relax.op.logical_not, "IsNaN": relax.op.isnan, "Atan": relax.op.atan,
    "Sinh": relax.op.sinh, "Cosh": relax.op.cosh, "Asin": relax.op.asin, "Acos": relax.op.acos,
    "BitwiseNot": relax.op.bitwise_not, "Identity": lambda x: x, "Selu": relax.op.nn.selu,
    "Asinh": relax.op.asinh, "Acosh": relax.op.acosh, "Atanh": relax.op.atanh, "Dropout": lambda x: x,
}  # fmt: skip
for _name, _rule in _UNARY.items():
    OPERATORS["", _name] = partial(lambda g, node, x, *rest, rule: g.emit(rule(g.tensor(x))), rule=_rule)

_ELEMENTS: dict[str, Callable[[tirx.Expr], tirx.Expr]] = {
    "Reciprocal": lambda x: _f(1.0, x) / x,
    "Round": _half_up,
    "Softplus": _softplus,
    "Softsign": lambda x: x / (_f(1.0, x) + tirx.abs(x)),
    "HardSwish": lambda x: x * tirx.max(_f(0.0, x), tirx.min(_f(1.0, x), x / _f(6.0, x) + _f(0.5, x))),
    "Mish": lambda x: x * tirx.tanh(_softplus(x)),
    "IsInf": lambda x: tirx.isinf(x),
}
for _name, _element in _ELEMENTS.items():
    OPERATORS["", _name] = partial(lambda g, node, x, function: unary(g, node, function, x), function=_element)


@operator("Gelu")
def _gelu(g: Builder, node: ir.Node, x: Value) -> relax.Expr:
    if node.attributes.get_string("approximate", "none") == "tanh":
        return g.emit(relax.op.nn.gelu_tanh(g.tensor(x)))
    root = math.sqrt(0.5)
    return unary(g, node, lambda v: v * _f(0.5, v) * (_f(1.0, v) + tirx.erf(v * _f(root, v))), x)


@operator("Swish")
def _swish(g: Builder, node: ir.Node, x: Value) -> relax.Expr:
    alpha = node.attributes.get_float("alpha", 1.0)
    return unary(g, node, lambda v: v * tirx.sigmoid(v * _f(alpha, v)), x)


@operator("HardSigmoid")
def _hard_sigmoid(g: Builder, node: ir.Node, x: Value) -> relax.Expr:
    alpha, beta = node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)
    return unary(g, node, lambda v: tirx.max(_f(0.0, v), tirx.min(_f(1.0, v), v * _f(alpha, v) + _f(beta, v))), x)


@operator("LeakyRelu")
def _leaky_relu(g: Builder, node: ir.Node, x: Value) -> relax.Expr:
    return g.emit(relax.op.nn.leakyrelu(g.tensor(x), node.attributes.get_float("alpha", 0.01)))


@operator("Elu")
def _elu(g: Builder, node: ir.Node, x: Value) -> relax.Expr:
    alpha = node.attributes.get_float("alpha", 1.0)
    return unary(g, node, lambda v: tirx.Select(v > 0, v, _f(alpha, v) * (tirx.exp(v) - _f(1.0, v))), x)


@operator("Celu")
def _celu(g: Builder, node: ir.Node, x: Value) -> relax.Expr:
    alpha = node.attributes.get_float("alpha", 1.0)
    return unary(g, node, lambda v: tirx.Select(v > 0, v, _f(alpha, v) * (tirx.exp(v / _f(alpha, v)) - _f(1.0, v))), x)


@operator("ThresholdedRelu")
def _thresholded(g: Builder, node: ir.Node, x: Value) -> relax.Expr:
    alpha = node.attributes.get_float("alpha", 1.0)
    return unary(g, node, lambda v: tirx.Select(v > _f(alpha, v), v, _f(0.0, v)), x)


@operator("PRelu")
def _prelu(g: Builder, node: ir.Node, x: Value, slope: Value) -> relax.Expr:
    return elementwise(g, node, lambda v, s: tirx.Select(v > 0, v, v * s), g.tensor(x), g.tensor(slope))


@operator("Clip")
def _clip(g: Builder, node: ir.Node, x: Value, low: Value | None = None, high: Value | None = None) -> relax.Expr:
    x = g.tensor(x)
    bounds = [(low, "min", tirx.max, relax.op.maximum), (high, "max", tirx.min, relax.op.minimum)]
    for value, name, function, rule in bounds:
        if value is None and name in node.attributes:
            value = np.array(node.attributes.get_float(name), np.float32)
        if value is not None:
            x = binary(g, node, rule, function, x, value)
    return x


@operator("Cast")
def _cast(g: Builder, node: ir.Node, x: Value) -> relax.Expr:
    return convert(g, node, g.tensor(x), ir.DataType(node.attributes.get_int("to")))


@operator("CastLike")
def _cast_like(g: Builder, node: ir.Node, x: Value, other: Value) -> relax.Expr:
    return g.cast(g.tensor(x), g.dtype(other))


def convert(g: Builder, node: ir.Node, x: relax.Expr, dtype: ir.DataType) -> relax.Expr:
    """The tensor in a type of ONNX."""
    names = {ir.DataType.FLOAT: "float32", ir.DataType.DOUBLE: "float64", ir.DataType.BOOL: "bool"}
    name = names.get(dtype, dtype.name.lower())
    if not name.startswith(("float16", "float32", "float64", "int", "uint", "bool", "bfloat16")):
        raise refuse(node, f"TVM has no correct arithmetic in {dtype.name}")
    if name == "bool" and g.dtype(x) != "bool":
        return elementwise(g, node, lambda v: v != _f(0, v), x)
    return g.cast(x, name)
