"""Calibrators: the range of a tensor by the histogram of its values.

``max`` clips nothing. ``percentile`` leaves out a part of the values at the ends, ``mse`` errs least in squares, and
``entropy`` tells least apart from the float values by their divergence (NVIDIA, Integer quantization for deep learning
inference, arXiv:2004.09602, section 4.2).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from qcompile.formats.format import Format
from qcompile.formats.static import Range
from qcompile.statistics.histograms import Histogram

__all__ = ["CALIBRATORS", "Calibrator", "calibrated"]

#: Parts of the way to the ends at which the calibrator of least squares clips; of those that err alike the first.
_CLIPS = np.linspace(1.0, 0.02, 50)

#: Bins of magnitudes that entropies are computed on, and the step between the thresholds that are tried.
_MAGNITUDES, _STEP = 2048, 16

#: A calibrator: the smallest and the largest value that a range of that format is to hold.
Calibrator = Callable[[Histogram, Format], tuple[float, float]]


def _max(seen: Histogram, _: Format) -> tuple[float, float]:
    return seen.low, seen.high


def percentile(part: float) -> Calibrator:
    """The calibrator that keeps so many percent of the values, and leaves out as many at one end as at the other."""

    def calibrate(seen: Histogram, _: Format) -> tuple[float, float]:
        if part >= 100:
            return seen.low, seen.high
        values, counts = seen.values
        below = np.cumsum(counts) / counts.sum()
        out = (100 - part) / 200
        return float(values[np.searchsorted(below, out)]), float(values[np.searchsorted(below, 1 - out)])

    return calibrate


def _mse(seen: Histogram, fmt: Format) -> tuple[float, float]:
    values, counts = seen.values

    def error(below: float, above: float) -> float:
        within = Range.spanning(fmt, seen.low * below, seen.high * above)
        return float(counts @ (_rounded(values, within) - values) ** 2)

    both = min(_CLIPS, key=lambda clip: error(clip, clip))
    below = min(_CLIPS, key=lambda clip: error(clip, both))
    above = min(_CLIPS, key=lambda clip: error(below, clip))
    return seen.low * below, seen.high * above


def _rounded(values: np.ndarray, within: Range) -> np.ndarray:
    import torch

    return within.round(torch.from_numpy(values).float()).double().numpy()


def _entropy(seen: Histogram, fmt: Format) -> tuple[float, float]:
    values, counts = seen.values
    largest, levels = max(-seen.low, seen.high), 1 << (fmt.bits - 1)
    if largest == 0:
        return 0.0, 0.0
    bins, _ = np.histogram(np.abs(values), _MAGNITUDES, (0.0, largest), weights=counts.astype(np.float64))
    tried = range(levels, _MAGNITUDES + 1, _STEP)
    best = min(tried, key=lambda count: (_divergence(bins, count, levels), -count))
    threshold = largest * best / _MAGNITUDES
    return max(seen.low, -threshold), min(seen.high, threshold)


def _divergence(bins: np.ndarray, count: int, levels: int) -> float:
    """The divergence of magnitudes in so many bins, the rest in the last one, from the same in so many levels."""
    wanted = bins[:count].copy()
    places = np.arange(count) * levels // count
    filled = (wanted > 0).astype(np.float64)
    sums, holders = (np.bincount(places, weights, levels) for weights in (wanted, filled))
    made = np.where(filled > 0, (sums / np.maximum(holders, 1))[places], 0.0)
    wanted[-1] += bins[count:].sum()
    if made[-1] == 0 and wanted[-1] > 0:
        made[-1] = 1e-9 * wanted.sum()
    wanted, made = wanted / wanted.sum(), made / made.sum()
    some = wanted > 0
    return float((wanted[some] * np.log(wanted[some] / made[some])).sum())


#: By name, as manifests have them.
CALIBRATORS: Mapping[str, Calibrator] = {
    "max": _max,
    **{f"percentile-{part:g}": percentile(part) for part in (99.9, 99.99, 99.999)},
    "mse": _mse,
    "entropy": _entropy,
}


#: Those that round single values, which formats of groups do not.
_SINGLE = ("mse", "entropy")


def calibrated(seen: Histogram, fmt: Format) -> dict[str, Range]:
    """The range that each calibrator gives a tensor."""
    usable = {name: found for name, found in CALIBRATORS.items() if fmt.group is None or name not in _SINGLE}
    return {name: Range.spanning(fmt, *calibrate(seen, fmt)) for name, calibrate in usable.items()}
