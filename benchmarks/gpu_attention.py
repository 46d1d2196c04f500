"""Decoding over packed caches on the GPU at hand: checked against the formats' definition, then timed.

    python benchmarks/gpu_attention.py                  # check, then attention alone
    python benchmarks/gpu_attention.py --layers 4       # also the products of so many layers, in W4A16 and in bfloat16
    python benchmarks/gpu_attention.py --tune           # tokens at a time, warps, stages and shares
    python benchmarks/gpu_attention.py --batches 1 --contexts 2048

The shape is that of Llama 3 8B: 32 heads of 128 features over 8 heads of keys. Beside it, in the same run, stand
torch's attention over a cache in bfloat16 (the fastest of its own kernels and of FlashInfer, if that can be imported),
and a device copy. Times are medians over replays of CUDA graphs, replayed in turn, that walk through caches which
together are several times as large as the second-level cache. ``copy`` is the part of the bandwidth of a copy, read
and written, at which the packed caches are read. What is appended is counted apart. ``--layers`` times the four
products of each layer with its attention and its appending in one graph; norms, rotary embeddings and gates, which both
would have, are left out.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from gpu import copies_of, distance, microseconds, side_by_side
from torch.nn.attention import SDPBackend, sdpa_kernel

from qcompile.backends.gpu.cache_layouts import cache_layout
from qcompile.backends.gpu.kernels.cache_writing import CacheLayout, append_to_cache
from qcompile.backends.gpu.kernels.cached_attention import attend_to_cache
from qcompile.formats.cache_words import parse_cache_format

HEADS, HELD, SIZE = 32, 8, 128
PRODUCTS = ((4096, 6144), (4096, 4096), (4096, 28672), (14336, 4096))  # K, N of a layer
FORMATS = ("int4-token", "uint4-token", "uint4-g32", "uint5+3-g32", "int8-token")
BATCHES, CONTEXTS = (1, 8, 32), (2048, 32768, 131072)
WORKING_SET = 160 << 20  # bytes of caches that a graph walks through
MOST = 40 << 30  # bytes of float caches that are made
DEVICE, BF16 = "cuda", torch.bfloat16

Calls = Sequence[Callable[[], object]]


class Cache(NamedTuple):
    """Keys or values of a batch."""

    codes: torch.Tensor
    numbers: torch.Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of codes and of the numbers beside them."""
        return self.codes.nbytes + self.numbers.nbytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--contexts", type=int, nargs="+", default=CONTEXTS)
    parser.add_argument("--formats", nargs="+", default=FORMATS)
    parser.add_argument("--layers", type=int, default=0, help="products of so many layers, too")
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    check(options.formats)
    print(f"copy: {(speed := copy_speed()):.0f} GB/s, read and written", flush=True)
    rows = []
    for context, batch in itertools.product(options.contexts, options.batches):
        if options.tune:
            tune(options.formats, batch, context)
        else:
            rows += timed(options.formats, batch, context, speed, options.layers)
    if options.json:
        options.json.write_text(
            json.dumps({"gpu": torch.cuda.get_device_name(), "copy": speed, "rows": rows}, indent=1)
        )


# ---- check -------------------------------------------------------------------------------------------------------


def check(formats: Sequence[str]) -> None:
    """What is appended to the bit; attention of one and of four queries within the rounding of 16 bits."""
    rng = np.random.default_rng(0)
    for name in formats:
        fmt, layout = parse_cache_format(name), cache_layout(parse_cache_format(name), SIZE)
        held = (rng.standard_normal((2, 3, HELD, 1000, SIZE)) * 2).astype(np.float32)
        key, value = (Cache(*(torch.from_numpy(x).to(DEVICE) for x in fmt.encode(part))) for part in held)
        decoded = [torch.from_numpy(fmt.fake(part)).to(DEVICE) for part in held]
        lengths = torch.tensor([1000, 517, 4], dtype=torch.int32, device=DEVICE)
        errors = []
        for queries in (1, 4):
            q = torch.randn(3, HEADS, queries, SIZE, device=DEVICE).to(BF16)
            y = attend_to_cache(q, *key, *value, lengths, SIZE**-0.5, (layout, layout))
            for i, length in enumerate(lengths.tolist()):
                mask = torch.ones(queries, length, dtype=torch.bool, device=DEVICE).tril(length - queries)
                want = F.scaled_dot_product_attention(
                    q[i : i + 1].double(), *(x[i : i + 1, :, :length].double() for x in decoded), mask, enable_gqa=True
                )
                errors.append(distance(y[i : i + 1], want))
        new = torch.from_numpy(held[0][:, :, 7:9]).to(DEVICE)
        written = Cache(torch.zeros_like(key.codes), torch.zeros_like(key.numbers))
        append_to_cache(new, *written, torch.full((3,), 9, dtype=torch.int32, device=DEVICE), layout)
        same = all(torch.equal(a[:, :, 7:9], b[:, :, 7:9]) for a, b in zip(written, key, strict=True))
        word = "ok" if max(errors) < 6e-3 and same else "WRONG"
        print(f"{word:6}{name:14} relative L2 {max(errors):.1e}, appended {'to the bit' if same else 'otherwise'}")


# ---- time --------------------------------------------------------------------------------------------------------


def copy_speed() -> float:
    """GB/s of a device copy, read and written."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * source.nbytes / microseconds([partial(target.copy_, source)]) / 1e3


def random_caches(layout: CacheLayout, batch: int, context: int) -> list[Cache]:
    """Pairs of keys and values, one behind the other, of which there are enough for a graph."""

    def one() -> Cache:
        codes = torch.randint(0, 256, (batch, HELD, context, layout.width), dtype=torch.uint8, device=DEVICE)
        numbers = torch.rand(batch, HELD, context, layout.numbers, device=DEVICE).mul_(0.1).to(torch.float16)
        return Cache(codes, numbers)

    first = [one(), one()]
    copies = max(1, -(-WORKING_SET // sum(part.nbytes for part in first)))
    return first + [one() for _ in range(2 * (copies - 1))]


def packed_calls(layout: CacheLayout, caches: Sequence[Cache], batch: int, context: int, **launch: int) -> Calls:
    """Attention of one new token of each sequence over each pair of caches."""
    q = torch.randn(batch, HEADS, 1, SIZE, device=DEVICE, dtype=BF16)
    lengths = torch.full((batch,), context, dtype=torch.int32, device=DEVICE)
    pairs = zip(caches[::2], caches[1::2], strict=True)
    return [partial(attend_to_cache, q, *k, *v, lengths, SIZE**-0.5, (layout, layout), **launch) for k, v in pairs]


def append_calls(layout: CacheLayout, caches: Sequence[Cache], batch: int, context: int) -> Calls:
    """A new token of each sequence, rotated by a matrix of its head, rounded and written into each cache."""
    x = torch.randn(batch, HELD, 1, SIZE, device=DEVICE, dtype=BF16)
    lengths = torch.full((batch,), context, dtype=torch.int32, device=DEVICE)
    turn = torch.randn(HELD, SIZE, SIZE, device=DEVICE) / SIZE**0.5
    return [partial(append_to_cache, x, *cache, lengths, layout, turn) for cache in caches]


def float_calls(batch: int, context: int) -> Iterator[tuple[str, Calls]]:
    """The same in bfloat16 by others; those that cannot are left out with a sentence."""
    shape = (batch, HELD, context, SIZE)
    bytes_of_pair = 4 * int(np.prod(shape))
    if bytes_of_pair > MOST:
        print(f"batch {batch}, context {context}: caches of {bytes_of_pair >> 30} GiB in bfloat16 are not made")
        return
    pairs = [[torch.randn(shape, device=DEVICE, dtype=BF16) for _ in "kv"]
             for _ in range(max(1, -(-WORKING_SET // bytes_of_pair)))]  # fmt: skip
    q = torch.randn(batch, HEADS, 1, SIZE, device=DEVICE, dtype=BF16)

    def by_torch(backend: SDPBackend, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)

    def torch_calls(backend: SDPBackend) -> Calls:
        return [partial(by_torch, backend, *pair) for pair in pairs]

    backends = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION, "math": SDPBackend.MATH}
    makers = {f"torch {name}": partial(torch_calls, backend) for name, backend in backends.items()}
    makers["flashinfer"] = partial(flashinfer_calls, q, pairs)
    for name, make in makers.items():
        try:
            calls = make()
            calls[0]()
            torch.cuda.synchronize()
        except (ImportError, RuntimeError) as error:
            print(f"{name} is left out: {str(error).splitlines()[0]}")
        else:
            yield name, calls


def flashinfer_calls(q: torch.Tensor, pairs: Sequence[Sequence[torch.Tensor]]) -> Calls:
    """FlashInfer's decoding over pages of 64 tokens."""
    import flashinfer

    batch, _, context, _ = pairs[0][0].shape
    pages = batch * context // 64
    space = torch.empty(256 << 20, dtype=torch.uint8, device=DEVICE)
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(space, "HND", use_tensor_cores=True)
    indptr = torch.arange(0, pages + 1, context // 64, dtype=torch.int32, device=DEVICE)
    indices, last = (torch.arange(pages, dtype=torch.int32, device=DEVICE),
                     torch.full((batch,), 64, dtype=torch.int32, device=DEVICE))  # fmt: skip
    wrapper.plan(indptr, indices, last, HEADS, HELD, SIZE, 64, q_data_type=BF16, kv_data_type=BF16)
    held = [tuple(x.view(batch, HELD, context // 64, 64, SIZE).transpose(1, 2).reshape(pages, HELD, 64, SIZE)
                  for x in pair) for pair in pairs]  # fmt: skip
    return [partial(wrapper.run, q[:, :, 0], pair) for pair in held]


def timed(formats: Sequence[str], batch: int, context: int, speed: float, layers: int) -> list[dict[str, object]]:
    """Print, and return, the times at one size."""
    others = dict(float_calls(batch, context))
    times = dict(zip(others, side_by_side(list(others.values())), strict=True)) if others else {}
    best = min(times, key=lambda name: times[name], default=None)
    print(f"\nbatch {batch}, context {context}: "
          + ", ".join(f"{name} {t:.1f} us" for name, t in times.items()), flush=True)  # fmt: skip
    rows = []
    step = layer_time(others[best], batch, layers, None) if layers and best else None
    for name in formats:
        layout = cache_layout(parse_cache_format(name), SIZE)
        caches = random_caches(layout, batch, context)
        columns = [packed_calls(layout, caches, batch, context), append_calls(layout, caches, batch, context)]
        if best:
            columns.append(others[best])
        took, appended, *beside = side_by_side(columns)
        share = sum(part.nbytes for part in caches[:2]) / took / 1e3 / speed
        row = {"batch": batch, "context": context, "format": name, "us": took, "append_us": 2 * appended,
               "float": best, "float_us": beside[0] if beside else None, "copy": share}  # fmt: skip
        ratio = f", {beside[0] / took:.2f}x {best}" if beside else ""
        print(f"  {name:14} {took:8.1f} us{ratio}, {share:.0%} of a copy; appending {2 * appended:.1f} us", flush=True)
        if step is not None:
            own = layer_time(columns[0], batch, layers, columns[1])
            row |= {"layers": layers, "step_us": own, "float_step_us": step}
            print(f"  {'':14} {layers} layers {own:.1f} us, {step / own:.2f}x those in bfloat16", flush=True)
        rows.append(row)
        del caches, columns
        torch.cuda.empty_cache()
    return rows


def layer_time(attention: Calls, rows: int, layers: int, appending: Calls | None) -> float:
    """Microseconds of layers, each with four products of as many rows as there are sequences; in bfloat16 where nothing
    is rounded when it is appended."""
    calls: list[Callable[[], object]] = []
    products = []
    for size, out in PRODUCTS:
        x = torch.randn(rows, size, device=DEVICE, dtype=BF16)
        if appending is None:
            weights = [torch.randn(out, size, device=DEVICE, dtype=BF16) for _ in range(layers)]
            products.append([partial(F.linear, x, weight) for weight in weights])
        else:
            linears = copies_of("int4-g128", size, out)
            products.append([partial(linears[i % len(linears)], x, None) for i in range(layers)])
    for i in range(layers):
        calls.append(products[0][i])
        if appending is not None:
            calls += [appending[2 * i % len(appending)], appending[(2 * i + 1) % len(appending)]]
        calls.append(attention[i % len(attention)])
        calls += [product[i] for product in products[1:]]
    return microseconds(calls) * len(calls)


def tune(formats: Sequence[str], batch: int, context: int) -> None:
    """Print the five fastest launches of each format."""
    choices = {"block": (32, 64, 128), "warps": (2, 4, 8), "stages": (1, 2, 3), "splits": (4, 8, 16, 32, 64)}
    for name in formats:
        layout = cache_layout(parse_cache_format(name), SIZE)
        caches = random_caches(layout, batch, context)
        found = []
        for values in itertools.product(*choices.values()):
            launch = dict(zip(choices, values, strict=True))
            if launch["splits"] * launch["block"] <= context and launch["splits"] * batch * HELD <= 8 * 264:
                try:
                    found.append((microseconds(packed_calls(layout, caches, batch, context, **launch), 5), launch))
                except RuntimeError as error:  # of a kernel that needs more than there is
                    print(f"  {name} {launch}: {str(error).splitlines()[0]}")
        default = microseconds(packed_calls(layout, caches, batch, context))
        print(f"\nbatch {batch}, context {context}, {name}: {default:.1f} us as it is", flush=True)
        for took, launch in sorted(found, key=lambda pair: pair[0])[:5]:
            print(f"  {took:8.1f} us {launch}", flush=True)


if __name__ == "__main__":
    main()
