"""Time to quantize a 4096x4096 float32 weight in each format, beside the fastest public implementation pip installs.

    python benchmarks/formats.py [--size 4096] [--repeat 5] [--threads N] [--clock cpu|wall] [--json FILE]

Peers are optional: those that import are measured (torchao, onnxruntime, gguf, bitsandbytes, compressed-tensors, hqq,
fouroversix). Ours and the peers take turns and the best of all repeats counts. By default the clock is the processor
time of the whole process and torch uses one thread: what an implementation costs, whatever else runs on the machine (a
peer that brings its own threads, as onnxruntime does, is charged for all of them). ``--clock wall`` for the time that
passes.
"""

from __future__ import annotations

import argparse
import importlib
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from qcompile.formats import get_format, quantize

Run = Callable[[torch.Tensor], object]


def _ort(symmetric: bool, bits: int, block: int) -> Run:
    core = importlib.import_module("onnxruntime.capi._pybind_state")
    kernel = getattr(core, f"quantize_matmul_{bits}bits")

    def run(weight: torch.Tensor) -> object:
        k, n = weight.shape
        groups = -(-k // block)
        packed = np.zeros((n, groups, block * bits // 8), dtype=np.uint8)
        scales = np.zeros(n * groups, dtype=np.float32)
        zeros = np.zeros(n * -(-groups * bits // 8), dtype=np.uint8)
        kernel(packed, weight.numpy(), scales, zeros, block, n, k, symmetric)
        return packed

    return run


def _affine(bits: int, block: int | None, symmetric: bool) -> Run:
    ops = importlib.import_module("torchao.quantization.quant_primitives")
    mapping = ops.MappingType.SYMMETRIC if symmetric else ops.MappingType.ASYMMETRIC
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)
    dtype = torch.int8 if symmetric else torch.uint8

    def run(weight: torch.Tensor) -> object:
        shape = (1, block or weight.shape[1])
        scale, zero = ops.choose_qparams_affine(weight, mapping, shape, dtype, low, high, scale_dtype=torch.float32)
        return ops.quantize_affine(weight, shape, scale, zero, dtype, low, high)

    return run


def _torchao_mx(element: str, mode: str) -> Run:
    mx = importlib.import_module("torchao.prototype.mx_formats.mx_tensor")
    rule = getattr(mx.ScaleCalculationMode, mode)
    dtype = getattr(torch, element) if hasattr(torch, element) else element
    return lambda weight: mx.to_mx(weight, dtype, 32, rule)


def _torchao_nvfp4() -> Run:
    module = importlib.import_module("torchao.prototype.mx_formats.nvfp4_tensor")

    def run(weight: torch.Tensor) -> object:
        return module.nvfp4_quantize(weight, 16, module.per_tensor_amax_to_scale(weight.abs().max()))

    return run


def _fouroversix(**options: object) -> Run:
    module = importlib.import_module("fouroversix")
    config = module.QuantizationConfig(backend=module.QuantizeBackend.pytorch, **options)
    return lambda weight: module.quantize_to_fp4(weight, config)


def _torchao_fp8() -> Run:
    ops = importlib.import_module("torchao.quantization.quant_primitives")

    def run(weight: torch.Tensor) -> object:
        shape = (1, weight.shape[1])
        scale = ops._choose_scale_float8(weight, shape, torch.float8_e4m3fn)
        return ops._quantize_affine_float8(weight, scale, torch.float8_e4m3fn)

    return run


def _gguf(kind: str) -> Run:
    gguf = importlib.import_module("gguf")
    return lambda weight: gguf.quants.quantize(weight.numpy(), gguf.GGMLQuantizationType[kind])


def _bitsandbytes(kind: str) -> Run:
    functional = importlib.import_module("bitsandbytes.functional")
    return lambda weight: functional.quantize_4bit(weight, blocksize=64, quant_type=kind)


def _compressed(bits: int, kind: str, strategy: str, group: int | None, symmetric: bool = True) -> Run:
    args = importlib.import_module("compressed_tensors.quantization")
    forward = importlib.import_module("compressed_tensors.quantization.lifecycle.forward")
    helpers = importlib.import_module("compressed_tensors.quantization.utils.helpers")
    scheme = args.QuantizationArgs(num_bits=bits, type=kind, strategy=strategy, group_size=group, symmetric=symmetric)

    def run(weight: torch.Tensor) -> object:
        grouped = weight.unflatten(1, (-1, group or weight.shape[1]))
        scale, zero = helpers.calculate_qparams(grouped.amin(-1), grouped.amax(-1), scheme)
        return forward.quantize(weight, scale, zero, scheme)

    return run


def _hqq(bits: int, group: int) -> Run:
    quantizer = importlib.import_module("hqq.core.quantize").Quantizer
    return lambda weight: quantizer.quantize(
        weight, nbits=bits, group_size=group, optimize=False, device="cpu", compute_dtype=torch.float32
    )


# format: its peers, by name
PEERS: dict[str, dict[str, Callable[[], Run]]] = {
    "int4-g32": {
        "onnxruntime": lambda: _ort(True, 4, 32),
        "torchao": lambda: _affine(4, 32, True),
        "compressed-tensors": lambda: _compressed(4, "int", "group", 32),
    },
    "int4-g128": {
        "onnxruntime": lambda: _ort(True, 4, 128),
        "torchao": lambda: _affine(4, 128, True),
        "compressed-tensors": lambda: _compressed(4, "int", "group", 128),
    },
    "uint4-g32": {"onnxruntime": lambda: _ort(False, 4, 32), "torchao": lambda: _affine(4, 32, False)},
    "uint4-g64": {"hqq": lambda: _hqq(4, 64), "torchao": lambda: _affine(4, 64, False)},
    "int8-g32": {"onnxruntime": lambda: _ort(True, 8, 32), "torchao": lambda: _affine(8, 32, True)},
    "int8-channel": {
        "torchao": lambda: _affine(8, None, True),
        "compressed-tensors": lambda: _compressed(8, "int", "channel", None),
    },
    "int2-g32": {"onnxruntime": lambda: _ort(True, 2, 32), "torchao": lambda: _affine(2, 32, True)},
    "int3-g128": {"torchao": lambda: _affine(3, 128, True)},
    "q4_0": {"gguf": lambda: _gguf("Q4_0")},
    "q5_0": {"gguf": lambda: _gguf("Q5_0")},
    "q8_0": {"gguf": lambda: _gguf("Q8_0")},
    "nf4-g64": {"bitsandbytes": lambda: _bitsandbytes("nf4")},
    "bnb-fp4-g64": {"bitsandbytes": lambda: _bitsandbytes("fp4")},
    "fp8-e4m3-channel": {
        "torchao": _torchao_fp8,
        "compressed-tensors": lambda: _compressed(8, "float", "channel", None),
    },
    "mxfp4": {"torchao": lambda: _torchao_mx("float4_e2m1fn_x2", "FLOOR")},
    "mxfp4-ceil": {"torchao": lambda: _torchao_mx("float4_e2m1fn_x2", "CEIL")},
    "mxfp4-rceil": {"torchao": lambda: _torchao_mx("float4_e2m1fn_x2", "RCEIL")},
    "mxfp4-even": {"torchao": lambda: _torchao_mx("float4_e2m1fn_x2", "EVEN")},
    "mxfp4-mrgptq": {},
    "mxfp6-e2m3": {},
    "mxfp6-e3m2": {},
    "mxfp8-e4m3": {"torchao": lambda: _torchao_mx("float8_e4m3fn", "FLOOR")},
    "mxfp8-e5m2": {"torchao": lambda: _torchao_mx("float8_e5m2", "FLOOR")},
    "mxint4": {},
    "mxint8": {},
    "nvfp4": {"torchao": _torchao_nvfp4, "fouroversix": lambda: _fouroversix(scale_rule="static_6")},
    "nvfp4-4over6": {"fouroversix": lambda: _fouroversix(scale_rule="mse")},
    "nvfp4-16x16": {"fouroversix": lambda: _fouroversix(scale_rule="static_6", block_scale_2d=True)},
    "int4-signedmax-g32": {},
    "int4-e4m3": {},
    "e1m2-e4m3": {},
    "e2m1-ue5m3": {},
    "af4-g64": {},
    "higgs-p1-n16": {},
    "higgs-p2-n256": {},
    "e8p": {},
    "sinq-int4-g64": {},
    "turboquant4": {},
    "eden4": {},
    "llm-fp4-g64": {},
    "nupes4-g64": {},
    "twin-log4-g64": {},
    "ptqtp-g128": {},
}
_ROW_SECONDS = 60  # after which a row takes no further turns; two are always taken


def best_times(runs: dict[str, Callable[[], object]], repeat: int, clock: Callable[[], float]) -> dict[str, float]:
    """Best seconds of each, taken in turns."""
    best, begin = dict.fromkeys(runs, float("inf")), time.perf_counter()
    for turn in range(repeat + 1):
        if turn > 1 and time.perf_counter() - begin > _ROW_SECONDS:
            break
        for name, run in runs.items():
            start = clock()
            run()
            if turn:  # the first round warms up
                best[name] = min(best[name], clock() - start)
    return best


def measure(name: str, weight: torch.Tensor, repeat: int, clock: Callable[[], float]) -> dict[str, object]:
    """One row: our time and each peer's in milliseconds, with the reason where a peer did not run."""
    fmt = get_format(name)
    runs: dict[str, Callable[[], object]] = {"qcompile": lambda: quantize(weight, fmt)}
    skipped = {}
    for peer, make in PEERS[name].items():
        try:
            run = make()
            run(weight[:256, :256].contiguous())
        except Exception as error:  # an absent or incompatible peer is reported in the table, not hidden
            skipped[peer] = f"{type(error).__name__}: {error}".splitlines()[0][:120]
        else:
            runs[peer] = lambda run=run: run(weight)
    times = {who: round(1e3 * seconds, 1) for who, seconds in best_times(runs, repeat, clock).items()}
    return {"format": name, "ms": times, "skipped": skipped}


def line(row: dict[str, object]) -> str:
    """A row of the table in Markdown."""
    times: dict[str, float] = dict(row["ms"])  # type: ignore[call-overload]
    ours = times.pop("qcompile")
    if not times:
        return f"| {row['format']} | {ours:.0f} | – | |"
    peer = min(times, key=times.__getitem__)
    return f"| {row['format']} | {ours:.0f} | {peer} {times[peer]:.0f} | {times[peer] / ours:.1f}x |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=("cpu", "wall"), default="cpu")
    parser.add_argument("--only", nargs="*", default=list(PEERS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    weight = torch.randn(options.size, options.size, generator=torch.Generator().manual_seed(0))
    print("| format | qcompile, ms | fastest peer, ms | speedup |\n|---|---|---|---|")
    rows = []
    for name in options.only:
        rows.append(measure(name, weight, options.repeat, clock))
        print(line(rows[-1]), *rows[-1]["skipped"].items(), flush=True)  # type: ignore[union-attr]
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
