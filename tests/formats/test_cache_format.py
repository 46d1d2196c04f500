"""Formats of caches by hand: codes, bytes, scales, and what cannot be stored."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from qcompile.errors import InputError
from qcompile.formats import get_format, quantize
from qcompile.formats.cache_words import parse_cache_format, parse_cache_formats
from qcompile.formats.grids.lloyd_max import lloyd_max
from qcompile.formats.static import STATIC_FORMATS, Range
from qcompile.transforms import hadamard_matrix

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
    [
        ("int8-channel", 64),
        ("int4-channel", 32),
        ("int4-token", 34),
        ("uint2-g16", 32),
        ("uint5+3-g32", 40),
        ("fp8-channel", 64),
        ("fp8-token", 66),
        ("mxfp4", 34),
        ("nvfp4", 36),
        ("eden2", 18),
        ("turboquant4", 34),
    ],
)
def test_bytes_of_a_token(word: str, size: int) -> None:
    fmt = parse_cache_format(word)
    assert fmt.bytes_per_token(3, 64) == 3 * size
    codes, numbers = fmt.encode(X, np.ones(1, np.float32) if fmt.static else None)
    assert codes[0, :, 0].nbytes + (0 if numbers is None else numbers[0, :, 0].nbytes) == 3 * size


@pytest.mark.parametrize("word", ["mxfp4", "nvfp4", "fp8-tensor"])
def test_small_floats_are_those_of_the_registry(word: str) -> None:
    fmt, second = parse_cache_format(word), np.float32([0.01])
    x = torch.from_numpy(X)
    if word == "fp8-tensor":
        want = Range(STATIC_FORMATS["fp8-e4m3-static"], 0.01).round(x)
    else:
        want = quantize(x, get_format(word), tensor_scale=0.01 if fmt.static else None).dequantize()
    np.testing.assert_array_equal(fmt.fake(X, second if fmt.static else None), want.numpy())
    codes, _ = parse_cache_format("mxfp4").encode(np.float32([[[[0.5, -6, 3, 1] + [0] * 28]]]))
    assert codes[0, 0, 0, :2].tolist() == [1 | 15 << 4, 5 | 2 << 4]  # the first in the lowest bits


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_rotated_tokens_err_as_a_normal_distribution(bits: int) -> None:
    """TurboQuant's error is that of the best levels; EDEN's is never above it, for any token."""
    loud = X * np.geomspace(0.1, 10, 64, dtype=np.float32)
    x = (loud * np.random.default_rng(1).choice([-1, 1], 64)) @ (hadamard_matrix(64) / 8).astype(np.float32)
    errors = {
        word: np.square(parse_cache_format(f"{word}{bits}").fake(x) - x).sum(-1) / np.square(x).sum(-1)
        for word in ("eden", "turboquant")
    }
    assert errors["turboquant"].mean() == pytest.approx(lloyd_max(2**bits).error, rel=0.15)
    assert np.all(errors["eden"] <= errors["turboquant"] * 1.001 + 1e-6)


def test_a_group_of_zeros() -> None:
    for word in [*WORDS, "mxfp4", "fp8-token", "eden2", "turboquant2"]:
        assert not parse_cache_format(word).fake(np.zeros((1, 1, 2, 64), np.float32)).any()


def test_words() -> None:
    assert parse_cache_format("int4", "channel").name == "int4-channel"
    assert parse_cache_format("uint4", "channel").name == "uint4-token"
    for word in (
        "int3",
        "int4-g24",
        "uint4-channel",
        "int5+3-g32",
        "uint5+3-token",
        "fp8-g24",
        "eden3",
        "mxfp8",
        "int8,int4",
        "",
    ):
        with pytest.raises(InputError, match=re.escape(f"unknown cache format '{word}'")):
            parse_cache_format(word)
    assert "do not fill bytes" in str(parse_cache_format("int2-token").fits(6))
    assert "groups of 32" in str(parse_cache_format("int4-g32").fits(48))
    assert "half of 32 features" in str(parse_cache_format("uint5+3-g32").fits(32))
    assert parse_cache_format("int4-g32").fits(64) is None
    assert "groups of 32" in str(parse_cache_format("mxfp4").fits(48))
    kept = parse_cache_format("uint2-g32{first=4, recent=64}")
    assert (kept.first, kept.recent, kept.word) == (4, 64, "uint2-g32")
    assert parse_cache_format(kept.name) == kept
    assert parse_cache_format("int8{recent=0}").name == "int8-token"
    assert [f.name for f in parse_cache_formats("int8{recent=8},fp8", "channel")] == [
        "int8-channel{recent=8}",
        "fp8-channel",
    ]
    for word, said in (
        ("int8{last=3}", "no option 'last'"),
        ("int8{first=-1}", "no negative"),
        ("float32{recent=4}", "all"),
    ):
        with pytest.raises(InputError, match=said):
            parse_cache_format(word)
