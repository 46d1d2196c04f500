"""A second, slow implementation of every scalar format, in NumPy: brute force over all codes, scale rules in fractions.

It shares no code with ``qcompile.formats``, only the data of a format (levels, rule, storage). Arithmetic that is
defined to be float32 is float32 here; distances are float64, which is exact for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import ml_dtypes
import numpy as np

__all__ = ["Oracle", "distributions", "quantize", "trit_planes"]

F32 = np.float32
_TYPES = {"BF16": ml_dtypes.bfloat16, "FP16": np.float16, "E4M3": ml_dtypes.float8_e4m3fn, "FP32": np.float32}
_UE5M3 = np.array([(8 * (c >= 8) + c % 8) * 2.0 ** (max(c // 8, 1) - 18) for c in range(255)])


@dataclass
class Oracle:
    """What a quantized tensor must hold: arrays with the quantized axis last."""

    codes: np.ndarray
    scales: np.ndarray
    zero_points: np.ndarray | None
    tensor_scale: np.ndarray | None
    values: np.ndarray
    error: np.ndarray  # squared error of each group, [..., groups]; of square blocks that of the block


def distributions(shape: tuple[int, ...], seed: int) -> dict[str, np.ndarray]:
    """Float32 tensors of every kind that breaks something: tails, spikes, ties, both ends of float32."""
    rng = np.random.default_rng(seed)
    normal, sign = rng.standard_normal(shape), rng.choice([-1.0, 1.0], shape)
    found = {
        "normal": normal,
        "cauchy": np.clip(rng.standard_cauchy(shape), -1e6, 1e6),
        "constant": np.full(shape, 0.3),
        "negative constant": np.full(shape, -7.0),
        "bimodal": sign * (5 + 0.1 * normal),
        "one-sided": rng.exponential(size=shape) + 2,
        "sparse": normal * (rng.random(shape) < 0.05),
        "ties": rng.integers(-48, 49, shape) / 8,
        "large": normal * 1e30,
        "at the end": sign * F32(3.4e38) * rng.random(shape),
        "tiny": normal * 1e-36,
        "subnormal": normal * 1e-40,
        "all scales": sign * np.exp2(rng.uniform(-148, 127, shape)),
        "zeros": np.zeros(shape) * sign,
    }
    with np.errstate(over="ignore", under="ignore"):
        return {name: np.clip(x, -3.4e38, 3.4e38).astype(F32) for name, x in found.items()}


# ---- scales ------------------------------------------------------------------------------------------------------


def stored(scale: np.ndarray, fmt) -> np.ndarray:
    """Rounded to the storage, ties to even, saturating."""
    if fmt.scale.name == "UE5M3":
        inside = np.minimum(scale.astype(float), _UE5M3[-1]).ravel()
        flat = [min(range(255), key=lambda c: (abs(_UE5M3[c] - s), c % 2)) for s in inside]
        return np.where(np.isnan(scale), np.nan, _UE5M3[flat].reshape(scale.shape)).astype(F32)
    dtype = _TYPES[fmt.scale.name]
    top = F32(ml_dtypes.finfo(dtype).max)
    return np.clip(scale, -top, top).astype(dtype).astype(F32)


def floor_log2(value: Fraction) -> int:
    exponent = value.numerator.bit_length() - value.denominator.bit_length()
    return exponent if Fraction(2) ** exponent <= value else exponent - 1


def ceil_log2(value: Fraction) -> int:
    low = floor_log2(value)
    return low + (Fraction(2) ** low != value)


def round_log2(value: Fraction) -> int:
    """2·log2(v) is an integer only for powers of two, so that there are no ties: ⌊log2 v + 1/2⌋ = ⌊log2(2 v²) / 2⌋."""
    return floor_log2(2 * value * value) // 2


def exponent(amax: float, fmt) -> int:
    """The exponent of an E8M0 scale for a group's largest magnitude."""
    if amax == 0:
        return -127
    element, rule = fmt.element, fmt.rule.value
    top, value = Fraction(element.max), Fraction(float(amax))
    emax = floor_log2(top)
    if rule == "even":  # half a unit of the element's last mantissa bit, added to the bits of amax
        mantissa = element.mantissa_bits or element.bits - 2
        bits = F32(amax).view(np.uint32) + np.uint32(1 << (22 - mantissa))
        value = Fraction(2) ** 128 if bits >= 0x7F800000 else Fraction(float(bits.view(F32)))
    found = {
        "floor": lambda: floor_log2(value) - emax, "even": lambda: floor_log2(value) - emax,
        "four-thirds": lambda: floor_log2(value) - emax, "ceil": lambda: ceil_log2(value) - emax,
        "rceil": lambda: ceil_log2(value / top), "nearest": lambda: round_log2(value / top),
    }[rule]()  # fmt: skip
    return min(max(found, -127), 127)


def candidates(groups: np.ndarray, fmt, tensor_scale) -> list[np.ndarray]:
    """The scale of each group; one for each target where the format compares several."""
    amax = np.abs(groups).max(-1, initial=0)
    if fmt.rows > 1:
        for start in range(0, len(amax), fmt.rows):
            amax[start : start + fmt.rows] = amax[start : start + fmt.rows].max(0)
    broken = ~np.isfinite(amax)
    if fmt.scale.name == "E8M0":
        exponents = [exponent(a, fmt) if np.isfinite(a) else 0 for a in amax.ravel()]
        scales = [np.exp2(np.array(exponents, float)).reshape(amax.shape).astype(F32)]
    elif fmt.rule.value == "signed-max":
        low, high = groups.min(-1), groups.max(-1)
        scales = [stored(np.where(high > -low, high, low) / F32(fmt.element.levels[0]), fmt) + F32(0)]
    else:
        raw = [amax / F32(target) for target in fmt.targets or (fmt.element.max,)]
        scales = [stored(s if tensor_scale is None else s / tensor_scale, fmt) for s in raw]
    return [np.where(broken, F32(np.nan), s) for s in scales]


def minmax(groups: np.ndarray, fmt) -> tuple[np.ndarray, np.ndarray]:
    low, high = np.minimum(groups.min(-1), 0), np.maximum(groups.max(-1), 0)
    steps = F32(len(fmt.element.levels) - 1)
    scale = (high - low) / steps
    scale = stored(np.where(np.isinf(scale), high / steps - low / steps, scale), fmt)
    zero = np.where(scale == 0, 0, np.clip(np.rint(-low / np.where(scale == 0, 1, scale)), 0, steps))
    broken = ~np.isfinite(np.maximum(-low, high))
    return np.where(broken, F32(np.nan), scale), np.where(broken, 0, np.nan_to_num(zero)).astype(np.uint8)


# ---- codes -------------------------------------------------------------------------------------------------------


def code_table(element) -> tuple[np.ndarray, np.ndarray]:
    """Levels in increasing order, as float32 reads them, and the code of each."""
    levels = np.array(element.levels, F32).astype(float)
    if element.kind.value == "table":
        return levels, np.array(element.codes)
    if element.kind.value == "integer":
        return levels, np.rint(levels / (levels[1] - levels[0])).astype(int) % 2**element.bits
    count = len(levels) // 2  # minus zero is no level of its own
    return levels, np.concatenate([2 ** (element.bits - 1) + np.arange(count, 0, -1), np.arange(count + 1)])


def nearest(y: np.ndarray, fmt) -> tuple[np.ndarray, np.ndarray]:
    """Codes and levels of float32 values by comparing with every level.

    Ties go to the even code, of tables to the lower level; where both have the only digit 1 (E3M0), away from zero.
    """
    levels, codes = code_table(fmt.element)
    inside = np.clip(y.astype(float), levels[0], levels[-1])
    distance = np.abs(inside[..., None] - levels)
    tie = {"table": np.arange(len(levels)), "integer": codes % 2, "float": codes % 2}[fmt.element.kind.value]
    if fmt.element.name == "e3m0":
        tie = np.where(levels == 0, -np.inf, -np.abs(levels))
    index = np.where(distance == distance.min(-1, keepdims=True), tie, np.inf).argmin(-1)
    found, level = codes[index], levels[index]
    if fmt.element.kind.value == "float":
        minus = (level == 0) & np.signbit(y)
        found, level = np.where(minus, 2 ** (fmt.bits - 1), found), np.where(minus, -0.0, level)
    return found, level


def encode(groups: np.ndarray, scale: np.ndarray, zero, tensor_scale, fmt) -> tuple[np.ndarray, np.ndarray]:
    """Codes and values with scales given."""
    effective = (scale if tensor_scale is None else scale * tensor_scale)[..., None]
    dead = np.isnan(effective) | (effective == 0)
    y = np.where(dead, F32(0), groups / np.where(dead, F32(1), effective)).astype(F32)
    if zero is not None:
        codes = np.clip(np.rint(y) + zero[..., None], 0, 2**fmt.bits - 1)
        levels = codes - zero[..., None]
    else:
        codes, levels = nearest(y, fmt)
    return codes.astype(np.uint8), (levels.astype(F32) * effective).astype(F32)


def finite_amax(x: np.ndarray) -> np.ndarray:
    return np.abs(np.where(np.isfinite(x), x, 0)).max(initial=0).astype(F32)


def second_level(x: np.ndarray, fmt) -> np.ndarray | None:
    if fmt.rule.value == "four-thirds":
        return F32(Fraction(2) ** (floor_log2(Fraction(fmt.element.max)) + 1) / Fraction(fmt.element.max))
    if fmt.tensor_scale is None:
        return None
    scale = finite_amax(x) / F32((fmt.targets or (fmt.element.max,))[0] * fmt.tensor_scale)
    return scale if scale > 0 else F32(1)


@np.errstate(all="ignore")
def quantize(x: np.ndarray, fmt, scales: tuple | None = None, tensor_scale=None) -> Oracle:
    """``x`` float32, groups along the last axis; ``scales`` (scale, zero point, tensor scale) if they are given.

    Of several targets the one of least error counts, compared in float64.
    """
    rows = x.reshape(-1, x.shape[-1])
    group = fmt.group or max(x.shape[-1], 1)
    count = -(-x.shape[-1] // group)
    groups = np.pad(rows, ((0, 0), (0, count * group - x.shape[-1]))).reshape(-1, count, group)
    second = second_level(x, fmt) if tensor_scale is None else np.asarray(tensor_scale, F32)
    second = second if scales is None else scales[2]
    if scales is not None:
        scale, zero = (None if s is None else s.reshape(-1, count) for s in scales[:2])
    elif fmt.rule.value == "minmax":
        scale, zero = minmax(groups, fmt)
    else:
        scale, zero = _least(groups, candidates(groups, fmt, second), second, fmt), None
    codes, values = encode(groups, scale, zero, second, fmt)
    lead = x.shape[:-1]
    shaped = None if zero is None else zero.reshape(*lead, count)
    error = squared_error(values, groups, fmt).reshape(*lead, count)
    values = values.reshape(-1, count * group)[:, : x.shape[-1]].reshape(x.shape)
    return Oracle(codes.reshape(*lead, -1), scale.reshape(*lead, count), shaped, second, values, error)


def squared_error(values: np.ndarray, groups: np.ndarray, fmt) -> np.ndarray:
    error = ((values.astype(float) - groups) ** 2).sum(-1)
    for start in range(0, len(error), fmt.rows) if fmt.rows > 1 else ():
        error[start : start + fmt.rows] = error[start : start + fmt.rows].sum(0)
    return error


def _least(groups, options, second, fmt) -> np.ndarray:
    if len(options) == 1:
        return options[0]
    first, other = (squared_error(encode(groups, s, None, second, fmt)[1], groups, fmt) for s in options)
    return np.where(other < first, options[1], options[0])


# ---- PTQTP -------------------------------------------------------------------------------------------------------

_SUMS = np.array([(0, 0), (0, -1), (0, 1), (-1, 0), (1, 0), (-1, -1), (-1, 1), (1, -1), (1, 1)], float)


def trit_planes(values: np.ndarray) -> float:
    """Squared error of one group by algorithm 1 of arXiv:2509.16989, in float64, with its scales stored in bfloat16."""
    planes, scales = np.sign(values)[:, None].repeat(2, 1), np.ones(2)
    for _ in range(50):
        damping, gram = 1e-8, planes.T @ planes
        while np.linalg.cond(gram + damping * np.eye(2)) > 1e6 and damping < 1:
            damping *= 10
        before, scales = scales, np.linalg.solve(gram + damping * np.eye(2), planes.T @ values)
        planes = _SUMS[((values[:, None] - _SUMS @ scales) ** 2).argmin(1)]
        if np.abs(scales - before).max() < 1e-4:
            break
    sums = _SUMS @ scales.astype(ml_dtypes.bfloat16).astype(float)
    return float(((values[:, None] - sums) ** 2).min(1).sum())
