"""Error on fresh inputs by rows of calibration data: the defaults against rounding to nearest without transforms.

    python benchmarks/little_data.py [--models language_model,mamba,dit,decoder,encoder] [--targets cpu-int4,reference]
        [--rows 1,8,32,128,512,4096] [--draws 1]

A row is a token of a text, or one image of the diffusion transformer. The shipped models stand in ``examples/zoo``;
their fresh inputs are held-out files. ``decoder`` (inputs and outputs of a cache) and ``encoder`` (whose pooler sees
one row a sentence) are made here: weights of random numbers with loud channels, texts of a random Markov chain. The
error is the relative L2 of the outputs; plain rounding learns from nothing, so it has one figure.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import qcompile as qc

ZOO = Path(__file__).parent.parent / "examples" / "zoo"
STREAM, HEADS, INNER, LAYERS, VOCABULARY = 96, 4, 256, 3, 256
FORMATS = {"cpu-int4": (), "reference": ("nvfp4/nvfp4",)}

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Subject:
    """A model and its data: ``learn`` and ``fresh`` hold sequences of ``length`` rows along the first axis."""

    model: str | onnx.ModelProto
    learn: Arrays
    fresh: Arrays
    length: int

    def rows(self, count: int, draw: int) -> Arrays:
        """So many rows of the calibration data: whole sequences, or the beginning of one."""
        total = len(next(iter(self.learn.values())))
        taken = np.arange(draw, draw + max(1, count // self.length)) * 7 % total
        found = {name: array[np.unique(taken)] for name, array in self.learn.items()}
        short = {"input_ids": lambda a: a[:, :count]} if count < self.length else {}
        return {name: short.get(name, lambda a: a)(array) for name, array in found.items()}


# -- models ------------------------------------------------------------------------------------------------------------


def language(name: str) -> Subject:
    """A shipped language model, on windows of 64 bytes."""
    learn, fresh = (
        np.load(ZOO / f"language_model_{part}.npz")["input_ids"].reshape(-1, 64)
        for part in ("calibration", "evaluation")
    )
    return Subject(str(ZOO / f"{name}.onnx"), {"input_ids": learn}, {"input_ids": fresh[::4]}, 64)


def diffusion() -> Subject:
    """The shipped diffusion transformer; an image is one row of its modulations, and 16 of its other sites."""
    learn, fresh = (dict(np.load(ZOO / f"dit_{part}.npz")) for part in ("calibration", "evaluation"))
    return Subject(str(ZOO / "dit.onnx"), learn, {name: array[:128] for name, array in fresh.items()}, 1)


class Writer:
    """An ONNX graph as it is written, with random weights of which some channels are loud."""

    def __init__(self, seed: int) -> None:
        self.rng, self.nodes, self.weights = np.random.default_rng(seed), [], {}

    def __call__(self, op: str, *inputs: str | np.ndarray, out: str | None = None, **attributes: object) -> str:
        names = [value if isinstance(value, str) else self.constant(value) for value in inputs]
        out = out or f"value{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, names, [out], **attributes))
        return out

    def constant(self, array: np.ndarray) -> str:
        name = f"constant{len(self.weights)}"
        self.weights[name] = array
        return name

    def weight(self, rows: int, columns: int, scale: float = 1.0) -> np.ndarray:
        loud = 1 + 4 * (self.rng.random(columns) < 0.05)
        return (self.rng.standard_normal((rows, columns)) * loud * scale * rows**-0.5).astype(np.float32)

    def linear(self, x: str, rows: int, columns: int, scale: float = 1.0) -> str:
        return self("MatMul", x, self.weight(rows, columns, scale))

    def norm(self, x: str) -> str:
        gain = (1 + 0.3 * self.rng.standard_normal(STREAM)).astype(np.float32)
        return self("LayerNormalization", x, gain, np.zeros(STREAM, np.float32), axis=-1)

    def heads(self, x: str) -> str:
        return self("Transpose", self("Reshape", x, np.array([0, 0, HEADS, -1])), perm=[0, 2, 1, 3])

    def finish(self, inputs: Mapping[str, tuple[int, list]], outputs: Mapping[str, list]) -> onnx.ModelProto:
        given = [helper.make_tensor_value_info(name, *item) for name, item in inputs.items()]
        made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()]
        constants = [numpy_helper.from_array(array, name) for name, array in self.weights.items()]
        graph = helper.make_graph(self.nodes, "graph", given, made, constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def block(w: Writer, x: str, layer: int, cached: bool) -> str:
    """Attention, over a cache if there is one, and a feed-forward network."""
    normed = w.norm(x)
    q, k, v = (w.heads(w.linear(normed, STREAM, STREAM)) for _ in range(3))
    if cached:
        k, v = (w("Concat", f"past_{s}{layer}", n, axis=2, out=f"{s}{layer}") for s, n in (("k", k), ("v", v)))
    scores = w("Div", w("MatMul", q, w("Transpose", k, perm=[0, 1, 3, 2])), np.float32((STREAM // HEADS) ** 0.5))
    mixed = w("Transpose", w("MatMul", w("Softmax", scores, axis=-1), v), perm=[0, 2, 1, 3])
    x = w("Add", x, w.linear(w("Reshape", mixed, np.array([0, 0, STREAM])), STREAM, STREAM))
    return w("Add", x, w.linear(w("Relu", w.linear(w.norm(x), STREAM, INNER)), INNER, STREAM, 2.0))


def texts(count: int, length: int, seed: int) -> np.ndarray:
    """Texts of a Markov chain in which every symbol has few followers."""
    followers = np.random.default_rng(7).integers(0, VOCABULARY, (VOCABULARY, 4))
    rng = np.random.default_rng(seed)
    found = [rng.integers(0, VOCABULARY, count)]
    for _ in range(length - 1):
        found.append(followers[found[-1], rng.integers(0, 4, count)])
    return np.stack(found, 1)


def decoder() -> Subject:
    """Reads 16 tokens behind a cache of 16."""
    w = Writer(1)
    x = w("Gather", w.weight(VOCABULARY, STREAM, VOCABULARY**0.5), "input_ids")
    for layer in range(LAYERS):
        x = block(w, x, layer, True)
    w("MatMul", w.norm(x), w.weight(STREAM, VOCABULARY), out="logits")
    caches = [f"{s}{layer}" for layer in range(LAYERS) for s in "kv"]
    shape = ["batch", HEADS, "past", STREAM // HEADS]
    inputs = {"input_ids": (TensorProto.INT64, ["batch", "length"])}
    inputs |= {f"past_{name}": (TensorProto.FLOAT, shape) for name in caches}
    outputs = {"logits": ["batch", "length", VOCABULARY]}
    outputs |= {name: ["batch", HEADS, "total", STREAM // HEADS] for name in caches}
    model = w.finish(inputs, outputs)
    return Subject(model, *(_behind_a_cache(model, caches, count, seed) for count, seed in ((256, 2), (32, 3))), 16)


def _behind_a_cache(model: onnx.ModelProto, caches: list[str], count: int, seed: int) -> Arrays:
    from onnx.reference import ReferenceEvaluator

    ids, nothing = texts(count, 32, seed), np.zeros((count, HEADS, 0, STREAM // HEADS), np.float32)
    first = {"input_ids": ids[:, :16], **{f"past_{name}": nothing for name in caches}}
    made = ReferenceEvaluator(model).run(caches, first)
    return {"input_ids": ids[:, 16:], **{f"past_{name}": array for name, array in zip(caches, made, strict=True)}}


def encoder() -> Subject:
    """Sentences of 16 tokens; the pooler reads the first of each."""
    w = Writer(4)
    table, places = w.weight(VOCABULARY, STREAM, VOCABULARY**0.5), w.weight(16, STREAM, 2.0)
    length = w("Slice", w("Shape", "input_ids"), np.array([1]), np.array([2]))
    x = w("Gather", table, "input_ids")
    x = w("Add", x, w("Slice", places, np.array([0]), length, np.array([0])))
    for layer in range(LAYERS):
        x = block(w, x, layer, False)
    first = w("Gather", w.norm(x), np.array(0), axis=1)
    w("Tanh", w.linear(first, STREAM, STREAM), out="pooled")
    model = w.finish({"input_ids": (TensorProto.INT64, ["batch", "length"])}, {"pooled": ["batch", STREAM]})
    return Subject(model, {"input_ids": texts(256, 16, 5)}, {"input_ids": texts(128, 16, 6)}, 16)


SUBJECTS = {
    "language_model": partial(language, "language_model"), "mamba": partial(language, "mamba"), "dit": diffusion,
    "decoder": decoder, "encoder": encoder,
}  # fmt: skip


# -- the table ---------------------------------------------------------------------------------------------------------


def error(subject: Subject, target: str, calibration: Arrays, **options: str) -> float:
    """The relative L2 of an artifact's outputs on fresh inputs."""
    from qcompile.run.compare import compare
    from qcompile.run.session import Session

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        if isinstance(subject.model, onnx.ModelProto):
            onnx.save(subject.model, path)
        source = path if path.exists() else Path(subject.model)
        formats = FORMATS.get(target, ())
        artifact = qc.export(source, target, Path(folder) / "out", calibration=calibration, formats=formats, **options)
        return compare(Session(source).run(subject.fresh), artifact.run(subject.fresh))[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(SUBJECTS))
    parser.add_argument("--targets", default=",".join(FORMATS))
    parser.add_argument("--rows", default="1,8,32,128,512,4096")
    parser.add_argument("--draws", type=int, default=1, help="the worst of so many choices of rows is printed")
    args = parser.parse_args()
    counts = [int(count) for count in args.rows.split(",")]
    print(
        f"{'model':16}{'target':12}{'plain':>8}", *(f"{count:>8}" for count in counts), f"{'worst':>8}{'s':>6}", sep=""
    )
    for name in args.models.split(","):
        subject = SUBJECTS[name]()
        for target in args.targets.split(","):
            started = time.perf_counter()
            plain = error(subject, target, subject.rows(32, 0), transforms="none", method="rtn")
            print(f"{name:16}{target:12}{plain:8.4f}", end="", flush=True)
            ratios = []
            for count in counts:
                found = [error(subject, target, subject.rows(count, draw)) for draw in range(args.draws)]
                ratios.append(max(found) / plain)
                print(f"{max(found):8.4f}", end="", flush=True)
            print(f"{max(ratios):8.2f}{time.perf_counter() - started:6.0f}", flush=True)


if __name__ == "__main__":
    main()
