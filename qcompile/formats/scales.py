"""Group scales: how they follow from the values of a group, and how they are stored.

Everything here works on groups laid out as ``[..., groups, group]`` in float32 and returns scales ``[..., groups]``.
A group that holds a NaN or an infinity gets a NaN scale, in every format (the rule of the OCP MX specification), and
decodes to NaN throughout. A group of zeros, or one whose scale underflows to zero, decodes to zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from qcompile.formats.format import Format, Kind, ScaleRule, ScaleType
from qcompile.formats.replay import capturing

__all__ = ["Scales", "divisor", "group_scales", "quotient", "scale_code", "scale_from_code", "store_scale"]

_LARGEST = {
    ScaleType.E4M3: 448.0, ScaleType.UE5M3: 114688.0, ScaleType.FP16: 65504.0,
    ScaleType.BF16: (2 - 2.0**-7) * 2.0**127,
}  # fmt: skip


@dataclass(frozen=True)
class Scales:
    """The numbers that a format stores beside the element codes.

    Args:
        scale: float32 values of the stored, rounded scales, ``[..., groups]``.
        zero_point: uint8 ``[..., groups]`` for formats that have one.
        tensor_scale: a float32 scalar for formats with a second level.
    """

    scale: Tensor
    zero_point: Tensor | None = None
    tensor_scale: Tensor | None = None

    @property
    def effective(self) -> Tensor:
        """``scale · tensor_scale``, rounded to float32: what one code step is worth. ``[..., groups]``."""
        return self.scale if self.tensor_scale is None else self.scale * self.tensor_scale


def quotient(x: Tensor, number: float) -> Tensor:
    """``x / number``, rounded once on every device: by a number of Python, GPUs multiply with its reciprocal."""
    return x / (number if x.device.type == "cpu" else torch.full((), number, dtype=x.dtype, device=x.device))


def divisor(effective: Tensor) -> Tensor:
    """The number to divide values by: infinity where the scale is zero, so that the quotient is zero."""
    return torch.where(effective == 0, torch.inf, effective)


# ---- the statistic of a group ------------------------------------------------------------------------------------


def _nan_if_infinite(scale: Tensor, amax: Tensor) -> Tensor:
    return torch.where(amax.isfinite(), scale, torch.nan)


def _per_group(reduce: Callable[..., Tensor], groups: Tensor) -> Tensor:
    """``reduce`` over each group, laid out as the groups are: torch would lay it out in rows, and walk across them."""
    return reduce(groups, -1, out=torch.empty_like(groups[..., 0]))


def _absmax(groups: Tensor, fmt: Format) -> Tensor:
    amax = _per_group(torch.amax, groups.abs())
    return _share_rows(amax, fmt.rows) if fmt.rows > 1 else amax


def _share_rows(amax: Tensor, rows: int) -> Tensor:
    """The maximum over each run of ``rows`` rows of ``[R, groups]``, repeated for each of them."""
    count, groups = amax.shape
    padded = torch.nn.functional.pad(amax, (0, 0, 0, -count % rows))
    shared = padded.view(-1, rows, groups).amax(1, keepdim=True)
    return shared.expand(-1, rows, -1).reshape(-1, groups)[:count]


# ---- storage -----------------------------------------------------------------------------------------------------


def store_scale(scale: Tensor, storage: ScaleType) -> Tensor:
    """Round positive or signed float32 scales to what ``storage`` holds, saturating; returned as float32.

    E8M0 takes the next lower power of two; the rules of MX round before they come here.
    """
    if storage in _LARGEST:
        scale = scale.clamp(-_LARGEST[storage], _LARGEST[storage])
    return _STORE[storage](scale)


def _store_ue5m3(scale: Tensor) -> Tensor:
    quantum = torch.exp2(torch.floor(torch.log2(scale.clamp(min=2.0**-14))) - 3)
    return torch.round(scale / quantum) * quantum


def _floor_exponent(values: Tensor) -> Tensor:
    """``⌊log2 |values|⌋`` as int64, through float64, which has no subnormals here; 0 gives -1023."""
    return ((values.double().view(torch.int64) >> 52) & 0x7FF) - 1023


def _power_of_two(exponent: Tensor) -> Tensor:
    return ((exponent.long().clamp(-127, 127) + 1023) << 52).view(torch.float64).float()


_STORE: dict[ScaleType, Callable[[Tensor], Tensor]] = {
    ScaleType.NONE: torch.ones_like,
    ScaleType.FP32: lambda scale: scale,
    ScaleType.FP16: lambda scale: scale.half().float(),
    ScaleType.BF16: lambda scale: scale.bfloat16().float(),
    ScaleType.E8M0: lambda scale: _power_of_two(_floor_exponent(scale)),
    ScaleType.E4M3: lambda scale: scale.to(torch.float8_e4m3fn).float(),
    ScaleType.UE5M3: _store_ue5m3,
}


def scale_code(scale: Tensor, storage: ScaleType) -> Tensor:
    """The stored bytes of rounded scales: uint8 codes for the 8-bit types, the float dtype itself otherwise."""
    if storage is ScaleType.E8M0:
        code = _floor_exponent(scale).add_(127).clamp_(0, 254).to(torch.uint8)
        return code.masked_fill_(scale.isnan(), 255)
    if storage is ScaleType.E4M3:
        return scale.to(torch.float8_e4m3fn).view(torch.uint8)
    if storage is ScaleType.UE5M3:
        normal = (scale.view(torch.int32) >> 20) - ((127 - 15) << 3)
        code = torch.where(scale < 2.0**-14, (scale * 2.0**17).nan_to_num(0).round().int(), normal)
        return torch.where(scale.isnan(), 255, code).to(torch.uint8)
    dtype = {ScaleType.FP16: torch.float16, ScaleType.BF16: torch.bfloat16}.get(storage, torch.float32)
    return scale.to(dtype)


def scale_from_code(code: Tensor, storage: ScaleType) -> Tensor:
    """The inverse of :func:`scale_code`, as float32."""
    if storage is ScaleType.E8M0:
        return _power_of_two(code.int() - 127).masked_fill_(code == 255, torch.nan)
    if storage is ScaleType.E4M3:
        return code.view(torch.float8_e4m3fn).float()
    if storage is ScaleType.UE5M3:
        exponent, mantissa = code.int() >> 3, (code & 7).float()
        value = torch.where(exponent > 0, 8 + mantissa, mantissa) * torch.exp2(exponent.clamp(min=1) - 18.0)
        return value.masked_fill_(code == 255, torch.nan)
    return code.float()


# ---- the rules ---------------------------------------------------------------------------------------------------


def group_scales(groups: Tensor, fmt: Format, tensor_scale: Tensor | None) -> Scales:
    """Scales of float32 ``groups [R, groups, group]`` by the format's own rule."""
    if fmt.rule is ScaleRule.MINMAX:
        return _minmax(groups, fmt)
    if fmt.rule is ScaleRule.SIGNED_MAX:
        return _signed_max(groups, fmt)
    amax = _absmax(groups, fmt)
    if fmt.scale is ScaleType.E8M0:
        scale = _power_of_two(_EXPONENT_RULES[fmt.rule](amax, fmt))
        return Scales(_nan_if_infinite(scale, amax), None, tensor_scale)
    return Scales(_best_target(groups, amax, fmt, tensor_scale), None, tensor_scale)


def _best_target(groups: Tensor, amax: Tensor, fmt: Format, tensor_scale: Tensor | None) -> Tensor:
    targets = fmt.targets or (fmt.element.max,)
    scales = [_absmax_scale(amax, target, fmt, tensor_scale) for target in targets]
    best = scales[0]
    best_error: Tensor | None = None
    for scale in scales if len(scales) > 1 else ():
        error = _share_error(group_error(groups, Scales(scale, None, tensor_scale), fmt), fmt.rows)
        best = scale if best_error is None else torch.where(error < best_error, scale, best)
        best_error = error if best_error is None else torch.minimum(error, best_error)
    return best


def _absmax_scale(amax: Tensor, target: float, fmt: Format, tensor_scale: Tensor | None) -> Tensor:
    scale = quotient(amax, target)
    if tensor_scale is not None:
        scale = scale / tensor_scale
    return _nan_if_infinite(store_scale(scale, fmt.scale), amax)


def _share_error(error: Tensor, rows: int) -> Tensor:
    if rows == 1:
        return error
    count, groups = error.shape
    padded = torch.nn.functional.pad(error, (0, 0, 0, -count % rows))
    shared = padded.view(-1, rows, groups).sum(1, keepdim=True)
    return shared.expand(-1, rows, -1).reshape(-1, groups)[:count]


def group_error(groups: Tensor, scales: Scales, fmt: Format, weight: Tensor | None = None) -> Tensor:
    """``Σ weight · (x̂ - x)²`` of each group, ``[R, groups]``.

    Args:
        weight: importance that broadcasts against ``groups``.
    """
    from qcompile.formats.rounding import round_element

    effective = scales.effective.unsqueeze(-1)
    zero_point = None if scales.zero_point is None else scales.zero_point.unsqueeze(-1)
    error = round_element(groups / divisor(effective), fmt.element, zero_point).mul_(effective).sub_(groups)
    total = _weighted_squares(error, weight)
    in_range = (total > 1e-24) & (total < 1e30)  # below, single squares lose bits; above, they are infinite
    if not capturing(error) and in_range.all():
        return total
    return torch.where(in_range, total.double(), _weighted_squares(error.double(), weight))  # no group sees another's


def _weighted_squares(error: Tensor, weight: Tensor | None) -> Tensor:
    square = error.square()
    return (square if weight is None else square.mul_(weight)).sum(-1)


def _ends(groups: Tensor) -> tuple[Tensor, Tensor]:
    return _per_group(torch.amin, groups), _per_group(torch.amax, groups)  # much faster here than torch.aminmax


def _minmax(groups: Tensor, fmt: Format) -> Scales:
    """Zero is always inside the range, so that the zero point fits and zero stays exact."""
    low, high = _ends(groups)
    low, high = low.clamp_(max=0), high.clamp_(min=0)
    steps = len(fmt.element.levels) - 1
    scale = quotient(high - low, steps)
    if scale.isinf().any():  # the difference of finite ends may leave the range of float32
        scale = torch.where(scale.isinf(), quotient(high, steps) - quotient(low, steps), scale)
    scale = _nan_if_infinite(store_scale(scale, fmt.scale), torch.maximum(-low, high))
    zero_point = (-low / divisor(scale)).round_().clamp_(0, steps).nan_to_num_(0)
    return Scales(scale, zero_point.to(torch.uint8))


def _signed_max(groups: Tensor, fmt: Format) -> Scales:
    """On a tie of magnitudes the negative value counts, which keeps the scale positive."""
    low, high = _ends(groups)
    largest = torch.where(high > -low, high, low)
    scale = store_scale(quotient(largest, fmt.element.levels[0]), fmt.scale).add_(0.0)  # one zero, not two
    return Scales(_nan_if_infinite(scale, largest))


def _floor_rule(amax: Tensor, fmt: Format) -> Tensor:
    return _floor_exponent(amax) - fmt.element.max_exponent


def _ceil_rule(amax: Tensor, fmt: Format) -> Tensor:
    return _ceil_exponent(amax.double()) - fmt.element.max_exponent


def _rceil_rule(amax: Tensor, fmt: Format) -> Tensor:
    return _ceil_exponent(quotient(amax.double(), fmt.element.max))


def _nearest_rule(amax: Tensor, fmt: Format) -> Tensor:
    """The border between two exponents is their geometric mean: √2 is taken off before rounding up."""
    return _ceil_exponent(quotient(amax.double(), fmt.element.max * 2**0.5))


def _ceil_exponent(values: Tensor) -> Tensor:
    """``⌈log2 values⌉`` of float64 values."""
    return ((values.view(torch.int64) + (2**52 - 1)) >> 52) - 1023


def _even_rule(amax: Tensor, fmt: Format) -> Tensor:
    """Half a unit of the element's last mantissa bit is added to the float32 bits, then FLOOR."""
    element = fmt.element
    mantissa = element.mantissa_bits if element.kind is Kind.FLOAT else element.bits - 2
    rounded = (amax.view(torch.int32) + (1 << (22 - mantissa))).view(torch.float32)
    return _floor_exponent(rounded).clamp_(max=128) - element.max_exponent  # 128 where the addition left float32


_EXPONENT_RULES: dict[ScaleRule, Callable[[Tensor, Format], Tensor]] = {
    ScaleRule.FLOOR: _floor_rule,
    ScaleRule.CEIL: _ceil_rule,
    ScaleRule.RCEIL: _rceil_rule,
    ScaleRule.EVEN: _even_rule,
    ScaleRule.NEAREST: _nearest_rule,
    ScaleRule.FOUR_THIRDS: _floor_rule,
}
