"""A budget in bits: the exact assignment against uniform ones and against greedy, by measured loss.

    python benchmarks/budget.py MODEL.onnx --calibration C.npz --evaluation E.npz [--bits 4.5] [--formats a,b]

One row an assignment: the predicted increase of the loss, the measured one, and the KL divergence to the float model.
The last lines say how predictions correlate with what was measured over all assignments.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path

import numpy as np

import qcompile as qc
from qcompile.choice import selection
from qcompile.choice.assignment import assign


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--evaluation", required=True)
    parser.add_argument("--bits", type=float, default=4.5)
    parser.add_argument("--formats", default="int4-g32,int8-g32")
    parser.add_argument("--target", default="reference")
    args = parser.parse_args()
    formats = args.formats.split(",")
    budgets = sorted({args.bits, 4.25, 5.0, 6.0})
    ways = [(f"uniform {name}", [name], 8.0, "auto") for name in formats]
    ways += [(f"{how}, {bits:g} bits", formats, bits, method) for bits in budgets for how, method in
             (("exact", "auto"), ("greedy", "greedy"))]  # fmt: skip
    print(f"{args.model}, {args.target}")
    print(f"{'assignment':24} {'bits':>6} {'predicted':>10} {'loss':>9} {'KL':>9}", flush=True)
    rows = np.array([measured(args, *way) for way in ways])
    for column, what in ((1, "the loss"), (2, "the KL divergence")):
        correlation = np.corrcoef(rows[:, 0], rows[:, column])[0, 1]
        print(f"correlation of predicted with measured increases of {what}: {correlation:.3f}")


def measured(args: argparse.Namespace, name: str, formats: list[str], bits: float, method: str) -> tuple[float, ...]:
    """Export with one assignment, print its row, and return what was predicted and measured."""
    selection.assign = partial(assign, method=method)
    with tempfile.TemporaryDirectory() as folder:
        manifest = qc.export(
            args.model, args.target, Path(folder) / "artifact", calibration=args.calibration,
            evaluation=args.evaluation, formats=formats, budget={"bits": bits},
        ).manifest  # fmt: skip
    q, sites = manifest["quantization"], manifest["sites"]
    weights = [float(np.prod(site["weight_shape"])) for site in sites]
    mean = np.average([site["bits"] for site in sites], weights=weights)
    found = q["predicted_loss_delta"], q["measured_loss_delta"], q["divergence"]
    print(f"{name:24} {mean:6.2f} {found[0]:10.5f} {found[1]:9.5f} {found[2]:9.5f}", flush=True)
    return found


if __name__ == "__main__":
    main()
