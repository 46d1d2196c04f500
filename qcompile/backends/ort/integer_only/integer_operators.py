"""Operators as integers: sums, moves, means, and functions of one value by a table of its codes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from qcompile.backends.ort.integer_only.integer_attention import norm, shiftmax
from qcompile.backends.ort.integer_only.integer_graph import AnyNumber, Integers, Operator
from qcompile.backends.ort.integer_only.integer_products import convolution, multiplied, plain_constant, pooled, product
from qcompile.backends.ort.integer_only.numbers import Joined, Number, Table, Term, table_of
from qcompile.errors import TargetError
from qcompile.ir.graph import append_node, label
from qcompile.ir.required import constant, name_of, operand, optional, rank_of, shape_of
from qcompile.operators.sorts import MOVES, POINTWISE
from qcompile.run.session import evaluate

__all__ = ["OPERATORS"]

_INT32, _INT64 = ir.DataType.INT32, ir.DataType.INT64

#: Parts of a step that means over a number of places keep that is known as it runs alone.
_PARTS = 1 << 16


# -- element by element ------------------------------------------------------------------------------------------------


def _pointwise(work: Integers, node: ir.Node) -> list[AnyNumber]:
    if node.op_type in ("Relu", "Clip") and isinstance(number := work.read(node, 0), Number):
        return [number.clipped(*_ends(node))]
    table = _looked_up(work, node)
    if table is not None:
        return [table]
    if node.op_type in ("Add", "Sub"):
        return [_sum(work, node)]
    if node.op_type in ("Mul", "Div"):
        return [_scaled(work, node)]
    raise TargetError(f"{label(node)} is no function of one value in codes: it is not computed in integers")


def _sum(work: Integers, node: ir.Node) -> Number:
    """``Add`` and ``Sub``: all terms together, of which constants are one."""
    terms: list[Term] = []
    offset = np.zeros(())
    for index, sign in enumerate((1.0, -1.0 if node.op_type == "Sub" else 1.0)):
        plain = plain_constant(operand(node, index))
        number = Number((), plain) if plain is not None else _number(work, node, index)
        signed = number.scaled(np.array(sign))
        terms += signed.terms
        offset = offset + signed.offset
    return Number(tuple(terms), offset)


def _scaled(work: Integers, node: ir.Node) -> Number:
    """``Mul`` and ``Div``, of two values or by a constant."""
    left, right = (plain_constant(operand(node, index)) for index in (0, 1))
    if left is None and right is not None:
        return _number(work, node, 0).scaled(right if node.op_type == "Mul" else 1 / right)
    if node.op_type == "Div":
        raise TargetError(f"{label(node)} divides by a value: it is not computed in integers")
    return multiplied(work, node) if left is None else _number(work, node, 1).scaled(left)


def _ends(node: ir.Node) -> tuple[float, float]:
    if node.op_type == "Relu":
        return 0.0, np.inf
    low, high = (plain_constant(optional(node, index)) for index in (1, 2))
    return -np.inf if low is None else float(low), np.inf if high is None else float(high)


def _number(work: Integers, node: ir.Node, index: int) -> Number:
    number = work.read(node, index)
    if not isinstance(number, Number):
        raise TargetError(f"{label(node)} reads '{operand(node, index).name}', which has no static range")
    return number


def _looked_up(work: Integers, node: ir.Node) -> Table | None:
    """The operator as a table, where all that it reads is a function of the same codes, or a single constant."""
    feeds: dict[str, np.ndarray] = {}
    codes = None
    names = [None if value is None else f"x{index}" for index, value in enumerate(node.inputs)]
    for index, value in enumerate(node.inputs):
        if value is None:
            continue
        plain = plain_constant(value)
        table = table_of(work.read(node, index)) if plain is None else None
        if (plain is not None and plain.size > 1) or (
            plain is None and (table is None or codes not in (None, table.codes))
        ):
            return None
        if table is not None:
            codes = table.codes
        feeds[f"x{index}"] = (table.values if table is not None else plain.reshape(())).astype(np.float32)  # type: ignore[union-attr]
    if codes is None:
        return None
    with np.errstate(all="ignore"):
        (values,) = evaluate(_alone(work, node, names, feeds), feeds).values()
    return Table(codes, np.nan_to_num(values.astype(np.float64)))


def _alone(work: Integers, node: ir.Node, names: list[str | None], feeds: Mapping[str, np.ndarray]) -> ir.Model:
    """The operator as a graph of its own."""
    kind = ir.TensorType(ir.DataType.FLOAT)
    inputs = {name: ir.Value(name=name, shape=ir.Shape(array.shape), type=kind) for name, array in feeds.items()}
    made = ir.Node(
        "",
        node.op_type,
        [None if n is None else inputs[n] for n in names],
        list(node.attributes.values()),
        num_outputs=1,
    )
    made.outputs[0].name, made.outputs[0].type, made.outputs[0].shape = "y", kind, ir.Shape((256,))
    graph = ir.Graph([*inputs.values()], made.outputs, nodes=[made], opset_imports={"": work.emit.opset}, name="alone")
    return ir.Model(graph, ir_version=work.emit.model.ir_version or 8)


def _slopes(work: Integers, node: ir.Node) -> list[AnyNumber]:
    """``PRelu`` and ``LeakyRelu``: what is above zero, and what is below it times its slope."""
    number, slope = work.read(node, 0), _slope(node)
    if slope is None or not isinstance(number, Number) or len(number.terms) != 1 or (number.terms[0].scale < 0).any():
        raise TargetError(
            f"{label(node)} reads a sum, or has slopes that are no constant: it is not computed in integers"
        )
    x = work.summed(node, number)
    zero = work.zero(x)
    parts = [work.op(node, op, x.value.dtype or _INT32, x.value, zero) for op in ("Max", "Min")]
    return [Number((Term(parts[0], x.zero, x.scale), Term(parts[1], x.zero, x.scale * slope)))]


def _slope(node: ir.Node) -> np.ndarray | None:
    if node.op_type == "LeakyRelu":
        return np.array(node.attributes.get_float("alpha", 0.01), np.float64)
    return plain_constant(operand(node, 1))


# -- moves and means ---------------------------------------------------------------------------------------------------


def _moved(work: Integers, node: ir.Node) -> list[AnyNumber]:
    """The operator on codes."""
    number = work.read(node, 0)
    if isinstance(number, Joined) or (
        isinstance(number, Number) and (len(number.terms) != 1 or number.terms[0].scale.size > 1)
    ):
        raise TargetError(f"{label(node)} moves '{operand(node, 0).name}', which is not in codes")
    codes = number.codes if isinstance(number, Table) else number.terms[0].value
    operands: list[ir.Value | None] = [codes, *node.inputs[1:]]
    if node.op_type == "Resize" and node.attributes.get_string("mode", "nearest") != "nearest":
        raise TargetError(f"{label(node)} interpolates: it is not computed in integers")
    if node.op_type == "Pad":
        if isinstance(number, Table) or not number.plain or (len(operands) > 2 and np.any(plain_constant(operands[2]))):
            raise TargetError(f"{label(node)} pads with something else than zeros: it is not computed in integers")
        operands = [*operands[:2], work.zero(number.terms[0]), *operands[3:]]
    made = append_node(
        node, node.op_type, operands, {name: own.value for name, own in node.attributes.items()},
        name=work.emit.unique(f"{name_of(node.outputs[0])}/moved"), outputs=len(node.outputs),
    )  # fmt: skip
    found: list[AnyNumber] = []
    for index, value in enumerate(made.outputs):
        value.type = ir.TensorType(codes.dtype or _INT32)
        value.name = value.name or work.emit.unique(f"{name_of(node.outputs[0])}/moved {index}")
        found.append(replace(number, codes=value) if isinstance(number, Table)
                     else replace(number, terms=(replace(number.terms[0], value=value),)))  # fmt: skip
    return found


def _concatenated(work: Integers, node: ir.Node) -> list[AnyNumber]:
    parts = [work.read(node, index) for index in range(len(node.inputs))]
    if any(isinstance(part, Joined) for part in parts):
        raise TargetError(f"{label(node)} joins what was joined: it has no static range")
    return [Joined(tuple(part for part in parts if not isinstance(part, Joined)), node.attributes.get_int("axis", 0))]


def _mean(work: Integers, node: ir.Node) -> list[AnyNumber]:
    """``ReduceMean`` and ``GlobalAveragePool``: sums of codes, one step of which is the less for their number."""
    x, rank = work.codes(node, 0), rank_of(operand(node, 0))
    axes = list(range(2, rank)) if node.op_type == "GlobalAveragePool" else _axes(node, rank)
    sizes = [size for axis in axes if isinstance(size := shape_of(operand(node, 0))[axis], int)]
    wide = work.op(node, "Cast", _INT64, x.value, to=int(_INT64))
    wanted = work.emit.constant(f"qcompile.axes_{axes}", np.array(axes, np.int64))
    total = work.op(node, "ReduceSum", _INT64, wide, wanted, keepdims=node.attributes.get_int("keepdims", 1))
    if len(sizes) == len(axes):
        count = int(np.prod(sizes))
        return [Number((Term(total, x.zero * count, x.scale / count),))]
    places = work.op(node, "Gather", _INT64, work.op(node, "Shape", _INT64, x.value), wanted)
    number = work.op(node, "ReduceProd", _INT64, places, keepdims=0)
    finer = work.op(node, "Mul", _INT64, total, work.emit.constant("qcompile.parts", np.array(_PARTS, np.int64)))
    return [Number((Term(work.op(node, "Div", _INT64, finer, number), x.zero * _PARTS, x.scale / _PARTS),))]


def _axes(node: ir.Node, rank: int) -> list[int]:
    value = optional(node, 1)
    given = node.attributes.get_ints("axes", range(rank)) if value is None else constant(value).numpy().tolist()
    return [axis % rank for axis in given]


#: By type; operators that read quantized values and are not here have no integer form.
OPERATORS: dict[str, Operator] = {
    **dict.fromkeys(POINTWISE, _pointwise),
    **dict.fromkeys(MOVES, _moved),
    "AveragePool": pooled,
    "Concat": _concatenated,
    "Conv": convolution,
    "Gemm": product,
    "GlobalAveragePool": _mean,
    "MatMul": product,
    "LayerNorm": norm,
    "LayerNormalization": norm,
    "LeakyRelu": _slopes,
    "PRelu": _slopes,
    "Pad": _moved,
    "RMSNorm": norm,
    "RMSNormalization": norm,
    "ReduceMean": _mean,
    "Softmax": shiftmax,
    "Split": _moved,
}
