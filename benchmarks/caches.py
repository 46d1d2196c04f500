"""Caches in few bits: nats above float, and tokens a second and memory at long contexts, of a decoder with its cache.

    python benchmarks/caches.py MODEL.onnx --calibration C.npz --evaluation E.npz [--weights int4-g32]
        [--formats int8-token uint2-g32] [--bases none chosen]
    python benchmarks/caches.py MODEL.onnx --calibration C.npz --contexts 2048,8192,32768 [--rounds 5]

The first form measures the loss of each row of the evaluation data, with keys and values as they are and in a chosen
basis, above that with float caches and the same weights, which are float or rounded to nearest; rows are read in one
pass, or in parts where a format keeps some tokens in float32. In the second weights are float. It times one token
behind a cache of random content on one thread, in time of the processor, the graphs in turn: the source as it was
exported, and GroupQueryAttention over caches of float32, 8 and 4 bits. Ratios are those of medians, to
GroupQueryAttention over float32. Memory is the largest that a process of its own held in a step, caches included, above
what it held before (on Linux).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from time import process_time

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes.common import TopologicalSortPass

from qcompile.backends.ort.packed_caches import lower_caches
from qcompile.checks.behaviour import behaviour
from qcompile.choice.cache_choice import choose_caches
from qcompile.formats import get_format, quantize
from qcompile.formats.cache_words import parse_cache_formats
from qcompile.ir.cache_pairs import cache_pairs
from qcompile.ir.graph import add_initializer, drop_unused
from qcompile.ir.required import name_of
from qcompile.preparation import prepare
from qcompile.run.data import Data, hold_out, load_data
from qcompile.run.session import Session
from qcompile.targets.cache_plans import CachePlan, drop_cache_plans, with_float_caches

#: What is compared by default.
FORMATS = [
    "int8-token", "int8-channel", "fp8-token", "fp8-tensor", "uint5+3-g32,uint4-g32", "uint4-g32", "nvfp4", "mxfp4",
    "eden4", "turboquant4", "int4-token", "int4-channel", "uint2-g32", "eden2", "uint2-g32{recent=128,first=4}",
]  # fmt: skip

#: Tokens that are read at once where some stay float32.
PART = 32

#: Graphs whose steps are timed: the source, and formats of caches that GroupQueryAttention reads.
TIMED = ("float", "float32", "int8-channel", "int4-channel")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--calibration", help="rows of tokens")
    parser.add_argument("--evaluation", help="rows to measure the loss on")
    parser.add_argument("--weights", help="a format that weights are rounded to, such as int4-g32")
    parser.add_argument("--bases", nargs="+", default=["none", "chosen"], choices=["none", "chosen"])
    parser.add_argument("--formats", nargs="+", default=FORMATS, help="with commas, those that each cache may have")
    parser.add_argument("--contexts", default="", help="lengths of the cache to time one token at")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each graph at each context (default 5)")
    parser.add_argument("--resident", type=int, metavar="CONTEXT", help="print the memory of one step of MODEL alone")
    arguments = parser.parse_args()
    if arguments.resident is not None:
        print(resident(Path(arguments.model), arguments.resident))
        return
    model = prepare(arguments.model).model
    data = hold_out(load_data(arguments.calibration, model), model)
    if arguments.evaluation:
        rows = load_data(arguments.evaluation, model)
        if arguments.weights:
            round_weights(model, rows, arguments.weights)
        losses(model, data, rows, arguments.formats, [word == "chosen" for word in arguments.bases])
    if arguments.contexts:
        files = {"float": saved(model)}
        for word in TIMED[1:]:
            files[word], plans = packed(model, data, word, rotates=True, fuses=True)
            if {plan.form for plan in plans} != {"fused"}:
                sys.exit(f"{word}: attention is not GroupQueryAttention everywhere, so there is nothing to compare")
        for context in arguments.contexts.split(","):
            times(files, int(context), arguments.rounds)


def packed(model: ir.Model, data: Data, word: str, rotates: bool, fuses: bool) -> tuple[Path, list[CachePlan]]:
    """The graph with packed caches, as a file."""
    clone = model.clone()
    plans = choose_caches(clone, parse_cache_formats(word), data, print_declined, rotates=rotates, fuses=fuses)
    lower_caches(clone)
    drop_cache_plans(clone)
    TopologicalSortPass()(clone)
    return saved(clone), plans


def print_declined(*said: str) -> None:
    print("  declined:", *said)


def saved(model: ir.Model) -> Path:
    """A graph as a file that onnxruntime maps its weights from."""
    path = Path(tempfile.mkdtemp(prefix="caches-")) / "model.onnx"
    ir.save(model, path, external_data="model.onnx.data")
    return path


def round_weights(model: ir.Model, rows: Data, word: str) -> None:
    """Round the weights of all linear maps but the last to nearest, in place, and print what that costs."""
    logits = name_of(model.graph.outputs[0])
    before = [Session(saved(model), threads=1).run(batch)[logits] for batch in rows.batches]
    maps = [node for node in model.graph if node.op_type == "MatMul" and constant_of(node) is not None]
    for node in maps[:-1]:
        weight = constant_of(node)
        assert weight is not None
        held = quantize(torch.from_numpy(weight.copy()), get_format(word), axis=0).dequantize().numpy()
        node.replace_input_with(1, add_initializer(model, f"{name_of(node.inputs[1])}/rounded", held))
    drop_unused(model)
    after = Session(saved(model), threads=1)
    print(f"weights of {len(maps) - 1} linear maps in {word}: {departure(logits, rows, before, after.run)}", flush=True)


def constant_of(node: ir.Node) -> np.ndarray | None:
    """The weight ``[in, out]`` that an operator multiplies with, if it is constant."""
    tensor = None if node.inputs[1] is None else node.inputs[1].const_value
    return tensor.numpy() if tensor is not None and len(tensor.shape) == 2 else None


def losses(model: ir.Model, data: Data, rows: Data, words: list[str], bases: list[bool]) -> None:
    """Print the loss above float caches of each format, in the basis of the model and in one that is chosen."""
    logits = name_of(model.graph.outputs[0])
    session = Session(saved(model), threads=1)
    want = [session.run(batch)[logits] for batch in rows.batches]
    print("| cache | bytes of a token | basis | nats above float caches | divergence | caches in another |")
    print("|---|---|---|---|---|---|")
    for rotates in bases:
        for word in words:
            path, plans = packed(model, data, word, rotates, fuses=False)
            keeps = any(plan.format.keeps for plan in plans)
            run = Session(path, threads=1).run
            found = departure(logits, rows, want, partial(in_parts, run, plans, logits) if keeps else
                              with_float_caches(run, plans))  # fmt: skip
            turned, size = sum(plan.basis is not None for plan in plans), sum(p.bytes_per_token for p in plans)
            print(f"| {word} | {size} | {'chosen' if rotates else 'the model'} | {found} | {turned} |", flush=True)


def departure(
    logits: str, rows: Data, want: list[np.ndarray], run: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]
) -> str:
    """Nats above what is wanted, with their standard error over rows, and the divergence from it."""
    have = (run(batch)[logits] for batch in rows.batches)
    found = behaviour(logits, True, zip(rows.batches, want, have, strict=True), "input_ids")
    more = np.array([prompt.losses[1] - prompt.losses[0] for prompt in found.prompts])
    divergence = float(np.mean([prompt.divergence.mean() for prompt in found.prompts]))
    error = f" ± {more.std(ddof=1) / len(more) ** 0.5:.4f}" if len(more) > 1 else ""
    return f"{more.mean():+.4f}{error} | {divergence:.5f}"


def in_parts(
    run: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]], plans: list[CachePlan], logits: str,
    batch: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:  # fmt: skip
    """Logits of a row that is read part by part, so that most tokens meet recent ones as they were."""
    caches: dict[str, np.ndarray] = {}
    for plan in plans:
        caches |= plan.pack(batch[plan.past])
    ends = {past: present for plan in plans for past, present in plan.parts.items()}
    made, length = [], batch["input_ids"].shape[1]
    for start in range(0, length, PART):
        part = {
            name: array[:, : start + PART] if name == "attention_mask" else array[:, start : start + PART]
            for name, array in batch.items() if name not in ends
        }  # fmt: skip
        outputs = run(part | caches)
        caches = {past: outputs[present] for past, present in ends.items()}
        made.append(outputs[logits])
    return {logits: np.concatenate(made, 1)}


def times(files: Mapping[str, Path], context: int, rounds: int) -> None:
    """Print the time and the memory of one token behind caches of that length."""
    runs = {word: (Session(path, threads=1), step(path, context)) for word, path in files.items()}
    for run, feeds in runs.values():
        run.run(feeds)
    seconds: dict[str, list[float]] = {word: [] for word in files}
    for _ in range(rounds):
        for word, (run, feeds) in runs.items():
            began = process_time()
            run.run(feeds)
            seconds[word].append(process_time() - began)
    held = {word: sum(feeds[name].nbytes for name in pasts(path)) for (word, path), (_, feeds) in
            zip(files.items(), runs.values(), strict=True)}  # fmt: skip
    runs.clear()
    fair = float(np.median(seconds["float32"]))
    for word, path in files.items():
        own = float(np.median(seconds[word]))
        command = [sys.executable, __file__, str(path), "--resident", str(context)]
        grown = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        print(f"context {context}: {word:12} cache {held[word] / 1e6:7.1f} MB, memory {grown / 1e6:7.0f} MB, "
              f"{1 / own:6.2f} tokens/s, {fair / own:.2f}x", flush=True)  # fmt: skip


def pasts(path: Path) -> list[str]:
    """The inputs of a graph that hold caches."""
    return [name_of(pair.past) for pair in cache_pairs(ir.load(path))]


def step(path: Path, context: int) -> dict[str, np.ndarray]:
    """One token behind caches of random content."""
    model, rng = ir.load(path), np.random.default_rng(0)
    given = {"input_ids": np.array([[5]]), "position_ids": np.array([[context]])}
    given["attention_mask"] = np.ones((1, context + 1), np.int64)
    feeds = {name: array for name, array in given.items() if name in {value.name for value in model.graph.inputs}}
    for past in (pair.past for pair in cache_pairs(model)):
        assert past.shape is not None
        assert past.dtype is not None
        shape, kind = (1, past.shape[1], context, past.shape[3]), past.dtype.numpy()
        floats = kind == np.float32
        feeds[name_of(past)] = (
            rng.standard_normal(shape, np.float32) if floats
            else rng.integers(np.iinfo(kind).min, np.iinfo(kind).max + 1, shape, kind)
        )  # fmt: skip
    return feeds


def resident(path: Path, context: int) -> int:
    """Bytes that a process held at most in a step, above those that it held with the session before."""
    run = Session(path, threads=1)
    run.run(step(path, 1))
    Path("/proc/self/clear_refs").write_text("5")  # what was held at most is from here on what is held
    before = _most_held()
    run.run(step(path, context))
    return _most_held() - before


def _most_held() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
