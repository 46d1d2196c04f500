"""Caches in few bits: nats above float, and tokens a second at long contexts, of a decoder that takes its cache.

    python benchmarks/caches.py MODEL.onnx --calibration C.npz --evaluation E.npz [--formats int8-token uint2-g32]
    python benchmarks/caches.py MODEL.onnx --calibration C.npz --contexts 2048,8192,32768

The weights stay float, so that caches alone make the difference. The first form measures the loss of each row of the
evaluation data in one pass, with keys and values as they are and in a chosen basis; the second times one token behind
a cache of random content on one thread, one after the other, and prints the bytes of the caches that each step reads
and writes.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import TopologicalSortPass

from qcompile.backends.ort.packed_caches import lower_caches
from qcompile.checks.behaviour import behaviour
from qcompile.choice.cache_choice import choose_caches
from qcompile.formats.cache_format import parse_cache_format
from qcompile.ir.cache_pairs import cache_pairs
from qcompile.preparation import prepare
from qcompile.run.data import Data, hold_out, load_data
from qcompile.run.session import Session
from qcompile.targets.cache_plans import CachePlan, drop_cache_plans, with_float_caches

#: What is compared by default.
FORMATS = [
    "int8-token", "int4-token", "uint4-token", "uint4-g32", "uint5+3-g32,uint4-g32", "uint2-g32", "int8-channel",
    "int4-channel",
]  # fmt: skip

#: Runs of each graph at each context; the median counts.
RUNS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--calibration", required=True, help="rows of tokens")
    parser.add_argument("--evaluation", help="rows to measure the loss on")
    parser.add_argument("--formats", nargs="+", default=FORMATS, help="with commas, those that each cache may have")
    parser.add_argument("--contexts", default="", help="lengths of the cache to time one token at")
    arguments = parser.parse_args()
    model = prepare(arguments.model).model
    data = hold_out(load_data(arguments.calibration, model), model)
    if arguments.evaluation:
        losses(model, data, load_data(arguments.evaluation, model), arguments.formats)
    for context in filter(None, arguments.contexts.split(",")):
        times(model, data, int(context))


def packed(model: ir.Model, data: Data, word: str, rotates: bool, fuses: bool) -> tuple[Session, list[CachePlan]]:
    """The graph with packed caches."""
    clone = model.clone()
    plans = choose_caches(
        clone, [parse_cache_format(w) for w in word.split(",")], data, print_declined, rotates=rotates, fuses=fuses
    )
    lower_caches(clone)
    drop_cache_plans(clone)
    TopologicalSortPass()(clone)
    return Session(saved(clone), threads=1), plans


def print_declined(*said: str) -> None:
    print("  declined:", *said)


def saved(model: ir.Model) -> Path:
    """A graph as a file that onnxruntime maps its weights from."""
    path = Path(tempfile.mkdtemp(prefix="caches-")) / "model.onnx"
    ir.save(model, path, external_data="model.onnx.data")
    return path


def losses(model: ir.Model, data: Data, rows: Data, words: list[str]) -> None:
    """Print the loss above float of each format, in the basis of the model and in one that is chosen."""
    tokens, logits = "input_ids", model.graph.outputs[0].name
    session = Session(saved(model), threads=1)
    want = [session.run(batch)[logits] for batch in rows.batches]
    print("| cache | bytes of a token | basis | nats above float | divergence | caches in another |")
    print("|---|---|---|---|---|---|")
    for word in words:
        for rotates in (False, True):
            run, plans = packed(model, data, word, rotates, fuses=False)
            outputs = with_float_caches(run.run, plans)
            have = (outputs(batch)[logits] for batch in rows.batches)
            found = behaviour(logits, True, zip(rows.batches, want, have, strict=True), tokens)
            more = np.array([prompt.losses[1] - prompt.losses[0] for prompt in found.prompts])
            divergence = float(np.mean([prompt.divergence.mean() for prompt in found.prompts]))
            error = f" ± {more.std(ddof=1) / len(more) ** 0.5:.4f}" if len(more) > 1 else ""
            turned, size = sum(plan.basis is not None for plan in plans), sum(p.bytes_per_token for p in plans)
            keys = "chosen" if rotates else "the model's"
            print(f"| {word} | {size} | {keys} | {more.mean():+.4f}{error} | {divergence:.5f} | {turned} |", flush=True)


def times(model: ir.Model, data: Data, context: int) -> None:
    """Print the time of one token behind a cache of that length."""
    step = {"input_ids": np.array([[5]]), "position_ids": np.array([[context]])}
    step["attention_mask"] = np.ones((1, context + 1), np.int64)
    step = {value.name: step[value.name] for value in model.graph.inputs if value.name in step}
    pairs = cache_pairs(model)
    float_bytes = sum(4 * int(p.past.shape[1]) * int(p.past.shape[3]) for p in pairs if p.past.shape is not None)
    rows: list[tuple[str, int, float]] = []
    for word in ("float", "int8-channel", "int4-channel"):
        if word == "float":
            run, size, feeds = Session(saved(model), threads=1), float_bytes, filled(model, context)
        else:
            run, plans = packed(model, data, word, rotates=True, fuses=True)
            size, feeds = sum(plan.bytes_per_token for plan in plans), codes(plans, context)
        run.run(step | feeds)
        rows.append((word, size, median(run, step | feeds)))
        del run, feeds
    for word, size, seconds in rows:
        print(f"context {context}: {word}, cache {size * context / 1e6:.1f} MB, {1 / seconds:.2f} tokens/s, "
              f"{rows[0][2] / seconds:.2f}x float", flush=True)  # fmt: skip


def median(run: Session, feeds: Mapping[str, np.ndarray]) -> float:
    seconds = []
    for _ in range(RUNS):
        began = perf_counter()
        run.run(feeds)
        seconds.append(perf_counter() - began)
    return float(np.median(seconds))


def filled(model: ir.Model, context: int) -> dict[str, np.ndarray]:
    """Random caches of float."""
    rng = np.random.default_rng(0)
    shapes = {str(p.past.name): (1, int(p.past.shape[1]), context, int(p.past.shape[3])) for p in cache_pairs(model)}
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def codes(plans: list[CachePlan], context: int) -> dict[str, np.ndarray]:
    """Random codes."""
    rng, found = np.random.default_rng(0), {}
    for plan in plans:
        low, high = (-128, 128) if plan.format.stored == np.int8 else (0, 256)
        shape = (1, plan.heads, context, plan.features // plan.format.per_byte)
        found[plan.past] = rng.integers(low, high, shape, dtype=plan.format.stored)
    return found


if __name__ == "__main__":
    main()
