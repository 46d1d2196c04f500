"""Write tests/data/expected_errors.json: the error of every scalar format on normal values, not by its encoder.

    python tests/formats/record_expected_errors.py

Most are integrals over the group's largest magnitude (``qcompile.formats.expected``). Formats that compare scales, or
share them among rows, are sampled by the few lines of NumPy below, which spell their definition out in float64.
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
    """A scale as E4M3 times the tensor scale, or as BF16."""
    if fmt.tensor_scale is None:
        return scale.astype(ml_dtypes.bfloat16).astype(np.float64)
    code = np.minimum(scale / TENSOR_SCALE, 448).astype(ml_dtypes.float8_e4m3fn)
    return code.astype(np.float64) * TENSOR_SCALE


def sampled(fmt, blocks=1 << 17):
    """Blocks of ``rows x group`` values, each with the best of the targets."""
    rng, levels = np.random.default_rng(0), np.array(fmt.element.levels)
    noise = energy = 0.0
    width = fmt.rows * fmt.group
    for _ in range(64):
        x = rng.standard_normal((blocks * 16 // 64 // fmt.rows or 1, width))
        amax = np.abs(x).max(1, keepdims=True)
        steps = [stored(amax / target, fmt) for target in fmt.targets or (fmt.element.max,)]
        errors = [(nearest(x / step, levels) * step**2).sum(1) for step in steps]
        noise += np.min(errors, axis=0).sum()
        energy += (x**2).sum()
    return noise / energy


def main():
    """All scalar formats."""
    found = {}
    for name, fmt in FORMATS.items():
        special = len(fmt.targets) > 1 or fmt.rows > 1
        scale = TENSOR_SCALE if fmt.tensor_scale else None
        group = fmt.group or GROUP
        found[name] = sampled(fmt) if special else expected_error(fmt, group=group, tensor_scale=scale)
    FILE.write_text(json.dumps({name: float(f"{error:.6g}") for name, error in found.items()}, indent=0) + "\n")


if __name__ == "__main__":
    main()
