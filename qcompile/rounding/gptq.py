"""GPTQ in whatever basis the weight has been brought to, for every scalar block format.

Scales are computed once, on the unrounded weight; then columns are rounded in order, and what each rounding lost
is made up by the columns still to come (Frantar et al., 2023; MR-GPTQ, Egiazarian et al., 2025). Activation order
changes only the order of the visits: groups stay where they are.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from qcompile.errors import InputError
from qcompile.formats import Format, Quantized, Scales, compute_scales, quantize, round_to, search_scales
from qcompile.formats.replay import captured
from qcompile.rounding.neighbours import Limits
from qcompile.threads import alone

__all__ = ["Factor", "GPTQResult", "factorize", "gptq", "output_error"]

_LEAST_DAMPING = 1e-6  # tried first where the caller asked for none and the factorization failed
_MOST_DAMPING = 10.0

#: Outputs from which a column is worth a team of threads: on shorter ones its members wait actively for each other.
_WIDE = 1 << 15


@dataclass(frozen=True)
class Factor:
    """The inverse of a damped second moment, as GPTQ wants it; to be shared by all weights that read one input.

    Args:
        upper: float32 ``[in, in]``, upper triangular with ``H⁻¹ = upperᵀ upper``, ``H`` in the order of visits.
        order: int64 ``[in]``, the column visited at each step.
        diagonal: float64 ``[in]``, the diagonal of ``H`` in the order of the columns: how much each matters.
        damping: the multiple of the mean of G's diagonal that was added to it.
    """

    upper: Tensor
    order: Tensor
    diagonal: Tensor
    damping: float

    def importance(self, power: float) -> Tensor:
        """By column ``d^-power``, ``d`` the diagonal of the factor, over their mean: float32 ``[in]``.

        ``d^-2`` is what is left of a column's error when all later ones have made up for it; LeanQuant (Zhang and
        Shrivastava, 2024, arXiv:2407.10032) takes its square, for grids that spare the columns that cost most.
        """
        found = torch.empty_like(self.diagonal)
        found[self.order] = self.upper.diagonal().double() ** -power
        return (found / found.mean()).float()


@dataclass(frozen=True)
class GPTQResult:
    """A rounded weight and how it came about.

    Args:
        quantized: ``[out, in]`` in the format, groups along ``in``.
        damping: what was really used, larger than asked for if the second moment was not positive definite.
        error: relative error of the output on the undamped second moment; NaN where only a factor was given.
    """

    quantized: Quantized
    damping: float
    error: float


def gptq(
    weight: Tensor,
    moment: Tensor | Factor,
    fmt: Format,
    *,
    damping: float = 0.01,
    activation_order: bool = True,
    scales: Literal["absmax", "search"] | Scales = "absmax",
    tensor_scale: Tensor | float | None = None,
    block: int = 128,
    device: torch.device | str | None = None,
    together: int | None = None,
) -> GPTQResult:
    """Round a weight to a format so that its outputs, not its entries, stay close.

    Args:
        weight: ``[out, in]``, already transformed.
        moment: ``E[x xᵀ]`` of its (transformed) input ``[in, in]``, or ``factorize`` of it.
        fmt: a format with groups along ``in``.
        damping: multiple of the mean of the moment's diagonal that is added to it.
        activation_order: visit the columns of most energy first.
        scales: by the format's rule, by search weighted with the moment's diagonal, or given.
        tensor_scale: second-level scale, for instance one shared by several weights.
        block: columns whose corrections to later columns are applied together.
        device: where to compute; that of the weight by default.
        together: the most that two neighbouring codes of one sign, the first and the second column and so on, are
            together, for whole numbers in one group; what the bound takes is made up for like what rounding takes.

    Raises:
        InputError: if shapes do not fit, a number is not finite, or the moment cannot be factorized even when
            damped with ten times its mean.
    """
    _check(weight, "weight")
    given = moment
    if isinstance(moment, Tensor):
        moment = factorize(moment, damping, activation_order, device or weight.device)
    if weight.ndim != 2 or weight.shape[1] != len(moment.order):
        raise InputError(f"GPTQ: weight {list(weight.shape)} does not read an input of {len(moment.order)} channels")
    if block < 1:
        raise InputError(f"GPTQ: block must be at least 1, not {block}")
    device = torch.device(device or weight.device)
    work = weight.detach().to(device, torch.float32)
    fixed = _scales(work, fmt, scales, moment.diagonal, tensor_scale)
    rounded = _round_columns(work, moment, fixed, fmt, block, together)
    error = output_error(weight, rounded, given) if isinstance(given, Tensor) else float("nan")
    return GPTQResult(quantize(rounded, fmt, scales=fixed), moment.damping, error)


def output_error(weight: Tensor, rounded: Tensor, moment: Tensor) -> float:
    """``tr(ΔW G ΔWᵀ) / tr(W G Wᵀ)``: the relative energy that the output of a site loses.

    Args:
        weight, rounded: ``[out, in]``.
        moment: ``[in, in]``; its dtype is that of the products.
    """
    weight, rounded = (t.to(moment.device, moment.dtype) for t in (weight, rounded))
    energy = _energy(weight, moment)
    return _energy(weight - rounded, moment) / energy if energy > 0 else 0.0


def _energy(rows: Tensor, moment: Tensor) -> float:
    return float((rows @ moment).mul_(rows).sum(dtype=torch.float64))


# -- the factor --------------------------------------------------------------------------------------------------


def factorize(
    moment: Tensor, damping: float = 0.01, activation_order: bool = True, device: torch.device | str | None = None
) -> Factor:
    """The Cholesky factor of the inverse of a damped second moment, computed in float64.

    Raises:
        InputError: as for ``gptq``.
    """
    _check(moment, "second moment")
    if moment.ndim != 2 or moment.shape[0] != moment.shape[1]:
        raise InputError(f"GPTQ: the second moment must be square, not {list(moment.shape)}")
    if not 0 <= damping <= _MOST_DAMPING:
        raise InputError(f"GPTQ: damping must lie between 0 and {_MOST_DAMPING:g}, not {damping}")
    g = moment.detach().to(device or moment.device, torch.float64)
    g = (g + g.T) / 2
    diagonal = g.diagonal().clone()
    if len(g) and not diagonal.mean() > 0:
        raise InputError("GPTQ: the second moment is zero: no activation was seen, use round-to-nearest instead")
    order = _order(diagonal, activation_order)
    upper, used = _inverse_factor(g[order][:, order], damping)
    return Factor(upper.float(), order, diagonal + used * diagonal.mean(), used)


def _order(diagonal: Tensor, activation_order: bool) -> Tensor:
    if activation_order:
        return torch.argsort(diagonal, descending=True, stable=True)
    return torch.arange(len(diagonal), device=diagonal.device)


def _inverse_factor(h: Tensor, damping: float) -> tuple[Tensor, float]:
    """``U`` upper triangular with ``(h + damping·mean·I)⁻¹ = Uᵀ U``, and the damping it took.

    With rows and columns reversed, ``H = L Lᵀ``; the reversed ``L`` is ``U⁻¹``: one factorization and one
    triangular inverse, instead of an inverse and a second factorization.
    """
    mean = h.diagonal().mean() if len(h) else torch.ones((), dtype=h.dtype)
    identity = torch.eye(len(h), dtype=h.dtype, device=h.device)
    used = damping
    while used <= _MOST_DAMPING:
        lower, info = torch.linalg.cholesky_ex((h + used * mean * identity).flip(0, 1))
        if not info and bool(lower.diagonal().min() > 1e-7 * mean.sqrt() if len(h) else True):
            return torch.linalg.solve_triangular(lower.flip(0, 1), identity, upper=True), used
        used = max(used * 10, _LEAST_DAMPING)
    raise InputError("GPTQ: the second moment is not positive semidefinite: check the calibration data")


# -- the columns -------------------------------------------------------------------------------------------------


def _scales(
    weight: Tensor, fmt: Format, scales: str | Scales, diagonal: Tensor, tensor_scale: Tensor | float | None
) -> Scales:
    if isinstance(scales, Scales):
        return scales
    if scales == "absmax":
        return compute_scales(weight, fmt, tensor_scale=tensor_scale)
    if scales == "search":
        return search_scales(weight, fmt, weight=diagonal.to(weight.device, torch.float32), tensor_scale=tensor_scale)
    raise InputError(f"GPTQ: scales must be 'absmax', 'search' or given, not {scales!r}")


def _round_columns(
    weight: Tensor, factor: Factor, scales: Scales, fmt: Format, block: int, together: int | None
) -> Tensor:  # fmt: skip
    """All rows at once, column by column in the factor's order; returns the rounded weight ``[out, in]``."""
    order, upper = factor.order.to(weight.device), factor.upper.to(weight.device)
    columns = weight.T[order].contiguous()  # a column of the weight is a row here
    groups = order // (fmt.group or len(order))
    scale = scales.effective.T.contiguous()
    zero_point = None if scales.zero_point is None else scales.zero_point.T.contiguous()
    limits = None if together is None else Limits.of(weight, scales.effective, order, together)
    for start in range(0, len(order), block):
        part = slice(start, min(start + block, len(order)))
        own = groups[part]
        given = _Block(columns[part], upper[part, part], scale[own], None if zero_point is None else zero_point[own])
        replays = weight.is_cuda and limits is None
        errors = _replayed(given, fmt) if replays else given.round(fmt, limits, start)
        columns[part.stop :].addmm_(upper[part, part.stop :].T, errors, alpha=-1)
    result = torch.empty_like(columns)
    result[order] = columns
    return result.T.contiguous()


@dataclass(frozen=True)
class _Block:
    """Columns that are rounded in turn, each with what it makes up for.

    Args:
        columns: ``[columns, out]``, overwritten.
        upper: that part of the factor, ``[columns, columns]``.
        scale: the scales of each, ``[columns, out]``.
        zero_point: of the same shape, or ``None``.
    """

    columns: Tensor
    upper: Tensor
    scale: Tensor
    zero_point: Tensor | None

    def round(self, fmt: Format, limits: Limits | None = None, start: int = 0) -> Tensor:
        """Errors of all roundings, each divided by its pivot: ``[columns, out]``.

        Args:
            limits: of codes, by visit.
            start: the visit of the first column.
        """
        errors, pivots = torch.empty_like(self.columns), self.upper.diagonal()
        with alone() if len(self.columns[0]) < _WIDE else nullcontext():
            for j, column in enumerate(self.columns):
                if j:
                    column.addmv_(errors[:j].T, self.upper[:j, j], alpha=-1)
                scale = self.scale[j]
                within = column if limits is None else limits.brought(start + j, column, scale)
                rounded = round_to(within, scale, None if self.zero_point is None else self.zero_point[j], fmt)
                if limits is not None:
                    limits.learn(start + j, rounded, scale)
                torch.sub(column, rounded, out=errors[j]).div_(pivots[j])
                column.copy_(rounded)
        return errors

    @property
    def tensors(self) -> list[Tensor]:
        """All of them."""
        found = (self.columns, self.upper, self.scale, self.zero_point)
        return [tensor for tensor in found if tensor is not None]


def _replayed(block: _Block, fmt: Format) -> Tensor:
    """``block.round`` as one graph of kernels: launched one by one, thousands of small ones would wait for Python."""
    count, rows = block.columns.shape
    graph, own, errors = _captured(count, rows, block.zero_point is not None, fmt, block.columns.device)
    for mine, given in zip(own.tensors, block.tensors, strict=True):
        mine.copy_(given)
    graph.replay()
    block.columns.copy_(own.columns)
    return errors


@lru_cache(maxsize=32)
def _captured(
    count: int, rows: int, asymmetric: bool, fmt: Format, device: torch.device
) -> tuple[torch.cuda.CUDAGraph, _Block, Tensor]:
    zero_point = torch.zeros(count, rows, dtype=torch.uint8, device=device) if asymmetric else None
    ones = torch.ones(count, rows, device=device)
    own = _Block(torch.zeros_like(ones), torch.eye(count, device=device), ones, zero_point)
    graph, errors = captured(lambda: own.round(fmt), device)
    return graph, own, errors


def _check(tensor: Tensor, what: str) -> None:
    if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
        raise InputError(f"GPTQ: the {what} holds a NaN or an infinity, or is not floating point")
