"""Memory to quantize and to read back a weight, beyond the weight and the result: peak resident size of a process.

    python benchmarks/memory.py [--size 4096] [--only FORMAT ...]

Every row is a process of its own, which warms up on a small tensor first. ``quantize`` keeps one byte a code and
float32 scales (four bytes a code for vector formats); ``read back`` is ``Quantized.dequantize``; ``transposed``
quantizes along the first axis of a view whose lines are no axis of the memory. MiB; a chunk of the encoders is half a
MiB, and about ten of its kind are alive at a time.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from pathlib import Path

import torch

from qcompile.formats import get_format, quantize

FORMATS = (
    "int4-g32", "uint4-g64", "int8-channel", "int4-signedmax-g32", "nf4-g64", "fp8-e4m3-channel", "mxfp4",
    "mxfp4-rceil", "mxfp6-e2m3", "nvfp4", "nvfp4-4over6", "nvfp4-16x16", "int4-ue5m3", "llm-fp4-g64", "nupes4-g64",
    "twin-log4-g64", "higgs-p1-n16", "higgs-p2-n256", "e8p", "turboquant4", "eden4", "ptqtp-g128", "sinq-int4-g64",
)  # fmt: skip


def resident() -> float:
    """Resident size now, in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def peak() -> float:
    """Largest resident size so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def size_of(value: object) -> float:
    """MiB of the tensors in a quantized value."""
    if isinstance(value, torch.Tensor):
        return value.nbytes / 2**20
    return sum(map(size_of, vars(value).values())) if hasattr(value, "dequantize") else 0.0


def measure(name: str, size: int, what: str) -> float:
    """MiB beyond the weight and the result, in this process."""
    torch.set_num_threads(1)
    fmt, small = get_format(name), torch.randn(256, size)
    quantize(small, fmt).dequantize()
    if what == "transposed":
        weight = torch.randn(64, size // 64, size).transpose(0, 1)
        quantize(torch.randn(4, 64, 256).transpose(0, 1), fmt, 0)
    else:
        weight = torch.randn(size, size)
    weight = quantize(weight, fmt) if what == "read back" else weight
    before = resident()
    if what == "read back":
        result: object = weight.dequantize()  # type: ignore[operator]
    else:
        result = quantize(weight, fmt, 0 if what == "transposed" else -1)
    return max(0.0, peak() - before - size_of(result))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--only", nargs="*", default=FORMATS)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(measure(*options.one[:1], options.size, options.one[1]))
        return
    print(f"| format | quantize {options.size}² | read back | transposed |\n|---|---|---|---|")
    for name in options.only:
        cells = []
        for what in ("quantize", "read back", "transposed"):
            command = [sys.executable, __file__, "--size", str(options.size), "--one", name, what]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            cells.append(f"{float(done.stdout):.0f}")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
