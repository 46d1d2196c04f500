"""Operators of ONNX that are no single call of torch. Ships with every artifact; needs nothing but torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# ---- shapes --------------------------------------------------------------------------------------------------------


def vector(items: Sequence[float], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers of the host as a tensor, without a copy that a CUDA graph could not hold."""
    if not items:
        return torch.empty(0, dtype=dtype, device=device)
    return torch.cat([torch.full((1,), item, dtype=dtype, device=device) for item in items])


def reshape(x: Tensor, sizes: Sequence[int], allow_zero: bool) -> Tensor:
    """Reshape to sizes of which some may be 0: keep that axis."""
    return x.reshape([x.shape[i] if size == 0 and not allow_zero else size for i, size in enumerate(sizes)])


def flatten(x: Tensor, axis: int) -> Tensor:
    """A matrix of the axes before ``axis`` and of the rest."""
    return x.reshape(math.prod(x.shape[:axis]), -1)


def expand(x: Tensor, sizes: Sequence[int]) -> Tensor:
    """Broadcast both ways: a size of 1 (or -1) keeps the axis as it is."""
    return x.expand(torch.broadcast_shapes(x.shape, tuple(max(size, 1) if size else 0 for size in sizes)))


def slice_(
    x: Tensor, starts: Sequence[int], ends: Sequence[int], axes: Sequence[int] | None, steps: Sequence[int] | None
) -> Tensor:
    """Slices, backwards too."""
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis = i if axes is None else axes[i]
        part = slice(start, end, 1 if steps is None else steps[i])
        if part.step > 0:
            x = x[(slice(None),) * (axis % x.ndim) + (part,)]
        else:
            chosen = range(x.shape[axis])[start : None if end < -x.shape[axis] else end : part.step]
            x = (
                x.flip(axis).narrow(axis, x.shape[axis] - 1 - chosen.start, chosen.start - chosen.stop)
                if chosen
                else (x.narrow(axis, 0, 0))
            )
            x = x[(slice(None),) * (axis % x.ndim) + (slice(None, None, -part.step),)]
    return x


def eye(shape: Sequence[int], k: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Ones on a diagonal."""
    return torch.ones(*shape, device=device).triu(k).tril(k).to(dtype)


def pad(x: Tensor, pads: Sequence[int], mode: str, value: float, axes: Sequence[int] | None) -> Tensor:
    """Padding as ONNX orders it: all beginnings, then all ends; negative numbers cut."""
    count = len(pads) // 2
    where = [axis % x.ndim for axis in (range(count) if axes is None else axes)]
    both = {axis: (pads[i], pads[count + i]) for i, axis in enumerate(where)}
    if mode == "constant":
        ordered = [p for axis in reversed(range(x.ndim)) for p in both.get(axis, (0, 0))]
        return F.pad(x, ordered, value=value)
    for axis, (before, after) in both.items():
        if before or after:
            n = x.shape[axis]
            index = torch.arange(-before, n + after, device=x.device)
            x = x.index_select(axis, _FOLDS[mode](index, n))
    return x


_FOLDS = {
    "edge": lambda index, n: index.clamp(0, n - 1),
    "wrap": lambda index, n: index % n,
    "reflect": lambda index, n: (n - 1) - ((index % (2 * n - 2)) - (n - 1)).abs() if n > 1 else index * 0,
}


def depth_to_space(x: Tensor, size: int, mode: str) -> Tensor:
    """Channels to blocks of pixels."""
    b, c, h, w = x.shape
    if mode == "DCR":
        return x.reshape(b, size, size, c // size**2, h, w).permute(0, 3, 4, 1, 5, 2).reshape(b, -1, h * size, w * size)
    return x.reshape(b, c // size**2, size, size, h, w).permute(0, 1, 4, 2, 5, 3).reshape(b, -1, h * size, w * size)


def space_to_depth(x: Tensor, size: int) -> Tensor:
    """Blocks of pixels to channels."""
    b, c, h, w = x.shape
    return (
        x.reshape(b, c, h // size, size, w // size, size)
        .permute(0, 3, 5, 1, 2, 4)
        .reshape(b, c * size**2, h // size, w // size)
    )


# ---- indices -------------------------------------------------------------------------------------------------------


def wrap(index: Tensor, size: int) -> Tensor:
    """Indices counted from the front."""
    return torch.where(index < 0, index + size, index)


def gather_elements(x: Tensor, axis: int, index: Tensor) -> Tensor:
    """One element for each index, along an axis."""
    cut = tuple(slice(None) if i == axis % x.ndim else slice(0, n) for i, n in enumerate(index.shape))
    return x[cut].gather(axis, wrap(index.long(), x.shape[axis]))


def gather_nd(x: Tensor, index: Tensor, batch_dims: int) -> Tensor:
    """Slices by tuples of indices."""
    index = index.long()
    lead = tuple(
        torch.arange(x.shape[i], device=x.device).reshape([-1 if j == i else 1 for j in range(index.ndim - 1)])
        for i in range(batch_dims)
    )
    return x[lead + index.unbind(-1)]


def scatter_elements(x: Tensor, axis: int, index: Tensor, updates: Tensor, reduction: str) -> Tensor:
    """A copy with elements written along an axis."""
    index = wrap(index.long(), x.shape[axis])
    if reduction == "none":
        return x.scatter(axis, index, updates)
    return x.scatter_reduce(axis, index, updates, _REDUCTIONS[reduction])


_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def scatter_nd(x: Tensor, index: Tensor, updates: Tensor, reduction: str) -> Tensor:
    """A copy with slices written by tuples of indices."""
    where = tuple(wrap(part, n) for part, n in zip(index.long().unbind(-1), x.shape, strict=False))
    if reduction == "none":
        return x.index_put(where, updates)
    if reduction == "add":
        return x.index_put(where, updates, accumulate=True)
    size, inner = x.shape[: len(where)], x.shape[len(where) :]
    flat = torch.stack([part * math.prod(size[i + 1 :]) for i, part in enumerate(where)]).sum(0)
    flat = flat.reshape(-1, *[1] * len(inner))
    rows = updates.reshape(-1, *inner)
    return x.reshape(-1, *inner).scatter_reduce(0, flat.expand_as(rows), rows, _REDUCTIONS[reduction]).reshape(x.shape)


def compress(x: Tensor, condition: Tensor, axis: int) -> Tensor:
    """The slices whose condition holds."""
    return x.index_select(axis, torch.nonzero(condition)[:, 0])


def one_hot(index: Tensor, depth: int, values: Tensor, axis: int) -> Tensor:
    """``values[1]`` at each index of a new axis, ``values[0]`` elsewhere."""
    hot = wrap(index.long(), depth).unsqueeze(-1) == torch.arange(depth, device=index.device)
    return torch.where(hot, values[1], values[0]).movedim(-1, axis)


# ---- reductions and norms ------------------------------------------------------------------------------------------


def cumsum(x: Tensor, axis: int, exclusive: bool, reverse: bool) -> Tensor:
    """Running sums, backwards or without the element itself."""
    x = x.flip(axis) if reverse else x
    y = x.cumsum(axis, dtype=x.dtype)
    y = y - x if exclusive else y
    return y.flip(axis) if reverse else y


def hardmax(x: Tensor, axis: int) -> Tensor:
    """One at the first maximum."""
    return torch.zeros_like(x).scatter(axis, x.argmax(axis, keepdim=True), 1.0)


def selu(x: Tensor, alpha: float, gamma: float) -> Tensor:
    """Scaled exponential linear unit."""
    return gamma * (x.clamp(min=0) + alpha * torch.expm1(x.clamp(max=0)))


def group_norm_18(x: Tensor, groups: int, scale: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Before operator set 21, scale and bias were given for each group."""
    width = x.shape[1] // groups
    return F.group_norm(x, groups, scale.repeat_interleave(width), bias.repeat_interleave(width), eps)


# ---- products, convolutions, resampling ----------------------------------------------------------------------------


def integer_matmul(a: Tensor, b: Tensor) -> Tensor:
    """A product of integers, exact: in float64, because GPUs multiply no int32 matrices."""
    return (a.double() @ b.double()).to(torch.int32)


def dft(x: Tensor, axis: int, inverse: bool) -> Tensor:
    """Fourier transform of real ``[..., 1]`` or complex ``[..., 2]`` numbers."""
    z = torch.complex(x[..., 0], x[..., 1] if x.shape[-1] == 2 else torch.zeros_like(x[..., 0]))
    return torch.view_as_real(torch.fft.ifft(z, dim=axis) if inverse else torch.fft.fft(z, dim=axis))


def same_pad(x: Tensor, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], lower: bool) -> Tensor:
    """Zeros around, such that a window gives ``⌈size / stride⌉`` results."""
    pads: list[int] = []
    for size, k, stride, dilation in reversed(list(zip(x.shape[2:], kernel, strides, dilations, strict=True))):
        total = max((-(-size // stride) - 1) * stride + (k - 1) * dilation + 1 - size, 0)
        pads += [total - total // 2, total // 2] if lower else [total // 2, total - total // 2]
    return F.pad(x, pads)


def max_pool(
    x: Tensor, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], pads: Sequence[int],
    ceil_mode: bool, automatic: str,
) -> Tensor:  # fmt: skip
    """Maxima of windows; what lies outside is minus infinity."""
    n = len(kernel)
    low = float("-inf")
    if automatic.startswith("SAME"):
        ones = same_pad(torch.zeros_like(x), kernel, strides, dilations, automatic == "SAME_LOWER")
        offsets = [b - a for a, b in zip(x.shape[2:], ones.shape[2:], strict=True)]
        pads = [o // 2 for o in offsets] + [o - o // 2 for o in offsets]
    ordered = [p for i in reversed(range(n)) for p in (pads[i], pads[n + i])]
    pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[n - 1]
    padded = F.pad(x, ordered, value=low) if any(ordered) else x
    return pool(padded, tuple(kernel), tuple(strides), 0, tuple(dilations), ceil_mode)


def resize(
    x: Tensor, sizes: Sequence[int] | None, scales: Sequence[float] | None, axes: Sequence[int] | None, mode: str,
    where: str, nearest: str, cubic: float,
) -> Tensor:  # fmt: skip
    """Resampling along each axis in turn, as the standard defines its coordinates."""
    for i, axis in enumerate(range(x.ndim) if axes is None else axes):
        old = x.shape[axis]
        if sizes is not None:
            new = int(sizes[i])
            scale = new / old
        else:
            assert scales is not None, "either of the two is given"
            new, scale = math.floor(old * scales[i]), scales[i]
        if new == old and scale == 1:
            continue
        at = torch.arange(new, dtype=torch.float64, device=x.device)
        source = _COORDINATES[where](at, scale, old, new)
        x = _resample(x, axis, source, mode, nearest, cubic)
    return x


_COORDINATES = {
    "half_pixel": lambda at, scale, old, new: (at + 0.5) / scale - 0.5,
    "half_pixel_symmetric": lambda at, scale, old, new: old / 2 * (1 - new / (old * scale)) + (at + 0.5) / scale - 0.5,
    "pytorch_half_pixel": lambda at, scale, old, new: (at + 0.5) / scale - 0.5 if new > 1 else at * 0,
    "asymmetric": lambda at, scale, old, new: at / scale,
    "align_corners": lambda at, scale, old, new: at * ((old - 1) / (new - 1)) if new > 1 else at * 0,
}


def _resample(x: Tensor, axis: int, source: Tensor, mode: str, nearest: str, cubic: float) -> Tensor:
    size = x.shape[axis]
    if mode == "nearest":
        return x.index_select(axis, _NEAREST[nearest](source).long().clamp(0, size - 1))
    base = source.floor()
    fraction = source - base
    if mode == "linear":
        taps = [(0, 1 - fraction), (1, fraction)]
    else:
        taps = [(offset, _cubic((fraction - offset).abs(), cubic)) for offset in (-1, 0, 1, 2)]
    shape = [-1 if i == axis % x.ndim else 1 for i in range(x.ndim)]
    parts = [
        x.index_select(axis, (base + offset).long().clamp(0, size - 1)) * weight.to(x.dtype).reshape(shape)
        for offset, weight in taps
    ]
    return sum(parts[1:], parts[0])


_NEAREST = {
    "round_prefer_floor": lambda at: torch.ceil(at - 0.5),
    "round_prefer_ceil": lambda at: torch.floor(at + 0.5),
    "floor": torch.floor,
    "ceil": torch.ceil,
}


def _cubic(distance: Tensor, a: float) -> Tensor:
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return torch.where(distance <= 1, near, far)
