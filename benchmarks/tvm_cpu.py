"""Packed weights in TVM against TVM's own float product and onnxruntime's MatMulNBits, and compiling a whole model.

    python benchmarks/tvm_cpu.py [--size 4096] [--rows 1,16,128] [--threads 1] [--runs 40]
    python benchmarks/tvm_cpu.py --model MODEL.onnx

The first prints, for one linear map, medians of interleaved runs and their ratios. onnxruntime computes at the accuracy
level that keeps activations in float32 (0). The second exports in a process of its own (int4-g32, rounding to nearest)
and prints its time and peak memory.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

FORMATS = ("int4-g32", "int4-g128", "uint4-g32", "nvfp4", "mxfp4", "int8-g32")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=4096, help="inputs and outputs")
    parser.add_argument("--rows", default="1,16,128")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--model", type=Path)
    args = parser.parse_args()
    if args.model is not None:
        compile_model(args.model)
    else:
        compare_products(args)


def compare_products(args: argparse.Namespace) -> None:
    """One table for each number of rows."""
    import tvm

    tvm.get_global_func("runtime.config_threadpool")(1, args.threads)
    rng = np.random.default_rng(0)
    weight = torch.tensor(rng.standard_normal((args.size, args.size)).astype(np.float32))
    for rows in map(int, args.rows.split(",")):
        x = rng.standard_normal((rows, args.size)).astype(np.float32)
        runs = {"TVM float32": own_float(weight, x)} if rows == 1 else {}  # beyond one row it takes seconds
        runs |= {"onnxruntime float32": onnxruntime_float(weight, x, args.threads)}
        runs |= {f"onnxruntime {name}": onnxruntime_packed(weight, x, name, args.threads) for name in FORMATS[:2]}
        runs |= {f"TVM {name}": packed(weight, x, name) for name in FORMATS}
        medians = interleaved(runs, args.runs if rows < 64 else max(5, args.runs // 8))
        print(f"\n{args.size}x{args.size}, {rows} row(s), {args.threads} thread(s)")
        print(f"{'':24} {'ms':>9} {'over TVM float32':>17} {'over onnxruntime int4-g32':>26}")
        for name, seconds in medians.items():
            own, peer = (medians.get(other) for other in ("TVM float32", "onnxruntime int4-g32"))
            over = f"{own / seconds:16.2f}x" if own else f"{'':17}"
            print(f"{name:24} {1e3 * seconds:9.3f} {over} {peer / seconds:25.2f}x")


def interleaved(runs: dict[str, Callable[[], object]], count: int) -> dict[str, float]:
    """The median time of each, all in turn; one run before each timed one brings its weight back into the caches."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(count + 2):
        for name, run in runs.items():
            run()
            started = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - started)
    return {name: float(np.median(values[2:])) for name, values in times.items()}


def packed(weight: torch.Tensor, x: np.ndarray, name: str) -> Callable[[], object]:
    """Our kernel."""
    import tvm

    from qcompile.backends.relax.compilation import machine
    from qcompile.backends.relax.kernels.linear import linear
    from qcompile.backends.relax.weights import layout_of, pack_parts
    from qcompile.formats import get_format, quantize

    where, q = machine(None, "cpu"), quantize(weight, get_format(name))
    function = linear(where.lanes, layout_of(q)).with_attr("global_symbol", "main")
    run = tvm.tirx.build(tvm.IRModule({"main": function}), target=where.target)["main"]
    arrays = [x, *pack_parts(q).values(), np.zeros((len(x), weight.shape[0]), np.float32)]
    tensors = [tvm.runtime.tensor(array) for array in arrays]
    run(*tensors)
    exact = x.astype(np.float64) @ q.dequantize().double().numpy().T
    difference = np.linalg.norm(tensors[-1].numpy() - exact) / np.linalg.norm(exact)
    if not difference < 5e-6:
        sys.exit(f"{name} differs from the format's definition by {difference:.1e}")
    return lambda: run(*tensors)


def own_float(weight: torch.Tensor, x: np.ndarray) -> Callable[[], object]:
    """TVM's product as its default pipeline compiles it."""
    import tvm
    from tvm import relax

    from qcompile.backends.relax.compilation import machine

    block = relax.BlockBuilder()
    size = weight.shape[0]
    arguments = [
        relax.Var(name, relax.TensorType([tvm.tirx.const(n, "int64") for n in shape], "float32"))
        for name, shape in (("x", x.shape), ("w", (size, size)))
    ]
    with block.function("main", arguments):
        with block.dataflow():
            out = block.emit_output(relax.op.matmul(*arguments))
        block.emit_func_output(out)
    run = relax.VirtualMachine(tvm.compile(block.get(), machine(None, "cpu").target), tvm.cpu())["main"]
    tensors = [tvm.runtime.tensor(array) for array in (x, np.ascontiguousarray(weight.numpy().T))]
    return lambda: run(*tensors)


def session(node: object, x: np.ndarray, constants: dict[str, np.ndarray], threads: int) -> Callable[[], object]:
    """One operator in onnxruntime."""
    import onnxruntime as ort
    from onnx import TensorProto, helper, numpy_helper

    sides = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy"]
    graph = helper.make_graph(
        [node], "g", sides[:1], sides[1:], [numpy_helper.from_array(a, n) for n, a in constants.items()]
    )
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=9)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    made = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: made.run(None, {"x": x})


def onnxruntime_float(weight: torch.Tensor, x: np.ndarray, threads: int) -> Callable[[], object]:
    """MatMul."""
    from onnx import helper

    constants = {"w": np.ascontiguousarray(weight.numpy().T)}
    return session(helper.make_node("MatMul", ["x", "w"], ["y"]), x, constants, threads)


def onnxruntime_packed(weight: torch.Tensor, x: np.ndarray, name: str, threads: int) -> Callable[[], object]:
    """MatMulNBits with float32 activations."""
    from onnx import helper

    from qcompile.formats import get_format, quantize
    from qcompile.formats.layouts import to_matmulnbits

    bits = to_matmulnbits(quantize(weight, get_format(name)))
    shape = {"N": weight.shape[0], "K": weight.shape[1], "bits": bits.bits, "block_size": bits.block_size}
    node = helper.make_node(
        "MatMulNBits", ["x", "b", "s"], ["y"], domain="com.microsoft", accuracy_level=0, **shape
    )  # fmt: skip
    return session(node, x, {"b": bits.b.numpy(), "s": bits.scales.numpy()}, threads)


def compile_model(model: Path) -> None:
    """Time and peak memory of an export."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "qcompile",
            "export",
            str(model),
            "--target",
            "tvm-cpu",
            "--method",
            "rtn",
            "-q",
        ]
        code = (
            "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True); "
            "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
        )
        started = time.perf_counter()
        arguments = [sys.executable, "-c", code, *command, "-o", f"{folder}/artifact"]
        result = subprocess.run(arguments, check=True, capture_output=True, text=True)
        seconds, peak = time.perf_counter() - started, int(result.stdout.split()[-1]) / 2**20
        print(f"{model.name}: exported and checked in {seconds:.0f} s, peak {peak:.1f} GiB")


if __name__ == "__main__":
    main()
