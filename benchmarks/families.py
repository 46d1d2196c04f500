"""Families of transformers and diffusers by their first export: time, size, and error of the artifact.

    PYTHONPATH=.:tests/support python benchmarks/families.py [--target cpu-int4] [--family Llama]

Tiny models of random weights, random inputs, plain rounding. *Capture* is the time of torch, *export* that of the rest.
*Rotated* and *artifact* are relative L2 distances of the outputs from the module's own, on the inputs of the example:
of the graph in its new basis, and of the artifact. Random weights round worse than trained ones.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from pretrained import DIFFUSION, PRETRAINED, make

import qcompile as qc
from qcompile.run.session import Session


def distance(found: dict[str, np.ndarray], expected: dict[str, torch.Tensor]) -> float:
    """Relative L2 over all outputs that are tensors of the result."""
    names = [name for name, value in expected.items() if isinstance(value, torch.Tensor) and name in found]
    wrong = sum(float(np.square(found[name] - expected[name].numpy()).sum()) for name in names)
    return (wrong / sum(float(expected[name].square().sum()) for name in names)) ** 0.5


def measure(family: str, target: str, folder: Path) -> str:
    """Export a family, and compare."""
    module, call = make(family)
    inputs = {name: value.numpy() for name, value in call.items()}
    with torch.no_grad():
        expected = module(**call)
    start = time.perf_counter()
    source = qc.capture(module, call)
    captured = time.perf_counter()
    artifact = qc.export(source, target, folder / family, method="rtn")
    done = time.perf_counter()
    rotated = distance(Session(qc.rotate(source).model).run(inputs), expected)
    error, manifest = distance(artifact.run(inputs), expected), artifact.manifest
    sizes = manifest["bytes"]
    quantized = sum("format" in site for site in manifest["sites"])
    return (
        f"| {family} | {captured - start:.1f} s | {done - captured:.1f} s | {sizes['source'] / 1e3:.0f} kB | "
        f"{sizes['artifact'] / 1e3:.0f} kB | {quantized} of {len(manifest['sites'])} | {rotated:.1e} | {error:.3f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="cpu-int4")
    parser.add_argument("--family", action="append", choices=[*PRETRAINED, *DIFFUSION])
    args = parser.parse_args()
    print("| family | capture | export | source | artifact | sites quantized | rotated | artifact |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for family in args.family or [*PRETRAINED, *DIFFUSION]:
            print(measure(family, args.target, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
