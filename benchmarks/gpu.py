"""The GPU kernels on the GPU at hand: first checked against the formats' definition, then measured.

    python benchmarks/gpu.py              # check, then the tables of docs/gpu.md
    python benchmarks/gpu.py --tune       # search launch parameters: what kernels/launch.py holds

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
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gpu_peers import PEERS, missing, peer_calls

from qcompile.backends.gpu import packing
from qcompile.backends.gpu.kernels import (
    Activation,
    Linear,
    Transform,
    dequantize,
    gate,
    modulate,
    quantize_activation,
    rms_norm,
    selective_scan,
)
from qcompile.backends.gpu.kernels.launch import Tile
from qcompile.formats import fake_quantize, get_format, quantize
from qcompile.targets.scheme import Scheme
from qcompile.transforms import BlockDiagonal, Hadamard, Kronecker, RandomOrthogonal

SHAPES = ((4096, 4096), (4096, 14336), (14336, 4096))  # K, N
TOKENS = (1, 4, 16, 64, 512, 4096)
SCHEMES = ("int4-g128", "nvfp4", "mxfp4", "int4-g128/fp8-e4m3-channel", "int4-g128/int8-channel")
WEIGHTS = (
    "int4-g128", "int4-g64", "int4-g32", "uint4-g128", "nvfp4", "nvfp4-4over6", "mxfp4", "nf4-g64", "int4-channel",
    "int8-channel", "int8-g32", "fp8-e4m3-channel", "mxfp8-e4m3",
)  # fmt: skip
ACTIVATIONS = (
    "nvfp4", "nvfp4-4over6", "mxfp4", "mxfp4-even", "mxfp4-rceil", "mxfp4-mrgptq", "fp8-e4m3-channel",
    "int8-channel", "mxfp8-e4m3", "int4-g32",
)  # fmt: skip
WORKING_SET = 160 << 20  # bytes of weights that a graph walks through
DEVICE = "cuda"
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
TOLERANCE = {BF16: 3.5e-3, FP16: 1e-3, FP32: 3e-6}  # relative L2: the rounding of results and of expanded weights


# ---- operands ----------------------------------------------------------------------------------------------------


def device_tensors(arrays: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array).to(DEVICE) for name, array in arrays.items()}


def make_linear(scheme: str, size: int, out: int) -> tuple[Linear, torch.Tensor]:
    """A random weight, and what it decodes to."""
    parsed = Scheme.parse(scheme)
    generator = torch.Generator().manual_seed(size * 31 + out)
    q = quantize(torch.randn(out, size, generator=generator) * 0.02, parsed.weight)
    arrays, meta = packing.pack([q], parsed, "sm_90")
    return Linear(device_tensors(arrays), meta), q.dequantize()


def copies_of(scheme: str, size: int, out: int) -> list[Linear]:
    """Copies of a weight for timing, whose rows repeat a few hundred random ones."""
    parsed = Scheme.parse(scheme)
    q = quantize(torch.randn(512, size) * 0.02, parsed.weight)
    arrays, meta = packing.pack([q], parsed, "sm_90")
    tensors = {}
    for key, value in device_tensors(arrays).items():
        axis = {"row_scale": 0, "table": None}.get(key, 1)
        tensors[key] = value.repeat([out // 512 if i == axis else 1 for i in range(value.ndim)])
    count = max(2, -(-WORKING_SET // sum(t.nbytes for t in tensors.values())))
    meta = meta | {"N": out, "splits": [out]}
    return [Linear({key: t.clone() for key, t in tensors.items()}, meta) for _ in range(count)]


def random_input(tokens: int, size: int, scheme: str) -> torch.Tensor | Activation:
    """bfloat16 ``[tokens, size]``, quantized already if the scheme quantizes."""
    x = torch.randn(tokens, size, device=DEVICE, dtype=BF16)
    activation = Scheme.parse(scheme).activation
    return x if activation is None else quantize_activation(x, packing.describe(activation))


def microseconds(calls: Sequence[Callable[[], object]], replays: int = 15) -> float:
    """Median time of one call, from replays of a graph of all of them."""
    return side_by_side([calls], replays)[0]


def side_by_side(columns: Sequence[Sequence[Callable[[], object]]], replays: int = 15) -> list[float]:
    """``microseconds`` of several, replayed in turn: what the card's heat and power do befalls all alike."""
    graphs = [graph_of(calls) for calls in columns]
    times: list[list[float]] = [[] for _ in columns]
    for _ in range(replays):
        for graph, calls, column in zip(graphs, columns, times, strict=True):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            column.append(start.elapsed_time(end) * 1000 / len(calls))
    return [statistics.median(column) for column in times]


def graph_of(calls: Sequence[Callable[[], object]]) -> torch.cuda.CUDAGraph:
    """All of them in a graph, which has run once."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    return graph


def distance(y: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative L2; infinite for NaN."""
    error = float((y.double().cpu() - expected.double().cpu()).norm() / expected.double().cpu().norm())
    return error if error == error else float("inf")


# ---- check -------------------------------------------------------------------------------------------------------


def verdict(name: str, errors: dict[str, float], limits: dict[str, float]) -> str:
    bad = [key for key, error in errors.items() if not error <= limits[key]]
    return f"{'WRONG' if bad else 'ok':6}{name:34}" + "  ".join(f"{key} {error:.1e}" for key, error in errors.items())


def check_weight(name: str) -> str:
    """Fused and expanded products over even and odd shapes and batch sizes, in three dtypes."""
    errors: dict[str, float] = {}
    limits = {f"{form} {str(d)[6:]}": TOLERANCE[d] for form in ("fused", "expanded") for d in TOLERANCE}
    limits["fused float32"] = 1e-5 if name.startswith("nf4") else TOLERANCE[FP32]  # levels keep 16 bits
    for size, out in ((1024, 320), (328, 70)):
        linear, weight = make_linear(name, size, out)
        for dtype, tokens in itertools.product(TOLERANCE, (0, 1, 2, 7, 16, 33, 130)):
            x = torch.randn(tokens, size, device=DEVICE).to(dtype)
            planes, expected = linear.product, x.double().cpu() @ weight.double().T
            for form, product in (("fused", planes), ("expanded", planes.expanded)):
                key, y = f"{form} {str(dtype)[6:]}", product(x, None)
                errors[key] = max(errors.get(key, 0.0), distance(y, expected) if tokens else 0.0)
    return verdict(f"weight {name}", errors, limits)


def check_scheme(name: str) -> str:
    """Quantized activations times quantized weights, with a bias, against the formats' fake quantization."""
    errors, scheme = {"bf16": 0.0}, Scheme.parse(name)
    for (size, out), tokens in itertools.product(((1024, 320), (352, 70)), (1, 7, 33, 130, 1024)):
        linear, weight = make_linear(name, size, out)
        x, bias = torch.randn(tokens, size).to(BF16), torch.randn(out)
        rounded = torch.cat([fake_quantize(row[None].float(), scheme.activation) for row in x])
        expected = rounded.double() @ weight.double().T + bias.double()
        errors["bf16"] = max(errors["bf16"], distance(linear(x.to(DEVICE), bias.to(DEVICE)), expected))
    return verdict(f"scheme {name}", errors, {"bf16": TOLERANCE[BF16]})


def hard_rows(size: int) -> torch.Tensor:
    """Rows with ties, zeros, outliers and extreme exponents."""
    x = torch.randn(12, size) * torch.exp(2 * torch.randn(12, size))
    x[1], x[2, :40], x[3], x[4], x[6] = 0, 0, x[3] * 1e-30, x[4] * 1e15, x[6] * 1e-40
    x[5] = torch.randint(-12, 13, (size,)) * 0.25
    return x


def check_codes(name: str) -> str:
    """Different codes and values, of all, between the kernel and the formats' definition: none is allowed."""
    fmt, errors = get_format(name), {"codes": 0.0, "values": 0.0}
    for size, dtype in itertools.product((64, 328, 5120), (FP32, BF16)):
        x = hard_rows(size).to(dtype)
        made = quantize_activation(x.to(DEVICE), packing.describe(fmt))
        expected = [quantize(row.float(), fmt) for row in x]
        codes = made.codes.cpu()
        codes = torch.stack([codes & 15, codes >> 4], -1).flatten(1) if fmt.bits == 4 else codes
        wrong = codes[:, :size] != torch.stack([q.codes for q in expected])[:, :size]
        values = dequantize(Activation(made.codes, made.scales, made.tensor_scale, made.meta, made.shape, FP32)).cpu()
        errors["codes"] += float(wrong.sum())
        errors["values"] += float((values != torch.stack([q.dequantize() for q in expected])).sum())
    return verdict(f"activation {name}", errors, {"codes": 0, "values": 0})


TRANSFORMS = {
    "hadamard-576": lambda: Hadamard(576, 1), "hadamard-4096": lambda: Hadamard(4096, 1),
    "hadamard-14336": lambda: Hadamard(14336, 1), "hadamard-14336ᵀ": lambda: Hadamard(14336, 1).transpose(),
    "block-32": lambda: BlockDiagonal(Hadamard(32), 128), "block-128": lambda: BlockDiagonal(Hadamard(128, 2), 112),
    "kronecker": lambda: Kronecker(RandomOrthogonal(48, 1), RandomOrthogonal(64, 2)),
    "hadamard-32768": lambda: Hadamard(32768, 1),
}  # fmt: skip


def make_transform(name: str) -> tuple[Transform, Any]:
    transform = TRANSFORMS[name]()
    arrays, meta = packing.pack_transform([(o, i, m.numpy()) for o, i, m in transform.factors()])
    return Transform(device_tensors(arrays), meta), transform


def check_transform(name: str) -> str:
    """The transform in two dtypes, and the share of codes (or scales) that rounding in another order changes."""
    ours, transform = make_transform(name)
    errors = {}
    for dtype in (FP32, BF16):
        x = torch.randn(5, transform.size).to(dtype)
        expected = transform.apply(x.double())
        errors[str(dtype)[6:]] = distance(ours(x.to(DEVICE)), expected)
        for fmt in ("mxfp4", "nvfp4"):
            made = dequantize(ours.quantize(x.to(DEVICE), packing.describe(get_format(fmt)))).cpu()
            rounded = torch.stack([fake_quantize(row, get_format(fmt)) for row in expected.float()]).to(dtype)
            errors[f"{fmt} {str(dtype)[6:]}"] = float((~torch.isclose(made, rounded, 1e-2, 0.0)).float().mean())
    limits = {"float32": 3e-6, "bfloat16": 3e-3}
    limits |= {f"{fmt} {dtype}": limit for fmt in ("mxfp4", "nvfp4") for dtype, limit in
               (("float32", 1e-4), ("bfloat16", 3e-3))}  # fmt: skip
    return verdict(f"transform {name}", errors, limits)


def check_rest() -> str:
    """Norm, gates, modulation and the scan against torch."""
    x, w = torch.randn(3, 7, 1000, device=DEVICE), torch.rand(1000, device=DEVICE)
    shift = torch.randn(3, 1, 1000, device=DEVICE)
    u, delta, b = x, torch.rand_like(x) * 0.1, torch.randn(3, 7, 16, device=DEVICE)
    a, state, steps = -torch.rand(1000, 16, device=DEVICE), torch.zeros(3, 1000, 16, device=DEVICE), []
    for t in range(7):
        state = torch.exp(delta[:, t, :, None] * a) * state + (delta[:, t] * u[:, t])[..., None] * b[:, t, None]
        steps.append((state * b[:, t, None]).sum(-1) + w * u[:, t])
    made = {
        "norm": (rms_norm(x, w, 1e-5), torch.nn.functional.rms_norm(x, (1000,), w, 1e-5)),
        "silu": (gate(x, x + 1), torch.nn.functional.silu(x) * (x + 1)),
        "gelu": (gate(x, x + 1, "gelu-tanh"), torch.nn.functional.gelu(x, approximate="tanh") * (x + 1)),
        "modulate": (modulate(x, shift, 2 * shift), x * (1 + 2 * shift) + shift),
        "scan": (selective_scan(u, delta, a, b, b, w), torch.stack(steps, 1)),
    }
    errors = {name: distance(*pair) for name, pair in made.items()}
    return verdict("operators", errors, dict.fromkeys(errors, 1e-6))


def check() -> None:
    tasks: list[tuple[Callable, tuple]] = [(check_weight, (n,)) for n in WEIGHTS] + [(check_rest, ())]
    tasks += [(check_scheme, (n,)) for n in (*SCHEMES[3:], "nvfp4/nvfp4", "mxfp4/mxfp4", "int8-channel/int8-channel")]
    tasks += [(check_codes, (n,)) for n in ACTIVATIONS] + [(check_transform, (n,)) for n in TRANSFORMS]
    for line in in_parallel(tasks):
        print(line, flush=True)


def quiet() -> None:
    """Workers share the cores: one thread each."""
    torch.set_num_threads(1)


def guarded(task: tuple[Callable, tuple]) -> Any:
    function, arguments = task
    try:
        return function(*arguments)
    except Exception as error:  # one configuration that fails must not end the run: its line says so
        while error.__cause__ is not None:
            error = error.__cause__  # type: ignore[assignment]
        return f"FAILED {function.__name__}{arguments}: {type(error).__name__} {str(error).strip()[-300:]}"


def in_parallel(tasks: Iterable[tuple[Callable, tuple]]) -> Iterator[Any]:
    """Results as they come, from worker processes, which fill the compiler's cache on all cores."""
    workers = max(1, (os.cpu_count() or 2) - 2)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), quiet) as pool:
        for done in as_completed([pool.submit(guarded, task) for task in tasks]):
            yield done.result()


# ---- tune --------------------------------------------------------------------------------------------------------

#: Programs for up to so many tokens: (rows, warps), stages, columns, and how many programs to aim at.
SEARCH: dict[int, tuple[tuple, tuple, tuple, tuple]] = {
    8: (((64, 4), (32, 2), (64, 2)), (2, 3), (64,), (528, 1056, 2112)),
    16: (((64, 4), (128, 4)), (2, 3, 4), (64,), (0, 264, 528, 1056)),
    64: (((64, 4), (128, 8)), (3, 4), (64,), (0, 132, 264, 528)),
    128: (((64, 4), (128, 4), (128, 8)), (2, 3, 4), (32,), (0, 264, 396)),
    256: (((64, 4), (128, 8)), (2, 3), (32,), (0, 132, 264)),
}
EIGHT: dict[int, tuple[tuple, tuple, tuple, tuple]] = {
    16: (((64, 4), (128, 4)), (3, 5), (64,), (264, 528, 1056)),
    64: (((64, 4), (128, 8)), (3, 4), (64,), (0, 132, 264)),
    128: (((64, 4), (128, 8)), (3, 4, 5), (64,), (0, 264)),
    256: (((64, 4), (64, 8)), (3, 4), (64,), (0, 132)),
}


def candidates(tokens: int, scheme: str) -> list[Tile]:
    search = EIGHT if "/" in scheme else SEARCH
    widths = [t for t in search if t <= 64 and tokens <= t][:2] or [t for t in search if t > 64]
    return [
        Tile(rows, width, warps, stages, programs, columns)
        for width in widths
        for (rows, warps), stages, columns, programs in itertools.product(*search[width])
    ]


def compile_tile(scheme: str, tile: Tile) -> tuple[str, Tile] | str:
    """Launch once on a small weight: with and without shares of K."""
    linear, weight = make_linear(scheme, 2048, 256)
    x = random_input(tile.tokens, 2048, scheme)
    wide = dequantize(x) if isinstance(x, Activation) else x
    for programs in {0, 1 << 12 if tile.programs else 0}:
        y = linear.product.fused(x, None, tile._replace(programs=programs))
        error = distance(y, wide.double().cpu() @ weight.double().T)
        if error > 5e-3:
            return f"WRONG {scheme} {tile}: {error:.1e}"
    return scheme, tile._replace(programs=0)


def tune(schemes: Sequence[str], tokens: Sequence[int]) -> None:
    """Print the fastest tiles by format and batch size and shape."""
    tiles = {(s, t._replace(programs=bool(t.programs))) for s in schemes for m in tokens for t in candidates(m, s)}
    usable = set()
    for result in in_parallel([(compile_tile, pair) for pair in tiles]):
        usable.add(result) if isinstance(result, tuple) else print(result)
    for s, m, (size, out) in itertools.product(schemes, tokens, SHAPES):
        linears, x = copies_of(s, size, out), random_input(m, size, s)
        good = [t for t in candidates(m, s) if (s, t._replace(programs=0)) in usable]
        timed = sorted((microseconds([partial(a.product.fused, x, None, t) for a in linears], 7), t) for t in good)
        print(f"{s} {size}x{out} M={m}:", "; ".join(f"{us:.1f} {tuple(t)}" for us, t in timed[:4]), flush=True)


# ---- measure -----------------------------------------------------------------------------------------------------

Calls = Sequence[Callable[[], object]]


def baseline(tokens: int, size: int, out: int) -> Calls:
    """bf16 through cuBLAS."""
    count = max(2, -(-WORKING_SET // (2 * size * out)))
    weights = [torch.randn(out, size, device=DEVICE, dtype=BF16) for _ in range(count)]
    x = torch.randn(tokens, size, device=DEVICE, dtype=BF16)
    return [partial(torch.nn.functional.linear, x, w) for w in weights]


def tinygemm(tokens: int, size: int, out: int) -> Calls:
    """torch's own INT4 product, groups of 128."""
    codes = torch.randint(0, 255, (out, size // 2), dtype=torch.uint8, device=DEVICE)
    packed = [torch.ops.aten._convert_weight_to_int4pack(codes, 8) for _ in range(peer_copies(size, out))]
    scales = torch.ones(size // 128, out, 2, dtype=BF16, device=DEVICE)
    x = torch.randn(tokens, size, device=DEVICE, dtype=BF16)
    return [partial(torch.ops.aten._weight_int4pack_mm, x, w, 128, scales) for w in packed]


def measure(schemes: Sequence[str], tokens: Sequence[int], peers: Sequence[str]) -> None:
    """The table: bf16 in µs, then each scheme and peer as a factor over it; activations are quantized beforehand."""
    absent = missing()
    for module, sentence in absent.items():
        if any(PEERS[name][0] == module for name in peers):
            print(sentence)
    peers = [name for name in peers if PEERS[name][0] not in absent]
    compiling = [(warm_peer, (n, *shape, tokens)) for n in peers if PEERS[n][0] == "humming" for shape in SHAPES]
    for line in in_parallel(compiling) if compiling else ():
        if not line.endswith("ready"):
            print(line)
    columns = ["tinygemm", *schemes, *peers]
    print("| K x N, M | bf16 µs | " + " | ".join(columns) + " |\n" + "|---" * (2 + len(columns)) + "|")
    for size, out in SHAPES:
        linears = {s: copies_of(s, size, out) for s in schemes}
        others = {name: attempt(peer_calls, name, size, out, peer_copies(size, out)) for name in peers}
        for m in tokens:
            found = {"bf16": baseline(m, size, out)} | ({"tinygemm": tinygemm(m, size, out)} if m <= 64 else {})
            for s in schemes:
                x = random_input(m, size, s)
                found[s] = [partial(linear, x) for linear in linears[s]]
            x = torch.randn(m, size, device=DEVICE, dtype=BF16)
            for name, calls in others.items():
                made = attempt(calls, x) if callable(calls) else calls
                if isinstance(made, str):
                    print(f"{name}, {size}x{out}, {m}: {made}")
                else:
                    found[name] = made
            us = dict(zip(found, side_by_side(list(found.values())), strict=True))
            row = " | ".join(f"{us['bf16'] / us[c]:.2f}x" if c in us else "–" for c in columns)
            print(f"| {size}x{out}, {m} | {us['bf16']:.1f} | {row} |", flush=True)


def peer_copies(size: int, out: int) -> int:
    """Copies of a weight of four bits that do not fit the cache together."""
    return max(2, -(-WORKING_SET // (size * out // 2)))


def attempt(function: Callable, *arguments: Any) -> Any:
    """What it returns, or in a sentence why a library that is not ours did not."""
    try:
        return function(*arguments)
    except Exception as error:
        return f"{type(error).__name__} {str(error).strip()[-200:]}"


def warm_peer(name: str, size: int, out: int, tokens: Sequence[int]) -> str:
    """Let a library compile what it compiles at first calls."""
    calls = attempt(peer_calls, name, size, out, 1)
    made = [attempt(calls, torch.randn(m, size, device=DEVICE, dtype=BF16)) for m in tokens] if callable(calls) else []
    failed = [text for text in (*made, calls) if isinstance(text, str)]
    return f"{name} {size}x{out}: {failed[0] if failed else 'ready'}"


def rotations() -> None:
    """Bytes read and written by transform and quantization, over time, and as a share of a copy's in the same turns."""
    rows, copy = 4096, a_copy()
    print("| transform, format, rows | µs | TB/s | of a copy |\n|---|---|---|---|")
    for name in ("hadamard-14336", "block-128", "hadamard-4096"):
        ours, transform = make_transform(name)
        inputs = [torch.randn(rows, transform.size, device=DEVICE, dtype=BF16) for _ in range(2)]
        columns, moved = {"copy": [copy]}, {"copy": 2 << 30}
        for fmt in ("nvfp4", "mxfp4", "none"):
            described = None if fmt == "none" else packing.describe(get_format(fmt))
            columns[fmt] = [partial(ours.quantize, x, described) if described else partial(ours, x) for x in inputs]
            written = 2 if fmt == "none" else 0.5 + (1 / 16 if fmt == "nvfp4" else 1 / 32)
            moved[fmt] = rows * transform.size * (2 + written)
        us = dict(zip(columns, side_by_side(list(columns.values()), 25), strict=True))
        rates = {fmt: moved[fmt] / us[fmt] * 1e-6 for fmt in columns}
        for fmt in ("nvfp4", "mxfp4", "none"):
            share = rates[fmt] / rates["copy"]
            print(f"| {name}, {fmt}, {rows} | {us[fmt]:.1f} | {rates[fmt]:.2f} | {share:.0%} |", flush=True)


def a_copy() -> Callable[[], object]:
    """Copies a GiB on the device."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device=DEVICE)
    return partial(torch.empty_like(source).copy_, source)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tune", action="store_true", help="search launch parameters")
    parser.add_argument("--schemes", nargs="+", default=list(SCHEMES))
    parser.add_argument("--tokens", nargs="+", type=int, default=list(TOKENS))
    parser.add_argument("--peers", nargs="*", default=list(PEERS), help="other libraries' columns")
    parser.add_argument("--no-check", action="store_true")
    options = parser.parse_args()
    import triton

    start, copy = time.time(), (2 << 30) / microseconds([a_copy()]) * 1e-6
    print(
        torch.cuda.get_device_name(), "torch", torch.__version__, "triton", triton.__version__, f"copy {copy:.2f} TB/s"
    )
    if not options.no_check:
        check()
        print(f"checked after {time.time() - start:.0f} s", flush=True)
    if options.tune:
        tune(options.schemes, options.tokens)
    else:
        rotations()
        measure(options.schemes, options.tokens, options.peers)
    print(f"done after {time.time() - start:.0f} s")


if __name__ == "__main__":
    main()
