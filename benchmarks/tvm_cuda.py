"""TVM's kernels on a GPU, without a TVM that has CUDA: written where TVM is, launched by CuPy where a GPU is.

    python benchmarks/tvm_cuda.py write FOLDER    # needs TVM: CUDA source, inputs, and what the CPU's kernels compute
    python benchmarks/tvm_cuda.py run FOLDER      # needs nvcc, CuPy and a GPU, and nothing of qcompile

Prints, for products in six formats and quantization to five, the relative L2 to the CPU's result and how many elements
differ.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

WEIGHTS = ("int4-g32", "uint4-g32", "nvfp4", "mxfp4", "int8-channel", "nf4-g64")
ACTIVATIONS = ("nvfp4", "nvfp4-4over6", "mxfp4-even", "int8-channel", "fp8-e4m3-channel")
ROWS, OUT, SIZE = 37, 256, 512
THREADS = 128
TOKENS_A_BLOCK = 4  # that one block of threads multiplies, with as many outputs as it has threads


def write(folder: Path) -> None:
    """Source, inputs and expected results of every kernel."""
    import torch

    from qcompile.backends.relax.kernels.linear import linear
    from qcompile.backends.relax.kernels.quantize import quantize_rows
    from qcompile.backends.relax.weights import layout_of, pack_parts
    from qcompile.formats import get_format, quantize

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    weight = torch.from_numpy(rng.standard_normal((OUT, SIZE)).astype(np.float32))
    x = (rng.standard_normal((ROWS, SIZE)) * np.exp(3 * rng.standard_normal((ROWS, 1)))).astype(np.float32)
    for name in WEIGHTS:
        packed = quantize(weight, get_format(name))
        layout = layout_of(packed)
        arrays = {"x": x, **pack_parts(packed)}
        case(folder / f"linear_{name}", lambda lanes, layout=layout: linear(lanes, layout), arrays, (ROWS, OUT))
    for name in ACTIVATIONS:
        fmt = get_format(name)
        case(folder / f"quantize_{name}", lambda lanes, fmt=fmt: quantize_rows(lanes, fmt, SIZE), {"x": x}, x.shape)


def case(path: Path, make: Callable[[Any], Any], arrays: dict[str, np.ndarray], shape: tuple[int, ...]) -> None:
    """One kernel, for both machines."""
    from tvm import IRModule, runtime, tirx

    from qcompile.backends.relax.compilation import machine

    def built(kind: str) -> Any:
        where = machine(None, kind)
        function = make(where.lanes).with_attr("global_symbol", "main")
        return tirx.build(IRModule({"main": function}), target=where.target)

    y = runtime.tensor(np.zeros(shape, np.float32))
    built("cpu")["main"](*map(runtime.tensor, arrays.values()), y)
    path.with_suffix(".cu").write_text("\n".join(part.inspect_source() for part in built("cuda").imports))
    np.savez(path.with_suffix(".npz"), want=y.numpy(), **arrays)


def run(folder: Path) -> None:
    """Compile and launch them. TVM orders the arguments of a kernel by where it first reads them."""
    import cupy

    for source in sorted(folder.glob("*.cu")):
        binary = source.with_suffix(".cubin")
        subprocess.run(["nvcc", "-w", "-arch=native", "-cubin", "-o", binary, source], check=True)
        kernel = cupy.RawModule(path=str(binary)).get_function("main_kernel")
        with np.load(source.with_suffix(".npz")) as saved:
            want, given = saved["want"], {name: cupy.asarray(saved[name]) for name in saved.files if name != "want"}
        y, rows = cupy.zeros(want.shape, np.float32), np.int64(len(want))
        if source.stem.startswith("linear"):
            blocks = -(-len(want) // TOKENS_A_BLOCK) * (OUT // THREADS)
            order = ("zero_points", "codes", "x", "scales", "tensor_scale")
            arguments = [*(given[name] for name in order if name in given), y, rows, np.int64(blocks)]
        else:
            blocks, arguments = -(-len(want) // THREADS), [given["x"], y, rows]
        kernel((blocks,), (THREADS,), tuple(arguments))
        have = cupy.asnumpy(y)
        error = np.linalg.norm(have - want) / np.linalg.norm(want)
        print(f"{source.stem:26} relative L2 {error:.1e}, {int((have != want).sum())} of {want.size} elements unequal")


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("write", "run"):
        sys.exit(__doc__)
    {"write": write, "run": run}[sys.argv[1]](Path(sys.argv[2]))
