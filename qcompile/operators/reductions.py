"""Operators that reduce or search along axes, and normalizations."""

from __future__ import annotations

from collections.abc import Callable

from qcompile.operators.call import Call

__all__ = ["ROWS"]


def _reduce(template: str) -> Callable[[Call], str]:
    """``{x}`` the input, ``{axes}`` and ``{keep}`` as torch takes them."""

    def row(c: Call) -> str:
        axes = c.axes(1)
        if not axes and c.int("noop_with_empty_axes", 0):
            return c[0]
        where = axes or list(range(c.need_rank(0)))
        found = str(where[0]) if len(where) == 1 else f"({', '.join(map(str, where))})"
        return template.format(x=c[0], axes=found, keep=bool(c.int("keepdims", 1)))

    return row


def _prod(c: Call) -> str:
    axes, keep = c.axes(1) or list(range(c.need_rank(0))), bool(c.int("keepdims", 1))
    text = c[0]
    for axis in sorted((c.axis(0, axis) for axis in axes), reverse=True):
        text += f".prod({axis}, keepdim={keep})"
    return text


def _arg(name: str) -> Callable[[Call], str]:
    def row(c: Call) -> str:
        axis, keep = c.int("axis", 0), bool(c.int("keepdims", 1))
        if c.int("select_last_index", 0):
            raise c.refuse("select_last_index is not supported")
        return f"torch.{name}({c[0]}, {axis}, keepdim={keep})"

    return row


def _softmax(function: str) -> Callable[[Call], str]:
    def row(c: Call) -> str:
        if c.opset >= 13:
            return f"{function}({c[0]}, {c.int('axis', -1)})"
        axis = c.int("axis", 1)
        if c.is_last(0, axis):
            return f"{function}({c[0]}, -1)"
        return f"{function}({c[0]}.flatten({axis}), -1).reshape({c[0]}.shape)"

    return row


def _layer_norm(c: Call) -> str:
    axis, bias = c.int("axis", -1), c.optional(2)
    if len(c.node.outputs) > 1 and any(out.uses() for out in c.node.outputs[1:]):
        raise c.refuse("its mean and deviation are read")
    shape = f"({c.dim(0, -1) or f'{c[0]}.shape[-1]'},)" if c.is_last(0, axis) else f"{c[0]}.shape[{axis}:]"
    return f"F.layer_norm({c[0]}, {shape}, {c[1]}, {bias}, {c.float('epsilon', 1e-5)})"


def _rms_norm(c: Call) -> str:
    axis, eps = c.int("axis", -1), c.float("epsilon", 1e-5)
    if axis != -1 and c.axis(0, axis) != c.need_rank(0) - 1:
        raise c.refuse("it does not normalize the last axis")
    if c.rank(1) != 1:  # a weight that differs along other axes too
        return f"F.rms_norm({c[0]}, {c[0]}.shape[-1:], None, {eps}) * {c[1]}"
    return f"{c.program.kernel('rms_norm')}({c[0]}, {c[1]}, {eps})"


def _batch_norm(c: Call) -> str:
    if c.int("training_mode", 0):  # by the statistics of this very input
        if any(value.uses() or value.is_graph_output() for value in c.node.outputs[1:]):
            raise c.refuse("its running statistics are read")
        return f"F.batch_norm({c[0]}, None, None, {c[1]}, {c[2]}, True, eps={c.float('epsilon', 1e-5)})"
    return f"F.batch_norm({c[0]}, {c[3]}, {c[4]}, {c[1]}, {c[2]}, eps={c.float('epsilon', 1e-5)})"


def _instance_norm(c: Call) -> str:
    return f"F.instance_norm({c[0]}, weight={c[1]}, bias={c[2]}, eps={c.float('epsilon', 1e-5)})"


def _group_norm(c: Call) -> str:
    eps, groups = c.float("epsilon", 1e-5), c.int("num_groups")
    if c.opset >= 21:
        return f"F.group_norm({c[0]}, {groups}, {c[1]}, {c[2]}, {eps})"
    return f"{c.helper('group_norm_18')}({c[0]}, {groups}, {c[1]}, {c[2]}, {eps})"


def _lp_norm(c: Call) -> str:
    return f"F.normalize({c[0]}, p={c.int('p', 2)}, dim={c.int('axis', -1)}, eps=0.0)"


def _cumsum(c: Call) -> str:
    axis = c.number(1)
    if c.int("exclusive", 0) or c.int("reverse", 0):
        flags = f"{bool(c.int('exclusive', 0))}, {bool(c.int('reverse', 0))}"
        return f"{c.helper('cumsum')}({c[0]}, {axis}, {flags})"
    return f"{c[0]}.cumsum({axis}, dtype={c[0]}.dtype)"


def _top_k(c: Call) -> str:
    k = c.int("k") if "k" in c.node.attributes else c.scalar(1)
    axis, largest, ordered = c.int("axis", -1), bool(c.int("largest", 1)), bool(c.int("sorted", 1))
    return f"torch.topk({c[0]}, {k}, {axis}, largest={largest}, sorted={ordered})"


ROWS = {
    "ArgMax": _arg("argmax"),
    "ArgMin": _arg("argmin"),
    "BatchNormalization": _batch_norm,
    "CumSum": _cumsum,
    "GroupNormalization": _group_norm,
    "Hardmax": lambda c: f"{c.helper('hardmax')}({c[0]}, {c.int('axis', -1)})",
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "LogSoftmax": _softmax("torch.log_softmax"),
    "LpNormalization": _lp_norm,
    "RMSNormalization": _rms_norm,
    "ReduceL1": _reduce("{x}.abs().sum({axes}, keepdim={keep})"),
    "ReduceL2": _reduce("torch.linalg.vector_norm({x}, dim={axes}, keepdim={keep})"),
    "ReduceLogSum": _reduce("{x}.sum({axes}, keepdim={keep}).log()"),
    "ReduceLogSumExp": _reduce("torch.logsumexp({x}, {axes}, keepdim={keep})"),
    "ReduceMax": _reduce("{x}.amax({axes}, keepdim={keep})"),
    "ReduceMean": _reduce("{x}.mean({axes}, keepdim={keep})"),
    "ReduceMin": _reduce("{x}.amin({axes}, keepdim={keep})"),
    "ReduceProd": _prod,
    "ReduceSum": _reduce("{x}.sum({axes}, keepdim={keep}, dtype={x}.dtype)"),
    "ReduceSumSquare": _reduce("{x}.square().sum({axes}, keepdim={keep})"),
    "Softmax": _softmax("torch.softmax"),
    "TopK": _top_k,
}
