"""How far a rotated model is from its source, in float32 and with both evaluated in float64.

    python benchmarks/equivalence.py MODEL.onnx … [--transforms hadamard]

Prints the relative L2 of the outputs on one random input, and how many transforms were folded and how many stay.
"""

from __future__ import annotations

import argparse

from qcompile.api import rotate
from qcompile.checks.equivalence import by_position
from qcompile.ir.capture import capture
from qcompile.ir.widen import to_double
from qcompile.run.compare import compare
from qcompile.run.data import example_inputs
from qcompile.run.session import Session, evaluate_double


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="+")
    parser.add_argument("--transforms", default="hadamard")
    args = parser.parse_args()
    print(f"{'float32':>9} {'float64':>9} {'sites':>6} {'offline':>8} {'online':>7}  model")
    for path in args.model:
        source = capture(path).model
        inputs = example_inputs(source, seed=1)
        single = rotate(path, transforms=args.transforms)
        want = Session(source, optimize=False).run(inputs)
        error = distance(want, Session(single.prepared.model, optimize=False).run(inputs))
        counts = len(single.prepared.analysis.sites), len(single.placement.offline), len(single.placement.online)
        del single
        wide = to_double(source)
        double = rotate(wide, transforms=args.transforms)
        want = evaluate_double(wide, inputs)
        exact = distance(want, evaluate_double(double.prepared.model, inputs))
        print(f"{error:9.1e} {exact:9.1e} {counts[0]:6} {counts[1]:8} {counts[2]:7}  {path}", flush=True)


def distance(want: dict, have: dict) -> float:
    """Relative L2 of outputs, by position."""
    return compare(want, by_position(list(want), have))[0]


if __name__ == "__main__":
    main()
