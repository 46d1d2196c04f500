"""Caches in small floating-point numbers: FP8, MXFP4 and NVFP4, to the bit the formats of ``formats.registry``.

Serving runtimes keep FP8 caches with one scale for all of a cache; the blocks of NVFP4 and MXFP4 lie along the
features of a head, so that each token has its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qcompile.formats.cache_format import CacheFormat
from qcompile.formats.elements import ELEMENTS
from qcompile.formats.format import Element, Format, ScaleRule, ScaleType

__all__ = ["BLOCKS", "FloatCacheFormat", "fp8_format"]

#: Formats with scales of blocks, by word.
BLOCKS = {
    "mxfp4": Format("mxfp4", ELEMENTS["e2m1"], 32, ScaleType.E8M0, ScaleRule.FLOOR),
    "nvfp4": Format("nvfp4", ELEMENTS["e2m1"], 16, ScaleType.E4M3, tensor_scale=448.0),
}


def fp8_format(group: int | None) -> Format:
    """E4M3 whose scales are stored in float16: one for each group of a token and head, or for all its features."""
    return Format("fp8", ELEMENTS["e4m3"], group, ScaleType.FP16)


@dataclass(frozen=True)
class FloatCacheFormat(CacheFormat):
    """Keys or values in a format of blocks along the features of a head, or of one scale that is static.

    With a second level, that is the static scale; those of blocks come with the tokens.

    Args:
        blocks: the format that codes and scales are those of.
    """

    blocks: Format = BLOCKS["mxfp4"]

    @property
    def integers(self) -> bool:
        """No codes are whole numbers here."""
        return False

    @property
    def element(self) -> Element:
        """The numbers that codes stand for."""
        return self.blocks.element

    @property
    def largest(self) -> float:
        """The largest number that is stored exactly, in units of the static scale."""
        return self.element.max * (self.blocks.tensor_scale or 1.0)

    @property
    def levels(self) -> np.ndarray:
        """Numbers by code, float32 ``[2^bits]``; NaN for codes of no number."""
        import torch

        from qcompile.formats.rounding import decode_element

        return decode_element(torch.arange(2**self.bits, dtype=torch.uint8), self.element).numpy()

    @property
    def stored(self) -> np.dtype:
        """Bytes."""
        return np.dtype(np.uint8)

    @property
    def stored_scales(self) -> np.dtype:
        """Bytes of E4M3 or E8M0, or float16."""
        return np.dtype(np.float16 if self.blocks.scale is ScaleType.FP16 else np.uint8)

    @property
    def scale_levels(self) -> np.ndarray:
        """Numbers by byte of a scale, float32 ``[256]``."""
        import torch

        from qcompile.formats.scales import scale_from_code

        return scale_from_code(torch.arange(256, dtype=torch.uint8), self.blocks.scale).numpy()

    def scale_numbers(self, features: int) -> int:
        """Scales that a token brings for each head."""
        return self.groups(features) if self.static is None or self.blocks.tensor_scale else 0

    def encode(self, x: np.ndarray, scale: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray | None]:
        """Packed codes ``[batch, heads, length, bytes]`` of float32, and the scales that come with the tokens.

        Args:
            x: ``[batch, heads, length, features]``; zeros count as positive.
            scale: static scales that broadcast to it; of a format with a second level, that one.
        """
        import torch

        from qcompile.formats.quantizer import quantize
        from qcompile.formats.rounding import encode_element
        from qcompile.formats.scales import scale_code

        x = np.asarray(x, np.float32) + np.float32(0)
        if scale is not None and not self.scale_numbers(x.shape[-1]):
            return encode_element(torch.from_numpy(x / scale), self.element).numpy(), None
        second = None if scale is None else torch.from_numpy(np.asarray(scale, np.float32).reshape(()))
        made = quantize(torch.from_numpy(x), self.blocks, tensor_scale=second)
        numbers = scale_code(made.scales, self.blocks.scale).numpy()
        codes = made.codes.numpy().reshape(x.shape)
        return (codes if self.per_byte == 1 else self._in_bytes(codes)), numbers.reshape(
            *x.shape[:-1], self.groups(x.shape[-1])
        )

    def decode(self, codes: np.ndarray, scales: np.ndarray | None, scale: np.ndarray | None = None) -> np.ndarray:
        """The float32 that codes stand for, with scales that came with the tokens and static ones."""
        values = self.levels[self._out_of_bytes(codes)]
        if scales is None:
            return values * scale
        own = scales.astype(np.float32) if self.stored_scales == np.float16 else self.scale_levels[scales]
        effective = own if scale is None else own * scale.reshape(())
        return (self._parts(values) * effective[..., None]).reshape(values.shape)
