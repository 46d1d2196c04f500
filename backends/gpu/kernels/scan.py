"""The selective scan of Mamba-1."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["selective_scan"]


def selective_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None) -> Tensor:
    """``h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t``, ``y_t = C_t h_t + D u_t``, in float32 inside.

    Args:
        u, delta: ``[batch, length, channels]``.
        A: ``[channels, state]``.
        B, C: ``[batch, length, state]``.
        D: ``[channels]``, or None.

    Returns:
        ``[batch, length, channels]`` in the dtype of ``u``.
    """
    state = torch.zeros(u.shape[0], u.shape[2], A.shape[1], device=u.device)
    outputs = torch.empty(u.shape, device=u.device)
    for t in range(u.shape[1]):
        step = delta[:, t].float()
        state = torch.exp(step[..., None] * A) * state + (step * u[:, t])[..., None] * B[:, t, None, :].float()
        outputs[:, t] = (state * C[:, t, None, :]).sum(-1)
    return (outputs if D is None else outputs + D * u).to(u.dtype)
