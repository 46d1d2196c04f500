"""Decoding one token with a decoder shaped like Llama 3 8B: W4A16 against bfloat16, both as CUDA graphs.

    python benchmarks/gpu_decode.py                     # 4 layers of random weights, on a GPU
    TRITON_INTERPRET=1 python benchmarks/gpu_decode.py --tiny   # checks that it runs, without one

Both programs come from the same graph and the same lowering: one with every product planned in a 4-bit format and
rounded to nearest, one without plans. Queries, keys and values are one product in the graph, and so are gate and up, so
the bfloat16 program has the benefit of large products too. Weights are far larger than the second-level cache.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch

from qcompile.backends.gpu import lowering, runner
from qcompile.formats import compute_scales, quantize
from qcompile.targets.plans import Plan, give_plan
from qcompile.targets.registry import get_target
from qcompile.targets.scheme import Scheme


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder; no vocabulary leaves the table and the head away."""

    hidden: int = 4096
    inner: int = 14336
    heads: int = 32
    groups: int = 8
    layers: int = 4
    past: int = 512
    vocabulary: int = 0

    @property
    def head(self) -> int:
        """Elements of a head."""
        return self.hidden // self.heads


TINY = Shape(256, 512, 4, 2, 2, 8, 0)


class Builder:
    """Writes the graph of one decoding step, opset 23."""

    def __init__(self, shape: Shape, seed: int) -> None:
        self.shape, self.device = shape, "cuda" if torch.cuda.is_available() else "cpu"
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.nodes: list[ir.Node] = []
        self.constants: dict[str, ir.Value] = {}
        self.inputs: list[ir.Value] = []
        self.weights: dict[str, torch.Tensor] = {}

    def input(self, name: str, kind: ir.DataType, *dims: int) -> ir.Value:
        value = ir.Value(name=name, type=ir.TensorType(kind), shape=ir.Shape(dims))
        self.inputs.append(value)
        return value

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
        self.constants[name] = value
        return value

    def op(self, kind: str, *inputs: ir.Value | None, outputs: int = 1, name: str = "", **attributes) -> ir.Value:
        node = ir.Node("", kind, inputs, ir.convenience.convert_attributes(attributes), num_outputs=outputs)
        node.name = name or f"{kind}_{len(self.nodes)}"
        for i, value in enumerate(node.outputs):
            value.name = f"{node.name}_{i}"
        self.nodes.append(node)
        return node.outputs[0] if outputs == 1 else node.outputs

    def product(self, x: ir.Value, name: str, size: int, out: int) -> ir.Value:
        weight = torch.randn(size, out, generator=self.generator, device=self.device).mul_(size**-0.5).bfloat16()
        self.weights[name] = weight.cpu()
        content = self.weights[name].view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return self.op("MatMul", x, self.constant(f"{name}.weight", content), name=name)

    def norm(self, x: ir.Value, name: str) -> ir.Value:
        scale = self.constant(f"{name}.weight", np.ones(self.shape.hidden, ml_dtypes.bfloat16))
        return self.op("RMSNormalization", x, scale, axis=-1, epsilon=1e-5)

    def heads(self, x: ir.Value, count: int) -> ir.Value:
        sizes = self.constant(f"heads_{len(self.nodes)}", np.array([1, 1, count, self.shape.head]))
        return self.op("Transpose", self.op("Reshape", x, sizes), perm=[0, 2, 1, 3])

    def layer(self, x: ir.Value, i: int, cos: ir.Value, sin: ir.Value) -> ir.Value:
        s = self.shape
        kv = s.groups * s.head
        sizes = self.constant(f"l{i}.sizes", np.array([s.hidden, kv, kv]))
        y = self.product(self.norm(x, f"l{i}.norm"), f"l{i}.qkv", s.hidden, s.hidden + 2 * kv)
        q, k, v = self.op("Split", y, sizes, outputs=3, axis=-1)
        q, k, v = self.heads(q, s.heads), self.heads(k, s.groups), self.heads(v, s.groups)
        q, k = self.op("RotaryEmbedding", q, cos, sin), self.op("RotaryEmbedding", k, cos, sin)
        past = [self.input(f"past_{i}_{n}", ir.DataType.BFLOAT16, 1, s.groups, s.past, s.head) for n in "kv"]
        a = self.op("Attention", q, k, v, None, *past, scale=s.head**-0.5)
        back = self.constant(f"l{i}.back", np.array([1, 1, s.hidden]))
        a = self.op("Reshape", self.op("Transpose", a, perm=[0, 2, 1, 3]), back)
        x = self.op("Add", x, self.product(a, f"l{i}.o", s.hidden, s.hidden))
        y = self.product(self.norm(x, f"l{i}.mlp_norm"), f"l{i}.gate_up", s.hidden, 2 * s.inner)
        gate, up = self.op("Split", y, outputs=2, axis=-1, num_outputs=2)
        y = self.op("Mul", self.op("Mul", gate, self.op("Sigmoid", gate)), up)
        return self.op("Add", x, self.product(y, f"l{i}.down", s.inner, s.hidden))

    def model(self) -> ir.Model:
        s = self.shape
        x = self.input("x", ir.DataType.BFLOAT16, 1, 1, s.hidden)
        position = self.op("Cast", self.input("position", ir.DataType.INT64, 1, 1, 1), to=1)
        turns = 500000.0 ** -(np.arange(0, s.head, 2, dtype=np.float32) / s.head)
        angle = self.op("Mul", position, self.constant("frequencies", turns.astype(np.float32)))
        cos, sin = (self.op("Cast", self.op(turn, angle), to=ir.DataType.BFLOAT16) for turn in ("Cos", "Sin"))
        for i in range(s.layers):
            x = self.layer(x, i, cos, sin)
        x = self.norm(x, "final_norm")
        x = self.product(x, "head", s.hidden, s.vocabulary) if s.vocabulary else x
        x.type, x.shape, x.name = ir.TensorType(ir.DataType.BFLOAT16), ir.Shape([1, 1, s.vocabulary or s.hidden]), "y"
        graph = ir.Graph(self.inputs, [x], nodes=self.nodes, initializers=list(self.constants.values()),
                         opset_imports={"": 23}, name="decoder")  # fmt: skip
        return ir.Model(graph, ir_version=10)


def plan_products(model: ir.Model, builder: Builder, scheme: Scheme) -> None:
    """Plan every product, rounded to nearest."""
    for node in (node for node in model.graph if node.name in builder.weights):
        rows = builder.weights[node.name].to(builder.device).T.float().contiguous()
        q = quantize(rows, scheme.weight, scales=compute_scales(rows, scheme.weight))
        parts = {key: getattr(q, key) for key in ("codes", "scales", "zero_points", "tensor_scale")}
        parts = {key: None if value is None else value.cpu() for key, value in parts.items()}
        give_plan(node, Plan(scheme, type(q)(q.format, q.shape, q.axis, **parts)))


def program(model: ir.Model, target: str, folder: Path, dtype: torch.dtype):
    """The generated program, loaded."""
    lowering.lower(model, get_target(target), folder)
    return runner.import_program(folder).load(folder, None, dtype)


def inputs_of(loaded, builder: Builder) -> dict[str, torch.Tensor]:
    """Random activations and a past."""
    made = {}
    for value in builder.inputs:
        shape = [int(d) for d in value.shape]
        integer = value.dtype is ir.DataType.INT64
        made[value.name] = (
            torch.full(shape, builder.shape.past) if integer else torch.randn(shape, dtype=torch.bfloat16)
        ).to(loaded.device)
    return made


def milliseconds(loaded, inputs: dict[str, torch.Tensor], runs: int = 100) -> float:
    """The median time of a replay."""
    replay = loaded.capture(inputs)
    times = []
    for _ in range(runs + 5):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        replay.graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return float(np.median(times[5:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="small sizes")
    parser.add_argument("--vocabulary", type=int, default=0, help="with a head of so many tokens (128256 for Llama 3)")
    parser.add_argument("--formats", nargs="+", default=["int4-g128"])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    base = TINY if options.tiny else Shape()
    shape = Shape(**{**base.__dict__, "vocabulary": options.vocabulary})
    start = time.time()
    builder = Builder(shape, seed=0)
    model = builder.model()
    print(f"graph {time.time() - start:.1f} s", flush=True)
    results: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        reference, inputs = None, {}
        for name in ["bfloat16", *options.formats]:
            folder = Path(scratch) / name
            folder.mkdir()
            target = "hopper-int4" if "fp4" not in name else "hopper-fp4"
            graph = model.clone()
            if name != "bfloat16":
                plan_products(graph, builder, Scheme.parse(name))
            loaded = program(graph, target, folder, torch.bfloat16)
            inputs = inputs or inputs_of(loaded, builder)
            y = loaded(inputs)["y"].float()
            reference = y if reference is None else reference
            error = float((y - reference).norm() / reference.norm())
            took = milliseconds(loaded, inputs) if loaded.device.type == "cuda" else float("nan")
            results[name] = took
            ratio = results["bfloat16"] / took
            print(f"{name:12s} {took * 1000:8.1f} us a token, {ratio:5.2f}x, output differs by {error:.3f}"
                  f" ({time.time() - start:.0f} s)", flush=True)  # fmt: skip
            del loaded
    if options.json:
        options.json.write_text(json.dumps({"shape": shape.__dict__, "milliseconds": results}, indent=1))


if __name__ == "__main__":
    main()
