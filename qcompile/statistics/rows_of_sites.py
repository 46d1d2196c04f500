"""Rows that sites multiply and write, window by window: entries of a value that stand apart, such as sequences."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from qcompile.analysis.forms import Convolution, Linear

if TYPE_CHECKING:
    import torch

__all__ = ["rows_read", "rows_written"]


def rows_read(form: Linear | Convolution, x: torch.Tensor) -> list[torch.Tensor]:
    """``[rows, in]`` of each window of what a site reads: for a convolution the patches of each sample."""
    if isinstance(form, Convolution):
        return [form.patches.rows(sample[None].float()) for sample in x]
    return _rows(x, form.before)


def rows_written(form: Linear | Convolution, y: torch.Tensor) -> list[torch.Tensor]:
    """``[rows, out]`` of each window of what a site writes, or of gradients there, scaled as its product is."""
    if isinstance(form, Convolution):
        return [sample.flatten(1).T.float() for sample in y]
    after = None if form.after is None else tuple(np.argsort(form.after).tolist())
    return _rows(y * form.alpha, after)


def _rows(value: torch.Tensor, order: tuple[int, ...] | None) -> list[torch.Tensor]:
    value = value if order is None else value.permute(order)
    windows = value if value.ndim > 2 else value[None]
    return [window.reshape(-1, value.shape[-1]).float() for window in windows]
