"""Packed weights as the kernels read them.

Sixteen output columns lie together: word ``w`` of the sixteen is one vector of int32, each lane of which holds the
next codes of its column, the first in the low bits. A CPU reads whole vectors, the threads of a GPU neighbouring words.
Scales and zero points lie the same way, sixteen to a group. Embedding tables share the layout, so a tied head shares
the bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from qcompile.backends.relax.kernels.codes import container
from qcompile.backends.relax.kernels.lanes import BLOCK
from qcompile.errors import InternalError
from qcompile.formats import Format, Quantized, ScaleType
from qcompile.formats.scales import scale_code

__all__ = ["Layout", "layout_of", "pack_parts"]


@dataclass(frozen=True)
class Layout:
    """Everything that a kernel for one packed weight ``[rows, size]`` is compiled for.

    Args:
        rows: outputs, or rows of a table, without padding.
        size: inputs, without padding.
        group: codes along the inputs that share a scale.
        vectors: blocks of sixteen outputs that one job computes.
    """

    format: Format
    rows: int
    size: int
    group: int
    vectors: int

    @property
    def padded_rows(self) -> int:
        """Outputs, to whole jobs."""
        tile = BLOCK * self.vectors
        return -(-self.rows // tile) * tile

    @property
    def per_word(self) -> int:
        """Codes in an int32."""
        return 32 // container(self.format.element)

    @property
    def groups(self) -> int:
        """Groups along the inputs."""
        return -(-self.size // self.group)

    @property
    def words_per_group(self) -> int:
        """Words of a column in a group."""
        return -(-self.group // self.per_word)

    @property
    def padded_size(self) -> int:
        """Inputs, to whole words and groups: what a product reads of each row."""
        return self.groups * self.words_per_group * self.per_word

    @property
    def words(self) -> int:
        """Words of a column."""
        return self.groups * self.words_per_group

    @property
    def scaled_twice(self) -> bool:
        """Whether a tensor scale comes along."""
        from qcompile.formats import ScaleRule

        return self.format.tensor_scale is not None or self.format.rule is ScaleRule.FOUR_THIRDS

    @property
    def name(self) -> str:
        """For kernels: ``int4_g32_4096x4096``."""
        return f"{self.format.name}_{self.rows}x{self.size}".replace("-", "_")


def layout_of(q: Quantized) -> Layout:
    """The layout of a weight ``[N, K]`` quantized along its last axis."""
    rows, size = q.shape
    group = q.codes.shape[1] // q.scales.shape[1]
    return Layout(q.format, rows, size, group, 4 if rows % 64 == 0 or rows > 512 else 2)


def pack_parts(q: Quantized) -> dict[str, np.ndarray]:
    """The arrays of a weight by name, in the order in which kernels take them.

    ``codes`` int32 ``[blocks, words · 16]``, ``scales`` and uint8 ``zero_points`` ``[blocks, groups · 16]``,
    ``tensor_scale`` float32 ``[1]``.
    """
    layout = layout_of(q)
    parts = {"codes": _pack_codes(q, layout), "scales": _blocked(_scale_bits(q), layout)}
    if q.zero_points is not None:
        parts["zero_points"] = _blocked(q.zero_points.numpy(), layout)
    if layout.scaled_twice:
        parts["tensor_scale"] = _tensor_scale(q).reshape(1).numpy()
    return parts


def _tensor_scale(q: Quantized) -> torch.Tensor:
    if q.tensor_scale is None:
        raise InternalError(f"a weight in '{q.format.name}' has no second-level scale")
    return q.tensor_scale


def _pack_codes(q: Quantized, layout: Layout) -> np.ndarray:
    bits = container(q.format.element)
    codes = q.codes.numpy().reshape(layout.rows, layout.groups, layout.group)
    short = layout.words_per_group * layout.per_word - layout.group
    if short:
        codes = np.pad(codes, ((0, 0), (0, 0), (0, short)))
    parts = codes.reshape(layout.rows, layout.words, layout.per_word)
    words = np.zeros(parts.shape[:2], np.uint32)
    for i in range(layout.per_word):
        words |= parts[..., i].astype(np.uint32) << np.uint32(i * bits)
    return _blocked(words.view(np.int32), layout)


def _scale_bits(q: Quantized) -> np.ndarray:
    stored = scale_code(q.scales, q.format.scale)
    if q.format.scale in (ScaleType.FP16, ScaleType.BF16):
        stored = stored.view(torch.uint16)
    return stored.numpy()


def _blocked(rows: np.ndarray, layout: Layout) -> np.ndarray:
    """``[rows, n]`` to ``[blocks, n · 16]``."""
    padded = np.pad(rows, ((0, layout.padded_rows - layout.rows), (0, 0)))
    return np.ascontiguousarray(padded.reshape(-1, BLOCK, rows.shape[1]).transpose(0, 2, 1)).reshape(
        len(padded) // BLOCK, -1
    )
