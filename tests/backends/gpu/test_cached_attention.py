"""Attention over packed caches against the formats' definition; in Triton's interpreter where there is no GPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from qcompile.errors import TargetError
from qcompile.formats.cache_format import CacheFormat
from qcompile.formats.cache_words import parse_cache_format

pytest.importorskip("triton", reason="the kernels need triton")

from qcompile.backends.gpu.cache_layouts import cache_layout
from qcompile.backends.gpu.kernels.cache_writing import append_to_cache
from qcompile.backends.gpu.kernels.cached_attention import attend_to_cache

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FORMATS = ["int8-token", "int4-token", "uint4-token", "uint4-g32", "uint8-g64", "uint5+3-g32", "int4-g64"]
BATCH, HEADS, SHARED, CAPACITY, SIZE = 3, 2, 3, 90, 64


def loud(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Numbers of which a few are much larger than the others."""
    return (rng.standard_normal(shape) * np.exp(rng.standard_normal(shape))).astype(np.float32)


def filled(fmt: CacheFormat, x: np.ndarray) -> tuple[Tensor, Tensor]:
    """A cache of the definition."""
    codes, numbers = fmt.encode(x)
    assert numbers is not None
    return torch.from_numpy(codes).to(DEVICE), torch.from_numpy(numbers).to(DEVICE)


def attention(q: np.ndarray, key: np.ndarray, value: np.ndarray, lengths: list[int], scale: float) -> np.ndarray:
    """In float64; queries are the last of each sequence."""
    q, key, value = (x.astype(np.float64) for x in (q, *(np.repeat(x, SHARED, 1) for x in (key, value))))
    out = np.zeros(q.shape)
    for i, length in enumerate(lengths):
        for place in range(q.shape[2]):
            end = length - q.shape[2] + 1 + place
            scores = np.einsum("hf,htf->ht", q[i, :, place], key[i, :, :end]) * scale
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            out[i, :, place] = np.einsum("ht,htf->hf", weights / weights.sum(-1, keepdims=True), value[i, :, :end])
    return out


@pytest.mark.parametrize(
    ("key", "value", "queries", "dtype"),
    [(name, name, 1, torch.float32) for name in FORMATS]
    + [("uint4-g32", "int8-token", 3, torch.float32), ("int4-token", "uint5+3-g32", 6, torch.float32)]
    + [(name, name, 1, torch.float16) for name in ("int8-token", "uint4-token", "uint4-g32", "uint5+3-g32")],
)
def test_it_attends_to_what_the_cache_stands_for(key: str, value: str, queries: int, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(0)
    formats = [parse_cache_format(name) for name in (key, value)]
    held = [loud(rng, BATCH, HEADS, CAPACITY, SIZE) for _ in formats]
    caches = [filled(fmt, x) for fmt, x in zip(formats, held, strict=True)]
    q = torch.from_numpy(rng.standard_normal((BATCH, HEADS * SHARED, queries, SIZE), np.float32)).to(DEVICE, dtype)
    lengths = [CAPACITY, 33, queries]
    layouts = tuple(cache_layout(fmt, SIZE) for fmt in formats)
    y = attend_to_cache(
        q, *caches[0], *caches[1], torch.tensor(lengths, dtype=torch.int32, device=DEVICE), 0.2, layouts, splits=3,
        block=16,
    )  # fmt: skip
    decoded = [fmt.fake(x) for fmt, x in zip(formats, held, strict=True)]
    want = attention(q.float().cpu().numpy(), *decoded, lengths, 0.2)
    limit = 2e-6 if dtype is torch.float32 else 2e-3
    assert np.linalg.norm(y.double().cpu().numpy() - want) < limit * np.linalg.norm(want)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("new", [1, 4])
def test_what_is_appended_is_to_the_bit_the_definition(name: str, new: int) -> None:
    fmt, rng = parse_cache_format(name), np.random.default_rng(1)
    old, x = loud(rng, BATCH, HEADS, CAPACITY, SIZE), loud(rng, BATCH, HEADS, new, SIZE)
    x[0, 0, 0] = 0
    x[1, 1, 0, :32] = np.arange(-16, 16) / 2  # ties
    want, cache = [tensor.clone() for tensor in filled(fmt, old)], filled(fmt, old)
    lengths = [CAPACITY, new, 40]
    for i, length in enumerate(lengths):
        for whole, part in zip(want, filled(fmt, x[i : i + 1]), strict=True):
            whole[i, :, length - new : length] = part[0]
    append_to_cache(
        torch.from_numpy(x).to(DEVICE), *cache, torch.tensor(lengths, dtype=torch.int32, device=DEVICE),
        cache_layout(fmt, SIZE),
    )  # fmt: skip
    for have, wanted in zip(cache, want, strict=True):
        assert torch.equal(have.cpu(), wanted.cpu())


def test_what_is_appended_may_change_basis() -> None:
    """A sum in another order may round a code to its neighbour."""
    fmt, rng = parse_cache_format("int8-token"), np.random.default_rng(2)
    x = loud(rng, BATCH, HEADS, 1, SIZE)
    matrix = (rng.standard_normal((HEADS, SIZE, SIZE)) / SIZE**0.5).astype(np.float32)
    codes, numbers = filled(fmt, np.zeros((BATCH, HEADS, CAPACITY, SIZE), np.float32))
    lengths = torch.full((BATCH,), 7, dtype=torch.int32, device=DEVICE)
    turn = torch.from_numpy(matrix).to(DEVICE)
    append_to_cache(torch.from_numpy(x).to(DEVICE), codes, numbers, lengths, cache_layout(fmt, SIZE), turn)
    want, scales = fmt.encode(x @ matrix.swapaxes(-1, -2))
    assert scales is not None
    assert np.abs(codes[:, :, 6:7].cpu().numpy().astype(int) - want).max() <= 1
    np.testing.assert_allclose(numbers[:, :, 6:7].cpu().numpy(), scales, rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "size"), [("uint2-g32", 64), ("int8-channel", 64), ("int8-token", 96), ("int4-token", 16)]
)
def test_other_formats_are_refused(name: str, size: int) -> None:
    with pytest.raises(TargetError, match=name):
        cache_layout(parse_cache_format(name), size)
