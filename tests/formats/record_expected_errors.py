"""Write tests/data/expected_errors.json: the error of every scalar format on normal values, not by its encoder.

    python tests/formats/record_expected_errors.py

It takes some minutes. Most are integrals over the group's largest magnitude (``qcompile.formats.expected``). Formats
that compare scales, share them among rows or have a zero point are sampled by the few lines of NumPy below, which spell
their definition out in float64.
"""

import json
from pathlib import Path

import ml_dtypes
import numpy as np

from qcompile.formats import FORMATS
from qcompile.formats.expected import expected_error

GROUP = 256  # of formats with one scale for the whole axis
TENSOR_SCALE = 1.1 * 2.0**-8  # for formats with two levels
FILE = Path(__file__).parents[1] / "data" / "expected_errors.json"


def nearest(values, levels):
    """Squared distance to the nearest of the levels."""
    middle = (levels[1:] + levels[:-1]) / 2
    return (values - levels[np.searchsorted(middle, values)]) ** 2


def stored(scale, fmt):
    """A scale as E4M3 times the tensor scale, or as one of the floats."""
    if fmt.tensor_scale is None:
        dtype = {"BF16": ml_dtypes.bfloat16, "FP16": np.float16, "FP32": np.float32}[fmt.scale.name]
        return scale.astype(dtype).astype(np.float64)
    code = np.minimum(scale / TENSOR_SCALE, 448).astype(ml_dtypes.float8_e4m3fn)
    return code.astype(np.float64) * TENSOR_SCALE


def sampled(fmt, values=1 << 19, rounds=32):
    """Blocks of ``rows x group`` values, each with the best of the targets."""
    rng, levels = np.random.default_rng(0), np.array(fmt.element.levels)
    noise = energy = 0.0
    for _ in range(rounds):
        x = rng.standard_normal((values // (fmt.rows * fmt.group), fmt.rows * fmt.group))
        amax = np.abs(x).max(1, keepdims=True)
        steps = [stored(amax / target, fmt) for target in fmt.targets or (fmt.element.max,)]
        errors = [(nearest(x / step, levels) * step**2).sum(1) for step in steps]
        noise += np.min(errors, axis=0).sum()
        energy += (x**2).sum()
    return noise / energy


def asymmetric(fmt, group, values=1 << 22):
    """Blocks from their smallest to their largest value, zero included."""
    x = np.random.default_rng(0).standard_normal((values // group, group))
    low, high = np.minimum(x.min(1, keepdims=True), 0), np.maximum(x.max(1, keepdims=True), 0)
    steps = 2**fmt.bits - 1
    scale = stored((high - low) / steps, fmt)
    zero = np.clip(np.rint(-low / scale), 0, steps)
    codes = np.clip(np.rint(x / scale) + zero, 0, steps)
    return (((codes - zero) * scale - x) ** 2).sum() / (x**2).sum()


def main():
    """All scalar formats."""
    found = {}
    for name, fmt in FORMATS.items():
        group = fmt.group or GROUP
        if fmt.zero_point:
            found[name] = asymmetric(fmt, group)
        elif len(fmt.targets) > 1 or fmt.rows > 1:
            found[name] = sampled(fmt)
        else:  # 512 nodes an octave give five digits, of which the test needs three
            scale = TENSOR_SCALE if fmt.tensor_scale else None
            found[name] = expected_error(fmt, "normal", group, scale, points=512)
    FILE.write_text(json.dumps({name: float(f"{error:.6g}") for name, error in found.items()}, indent=0) + "\n")


if __name__ == "__main__":
    main()
