"""Patches: all that a convolution multiplies for one place of its result, tap by tap, a tap's channels together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from qcompile.ir.required import operand, sizes_of

if TYPE_CHECKING:
    import torch

__all__ = ["CONVOLUTIONS", "Patches", "Reading", "is_convolution", "patches_of", "windowed"]

#: Operators whose kernel slides over the places of what they read.
CONVOLUTIONS = ("Conv", "ConvTranspose")

#: Patches of each sample that statistics are taken from: those of neighbouring places say nearly the same.
PLACES = 256


@dataclass(frozen=True)
class Patches:
    """The patches of a convolution, each a row that its kernel ``[out, taps · channels / groups]`` multiplies.

    Args:
        kernel: taps along each axis of places.
        strides, dilations: along these.
        pads: zeros before each axis, then behind each; ``None`` where ``auto_pad`` says them for a size.
        auto_pad: as in ONNX.
        groups: parts of the channels, each with patches of its own.
        transposed: whether the kernel spreads each place instead: patches are those of its input with zeros between
            the places, taps in the order of the kernel.
        output_padding: zeros further behind, for such.
        output_shape: the places that such has to write, if that says its pads.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...] | None
    auto_pad: str = "NOTSET"
    groups: int = 1
    transposed: bool = False
    output_padding: tuple[int, ...] = ()
    output_shape: tuple[int, ...] = ()

    @property
    def taps(self) -> int:
        """Places that one patch covers."""
        return math.prod(self.kernel)

    @property
    def plain(self) -> bool:
        """Whether every place is a patch, so that the convolution is a product with a matrix."""
        stays = all(n == 1 for n in (*self.kernel, *self.strides, self.groups)) and not any(self.output_padding)
        return stays and not self.transposed and (self.pads is None or not any(self.pads))

    def __str__(self) -> str:
        words = ["x".join(map(str, self.kernel))]
        words += ["transposed"] * self.transposed
        words += [f"in {self.groups} groups"] * (self.groups > 1)
        words += ["by " + "x".join(map(str, self.strides))] * any(s != 1 for s in self.strides)
        words += ["apart " + "x".join(map(str, self.dilations))] * any(d != 1 for d in self.dilations)
        words += [f"padded {self.auto_pad}"] if self.pads is None else [f"padded {self.pads}"] * any(self.pads)
        words += [f"{name} {found}" for name, found in (("beyond", self.output_padding), ("to", self.output_shape))
                  if any(found)]  # fmt: skip
        return " ".join(words)

    def rows(self, value: torch.Tensor, most: int | None = None) -> torch.Tensor:
        """The patches of a value ``[samples, channels, *places]`` as ``[rows, taps · channels / groups]``.

        Args:
            most: patches of each sample, drawn evenly; all without it.
        """
        import torch

        count = len(self.kernel)
        view = self._windows(value).unflatten(1, (self.groups, -1))  # [samples, groups, channels, *places, *taps]
        places, taps = range(3, 3 + count), range(3 + count, 3 + 2 * count)
        view = view.permute(0, *places, 1, *taps, 2)
        lead = view.shape[: 2 + count]
        if most is not None and most * lead[0] < math.prod(lead):
            drawn = torch.Generator().manual_seed(0)  # two graphs side by side are seen at the same places
            at = torch.randint(math.prod(lead), (most * lead[0],), generator=drawn).sort().values.to(value.device)
            chosen = view[torch.unravel_index(at, lead)]
        else:
            chosen = view.flatten(0, 1 + count)
        if self.transposed:
            chosen = chosen.flip(tuple(range(1, 1 + count)))
        return chosen.flatten(1)

    def convolved(self, value: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
        """A value ``[samples, channels, *places]`` convolved with a kernel; not where it is transposed."""
        from torch.nn import functional as F

        padded = F.pad(value, [n for pair in reversed(self._pads(value.shape[2:])) for n in pair])
        convolve = (F.conv1d, F.conv2d, F.conv3d)[len(self.kernel) - 1]
        return convolve(padded, kernel, stride=self.strides, dilation=self.dilations, groups=self.groups)

    def _windows(self, value: torch.Tensor) -> torch.Tensor:
        """A view ``[samples, channels, *places, *taps]``."""
        import torch

        if self.transposed:
            value = self._spread(value)
        pads = self._pads(value.shape[2:])
        value = torch.nn.functional.pad(value, [n for pair in reversed(pads) for n in pair])
        for axis, (size, dilation) in enumerate(zip(self.kernel, self.dilations, strict=True)):
            stride = 1 if self.transposed else self.strides[axis]
            value = value.unfold(2 + axis, dilation * (size - 1) + 1, stride)[..., ::dilation]
        return value

    def _spread(self, value: torch.Tensor) -> torch.Tensor:
        """The value with zeros between its places, as many as the strides say."""
        sizes = [(size - 1) * stride + 1 for size, stride in zip(value.shape[2:], self.strides, strict=True)]
        spread = value.new_zeros(*value.shape[:2], *sizes)
        places: tuple[Any, ...] = (..., *(slice(None, None, stride) for stride in self.strides))
        spread[places] = value
        return spread

    def _pads(self, sizes: Sequence[int]) -> list[tuple[int, int]]:
        """Zeros before and behind each axis of places that has these sizes; negative where some are cut off."""
        spans = [d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]
        count = len(spans)
        if not self.transposed:
            if self.pads is not None:
                return list(zip(self.pads[:count], self.pads[count:], strict=True))
            missing = [
                max((-(-size // stride) - 1) * stride + span - size, 0)
                for size, stride, span in zip(sizes, self.strides, spans, strict=True)
            ]
            return [self._halves(n) for n in missing]
        extra = self.output_padding or (0,) * count
        if self.pads is not None:
            cut = list(zip(self.pads[:count], self.pads[count:], strict=True))
        else:
            wanted = self.output_shape or [
                ((size - 1) // stride + 1) * stride for size, stride in zip(sizes, self.strides, strict=True)
            ]
            over = [
                size + more + span - 1 - out for size, more, span, out in zip(sizes, extra, spans, wanted, strict=True)
            ]
            cut = [self._halves(n) for n in over]
        return [
            (span - 1 - before, span - 1 - behind + more)
            for span, (before, behind), more in zip(spans, cut, extra, strict=True)
        ]

    def _halves(self, total: int) -> tuple[int, int]:
        """Zeros before and behind, of an odd number more on the side that ``auto_pad`` names."""
        less, more = total // 2, total - total // 2
        upper = self.auto_pad == "SAME_UPPER"
        return (less, more) if upper or (not self.transposed and self.auto_pad != "SAME_LOWER") else (more, less)


@dataclass(frozen=True)
class Reading:
    """The way in which sites read a value.

    Args:
        value: its name.
        axis: where its features are.
        patches: of what sites multiply, if that is more than the features of one place.
    """

    value: str
    axis: int
    patches: Patches | None = None

    def rows(self, value: torch.Tensor) -> torch.Tensor:
        """``[rows, size]`` in bfloat16 if it is so, else in float32: all, but of patches ``PLACES`` of each sample."""
        import torch

        dtype = torch.bfloat16 if value.dtype is torch.bfloat16 else torch.float32
        if self.patches is not None:
            return self.patches.rows(value.to(dtype), PLACES)
        moved = value.movedim(self.axis, -1)
        return moved.to(dtype).reshape(-1, moved.shape[-1])


def patches_of(node: ir.Node) -> Patches:
    """The patches of a convolution whose kernel is a constant."""
    kernel = sizes_of(operand(node, 1))[2:]
    count, get = len(kernel), node.attributes.get_ints
    ones, auto = (1,) * count, node.attributes.get_string("auto_pad", "NOTSET")
    shape = tuple(get("output_shape", ()) or ())
    zeros = auto == "VALID" or (auto == "NOTSET" and not shape)
    pads = tuple(get("pads", ()) or (0,) * 2 * count) if auto == "NOTSET" else (0,) * 2 * count
    return Patches(
        kernel, tuple(get("strides", ()) or ones), tuple(get("dilations", ()) or ones), pads if zeros else None,
        auto, node.attributes.get_int("group", 1), node.op_type == "ConvTranspose",
        tuple(get("output_padding", ()) or ()), shape,
    )  # fmt: skip


def is_convolution(node: ir.Node) -> bool:
    """Whether an operator is a convolution of ONNX, of any kernel."""
    return node.op_type in CONVOLUTIONS and not node.domain


def windowed(node: ir.Node) -> bool:
    """Whether an operator is a convolution that is more than a product with a matrix at each place."""
    return is_convolution(node) and not patches_of(node).plain
