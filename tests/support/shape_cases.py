"""Cases of shape arithmetic: nodes with random operands, in the versions that ONNX's operators have had."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx.helper
import onnx.parser
import onnx_ir as ir

__all__ = ["CASES", "Case", "Drawn"]

Rng = np.random.Generator


@dataclass(frozen=True)
class Case:
    """A node whose operands are drawn.

    Args:
        text: the node in ONNX's textual syntax; lists that are drawn are filled in where it names them in braces.
        draw: operands by name (arrays), and attributes (lists and numbers).
        opset: version of the operators.
        places: names of operands that say where entries go.
    """

    text: str
    draw: Callable[[Rng], Mapping[str, Any]]
    opset: int = 18
    places: str = ""

    @property
    def op(self) -> str:
        """The operator."""
        return self.text.split("= ")[1].split("(")[0].split("<")[0]

    def drawn(self, seed: int) -> Drawn:
        """One draw of it."""
        found = self.draw(np.random.default_rng(seed))
        operands = {name: value for name, value in found.items() if isinstance(value, np.ndarray)}
        return Drawn(self.text.format(**found), operands, self.opset)

    def __str__(self) -> str:
        return f"{self.text} of {self.opset}"


@dataclass(frozen=True)
class Drawn:
    """A node with its operands, which are inputs of its graph."""

    text: str
    operands: Mapping[str, np.ndarray]
    opset: int

    def proto(self) -> onnx.ModelProto:
        """A model of that node, its types inferred."""
        outputs = self.text.split(" = ")[0].split(", ")
        model = onnx.parser.parse_model(
            f'<ir_version: 9, opset_import: ["" : {self.opset}]> g () => () {{ {self.text} }}'
        )
        for name, array in self.operands.items():
            kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
            model.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, array.shape))
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
        return onnx.shape_inference.infer_shapes(model)

    def node(self) -> ir.Node:
        """The node."""
        return ir.from_proto(self.proto()).graph.node(0)


# ---- draws -------------------------------------------------------------------------------------------------------


def ints(*shape: int, low: int = -9, high: int = 10) -> Callable[[Rng], np.ndarray]:
    return lambda rng: np.asarray(rng.integers(low, high, shape))


def divisors(*shape: int) -> Callable[[Rng], np.ndarray]:
    return lambda rng: np.asarray(rng.integers(1, 6, shape) * rng.choice([-1, 1], shape))


def reals(*shape: int, low: float = -9, high: float = 9) -> Callable[[Rng], np.ndarray]:
    return lambda rng: rng.uniform(low, high, shape).astype(np.float32)


def whole(rng: Rng) -> np.ndarray:
    return np.array(rng.integers(1, 9), np.float32)


def truths(*shape: int) -> Callable[[Rng], np.ndarray]:
    return lambda rng: rng.integers(0, 2, shape) > 0


def given(*content: int) -> Callable[[Rng], np.ndarray]:
    return lambda rng: np.array(content, np.int64)


def some(*contents: list[int]) -> Callable[[Rng], np.ndarray]:
    """One of several vectors."""
    return lambda rng: np.array(contents[rng.integers(len(contents))], np.int64)


def number(low: int, high: int) -> Callable[[Rng], int]:
    """An attribute."""
    return lambda rng: int(rng.integers(low, high))


def numbers(*contents: list[int]) -> Callable[[Rng], list[int]]:
    """One of several lists, as an attribute."""
    return lambda rng: contents[rng.integers(len(contents))]


def of(**draws: Callable[[Rng], Any]) -> Callable[[Rng], dict[str, Any]]:
    return lambda rng: {name: draw(rng) for name, draw in draws.items()}


PAIR = of(x=ints(2, 3), y=ints(3))
REALS = of(x=reals(2, 3), y=reals(3))
POSITIVE = of(x=reals(5, low=0.1))
BOUNDS = {"s": ints(2), "e": ints(2), "a": some([0, 1], [-1, 0], [1, -2])}
FIXED = {"s": numbers([1, -2], [-9, 2]), "e": numbers([9, 3], [-1, -1]), "a": numbers([0, 1], [-1, 0])}
STEPS = some([1, 2], [-1, 1], [-2, 3], [-3, -1], [2, -2])
AXES = some([0], [-1], [1, -3], [0, 1, 2])
REDUCED = of(x=ints(2, 3, 2, low=-4, high=5), a=AXES)

# ---- cases -------------------------------------------------------------------------------------------------------

CASES = [
    *(Case(f"z = {op}(x, y)", PAIR) for op in ("Add", "Sub", "Mul", "Equal", "Max", "Min")),
    *(Case(f"z = {op}(x, y)", PAIR) for op in ("Less", "LessOrEqual", "Greater", "GreaterOrEqual")),
    *(Case(f"z = {op}(x, y)", REALS) for op in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Less", "GreaterOrEqual")),
    *(Case(f"z = {op}(x, y)", of(x=ints(), y=ints())) for op in ("Add", "Sub", "Mul", "Equal", "Less")),
    *(Case(f"z = {op}(x, y)", of(x=truths(2, 3), y=truths(3))) for op in ("And", "Or", "Equal")),
    *(Case(f"z = {op}(x, y, w)", of(x=ints(3), y=ints(2, 1), w=ints())) for op in ("Max", "Min")),
    *(Case(f"z = {op}(x)", of(x=ints(4))) for op in ("Max", "Min", "Neg", "Abs", "Identity")),
    *(Case(f"z = {op}(x)", of(x=reals(4))) for op in ("Neg", "Abs", "Floor", "Ceil")),
    *(Case(f"z = {op}(x)", POSITIVE) for op in ("Sqrt", "Exp", "Log", "Reciprocal")),
    Case("z = Not(x)", of(x=truths(4))),
    Case("z = Div(x, y)", of(x=ints(2, 3, low=-40, high=40), y=divisors(3))),
    Case("z = Div(x, y)", of(x=ints(2, 3, low=-40, high=40), y=divisors(3)), 13),
    Case("z = Mod(x, y)", of(x=ints(2, 3, low=-40, high=40), y=divisors(3))),
    Case("z = Mod<fmod=1>(x, y)", of(x=ints(2, 3, low=-40, high=40), y=divisors(3))),
    Case("z = Mod<fmod=1>(x, y)", REALS),
    Case("z = Pow(x, y)", of(x=ints(4, low=-4, high=5), y=ints(4, low=0, high=5))),
    Case("z = Pow(x, y)", of(x=reals(4, low=0.1), y=ints(4, low=-3, high=4))),
    Case("z = Where(c, x, y)", of(c=truths(2, 1), x=ints(3), y=ints(2, 3))),
    *(Case(f"z = Cast<to={kind}>(x)", of(x=ints(5))) for kind in (1, 6, 7, 9, 10, 11)),
    *(Case(f"z = Cast<to={kind}>(x)", of(x=reals(5))) for kind in (1, 6, 7, 9, 10, 11)),
    *(Case(f"z = Cast<to={kind}>(x)", of(x=truths(5))) for kind in (1, 7)),
    Case("z = Shape(x)", of(x=ints(2, 0, 3))),
    Case("z = Shape<start={s}, end={e}>(x)", of(x=ints(2, 0, 3), s=number(-4, 4), e=number(-4, 4))),
    Case("z = Shape<start={s}>(x)", of(x=ints(2, 1, 3), s=number(-4, 4))),
    Case("z = Size(x)", of(x=ints(2, 4))),
    Case("z = Size(x)", of(x=ints())),
    Case("z = Gather<axis={a}>(x, i)", of(x=ints(3, 3), i=ints(2, 2, low=-3, high=3), a=number(-2, 2)), places="i"),
    Case("z = Gather(x, i)", of(x=ints(4), i=ints(low=-4, high=4)), places="i"),
    Case("z = Gather(x, i)", of(x=ints(4, 2), i=ints(0)), places="i"),
    Case("z = Slice(x, s, e)", of(x=ints(4, 5), s=ints(2), e=ints(2)), places="se"),
    Case("z = Slice(x, s, e, a)", of(x=ints(4, 5), **BOUNDS), places="sea"),
    Case("z = Slice(x, s, e, a, t)", of(x=ints(4, 5), **BOUNDS, t=STEPS), places="seat"),
    Case("z = Slice(x, s, e, , t)", of(x=ints(4, 5), s=ints(2), e=ints(2), t=STEPS), places="set"),
    Case("z = Slice(x, s, e, a, t)", of(x=ints(0, 3), **BOUNDS, t=STEPS), 11, places="seat"),
    Case("z = Slice(x, s, e, a, t)", of(x=ints(4), s=some([9], [-9]), e=given(-(2**63)), a=given(0), t=some([-1], [1])),
         places="seat"),
    Case("z = Slice(x, s, e)", of(x=ints(4), s=ints(1), e=given(2**63 - 1)), places="se"),
    Case("z = Slice<starts={s}, ends={e}, axes={a}>(x)", of(x=ints(4, 5), **FIXED), 9),
    Case("z = Slice<starts={s}, ends={e}>(x)", of(x=ints(4, 5), **FIXED), 9),
    Case("z = Squeeze(x)", of(x=ints(1, 3, 1, 2))),
    Case("z = Squeeze(x, a)", of(x=ints(1, 3, 1, 2), a=some([0], [-2], [2, 0], [-4, -2])), places="a"),
    Case("z = Squeeze<axes={a}>(x)", of(x=ints(1, 3, 1, 2), a=numbers([0], [-2], [0, 2])), 11),
    Case("z = Unsqueeze(x, a)", of(x=ints(3, 2), a=some([0], [-1], [0, -1], [1, 3], [-2, -5, 2])), places="a"),
    Case("z = Unsqueeze(x, a)", of(x=ints(), a=given(0)), places="a"),
    Case("z = Unsqueeze<axes={a}>(x)", of(x=ints(3, 2), a=numbers([0], [-1], [0, 3])), 11),
    Case("z = Reshape(x, s)", of(x=ints(2, 6), s=some([-1], [3, -1], [0, 2, 3], [0, -1], [12, 1], [2, 0])), places="s"),
    Case("z = Reshape(x, s)", of(x=ints(1), s=given()), places="s"),
    Case("z = Reshape<allowzero=1>(x, s)", of(x=ints(0, 3), s=some([3, 0], [0], [2, 0, 5])), places="s"),
    Case("z = Reshape(x, s)", of(x=ints(0, 3), s=some([0, 3], [0, 5, 3])), 13, places="s"),
    Case("z = Flatten<axis={a}>(x)", of(x=ints(2, 3, 2), a=number(-3, 4))),
    Case("z = Flatten(x)", of(x=ints(2, 3, 2))),
    Case("z = Flatten<axis=0>(x)", of(x=ints())),
    Case("z = Transpose(x)", of(x=ints(2, 3, 4))),
    Case("z = Transpose<perm={p}>(x)", of(x=ints(2, 3, 4), p=lambda rng: rng.permutation(3).tolist())),
    Case("z = Concat<axis=0>(x, y, w)", of(x=ints(2), y=ints(0), w=ints(3))),
    Case("z = Concat<axis={a}>(x, y)", of(x=ints(2, 1), y=ints(2, 3), a=lambda rng: int(rng.choice([1, -1])))),
    Case("z, w = Split(x)", of(x=ints(6)), 13),
    Case("z, w = Split<axis={a}>(x, s)", of(x=ints(5, 5), s=some([2, 3], [0, 5], [5, 0]), a=number(-2, 2)), places="s"),
    Case("z, w = Split<axis=-1, split={s}>(x)", of(x=ints(2, 5), s=numbers([2, 3], [1, 4])), 11),
    Case("z, w, v = Split<num_outputs=3>(x)", of(x=lambda rng: rng.integers(0, 9, rng.choice([5, 6, 7])))),
    Case("z = Expand(x, s)", of(x=ints(3, 1), s=some([3, 4], [1], [2, 3, 1], [2, 1, 5], [3, 0])), places="s"),
    Case("z = ConstantOfShape<value=int64[1] {{-7}}>(s)", of(s=ints(2, low=0, high=4)), places="s"),
    Case("z = ConstantOfShape(s)", of(s=ints(2, low=0, high=4)), places="s"),
    Case("z = ConstantOfShape<value=bool[1] {{1}}>(s)", of(s=given()), places="s"),
    Case("z = Range(x, y, d)", of(x=ints(), y=ints(), d=divisors()), places="xyd"),
    Case("z = Range(x, y, d)", of(x=whole, y=whole, d=whole),
         places="xyd"),
    Case("z = OneHot<axis={a}>(i, d, v)", of(i=ints(2, 2, low=-5, high=5), d=given(3), v=ints(2), a=number(-3, 3)),
         places="id"),
    Case("z = OneHot(i, d, v)", of(i=ints(3), d=lambda rng: np.array(4), v=reals(2)), places="id"),
    *(Case(f"z = {op}<keepdims={k}>(x, a)", REDUCED, places="a")
      for op in ("ReduceSum", "ReduceProd", "ReduceMax", "ReduceMin") for k in (0, 1)),
    *(Case(f"z = {op}<axes={{a}}>(x)", of(x=ints(2, 3, 2, low=-4, high=5), a=numbers([0], [-1, 0], [1, 2])), 11)
      for op in ("ReduceSum", "ReduceProd", "ReduceMax", "ReduceMin")),
    *(Case(f"z = {op}(x)", of(x=ints(2, 3))) for op in ("ReduceSum", "ReduceProd", "ReduceMax", "ReduceMin")),
    *(Case(f"z = {op}<keepdims=0>(x, a)", of(x=ints(2, 3), a=given()), places="a") for op in ("ReduceSum", "ReduceMax")),
    *(Case(f"z = {op}<noop_with_empty_axes=1>(x, a)", of(x=ints(2, 3), a=given()), places="a")
      for op in ("ReduceSum", "ReduceProd")),
    *(Case(f"z = {op}<noop_with_empty_axes=1>(x)", of(x=ints(2, 3))) for op in ("ReduceSum", "ReduceProd")),
    *(Case(f"z = {op}(x, a)", of(x=ints(0, 3), a=given(0)), places="a") for op in ("ReduceSum", "ReduceProd")),
    *(Case(f"z = {op}(x, a)", of(x=reals(3), a=given(0)), places="a") for op in ("ReduceMax", "ReduceMin")),
]  # fmt: skip
