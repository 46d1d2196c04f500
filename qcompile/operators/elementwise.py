"""Operators on each element, and comparisons. ``{0}`` is an input: a tensor, or a number where the host knows it."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from qcompile.ir.graph import is_random
from qcompile.operators.call import Call, reads_more

__all__ = ["ROWS"]

_INTEGERS = {ir.DataType.INT64, ir.DataType.INT32, ir.DataType.INT16, ir.DataType.INT8, ir.DataType.UINT8,
             ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64}  # fmt: skip


def _div(c: Call) -> str:
    if c.kind(0) in _INTEGERS:
        return f'torch.div({c[0]}, {c.operand(1)}, rounding_mode="trunc")'
    return f"{c.operand(0)} / {c.operand(1)}"


def _mod(c: Call) -> str:
    if c.int("fmod", 0):
        return f"torch.fmod({c[0]}, {c.operand(1)})"
    return f"torch.remainder({c[0]}, {c.operand(1)})"


def _pow(c: Call) -> str:
    exponent = c.item(1)
    if exponent == 2:
        return f"{c[0]}.square()"
    if exponent == 0.5:
        return f"{c[0]}.sqrt()"
    return f"torch.pow({c.operand(0)}, {c.operand(1)})"


def _fold(function: str) -> Callable[[Call], str]:
    def row(c: Call) -> str:
        text = c[0]
        for i in range(1, len(c)):
            text = f"{function}({text}, {c[i]})"
        return text

    return row


def _sum(c: Call) -> str:
    return " + ".join(c[i] for i in range(len(c)))


def _mean(c: Call) -> str:
    return f"({_sum(c)}) / {len(c)}"


def _clip(c: Call) -> str:
    if "min" in c.node.attributes or "max" in c.node.attributes:
        return f"torch.clamp({c[0]}, {c.float('min')}, {c.float('max')})"
    low, high = (_bound(c, i) for i in (1, 2))
    if low == "None" and high == "None":
        return c[0]
    return f"torch.clamp({c[0]}, {low}, {high})"


def _bound(c: Call, i: int) -> str:
    if not c.has(i):
        return "None"
    return c.scalar(i) if c.host(i) is not None else f"{c[i]}"


def _where(c: Call) -> str:
    one_tensor = c.host(1) is None or c.host(2) is None  # of two numbers torch would choose the type
    a, b = (c.operand(1), c.operand(2)) if one_tensor else (c[1], c[2])
    return f"torch.where({c[0]}, {a}, {b})"


def _leaky(c: Call) -> str:
    return f"F.leaky_relu({c[0]}, {c.float('alpha', 0.01)})"


def _gelu(c: Call) -> str:
    return f'F.gelu({c[0]}, approximate="{c.string("approximate", "none")}")'


def _elu(c: Call) -> str:
    return f"F.elu({c[0]}, {c.float('alpha', 1.0)})"


def _hard_sigmoid(c: Call) -> str:
    return f"torch.clamp({c[0]} * {c.float('alpha', 0.2)} + {c.float('beta', 0.5)}, 0, 1)"


def _prelu(c: Call) -> str:
    return f"torch.where({c[0]} < 0, {c[0]} * {c[1]}, {c[0]})"


def _bit_shift(c: Call) -> str:
    sign = "<<" if c.string("direction") == "LEFT" else ">>"
    return f"{c.operand(0)} {sign} {c.operand(1)}"


def _cast(c: Call) -> str:
    return c.program.cast(c.value(0), ir.DataType(c.need_int("to")))


def _cast_like(c: Call) -> str:
    kind = c.kind(1)
    if kind is None:
        raise c.refuse("the type that it casts to is not known")
    return c.program.cast(c.value(0), kind)


def _dropout(c: Call) -> str:
    if is_random(c.node):
        raise c.refuse("it is told to train, and random then: its result would differ at every run")
    return f"{c[0]}, torch.ones_like({c[0]}, dtype=torch.bool)" if reads_more(c.node) else c[0]


def _swish(c: Call) -> str:
    alpha = c.float("alpha", 1.0)
    return f"F.silu({c[0]})" if alpha == 1.0 else f"{c[0]} * torch.sigmoid({c[0]} * {alpha})"


def _shrink(c: Call) -> str:
    bias, lambd = c.float("bias", 0.0), c.float("lambd", 0.5)
    x = c[0]
    return f"torch.where({x} > {lambd}, {x} - {bias}, torch.where({x} < -{lambd}, {x} + {bias}, torch.zeros_like({x})))"


ROWS = {
    "Abs": "torch.abs({0!t})",
    "Acos": "torch.acos({0!t})",
    "Acosh": "torch.acosh({0!t})",
    "Add": "{0} + {1}",
    "And": "torch.logical_and({0!t}, {1!t})",
    "Asin": "torch.asin({0!t})",
    "Asinh": "torch.asinh({0!t})",
    "Atan": "torch.atan({0!t})",
    "Atanh": "torch.atanh({0!t})",
    "BitShift": _bit_shift,
    "BitwiseAnd": "{0} & {1}",
    "BitwiseNot": "~{0!t}",
    "BitwiseOr": "{0} | {1}",
    "BitwiseXor": "{0} ^ {1}",
    "Cast": _cast,
    "CastLike": _cast_like,
    "Ceil": "torch.ceil({0!t})",
    "Celu": lambda c: f"F.celu({c[0]}, {c.float('alpha', 1.0)})",
    "Clip": _clip,
    "Cos": "torch.cos({0!t})",
    "Cosh": "torch.cosh({0!t})",
    "Div": _div,
    "Dropout": _dropout,
    "Elu": _elu,
    "Equal": "{0!t} == {1}",
    "Erf": "torch.erf({0!t})",
    "Exp": "torch.exp({0!t})",
    "Floor": "torch.floor({0!t})",
    "Gelu": _gelu,
    "Greater": "{0} > {1}",
    "GreaterOrEqual": "{0} >= {1}",
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": "F.hardswish({0!t})",
    "Identity": "{0!t}",
    "IsInf": "torch.isinf({0!t})",
    "IsNaN": "torch.isnan({0!t})",
    "LeakyRelu": _leaky,
    "Less": "{0} < {1}",
    "LessOrEqual": "{0} <= {1}",
    "Log": "torch.log({0!t})",
    "Max": _fold("torch.maximum"),
    "Mean": _mean,
    "Min": _fold("torch.minimum"),
    "Mish": "F.mish({0!t})",
    "Mod": _mod,
    "Mul": "{0} * {1}",
    "Neg": "-{0!t}",
    "Not": "torch.logical_not({0!t})",
    "Or": "torch.logical_or({0!t}, {1!t})",
    "PRelu": _prelu,
    "Pow": _pow,
    "Reciprocal": "torch.reciprocal({0!t})",
    "Relu": "F.relu({0!t})",
    "Round": "torch.round({0!t})",
    "Selu": lambda c: f"{c.helper('selu')}({c[0]}, {c.float('alpha', 1.67326319)}, {c.float('gamma', 1.05070102)})",
    "Shrink": _shrink,
    "Sigmoid": "torch.sigmoid({0!t})",
    "Sign": "torch.sign({0!t})",
    "Sin": "torch.sin({0!t})",
    "Sinh": "torch.sinh({0!t})",
    "Softplus": "F.softplus({0!t})",
    "Softsign": "F.softsign({0!t})",
    "Sqrt": "torch.sqrt({0!t})",
    "Sub": "{0} - {1}",
    "Sum": _sum,
    "Swish": _swish,
    "Tan": "torch.tan({0!t})",
    "Tanh": "torch.tanh({0!t})",
    "ThresholdedRelu": lambda c: f"F.threshold({c[0]}, {c.float('alpha', 1.0)}, 0.0)",
    "Where": _where,
    "Xor": "torch.logical_xor({0!t}, {1!t})",
}
