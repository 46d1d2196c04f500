"""Predicted errors: what a (scheme, transform) does to the output of a site, before anything is changed.

``t² = E‖x̂ Ŵᵀ - x Wᵀ‖² / E‖x Wᵀ‖²`` in the transformed basis, with the activation quantized if the scheme says so,
on a sample of rows. Without statistics the second moment is the identity and ``t² = ‖Ŵ - W‖² / ‖W‖²``.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from qcompile.analysis.folding import lines
from qcompile.formats import Format, fake_quantize
from qcompile.ir.graph import Derived, read, release
from qcompile.targets.registry import Scheme
from qcompile.threads import alone

if TYPE_CHECKING:
    import torch

    from qcompile.analysis.spaces import Site
    from qcompile.statistics.calibration import Statistics
    from qcompile.transforms import Transform

__all__ = ["Probe", "as_weight", "probe", "quantize_rows", "site_error", "weight_matrix"]

#: Rows of the weight and of the sample that a prediction looks at; fewer where only the weight counts.
ROWS = 256
WEIGHT_ROWS = 32


def weight_matrix(site: Site, rows: int | None = None) -> torch.Tensor:
    """A site's weight as ``[out, in]`` float32, or that many of its rows; an embedding table as ``[rows, features]``.

    The matrices of a stack stand one below the other. The result need not be contiguous.
    """
    import torch

    tensor, axis = site.weight.const_value, site.axis_out if site.input is None else site.axis_in
    count = math.prod(site.shape) // site.shape[axis]
    if rows is not None and rows < count:
        weight = lines(tensor, axis, np.linspace(0, count - 1, rows).astype(int))
    else:
        weight = np.moveaxis(read(tensor), axis, -1)
    weight = weight.reshape(-1, weight.shape[-1])
    if isinstance(tensor, Derived) and weight.dtype == np.float32:  # which may be written, so that torch takes it
        return torch.from_numpy(weight)
    copied = np.array(weight, np.float32)
    del weight
    release(tensor)
    return torch.from_numpy(copied)


def as_weight(site: Site, matrix: np.ndarray) -> np.ndarray:
    """What ``weight_matrix`` gives, in the shape and the type of the weight."""
    tensor, axis = site.weight.const_value, site.axis_out if site.input is None else site.axis_in
    shape = list(site.shape)
    shape.append(shape.pop(axis))
    return np.ascontiguousarray(np.moveaxis(matrix.reshape(shape), -1, axis), tensor.dtype.numpy())


def quantize_rows(x: torch.Tensor, fmt: Format) -> torch.Tensor:
    """Quantize and dequantize activations ``[rows, features]`` as a runtime does: each row by itself.

    A second-level scale is that of its row, so that a token's result does not depend on its neighbours.
    """
    import torch

    if fmt.tensor_scale is None:
        return fake_quantize(x, fmt)
    target = fmt.targets[0] if fmt.targets else fmt.element.max
    scale = x.abs().amax(-1, keepdim=True) / (target * fmt.tensor_scale)
    scale = torch.where(scale > 0, scale, 1.0)
    return fake_quantize(x / scale, fmt, tensor_scale=1.0) * scale


@dataclass(frozen=True, eq=False)
class Probe:
    """A few rows of a site's weight and of its input: what predictions are computed on."""

    weight: torch.Tensor  # [rows, in]
    sample: torch.Tensor | None  # [rows, in]
    known: dict[tuple[str, int], tuple[Any, float]] = field(default_factory=dict, repr=False)  # see ``site_error``


def probe(site: Site, statistics: Statistics | None) -> Probe:
    """Rows spread evenly over the weight's outputs and the sample."""
    import torch

    weight = weight_matrix(site, WEIGHT_ROWS if statistics is None else ROWS).contiguous()
    if statistics is None:
        return Probe(weight, None)
    sample = torch.from_numpy(statistics.sample)
    return Probe(weight, sample[torch.linspace(0, len(sample) - 1, min(ROWS, len(sample))).long()])


def site_error(item: Probe, scheme: Scheme, transform: Transform | None = None) -> float:
    """``t²`` of one site under a scheme, with its input in the basis of ``transform``."""
    if scheme.weight is None:
        return 0.0
    key = scheme.name, id(transform)
    of, error = item.known.get(key, (None, 0.0))
    if of is None or of() is not transform:  # another one may have been there
        with alone() if item.sample is None else nullcontext():  # of a few rows of the weight
            error = _error(item, scheme, transform)
        of = (lambda: None) if transform is None else weakref.ref(transform)
        item.known[key] = of, error
    return error


def _error(item: Probe, scheme: Scheme, transform: Transform | None) -> float:
    weight, sample = item.weight, item.sample
    if transform is not None:
        weight = transform.dual().apply(weight, -1)
        sample = None if sample is None else transform.apply(sample, -1)
    rounded = fake_quantize(weight, scheme.weight)
    if sample is None:
        return float((rounded - weight).square().sum() / weight.square().sum().clamp_min(1e-30))
    seen = sample if scheme.activation is None else quantize_rows(sample, scheme.activation)
    exact = sample @ weight.T
    return float((seen @ rounded.T - exact).square().sum() / exact.square().sum().clamp_min(1e-30))


def group_error(items: Sequence[Probe], alphas: Sequence[float], scheme: Scheme, transform: Transform | None) -> float:
    """``Σ α t²`` over sites that read one value."""
    return sum(alpha * site_error(item, scheme, transform) for item, alpha in zip(items, alphas, strict=True))
