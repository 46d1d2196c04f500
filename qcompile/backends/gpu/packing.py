"""Weights, tables and transforms in the layouts of the kernels; runs at export time only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from qcompile.backends.gpu.pack_codes import pack_bytes, pack_scaled, takes_bytes, takes_scaled
from qcompile.backends.gpu.pack_words import checked, pack_planes
from qcompile.backends.gpu.rotations import plan_transform
from qcompile.errors import TargetError
from qcompile.formats import Element, Format, Kind, Quantized, ScaleRule, ScaleType
from qcompile.formats.packing import pack_codes
from qcompile.formats.rounding import decode_element
from qcompile.ir.transform_nodes import halved
from qcompile.targets.scheme import Scheme

__all__ = ["Packed", "describe", "pack", "pack_table", "pack_transform"]

Packed = tuple[dict[str, np.ndarray], dict[str, Any]]


def describe(fmt: Format) -> dict[str, Any]:
    """A format as plain data: all that the kernels know of it."""
    element = fmt.element
    meta = {
        "name": fmt.name, "element": element.name, "kind": element.kind.value, "bits": element.bits,
        "min": element.levels[0], "max": element.max, "values": _values(element), "group": fmt.group,
        "scale": fmt.scale.name.lower(), "rule": fmt.rule.value, "zero_point": fmt.zero_point,
        "tensor_scale": fmt.tensor_scale, "targets": list(fmt.targets),
    }  # fmt: skip
    if fmt.scale is ScaleType.E8M0:
        meta["shift"], meta["threshold"] = _border(fmt)
    if fmt.rule is ScaleRule.FOUR_THIRDS:
        meta["constant"] = float(np.float32(2.0 ** (element.max_exponent + 1) / element.max))
    return meta


def _values(element: Element) -> list[float]:
    """The level of every code; NaN codes count as zero."""
    codes = torch.arange(2**element.bits, dtype=torch.uint8) if element.bits < 8 else torch.arange(256).to(torch.uint8)
    return decode_element(codes, element).nan_to_num(0.0).tolist()


def _border(fmt: Format) -> tuple[int, float]:
    """``(shift, threshold)`` of ``2^(⌊log2 amax⌋ - shift)``, doubled where amax over its binade exceeds the threshold.

    Thresholds are rounded down to float32, so that the comparison with a float32 quotient is exact.
    """
    element, top = fmt.element, fmt.element.max
    mantissa = element.mantissa_bits if element.kind is Kind.FLOAT else element.bits - 2
    if fmt.rule in (ScaleRule.FLOOR, ScaleRule.FOUR_THIRDS):
        return element.max_exponent, 2.0
    if fmt.rule is ScaleRule.CEIL:
        return element.max_exponent, 1.0
    if fmt.rule is ScaleRule.EVEN:
        return element.max_exponent, 2 - 2.0 ** -(mantissa + 1) - 2.0**-23
    largest = top * 2**0.5 if fmt.rule is ScaleRule.NEAREST else top
    shift = math.frexp(largest)[1] - 1
    return shift, math.floor(largest / 2.0**shift * 2**23) / 2**23


def pack(weights: Sequence[Quantized], scheme: Scheme, target_arch: str) -> Packed:
    """Weights ``[N_i, K]`` that share an input, as one packed weight along N.

    Args:
        weights: in one format, quantized along K.
        scheme: of the site.
        target_arch: ``"sm_90"``, ``"sm_100"``, ``"sm_103"``, ``"sm_120"`` or ``"gfx950"``.

    Raises:
        TargetError: for a format that no kernel decodes or quantizes to, and for scales that are not finite.
    """
    weights = [checked(q) for q in weights]
    activation = scheme.activation
    tensors, meta = _laid_out(weights, activation, target_arch)
    meta |= {"kind": "linear", "arch": target_arch, "splits": [q.shape[0] for q in weights]}
    meta["activation"] = None if activation is None else _checked_activation(activation)
    return tensors, meta


def _checked_activation(fmt: Format) -> dict[str, Any]:
    from qcompile.backends.gpu.kernels.row_launches import has_kernel

    meta = describe(fmt)
    if not has_kernel(meta):
        raise TargetError(f"gpu: no kernel quantizes activations to '{fmt.name}'")
    return meta


def _laid_out(weights: Sequence[Quantized], activation: Format | None, arch: str) -> Packed:
    """ "scaled" where the matrix instructions take the format, "bytes" for INT4 times 8 bits, else "planes"."""
    if activation is not None and takes_scaled(weights[0].format, activation, arch):
        return pack_scaled(weights)
    if activation is not None and takes_bytes(weights[0].format, activation, arch):
        return pack_bytes(weights, activation.element.kind is Kind.FLOAT)
    return pack_planes(weights)


def pack_table(table: Quantized) -> Packed:
    """An embedding table ``[rows, features]``: row by row, codes as bytes, effective scales in float32."""
    table = checked(table)
    tensors = {"codes": pack_codes(table.codes, table.format.bits), "scales": table.all_scales.effective}
    if table.zero_points is not None:
        tensors["zero_points"] = table.zero_points
    meta = {"kind": "table", "K": table.shape[1], "N": table.shape[0], "weight": describe(table.format)}
    return {name: value.numpy() for name, value in tensors.items()}, meta


def pack_transform(steps: Sequence[tuple[int, int, np.ndarray]]) -> Packed:
    """The steps of ``Transform.factors`` (``steps.Step``), matrices not transposed.

    Tensors ``m0 …`` are the steps as they are; ``left``, ``right``, ``before`` and ``after`` those of the fused kernel
    where the steps have its form (``meta["plan"]``).

    Raises:
        TargetError: without any step (the identity needs no kernel).
    """
    if not steps:
        raise TargetError("gpu: a transform without steps needs no kernel")
    tensors: dict[str, np.ndarray] = {}
    described = []
    for i, (outer, inner, m) in enumerate(map(_in_a_row, steps)):
        gathers = np.issubdtype(m.dtype, np.integer)
        kind = {1: "permutation" if gathers else "diagonal", 2: "matrix", 3: "blocks"}[m.ndim]
        tensors[f"m{i}"] = np.ascontiguousarray(_stored(m, kind))
        described.append({"kind": kind, "outer": outer, "inner": inner})
    outer, inner, m = steps[0]
    size = m.size if m.ndim == 1 else outer * m.shape[-1] * inner
    fused, plan = plan_transform(steps, size)
    return tensors | fused, {"kind": "transform", "size": size, "steps": described, "plan": plan}


def _stored(m: np.ndarray, kind: str) -> np.ndarray:
    """A step as it is stored: matrices of blocks in float16 where that holds them, because they are many."""
    if kind == "permutation":
        return m.astype(np.int32)
    half = halved(m) if kind == "blocks" else None
    return m.astype(np.float32) if half is None else half


def _in_a_row(step: tuple[int, int, np.ndarray]) -> tuple[int, int, np.ndarray]:
    """The step with blocks of consecutive features, which are all that the kernels have."""
    outer, inner, m = step
    return (outer, 1, np.kron(m, np.eye(inner, dtype=m.dtype))) if m.ndim == 3 and inner > 1 else step
