"""Codes as parameters: where nothing moves nothing changes, and a move of a gap is the next level."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.formats import get_format, quantize
from qcompile.formats.format import ScaleType
from qcompile.formats.scales import store_scale
from qcompile.learning.latent import Latent

FORMATS = ["int4-g32", "mxfp4", "nvfp4", "int8-channel", "uint4-g32", "nf4-g64", "int3-g16", "uint2-g32"]


def weight(rows: int = 6, width: int = 80) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", FORMATS)
def test_begins_at_the_codes_that_were_found(name: str) -> None:
    """Also at codes that are not those of rounding to nearest, as of GPTQ."""
    fmt, real = get_format(name), weight()
    found = quantize(real + 0.2 * weight().flip(1), fmt)
    latent = Latent(found, real, torch.device("cpu"))
    assert torch.equal(latent.values(), found.dequantize())
    assert torch.equal(latent.quantized().dequantize(), found.dequantize())
    assert latent.changed() == 0


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("size", [1.0, -1.0, 50.0])
def test_a_move_changes_the_code_to_a_neighbour(name: str, size: float) -> None:
    fmt, real = get_format(name), weight()
    found = quantize(real, fmt)
    latent = Latent(found, real, torch.device("cpu"))
    with torch.no_grad():
        latent.moves.fill_(size)
    moved = latent.quantized()
    assert torch.equal(latent.values(), moved.dequantize())
    assert latent.changed() > 0.5 * real.numel()
    assert torch.equal(moved.scales, found.scales)
    levels, scale = torch.tensor(fmt.element.levels), found.all_scales.effective
    scale = scale.repeat_interleave(fmt.group or 80, -1)[:, :80]
    points = torch.zeros_like(scale)
    if found.zero_points is not None:
        points = found.zero_points.float().repeat_interleave(fmt.group or 80, -1)[:, :80]
    middles = (levels[1:] + levels[:-1]) / 2
    before, after = (torch.bucketize(x.dequantize() / scale + points, middles) for x in (found, moved))
    assert set((after - before).unique().tolist()) <= ({0, 1} if size > 0 else {0, -1})


@settings(max_examples=30, deadline=None)
@given(name=st.sampled_from(FORMATS), seed=st.integers(0, 2**20), size=st.sampled_from([0.01, 0.5, 10.0]))
def test_what_is_learned_is_what_is_stored(name: str, seed: int, size: float) -> None:
    """At any parameters codes and scales hold, to the bit, the values that gradients were taken at."""
    fmt, real, drawn = get_format(name), weight(), torch.Generator().manual_seed(seed)
    real[0, :32] = 0  # a group without a scale
    latent = Latent(quantize(real, fmt), real, torch.device("cpu"))
    with torch.no_grad():
        for tensor in (latent.moves, latent.stretch):
            if tensor is not None:
                tensor.copy_(size * torch.randn(tensor.shape, generator=drawn))
        if latent.stretch is not None:
            latent.stretch.clamp_(-0.5, 0.5)
    stored = latent.quantized()
    assert torch.equal(latent.values(), stored.dequantize())
    assert torch.equal(store_scale(stored.scales, fmt.scale), stored.scales)  # nothing between two stored scales


@pytest.mark.parametrize("name", FORMATS)
def test_scales_are_learned_where_they_have_near_neighbours(name: str) -> None:
    fmt, real = get_format(name), weight()
    found = quantize(real, fmt)
    latent = Latent(found, real, torch.device("cpu"))
    assert (latent.stretch is None) == (fmt.scale is ScaleType.E8M0)
    if latent.stretch is not None:
        (latent.values() * found.dequantize()).sum().backward()
        squares = torch.nn.functional.pad(found.dequantize().square(), (0, found.codes.shape[-1] - 80))
        sums = squares.reshape(*latent.stretch.shape[:2], -1).sum(-1, keepdim=True)
        torch.testing.assert_close(latent.stretch.grad, sums)  # d/dlog s of s · level is the value itself


def test_gradients_pass_through_as_they_are() -> None:
    fmt, real = get_format("mxfp4"), weight()
    latent = Latent(quantize(real, fmt), real, torch.device("cpu"))
    latent.values().sum().backward()
    assert (latent.moves.grad[:, :2].flatten(1) > 0).all()
