"""The GPU kernels on the GPU at hand: first checked against the formats' definition, then measured.

    python benchmarks/gpu.py              # check, then the table of docs/gpu.md
    python benchmarks/gpu.py --tune       # search launch parameters and print the table of kernels/launch.py

Times are medians over replays of a CUDA graph that walks through copies of the weight, together several times as large
as the second-level cache, so that every weight comes from memory.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from qcompile.backends.gpu.kernels import Linear
from qcompile.backends.gpu.kernels.launch import Tile, tile_of
from qcompile.backends.gpu.planes import pack_planes
from qcompile.formats import get_format, quantize

SHAPES = ((4096, 4096), (4096, 14336), (14336, 4096))  # K, N
TOKENS = (1, 4, 16, 64, 512, 4096)
FORMATS = ("int4-g128", "nvfp4", "mxfp4")
CHECKED = (
    "int4-g128", "int4-g64", "int4-g32", "uint4-g128", "nvfp4", "nvfp4-4over6", "mxfp4", "nf4-g64", "int4-channel",
    "int8-channel", "int8-g32", "fp8-e4m3-channel", "mxfp8-e4m3",
)  # fmt: skip
WORKING_SET = 160 << 20  # bytes of weights that a graph walks through


def device_tensors(arrays: dict) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array).cuda() for name, array in arrays.items()}


def make_linear(name: str, size: int, out: int, plane: int | None = None) -> Linear:
    """A random weight in a format."""
    generator = torch.Generator().manual_seed(size * 31 + out)
    q = quantize(torch.randn(out, size, generator=generator) * 0.02, get_format(name))
    arrays, meta = pack_planes([q], plane)
    linear = Linear(device_tensors(arrays), meta | {"activation": None, "splits": [out]})
    linear.reference = q.dequantize()  # type: ignore[attr-defined]
    return linear


def copies_of(name: str, size: int, out: int, plane: int | None = None) -> list[Linear]:
    """Copies of a weight for timing, whose rows repeat a few hundred random ones."""
    few = make_linear(name, size, 512, plane)
    tensors = {}
    for key, value in few.tensors.items():
        axis = {"row_scale": 0, "table": None}.get(key, 1)
        repeats = [out // 512 if i == axis else 1 for i in range(value.ndim)]
        tensors[key] = value.repeat(repeats)
    count = max(2, -(-WORKING_SET // sum(t.nbytes for t in tensors.values())))
    meta = few.meta | {"N": out}
    return [Linear({key: t.clone() for key, t in tensors.items()}, meta) for _ in range(count)]


def microseconds(calls: Sequence[Callable[[], object]], replays: int = 15) -> float:
    """Median time of one call, from replays of a graph of all of them."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    times = []
    for _ in range(replays):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1000 / len(calls))
    return statistics.median(times)


def error_of(y: torch.Tensor, x: torch.Tensor, reference: torch.Tensor) -> float:
    """Relative L2 error against float64."""
    expected = x.double() @ reference.cuda().double().T
    return float((y.double() - expected).norm() / expected.norm())


# ---- check -------------------------------------------------------------------------------------------------------

TOLERANCE = {torch.bfloat16: 3.5e-3, torch.float16: 1e-3, torch.float32: 3e-6}


def check_format(name: str) -> str:
    """One line on a format: the worst error by dtype over odd and even shapes, or what went wrong."""
    worst: dict[str, float] = {}
    for size, out in ((4096, 512), (328, 70), (1000, 200)):
        linear = make_linear(name, size, out)
        for dtype, tokens in itertools.product(TOLERANCE, (0, 1, 7, 33, 130)):
            x = torch.randn(tokens, size, device="cuda").to(dtype)
            for form in ("fused", "expanded"):
                if form == "fused":
                    y = linear.fused(x, None, tile_of(tokens) or Tile(128, 128, 8, 2, 0))
                else:
                    y = linear.expanded(x, None)
                if tokens:
                    error = error_of(y, x, linear.reference)
                    key = f"{form} {str(dtype)[6:]}"
                    worst[key] = max(worst.get(key, 0.0), error if error == error else float("inf"))
    bad = [key for key, error in worst.items() if error > TOLERANCE[getattr(torch, key.split()[1])]]
    return f"{'WRONG' if bad else 'ok':6}{name:18}" + "  ".join(f"{key} {error:.1e}" for key, error in worst.items())


def quiet() -> None:
    """Workers share the cores: one thread each."""
    torch.set_num_threads(1)


def guarded(task: tuple[Callable, tuple]) -> object:
    function, arguments = task
    try:
        return function(*arguments)
    except Exception as error:  # one configuration that fails must not end the run: its line says so
        cause = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        return f"FAILED {arguments}: {type(error).__name__} {str(cause).strip()[-300:]}"


def in_parallel(tasks: Iterable[tuple[Callable, tuple]]) -> list:
    """Run in worker processes, which fill the compiler's cache on all cores."""
    workers = max(1, (os.cpu_count() or 2) - 2)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), quiet) as pool:
        return list(pool.map(guarded, tasks, chunksize=1))


# ---- tune --------------------------------------------------------------------------------------------------------


def compile_tile(name: str, plane: int, tile: Tile) -> str:
    """Launch once on a small weight: with and without shares of K."""
    linear = make_linear(name, 4096, 256, plane)
    x = torch.randn(tile.tokens, 4096, device="cuda", dtype=torch.bfloat16)
    error = error_of(linear.fused(x, None, tile._replace(programs=0)), x, linear.reference)
    if tile.tokens <= 64:
        error = max(error, error_of(linear.fused(x, None, tile._replace(programs=1 << 16)), x, linear.reference))
    return "" if error < 5e-3 else f"WRONG {name} {plane} {tile}: {error:.1e}"


#: (rows, warps) of programs for up to so many tokens, with stages and planes to combine them with.
SEARCH: dict[int, tuple[tuple[tuple[int, int], ...], tuple[int, ...], tuple[int, ...]]] = {
    8: (((64, 4), (128, 4), (32, 2), (64, 2), (32, 1)), (2, 4), (32, 64)),
    16: (((64, 4), (128, 4), (128, 8)), (2, 3, 5), (32, 64)),
    64: (((64, 4), (128, 4), (128, 8)), (2, 3, 4), (32, 64)),
    128: (((64, 4), (128, 4), (128, 8), (256, 8)), (2, 3, 4), (16, 32)),
    256: (((64, 4), (128, 8)), (2, 3, 4), (16, 32)),
}
PROGRAMS = (0, 132, 264, 528, 1056, 2112)


def candidates(tokens: int) -> list[tuple[int, Tile]]:
    """(plane, tile) worth trying."""
    widths = [t for t in SEARCH if t <= 64 and tokens <= t][:2] or [t for t in SEARCH if t > 64]
    return [
        (plane, Tile(rows, width, warps, stages, 0))
        for width in widths
        for (rows, warps), stages, plane in itertools.product(*SEARCH[width])
    ]


def tune(formats: Sequence[str], tokens: Sequence[int], budget: float) -> None:
    """Print the fastest tiles by format and batch size, on the widest shape and then on the others."""
    start = time.time()
    tiles = dict.fromkeys(pair for m in tokens for pair in candidates(m))
    tasks = [(compile_tile, (f, p, t)) for f in formats for p, t in tiles]
    print(f"compiling {len(tasks)} kernels", flush=True)
    results = in_parallel(tasks)
    usable = {task[1] for task, result in zip(tasks, results, strict=True) if result == ""}
    for result in [r for r in results if r][:10]:
        print(result)
    print(f"{len(usable)} of {len(tasks)} compiled after {time.time() - start:.0f} s", flush=True)
    for f, m in itertools.product(formats, tokens):
        if time.time() - start > budget:
            print("out of time")
            return
        ranked = _rank(f, m, [(p, t) for p, t in candidates(m) if (f, p, t) in usable], 4096, 14336)
        print(f"{f} M={m}", *(f"{us:.1f} {p} {tuple(t)}" for us, p, t in ranked[:8]), sep="\n    ", flush=True)
        for size, out in ((4096, 4096), (14336, 4096)):
            best = _rank(f, m, list(dict.fromkeys((p, t._replace(programs=0)) for _, p, t in ranked[:12])), size, out)
            print(f"  {size}x{out}", *(f"{us:.1f} {p} {tuple(t)}" for us, p, t in best[:3]), sep="\n      ", flush=True)


def _rank(name: str, tokens: int, tiles: list[tuple[int, Tile]], size: int, out: int) -> list[tuple[float, int, Tile]]:
    found = []
    for plane in sorted({p for p, _ in tiles}):
        linears = copies_of(name, size, out, plane)
        x = torch.randn(tokens, size, device="cuda", dtype=torch.bfloat16)
        for tile in [t for p, t in tiles if p == plane]:
            for programs in PROGRAMS if tile.tokens <= 64 else (0,):
                chosen = tile._replace(programs=programs)
                us = microseconds([partial(a.fused, x, None, chosen) for a in linears], 7)
                found.append((us, plane, chosen))
    return sorted(found)


# ---- measure -----------------------------------------------------------------------------------------------------


def baseline(tokens: int, size: int, out: int) -> float:
    """bf16 through cuBLAS."""
    count = max(2, -(-WORKING_SET // (2 * size * out)))
    weights = [torch.randn(out, size, device="cuda", dtype=torch.bfloat16) for _ in range(count)]
    x = torch.randn(tokens, size, device="cuda", dtype=torch.bfloat16)
    return microseconds([partial(torch.nn.functional.linear, x, w) for w in weights])


def measure(formats: Sequence[str], shapes: Sequence[tuple[int, int]], tokens: Sequence[int]) -> None:
    """The table: bf16 in µs, then each format as a factor over it."""
    print("| K x N, M | bf16 µs | " + " | ".join(formats) + " |\n" + "|---" * (2 + len(formats)) + "|")
    for size, out in shapes:
        linears = {f: copies_of(f, size, out) for f in formats}
        for m in tokens:
            x = torch.randn(m, size, device="cuda", dtype=torch.bfloat16)
            base = baseline(m, size, out)
            times = [microseconds([partial(a, x) for a in linears[f]]) for f in formats]
            print(
                f"| {size}x{out}, {m} | {base:.1f} | " + " | ".join(f"{base / us:.2f}x" for us in times) + " |",
                flush=True,
            )


def expansions() -> None:
    """The path for many tokens: expand, then cuBLAS."""
    for f, m in itertools.product(FORMATS, (256, 512, 1024, 4096)):
        linears = copies_of(f, 4096, 14336)
        x = torch.randn(m, 4096, device="cuda", dtype=torch.bfloat16)
        us = microseconds([partial(a.expanded, x, None) for a in linears])
        print(f"expanded {f} M={m}: {us:.1f} us, bf16 {baseline(m, 4096, 14336):.1f}", flush=True)


def copy_bandwidth() -> float:
    """Terabytes a second of a device-to-device copy, read and written."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / microseconds([lambda: target.copy_(source)]) * 1e-6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tune", action="store_true", help="search launch parameters")
    parser.add_argument("--formats", nargs="+", default=list(FORMATS))
    parser.add_argument("--tokens", nargs="+", type=int, default=list(TOKENS))
    parser.add_argument("--budget", type=float, default=240.0, help="seconds after which tuning stops")
    parser.add_argument("--no-check", action="store_true")
    options = parser.parse_args()
    import triton

    print(torch.cuda.get_device_name(), "torch", torch.__version__, "triton", triton.__version__)
    print(f"copy {copy_bandwidth():.2f} TB/s", flush=True)
    if not options.no_check:
        print(*in_parallel([(check_format, (name,)) for name in CHECKED]), sep="\n", flush=True)
    if options.tune:
        tune(options.formats, options.tokens, options.budget)
    else:
        measure(options.formats, SHAPES, options.tokens)
        expansions()


if __name__ == "__main__":
    main()
