"""Codes as parameters: where nothing moves nothing changes, and a move of a gap is the next level."""

from __future__ import annotations

import pytest
import torch

from qcompile.formats import get_format, quantize
from qcompile.learning.latent import Latent

FORMATS = ["int4-g32", "mxfp4", "nvfp4", "int8-channel", "uint4-g32", "nf4-g64"]


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
def test_a_move_changes_the_code_to_a_neighbour(name: str) -> None:
    fmt, real = get_format(name), weight()
    found = quantize(real, fmt)
    latent = Latent(found, real, torch.device("cpu"))
    with torch.no_grad():
        latent.moves.fill_(1.0)
    moved, own = latent.quantized(), found.dequantize()
    assert torch.equal(latent.values(), moved.dequantize())
    levels = torch.tensor(fmt.element.levels)
    scale = found.all_scales.effective.repeat_interleave(fmt.group or 80, -1)[:, :80]
    gap = float((levels[1:] - levels[:-1]).max())
    steps = (moved.dequantize() - own) / scale
    assert (steps.abs() <= gap * 1.001).all()
    assert latent.changed() > 0.8 * own.numel()
    assert torch.equal(moved.scales, found.scales)


def test_gradients_pass_through_as_they_are() -> None:
    fmt, real = get_format("mxfp4"), weight()
    latent = Latent(quantize(real, fmt), real, torch.device("cpu"))
    latent.values().sum().backward()
    assert (latent.moves.grad[:, :2].flatten(1) > 0).all()
