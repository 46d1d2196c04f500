"""Rounding with gradients is the format's to the bit, and its gradient what moving a scale would do."""

from __future__ import annotations

import pytest
import torch

from qcompile.formats import fake_quantize, fake_quantize_rows, get_format
from qcompile.learning.straight_through import round_rows, round_weight

FORMATS = ["int4-g32", "mxfp4", "nvfp4", "int8-channel"]


@pytest.mark.parametrize("name", FORMATS)
def test_is_bit_exact_forward(name: str) -> None:
    x = torch.randn(7, 80, generator=torch.Generator().manual_seed(0)).requires_grad_()
    fmt = get_format(name)
    assert torch.equal(round_rows(x, fmt), fake_quantize_rows(x.detach(), fmt))
    assert torch.equal(round_weight(x, fmt), fake_quantize(x.detach(), fmt))


def test_gradient_knows_that_the_scale_follows_the_largest() -> None:
    """With roundings held fixed, ``q = s · round(x/s)`` is smooth where scales are floats."""
    fmt = get_format("int8-channel")
    x = torch.randn(3, 40, generator=torch.Generator().manual_seed(1)).requires_grad_()
    weights = torch.randn(3, 40, generator=torch.Generator().manual_seed(2))
    (round_weight(x, fmt) * weights).sum().backward()
    y = x.detach().double().requires_grad_()
    top = y.abs().amax(-1, keepdim=True)
    scale = (top / fmt.element.max).detach()
    errors = fake_quantize(x.detach(), fmt).double() / scale - (y / scale).detach()
    ((y + top / fmt.element.max * errors) * weights).sum().backward()
    torch.testing.assert_close(x.grad.double(), y.grad, rtol=1e-3, atol=1e-4)


def test_without_errors_the_gradient_is_the_identity() -> None:
    x = torch.tensor([[0.5, -6.0, 3.0, 1.0] * 8]).requires_grad_()
    weights = torch.arange(32.0)[None]
    (round_weight(x, get_format("mxfp4")) * weights).sum().backward()
    assert torch.equal(x.grad, weights)
