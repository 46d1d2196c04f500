"""Formats of caches: packed codes along the features of each head, with scales that are static or come with each token.

This is the definition that graphs are compared with. A cache is ``[batch, heads, length, features]``; codes of less
than 8 bits lie in bytes along the features, the first in the lowest bits. Scales of tokens are computed in float32 and
stored in float16, and codes follow from the stored ones; static scales are float32, fixed when a model is exported.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qcompile.errors import InputError

__all__ = ["FLOAT_BITS", "LARGEST_SCALE", "CacheFormat", "half"]

#: The largest scale that float16 holds.
LARGEST_SCALE = 65504.0

#: Of numbers that are stored as they are.
FLOAT_BITS = 32


@dataclass(frozen=True)
class CacheFormat:
    """A way to store keys or values: in integers, unless a subclass says otherwise.

    Args:
        name: as on the command line: ``int8-channel``, ``int4-token``, ``uint2-g32``, ``uint5+3-g32{recent=64}``.
        bits: of a code: 2, 4 or 8; the mean of both where halves differ; 32 for numbers as they are, without scales.
        static: whether scales are fixed: ``tensor`` or ``channel``; ``None`` where each token brings its own.
        group: features of a head that share a scale of a token; ``None`` for all.
        offset: whether the smallest value of a group is stored, too, and codes count from there.
        halves: bits of codes of the first and of the second half of the features, where they differ: a byte holds one
            of each, the first in its lowest bits. A basis that puts loud features first makes use of it.
        recent: tokens at the end that are float32 still; they get codes when newer ones come.
        first: tokens at the beginning that stay float32: those that attention returns to (arXiv:2309.17453).
    """

    name: str
    bits: int
    static: str | None
    group: int | None = None
    offset: bool = False
    halves: tuple[int, int] | None = None
    recent: int = 0
    first: int = 0

    @property
    def word(self) -> str:
        """The name without options."""
        return self.name.partition("{")[0]

    @property
    def keeps(self) -> bool:
        """Whether some tokens stay float32."""
        return bool(self.recent or self.first)

    @property
    def integers(self) -> bool:
        """Whether codes are whole numbers, as kernels that know no other formats read them."""
        return not self.plain

    @property
    def low(self) -> int:
        """The lowest code."""
        return 0 if self.offset else -(2 ** (self.bits - 1))

    @property
    def high(self) -> int:
        """The highest code, where halves do not differ."""
        return self.low + 2**self.bits - 1

    @property
    def largest(self) -> float:
        """The largest number that is stored exactly, in units of a static scale."""
        return float(self.high)

    @property
    def levels(self) -> np.ndarray:
        """Numbers by code, float32 ``[2^bits]``; codes of halves that differ are read otherwise."""
        return np.arange(2**self.bits, dtype=np.float32) + self.low

    def highs(self, features: int) -> np.ndarray:
        """The highest code of each group, float32 ``[groups]``."""
        groups = self.groups(features)
        if self.halves is None:
            return np.full(groups, self.high, np.float32)
        return np.repeat(2.0 ** np.array(self.halves) - 1, groups // 2).astype(np.float32)

    @property
    def plain(self) -> bool:
        """Whether numbers are stored as they are."""
        return self.bits == FLOAT_BITS

    @property
    def per_byte(self) -> int:
        """Codes in a byte, or 1 where a number takes more."""
        return max(1, 8 // self.bits)

    @property
    def stored(self) -> np.dtype:
        """The type of the codes: bytes, signed where each is a code."""
        if self.plain:
            return np.dtype(np.float32)
        return np.dtype(np.int8 if self.bits == 8 and not self.offset else np.uint8)

    @property
    def stored_scales(self) -> np.dtype:
        """The type of the numbers that tokens bring."""
        return np.dtype(np.float16)

    def groups(self, features: int) -> int:
        """Scales of a token and head."""
        return 1 if self.group is None else features // self.group

    def scale_numbers(self, features: int) -> int:
        """Numbers that a token brings for each head: scales, and behind them what codes count from."""
        return 0 if self.static or self.plain else self.groups(features) * (2 if self.offset else 1)

    def fits(self, features: int) -> str | None:
        """Why heads of so many features cannot be stored; ``None`` if they can."""
        if features % self.per_byte:
            return f"{features} features of a head do not fill bytes with codes of {self.bits} bits"
        if self.group is not None and features % self.group:
            return f"{features} features of a head cannot be cut into groups of {self.group}"
        if self.halves is not None and self.groups(features) % 2:
            return f"half of {features} features of a head cannot be cut into groups of {self.group}"
        return None

    def bytes_per_token(self, heads: int, features: int) -> int:
        """Bytes that one more token takes, once there are more than those that stay float32."""
        numbers = self.scale_numbers(features) * self.stored_scales.itemsize
        return heads * (features // self.per_byte * self.stored.itemsize + numbers)

    def fixed_bytes(self, heads: int, features: int) -> int:
        """Bytes of the tokens that stay float32."""
        return heads * features * (self.recent + self.first) * np.dtype(np.float32).itemsize

    # -- the definition ---------------------------------------------------------------------------------------------

    def encode(self, x: np.ndarray, scale: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray | None]:
        """Packed codes ``[batch, heads, length, bytes]`` of float32, and the scales that come with the tokens.

        Args:
            x: ``[batch, heads, length, features]``.
            scale: static scales that broadcast to it.
        """
        x = np.asarray(x, np.float32)
        if self.plain:
            return x, None
        if scale is not None:
            return self._packed(self._codes(x / scale, np.float32(self.high))), None
        parts, highs = self._parts(x), self.highs(x.shape[-1])
        if self.offset:
            start, end = parts.min(-1), parts.max(-1)
            stored = half(start)
            scales = half((end - stored) / highs)
            numbers = np.concatenate([scales, stored], -1)
        else:
            stored = None
            numbers = scales = half(np.abs(parts).max(-1, initial=0) / highs)
        divisor = np.where(scales == 0, np.float32(1), scales)[..., None]
        moved = parts if stored is None else parts - stored[..., None]
        codes = self._codes(moved / divisor, highs[:, None])
        return self._packed(codes.reshape(x.shape)), numbers.astype(np.float16)

    def decode(self, codes: np.ndarray, scales: np.ndarray | None, scale: np.ndarray | None = None) -> np.ndarray:
        """The float32 that codes stand for, with scales that came with the tokens and static ones."""
        if self.plain:
            return codes
        values = self._unpacked(codes).astype(np.float32)
        given = scale if self.static else scales
        if given is None:
            raise InputError(f"cache format '{self.name}' needs scales")
        if self.static:
            return values * given
        numbers = given.astype(np.float32)
        parts = self._parts(values)
        if self.offset:
            own, start = np.split(numbers, 2, -1)
            return (parts * own[..., None] + start[..., None]).reshape(values.shape)
        return (parts * numbers[..., None]).reshape(values.shape)

    def fake(self, x: np.ndarray, scale: np.ndarray | None = None) -> np.ndarray:
        """Values as the cache holds them."""
        codes, numbers = self.encode(x, scale)
        return self.decode(codes, numbers, scale)

    def _parts(self, x: np.ndarray) -> np.ndarray:
        groups = self.groups(x.shape[-1])
        return x.reshape(*x.shape[:-1], groups, x.shape[-1] // groups)

    def _codes(self, y: np.ndarray, highs: np.ndarray | np.float32) -> np.ndarray:
        return np.clip(np.rint(y), self.low, highs).astype(np.int32)

    def _packed(self, codes: np.ndarray) -> np.ndarray:
        if self.per_byte == 1:
            return codes.astype(self.stored)
        if self.halves is not None:
            first, second = np.split(codes, 2, -1)
            return (first | second << self.halves[0]).astype(np.uint8)
        return self._in_bytes(codes - self.low)

    def _in_bytes(self, codes: np.ndarray) -> np.ndarray:
        """Codes from 0 on in bytes, the first in the lowest bits."""
        apart = codes.reshape(*codes.shape[:-1], codes.shape[-1] // self.per_byte, self.per_byte).astype(np.int32)
        return (apart << (self.bits * np.arange(self.per_byte))).sum(-1).astype(np.uint8)

    def _unpacked(self, codes: np.ndarray) -> np.ndarray:
        if self.per_byte == 1:
            return codes.astype(np.int32)
        if self.halves is not None:
            first = self.halves[0]
            return np.concatenate([codes & (2**first - 1), codes >> first], -1).astype(np.int32)
        return self._out_of_bytes(codes) + self.low

    def _out_of_bytes(self, codes: np.ndarray) -> np.ndarray:
        parts = codes[..., None].astype(np.int32) >> (self.bits * np.arange(self.per_byte))
        return (parts & (2**self.bits - 1)).reshape(*codes.shape[:-1], codes.shape[-1] * self.per_byte)


def half(x: np.ndarray) -> np.ndarray:
    """Numbers rounded to float16, as float32."""
    return np.clip(x, -LARGEST_SCALE, LARGEST_SCALE).astype(np.float16).astype(np.float32)
