"""Held-out loss of quantized models: ours against rounding to nearest, always rotating and never rotating.

    python benchmarks/held_out_loss.py MODEL.onnx --calibration C.npz --evaluation E.npz --target blackwell-fp4 …

Prints one row a way, all from one run: nats above the float model with their standard error, KL divergence to it, and
the share of the gap between plain rounding and float that is closed. Plain rounding is rounding to nearest without
transforms, in the format that the target names for it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import qcompile as qc

WAYS = {
    "plain": {"transforms": "none", "method": "rtn"},
    "never rotated": {"transforms": "none", "method": "gptq"},
    "always rotated": {"transforms": "hadamard", "method": "gptq"},
    "blocks rotated": {"transforms": "block", "method": "gptq"},
    "ours": {},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--evaluation", required=True)
    parser.add_argument("--target", action="append", required=True)
    parser.add_argument("--ways", default=",".join(WAYS), help="comma-separated")
    args = parser.parse_args()
    for target in args.target:
        print(f"\n{args.model}, {target}")
        columns = ("way", 24), ("nats above float", -17), ("±", -7), ("plain", -8), ("gap closed", -11), ("KL", -9)
        columns += ("online", -7), ("bits", -6), ("s", -6)
        print(*(f"{name:{'<' if width > 0 else '>'}{abs(width)}}" for name, width in columns), flush=True)
        for way in args.ways.split(","):
            report(args, target, way)


def report(args: argparse.Namespace, target: str, way: str) -> None:
    """Export once and print its row."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        manifest = qc.export(
            args.model, target, Path(folder) / "artifact", calibration=args.calibration, evaluation=args.evaluation,
            **WAYS[way],
        ).manifest  # fmt: skip
    seconds, found = time.perf_counter() - started, manifest["quantization"]
    loss, error = found["loss"], found["loss_standard_error"]
    delta, gap = loss["quantized"] - loss["float"], loss["round_to_nearest"] - loss["float"]
    print(
        f"{way:24} {delta:17.4f} {error:7.4f} {gap:8.4f} {1 - delta / gap:11.0%} {found['divergence']:9.4f} "
        f"{len(manifest['online_transforms']):7} {manifest['bits_per_weight']:6.2f} {seconds:6.0f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
