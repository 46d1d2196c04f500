"""The second-level scale: one float32 number for a whole tensor."""

from __future__ import annotations

import torch
from torch import Tensor

from qcompile.formats.format import Format, ScaleRule
from qcompile.formats.replay import capturing
from qcompile.formats.scales import quotient

__all__ = ["default_tensor_scale", "finite_amax"]

_CHUNK = 1 << 18


def finite_amax(x: Tensor) -> Tensor:
    """The largest finite magnitude of ``x`` as a float32 scalar; 0 for an empty tensor."""
    if x.numel() == 0:
        return torch.zeros((), device=x.device)
    # Neither of the two copies whole tensors: aminmax would, if the strides were not those of a contiguous one.
    strides = x.stride()
    x = x.permute(sorted(range(x.dim()), key=lambda axis: -strides[axis]))
    if x.is_contiguous() and not capturing(x):
        low, high = torch.aminmax(x)
        amax = torch.maximum(-low, high).float()
        if amax.isfinite():
            return amax
    lines = x.split(max(1, _CHUNK * len(x) // x.numel()))
    return torch.stack([part.float().nan_to_num(0, 0, 0).abs().amax() for part in lines]).amax()


def default_tensor_scale(x: Tensor, fmt: Format) -> Tensor | None:
    """The tensor scale that the format derives from ``x``, or None where it has no second level.

    NVFP4: ``amax / (6 · 448)``. MR-GPTQ's rule: the constant 4/3 (in general the factor that lifts the top of the
    highest binade onto the largest element), which does not depend on the data.
    """
    if fmt.rule is ScaleRule.FOUR_THIRDS:
        return torch.full((), 2.0 ** (fmt.element.max_exponent + 1) / fmt.element.max, device=x.device)
    if fmt.tensor_scale is None:
        return None
    target = fmt.targets[0] if fmt.targets else fmt.element.max
    scale = quotient(finite_amax(x), target * fmt.tensor_scale)
    return torch.where(scale > 0, scale, torch.ones_like(scale))  # all zero, or too small for float32
