"""Learning along gradients: how much of what plain rounding loses is won back, on models of the zoo.

    python benchmarks/learning.py [--models language_model,dit] [--formats mxfp4,nvfp4,int4-g32] [--learn minutes=4]

Weights and activations have the format. Prints, on the evaluation data, the divergence (KL over logits; half the
relative squared error of other outputs) of plain rounding, of the choice with GPTQ, of the same with learning, and of
the choice where activations alone have the format (weights have 8 bits), which is what learned weights have to make up
for beside their own rounding; the part of the gap that each closes, and seconds.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from qcompile.api import export

ZOO = Path(__file__).parent.parent / "examples" / "zoo"
DATA = {"mamba": "language_model"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="language_model,mamba,dit")
    parser.add_argument("--formats", default="mxfp4,nvfp4,int4-g32")
    parser.add_argument("--learn", default="all", help="as the option of an export")
    args = parser.parse_args()
    runs: dict[str, dict[str, Any]] = {
        "plain": {"transforms": "none", "method": "rtn"}, "choice, GPTQ": {}, "learned": {"learn": args.learn},
        "activations alone": {"weights": "int8-g32"},
    }  # fmt: skip
    for model in args.models.split(","):
        for fmt in args.formats.split(","):
            found: dict[str, float] = {}
            for name, options in runs.items():
                start = time.perf_counter()
                manifest = measured(model, fmt, options)
                found[name] = manifest["quantization"]["divergence"]
                closed = 1 - found[name] / found["plain"]
                said = f"{found[name]:.5f}, {closed:.0%} closed, {time.perf_counter() - start:.0f} s"
                print(f"{model} {fmt}, {name}: {said}", flush=True)
                for own in manifest["learned"]:
                    print("   ", ", ".join(f"{key} {value}" for key, value in own.items()), flush=True)


def measured(model: str, fmt: str, options: dict[str, Any]) -> dict[str, Any]:
    """The manifest of an export for the reference, with weights in another format if ``options`` say so."""
    data, options = DATA.get(model, model), dict(options)
    weights = options.pop("weights", fmt)
    with tempfile.TemporaryDirectory() as folder:
        artifact = export(
            ZOO / f"{model}.onnx", "reference", Path(folder) / "artifact", formats=[f"{weights}/{fmt}"],
            calibration=ZOO / f"{data}_calibration.npz", evaluation=ZOO / f"{data}_evaluation.npz", **options,
        )  # fmt: skip
        return dict(artifact.manifest)


if __name__ == "__main__":
    main()
