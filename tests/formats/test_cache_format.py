"""Formats of caches by hand: codes, bytes, scales, and what cannot be stored."""

from __future__ import annotations

import re

import numpy as np
import pytest

from qcompile.errors import InputError
from qcompile.formats.cache_format import parse_cache_format

WORDS = [
    "int8-token", "int4-token", "int2-token", "uint8-token", "uint4-token", "uint2-token", "int4-g16", "uint2-g32",
    "uint5+3-g16", "uint5+3-g32",
]  # fmt: skip
X = np.random.default_rng(0).standard_normal((2, 3, 5, 64)).astype(np.float32)


@pytest.mark.parametrize("word", WORDS)
def test_values_are_the_nearest_levels_of_their_group(word: str) -> None:
    fmt = parse_cache_format(word)
    codes, numbers = fmt.encode(X)
    assert numbers is not None
    held = fmt.decode(codes, numbers).reshape(-1, fmt.groups(64), 64 // fmt.groups(64))
    parts = X.reshape(held.shape)
    own = numbers.astype(np.float64).reshape(-1, numbers.shape[-1])
    scale, start = (own[:, : fmt.groups(64)], own[:, fmt.groups(64) :] if fmt.offset else 0 * own)
    highs = fmt.highs(64)[:, None]
    levels = np.minimum(np.arange(fmt.low, highs.max() + 1), highs)
    grid = scale[..., None] * levels + start[..., None]
    nearest = np.abs(parts[..., None] - grid[:, :, None]).min(-1)
    np.testing.assert_allclose(np.abs(held - parts), nearest, atol=1e-6)


@pytest.mark.parametrize("word", WORDS)
def test_what_is_held_stays(word: str) -> None:
    fmt = parse_cache_format(word)
    held = fmt.fake(X)
    np.testing.assert_allclose(fmt.fake(held), held, atol=2e-3 * np.abs(X).max())


def test_bytes() -> None:
    """Two codes in a byte, the first below; those of 4 bits from 8 on, as GroupQueryAttention has them."""
    codes, _ = parse_cache_format("int4-tensor").encode(np.array([[[[1.0, -2.0, 7.0, -8.0]]]]), np.float32([1]))
    assert codes.tolist() == [[[[9 | 6 << 4, 15 | 0 << 4]]]]
    codes, _ = parse_cache_format("int2-tensor").encode(np.array([[[[1.0, -2.0, 0.0, -1.0]]]]), np.float32([1]))
    assert codes.tolist() == [[[[3 | 0 << 2 | 2 << 4 | 1 << 6]]]]
    codes, _ = parse_cache_format("int8-tensor").encode(np.array([[[[0.5, 1.5, 300.0, -300.0]]]]), np.float32([1]))
    assert codes.dtype == np.int8
    assert codes.tolist() == [[[[0, 2, 127, -128]]]]
    x = np.float32([*range(0, 30, 2), 31, *(i % 8 for i in range(16))])  # levels of 5 bits, then of 3
    codes, scales = parse_cache_format("uint5+3-g16").encode(x[None, None, None])
    assert scales is not None
    assert scales.tolist() == [[[[1, 1, 0, 0]]]]
    assert codes[0, 0, 0].tolist() == [*(2 * i + 32 * (i % 8) for i in range(15)), 31 + 32 * 7]


@pytest.mark.parametrize(
    "word, size",
    [("int8-channel", 64), ("int4-channel", 32), ("int4-token", 34), ("uint2-g16", 32), ("uint5+3-g32", 40)],
)
def test_bytes_of_a_token(word: str, size: int) -> None:
    fmt = parse_cache_format(word)
    assert fmt.bytes_per_token(3, 64) == 3 * size
    codes, numbers = fmt.encode(X, np.ones(1, np.float32) if fmt.static else None)
    assert codes[0, :, 0].nbytes + (0 if numbers is None else numbers[0, :, 0].nbytes) == 3 * size


def test_a_group_of_zeros() -> None:
    for word in WORDS:
        assert not parse_cache_format(word).fake(np.zeros((1, 1, 2, 64), np.float32)).any()


def test_words() -> None:
    assert parse_cache_format("int4", "channel").name == "int4-channel"
    assert parse_cache_format("uint4", "channel").name == "uint4-token"
    for word in ("int3", "int4-g24", "uint4-channel", "int5+3-g32", "uint5+3-token", "fp8", ""):
        with pytest.raises(InputError, match=re.escape(f"unknown cache format '{word}'")):
            parse_cache_format(word)
    assert "do not fill bytes" in str(parse_cache_format("int2-token").fits(6))
    assert "groups of 32" in str(parse_cache_format("int4-g32").fits(48))
    assert "half of 32 features" in str(parse_cache_format("uint5+3-g32").fits(32))
    assert parse_cache_format("int4-g32").fits(64) is None
