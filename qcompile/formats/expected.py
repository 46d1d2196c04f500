"""The error to expect: relative mean squared error of round-to-nearest on independent values of a distribution.

A group's scale is a function of its largest magnitude ``a`` (or its two ends), and the other values are then
independent, truncated to ``|x| < a``. So the error is a one-dimensional integral over ``a`` (two-dimensional for
asymmetric integers) of closed-form truncated moments; no sampling. Formats that choose among several scales by the
error itself have no such form and are sampled, with a seed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from qcompile.errors import InputError
from qcompile.formats.fake import fake_quantize
from qcompile.formats.format import Format, ScaleRule, ScaleType
from qcompile.formats.grids.distributions import Array, Distribution, as_distribution
from qcompile.formats.scales import _EXPONENT_RULES, _power_of_two, store_scale
from qcompile.formats.tensor_scale import default_tensor_scale

__all__ = ["expected_error", "sampled_error"]

_CHUNK = 1 << 20
_NEGLIGIBLE = 1e-15


def expected_error(
    fmt: Format,
    source: str | Distribution | Callable[[Array], Array] | Any = "normal",
    group: int | None = None,
    tensor_scale: float | None = None,
    points: int = 8192,
    samples: int = 1 << 22,
    seed: int = 0,
) -> float:
    """``E[(x - x̂)²] / E[x²]`` for independent values in one group.

    Args:
        source: a name in ``scipy.stats``, a frozen scipy distribution, a density or a :class:`Distribution`.
        group: the group size, for formats whose group is the whole axis (or to override it).
        tensor_scale: the second-level scale; None averages over its position within a binade.
        points: quadrature nodes per octave of ``a``.
        samples, seed: for formats that are sampled (several targets, or scales shared by rows).

    Raises:
        InputError: if the format has no group and none is given.
    """
    group = group or fmt.group
    if group is None:
        raise InputError(f"{fmt.name} has one scale for the whole axis: give its size as group")
    source = as_distribution(source)
    if len(fmt.targets) > 1 or fmt.rows > 1 or fmt.scale is ScaleType.NONE:
        return sampled_error(fmt, source, group, samples, seed)
    if fmt.rule is ScaleRule.MINMAX:
        return _two_ended(fmt, source, group) / source.variance
    return _one_ended(fmt, source, group, tensor_scale, points) / source.variance


def sampled_error(fmt: Format, source: Any = "normal", group: int = 0, samples: int = 1 << 22, seed: int = 0) -> float:
    """The same by Monte Carlo through the encoder itself, sampled by inverting the distribution."""
    source = as_distribution(source)
    width = group or fmt.group or 1
    generator = torch.Generator().manual_seed(seed)
    noise = energy = 0.0
    rows = max(fmt.rows, _CHUNK // width // max(fmt.rows, 1) * max(fmt.rows, 1))
    for _ in range(max(1, samples // (rows * width))):
        uniform = torch.rand(rows, width, generator=generator, dtype=torch.float64)
        x = torch.from_numpy(source.quantile(uniform.numpy())).float()
        noise += float((fake_quantize(x, fmt) - x).double().square().sum())
        energy += float(x.double().square().sum())
    return noise / energy


# ---- scales from the largest magnitude ---------------------------------------------------------------------------


def _one_ended(fmt: Format, source: Distribution, group: int, tensor_scale: float | None, points: int) -> float:
    if len(fmt.element.levels) > 40:
        points = max(256, points // 16)
    a, width = _magnitudes(fmt, source, points)
    inside = source.moments(a)[0] - source.moments(-a)[0]
    phase = (np.arange(len(a)) * 0.6180339887498949) % 1
    total = 0.0
    for sign in (1.0, -1.0):
        mass = inside ** (group - 1) * source.density(sign * a) * width
        use = mass > _NEGLIGIBLE * mass.sum() / len(mass) if mass.sum() > 0 else mass > 0
        scale = _scales_at(a[use], sign, fmt, source, tensor_scale, phase[use])
        own, others = _errors(a[use], sign, scale, fmt, source)
        total += float((mass[use] * (own + (group - 1) * others / inside[use])).sum())
    return total


def _magnitudes(fmt: Format, source: Distribution, points: int) -> tuple[Array, Array]:
    """Midpoint nodes over forty octaves of ``a``, even in log2 but with the jumps of a power-of-two scale on edges."""
    top = np.ceil(np.log2(max(abs(source.low), abs(source.high))))
    jump = _scale_jump(fmt)
    edges = np.concatenate([np.linspace(0, jump, points // 2 + 1)[:-1], np.linspace(jump, 1, points // 2 + 1)])
    edges = (np.arange(-40, 0)[:, None] + top + edges[None, :-1]).ravel()
    edges = np.exp2(np.append(edges, top))
    return np.sqrt(edges[1:] * edges[:-1]), np.diff(edges)


def _scale_jump(fmt: Format) -> float:
    """Where within an octave, as a log2, the format's power-of-two scale jumps."""
    if fmt.scale is not ScaleType.E8M0:
        return 0.5
    rule = _EXPONENT_RULES[fmt.rule]
    low, high = 1.0, 2.0
    base = int(rule(torch.tensor([low + 1e-6]), fmt))
    if int(rule(torch.tensor([high - 1e-6]), fmt)) == base:
        return 0.5  # the jump is at the octave's end
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (middle, high) if int(rule(torch.tensor([middle]), fmt)) == base else (low, middle)
    return float(np.log2((low + high) / 2))


def _scales_at(
    a: Array, sign: float, fmt: Format, source: Distribution, tensor_scale: float | None, phase: Array
) -> Array:
    """Effective scale for a largest magnitude ``a`` with this sign."""
    amax = torch.from_numpy(a).float()
    if fmt.scale is ScaleType.E8M0:
        constant = default_tensor_scale(amax, fmt)
        factor = 1.0 if constant is None else float(constant)
        return _power_of_two(_EXPONENT_RULES[fmt.rule](amax, fmt)).double().numpy() * factor
    second = _tensor_scales(fmt, source, tensor_scale, phase)
    if fmt.rule is ScaleRule.SIGNED_MAX:
        raw = sign * a / fmt.element.levels[0]
    else:
        raw = a / (fmt.targets[0] if fmt.targets else fmt.element.max)
    return store_scale(torch.from_numpy(raw / second).float(), fmt.scale).double().numpy() * second


def _tensor_scales(fmt: Format, source: Distribution, given: float | None, phase: Array) -> Array:
    if given is not None:
        return np.full_like(phase, given)
    if fmt.tensor_scale is None:
        return np.ones_like(phase)
    # A typical group's scale lands around 32, in the middle of E4M3's normal range.
    return np.sqrt(source.variance) / (32 * fmt.element.max) * np.exp2(phase)


def _errors(a: Array, sign: float, scale: Array, fmt: Format, source: Distribution) -> tuple[Array, Array]:
    """Squared error of the largest value, and ``∫_{|x| < a} (x - x̂)² f``, for each ``a``."""
    levels = np.array(fmt.element.levels, dtype=np.float32).astype(np.float64)
    own, others = np.empty_like(a), np.empty_like(a)
    step = max(1, _CHUNK // len(levels))
    for start in range(0, len(a), step):
        part = slice(start, start + step)
        grid = np.sort(scale[part, None] * levels, axis=1)
        own[part] = abs(sign * a[part, None] - grid).min(1) ** 2
        others[part] = _truncated(grid, -a[part], a[part], source)
    return own, others


def _truncated(grid: Array, low: Array, high: Array, source: Distribution) -> Array:
    """``∫_low^high (x - nearest)² f`` for a sorted grid per row."""
    middle = (grid[:, 1:] + grid[:, :-1]) / 2
    edges = np.concatenate([low[:, None], np.clip(middle, low[:, None], high[:, None]), high[:, None]], 1)
    mass, first, second = np.diff(source.moments(edges), axis=2)
    return (second - 2 * grid * first + grid**2 * mass).sum(1)


# ---- scales from both ends ---------------------------------------------------------------------------------------


def _two_ended(fmt: Format, source: Distribution, group: int, nodes: int = 800) -> float:
    if group < 2:
        raise InputError("the error of asymmetric integers needs groups of two values or more")
    low_of, low_width = _extreme_nodes(source, group, nodes, smallest=True)
    high_of, high_width = _extreme_nodes(source, group, nodes, smallest=False)
    cumulative_high, cumulative_low = source.moments(high_of)[0], source.moments(low_of)[0]
    total = 0.0
    for low, width, below in zip(low_of, low_width, cumulative_low, strict=True):
        use = high_of > low
        high, between = high_of[use], cumulative_high[use] - below
        mass = group * (group - 1) * between ** (group - 2) * source.density(high) * high_width[use]
        mass = mass * float(source.density(np.array(low))) * width
        error = _minmax_errors(np.full_like(high, low), high, fmt, source, group, between)
        total += float((mass * error).sum())
    return total / group


def _extreme_nodes(source: Distribution, group: int, nodes: int, smallest: bool) -> tuple[Array, Array]:
    """Nodes for the smallest (or largest) of a group, even in the logit of its probability, and their spacing."""
    chance = 1 / (1 + np.exp(-np.linspace(-26, 26, nodes + 1)))
    share = -np.expm1(np.log(chance[::-1]) / group)  # of the distribution beyond the largest value
    edges = source.quantile(share) if smallest else source.quantile(1 - share)
    edges = np.sort(edges)
    return (edges[1:] + edges[:-1]) / 2, np.diff(edges)


def _minmax_errors(low: Array, high: Array, fmt: Format, source: Distribution, group: int, between: Array) -> Array:
    """Summed squared error of a group whose ends are ``low`` and ``high``."""
    bottom, top = np.minimum(low, 0), np.maximum(high, 0)
    steps = len(fmt.element.levels) - 1
    scale = store_scale(torch.from_numpy((top - bottom) / steps).float(), fmt.scale).double().numpy()
    scale = np.maximum(scale, 1e-300)
    zero = np.clip(np.round(-bottom / scale), 0, steps)
    grid = (np.arange(steps + 1) - zero[:, None]) * scale[:, None]
    ends = abs(grid - low[:, None]).min(1) ** 2 + abs(grid - high[:, None]).min(1) ** 2
    return ends + (group - 2) * _truncated(grid, low, high, source) / np.maximum(between, 1e-300)
