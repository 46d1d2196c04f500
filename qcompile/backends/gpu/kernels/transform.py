"""Online transforms of the last axis, alone or fused with the quantization that follows."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from .activation import quantize_activation
from .activation_type import Activation
from .launch import INTERPRETED, rotation_of
from .rotate import rotate_kernel
from .row_launches import empty_activation, encoding

__all__ = ["Transform"]


class Transform:
    """A product of steps, first applied first.

    Kronecker products of up to two matrices, with diagonals before and after, run in one kernel on whole rows; other
    products of steps run one after the other in torch, in float32.

    Args:
        tensors, meta: from ``packing.pack_transform``; the tensors on the device that computes.
    """

    def __init__(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        half = {name: own.float() for name, own in tensors.items() if own.dtype is torch.float16}
        self.tensors, self.meta = tensors | half, meta  # they are stored so, not computed with
        self._plan = meta["plan"]

    def __call__(self, x: Tensor) -> Tensor:
        """``T x`` along the last axis, in the shape and dtype of ``x``; float32 inside."""
        if self._plan is not None and not INTERPRETED:
            return self.fused(x, None)
        return self._steps(x).to(x.dtype)

    def quantize(self, x: Tensor, activation: dict[str, Any]) -> Activation:
        """``T x`` in a block format, without rounding to the dtype of ``x`` between."""
        if self._plan is not None and not INTERPRETED and self.fuses(activation):
            return self.fused(x, activation)
        wide = self.fused(x.float(), None) if self._plan is not None and not INTERPRETED else self._steps(x)
        made = quantize_activation(wide, activation)
        return Activation(made.codes, made.scales, made.tensor_scale, activation, tuple(x.shape), x.dtype)

    def fuses(self, activation: dict[str, Any]) -> bool:
        """Whether the kernel can quantize what it holds: whole groups in a row of a power of two."""
        size, right = self.meta["size"], self._plan["right_size"]
        whole = activation["group"] is None or size % activation["group"] == 0
        return whole and right >= 16 and right & (right - 1) == 0

    def fused(self, x: Tensor, activation: dict[str, Any] | None) -> Tensor | Activation:
        """The kernel on rows: ``T x`` in the dtype of ``x``, or quantized."""
        rows = x.reshape(-1, self.meta["size"])
        rows = rows if rows.stride(-1) == 1 else rows.contiguous()
        result = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        if activation is not None:
            result = empty_activation(x, activation)
        if rows.numel() > 0:
            self._launch(self._pieces(rows, activation), result, activation)
        return result

    def _pieces(self, rows: Tensor, activation: dict[str, Any] | None) -> Tensor:
        """Rows, or where nothing depends on whole rows, pieces of them that make more and smaller programs."""
        block, whole = self._plan["right_size"], {"left", "before", "signs", "after"} & self.tensors.keys()
        by_row = activation is not None and (activation["group"] is None or activation["tensor_scale"] is not None)
        vectors = max(16, 8192 // triton.next_power_of_2(block))
        if whole or by_row or rows.numel() % (vectors * block):
            return rows
        return rows.contiguous().view(-1, vectors * block)

    def _launch(self, rows: Tensor, result: Tensor | Activation, activation: dict[str, Any] | None) -> None:
        plan, right = self._plan, self._plan["right_size"]
        parts = (rows,) * 3 if activation is None else (result.codes, result.scales, result.tensor_scale)
        a, b = (max(16, triton.next_power_of_2(n)) for n in (rows.shape[1] // right, right))
        terms_x, terms = self._terms(rows.dtype)
        programs, stages, options = rotation_of(a * b, "left" in self.tensors, 8 * rows.element_size())
        rotate_kernel[(min(rows.shape[0], programs),)](
            rows, *(self.tensors.get(name, rows) for name in ("left", "right", "before", "signs", "after")),
            result if activation is None else rows, *(rows if part is None else part for part in parts),
            rows.shape[0], rows.stride(0), plan["factor"], A=rows.shape[1] // right, B=right, A_PAD=a, B_PAD=b,
            LEFT="left" in self.tensors, RIGHT="right" in self.tensors,
            BEFORE="signs" if "signs" in self.tensors else "values" if "before" in self.tensors else "",
            AFTER="after" in self.tensors, LEVELS=plan["levels"], TERMS_X=terms_x, TERMS=terms,
            DOT=triton.language.float32 if INTERPRETED else triton.language.bfloat16,
            PRECISION="ieee" if INTERPRETED or torch.version.hip else "tf32x3", QUANTIZE=activation is not None,
            **encoding(activation), STAGES=stages, **options,
        )  # fmt: skip

    def _terms(self, dtype: torch.dtype) -> tuple[int, int]:
        """bfloat16 numbers for an input, and for what goes on between the factors; 0 for float32 products."""
        if not self._plan["exact"]:
            return 0, 0
        if INTERPRETED:
            return 1, 1
        wide = "before" in self.tensors  # a diagonal that changes more than signs
        return 3 if wide else {torch.bfloat16: 1, torch.float16: 2}.get(dtype, 3), 3 if dtype is torch.float32 else 2

    def _steps(self, x: Tensor) -> Tensor:
        y = x.reshape(-1, self.meta["size"]).float()
        for i, step in enumerate(self.meta["steps"]):
            y = _step(y, step, self.tensors[f"m{i}"])
        return y.reshape(x.shape)


def _step(y: Tensor, step: dict[str, Any], m: Tensor) -> Tensor:
    rows, size = y.shape
    if step["kind"] == "permutation":
        return y[:, m.long()]
    if step["kind"] == "diagonal":
        return y * m.float()
    if step["kind"] == "blocks":
        return torch.einsum("rob,ocb->roc", y.view(rows, step["outer"], -1), m.float()).reshape(rows, size)
    view = y.view(rows, step["outer"], m.shape[0], step["inner"])
    return torch.einsum("romi,nm->roni", view, m.float()).reshape(rows, size)
