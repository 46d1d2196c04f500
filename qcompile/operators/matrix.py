"""Products, convolutions, pooling and resampling."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from qcompile.operators.call import Call

__all__ = ["ROWS"]


def _matmul(c: Call) -> str:
    return f"{c[0]} @ {c[1]}"


def _gemm(c: Call) -> str:
    left = f"{c[0]}.t()" if c.int("transA", 0) else c[0]
    right = f"{c[1]}.t()" if c.int("transB", 0) else c[1]
    alpha, beta = c.float("alpha", 1.0), c.float("beta", 1.0)
    if alpha == 1.0 and beta == 1.0 and c.has(2) and c.int("transB", 0) and c.rank(2) == 1:
        return f"F.linear({left}, {c[1]}, {c[2]})"
    text = f"{left} @ {right}"
    text = text if alpha == 1.0 else f"({text}) * {alpha}"
    if not c.has(2):
        return text
    return f"{text} + {c[2]}" if beta == 1.0 else f"{text} + {beta} * {c[2]}"


def _matmul_integer(c: Call) -> str:
    left = f"{c[0]}.int()" + (f" - {c[2]}.int()" if c.has(2) else "")
    right = f"{c[1]}.int()" + (f" - {c[3]}.int()" if c.has(3) else "")
    return f"{c.helper('integer_matmul')}({left}, {right})"


def _einsum(c: Call) -> str:
    operands = ", ".join(c[i] for i in range(len(c)))
    return f'torch.einsum("{c.string("equation").replace(" ", "")}", {operands})'


# ---- convolutions ------------------------------------------------------------------------------------------------


def _spatial(c: Call) -> int:
    rank = c.rank(1) if len(c) > 1 else None
    return (c.need_rank(0) if rank is None else rank) - 2


def _window(c: Call) -> tuple[int, list[int], list[int]]:
    """(spatial axes, strides, dilations)."""
    n = _spatial(c)
    return n, c.ints("strides", [1] * n), c.ints("dilations", [1] * n)


def _pads(c: Call, n: int) -> tuple[list[int], str]:
    """The symmetric padding, and the input padded beforehand where it is not symmetric."""
    pads, automatic = c.ints("pads", [0] * (2 * n)), c.string("auto_pad", "NOTSET")
    if automatic in ("SAME_UPPER", "SAME_LOWER"):
        kernel: Sequence[int | None] = c.ints("kernel_shape") or [c.dim(1, i) for i in range(2, n + 2)]
        _, strides, dilations = _window(c)
        lower = automatic == "SAME_LOWER"
        return [0] * n, f"{c.helper('same_pad')}({c[0]}, {kernel}, {strides}, {dilations}, {lower})"
    if pads[:n] == pads[n:]:
        return pads[:n], c[0]
    ordered = [p for i in reversed(range(n)) for p in (pads[i], pads[n + i])]
    return [0] * n, f"F.pad({c[0]}, {ordered})"


def _tuple(numbers: list[int]) -> str:
    return str(numbers[0]) if len(set(numbers)) == 1 else str(tuple(numbers))


def _conv(c: Call) -> str:
    n, strides, dilations = _window(c)
    padding, x = _pads(c, n)
    options = [f"{name}={_tuple(value)}" for name, value, default in
               (("stride", strides, 1), ("padding", padding, 0), ("dilation", dilations, 1))
               if any(v != default for v in value)]  # fmt: skip
    groups = c.int("group", 1)
    options += [f"groups={groups}"] if groups != 1 else []
    arguments = [x, c[1], *([c[2]] if c.has(2) else []), *options]
    return f"F.conv{n}d({', '.join(arguments)})"


def _conv_transpose(c: Call) -> str:
    n, strides, dilations = _window(c)
    pads = c.ints("pads", [0] * (2 * n))
    if "output_shape" in c.node.attributes or c.string("auto_pad", "NOTSET") != "NOTSET" or pads[:n] != pads[n:]:
        raise c.refuse("it has an output shape, automatic or asymmetric padding")
    extra = c.ints("output_padding", [0] * n)
    return (
        f"F.conv_transpose{n}d({c[0]}, {c[1]}, {c.optional(2)}, stride={_tuple(strides)}, padding={_tuple(pads[:n])}, "
        f"output_padding={_tuple(extra)}, groups={c.int('group', 1)}, dilation={_tuple(dilations)})"
    )


def _max_pool(c: Call) -> str:
    n, strides, dilations = _window(c)
    if len(c.node.outputs) > 1 and c.node.outputs[1].uses():
        raise c.refuse("its indices are read")
    pads, ceil = c.ints("pads", [0] * (2 * n)), bool(c.int("ceil_mode", 0))
    rest = f"{c.ints('kernel_shape')}, {strides}, {dilations}, {pads}, {ceil}"
    return f'{c.helper("max_pool")}({c[0]}, {rest}, "{c.string("auto_pad", "NOTSET")}")'


def _average_pool(c: Call) -> str:
    n, strides, dilations = _window(c)
    if any(d != 1 for d in dilations):
        raise c.refuse("its window is dilated")
    padding, x = _pads(c, n)
    counted = bool(c.int("count_include_pad", 0))
    if x != c[0] and not counted:
        raise c.refuse("its padding is not symmetric and is left out of the mean")
    return (
        f"F.avg_pool{n}d({x}, {_tuple(c.need_ints('kernel_shape'))}, {_tuple(strides)}, {_tuple(padding)}, "
        f"ceil_mode={bool(c.int('ceil_mode', 0))}, count_include_pad={counted})"
    )


def _global_pool(operation: str) -> Callable[[Call], str]:
    def row(c: Call) -> str:
        return f"{c[0]}.{operation}({tuple(range(2, c.need_rank(0)))}, keepdim=True)"

    return row


# ---- resampling --------------------------------------------------------------------------------------------------


def _resize(c: Call) -> str:
    if c.opset < 11:
        raise c.refuse("Resize before operator set 11 is not supported")
    sizes = c.sizes(3) if c.has(3) and not c.is_empty(3) else "None"
    scales = c.sizes(2) if sizes == "None" else "None"
    mode, nearest = c.string("mode", "nearest"), c.string("nearest_mode", "round_prefer_floor")
    where = c.string("coordinate_transformation_mode", "half_pixel")
    if c.int("antialias", 0) or c.int("exclude_outside", 0) or where == "tf_crop_and_resize":
        raise c.refuse("antialias, exclude_outside and tf_crop_and_resize are not supported")
    axes, cubic = c.ints("axes"), c.float("cubic_coeff_a", -0.75)
    return f'{c.helper("resize")}({c[0]}, {sizes}, {scales}, {axes}, "{mode}", "{where}", "{nearest}", {cubic})'


def _dft(c: Call) -> str:
    if c.has(1) or c.int("onesided", 0):
        raise c.refuse("it has a length or is one-sided")
    axis = c.int("axis", 1) if c.opset < 20 else int(c.number(2, -2))
    return f"{c.helper('dft')}({c[0]}, {c.axis(0, axis)}, {bool(c.int('inverse', 0))})"


ROWS = {
    "AveragePool": _average_pool,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "DFT": _dft,
    "Einsum": _einsum,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_pool("mean"),
    "GlobalMaxPool": _global_pool("amax"),
    "MatMul": _matmul,
    "MatMulInteger": _matmul_integer,
    "MaxPool": _max_pool,
    "Resize": _resize,
}
