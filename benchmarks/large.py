"""Exports of models of real size, with random weights made here: seconds, and memory of the GPU and the host.

    python benchmarks/large.py llama-8b --target hopper-int4 --layers 4 8 16 32 --device cuda
    python benchmarks/large.py smollm2 --target blackwell-mxfp4 --tokens 32 512 --evaluation 16 512
    python benchmarks/large.py llama-8b --target cpu-int4 --method rtn --tokens 0 0      # beside a copy of the file

Every export runs in a process of its own. Decoders are written as ONNX with weights in bfloat16 (``smollm2``: float32)
beside the graph; ``mamba2-1.3b`` and ``dit-xl`` are modules of torch. Data are texts in which every token has four
followers, or noise for diffusion. The last lines say how straight seconds are in layers.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

#: Features, features within, heads, heads of keys, tokens, layers, whether the head is the table.
DECODERS = {
    "llama-8b": (4096, 14336, 32, 8, 128256, 32, False), "smollm2": (576, 1536, 9, 3, 49152, 30, True),
    "llama-tiny": (256, 512, 4, 2, 512, 2, False),
}  # fmt: skip
MODULES = ("mamba2-1.3b", "dit-xl")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=(*DECODERS, *MODULES))
    parser.add_argument("--target", default="hopper-int4")
    parser.add_argument("--layers", type=int, nargs="*", default=[0], help="0: all")
    parser.add_argument("--tokens", type=int, nargs=2, default=(128, 2048), help="rows and length to calibrate on")
    parser.add_argument("--evaluation", type=int, nargs=2, help="the same to measure on; else rows held out")
    parser.add_argument("--method", default="gptq")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--memory", nargs="*", default=[], metavar="PLACE=BYTES")
    parser.add_argument("--keep", type=Path, help="make the models in this folder, and leave them")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child is not None:
        print(json.dumps(exported(args, args.child)))
        return
    print(f"{'layers':>6} {'params':>8} {'seconds':>8} {'GPU GiB':>8} {'host GiB':>9}  longest steps")
    rows = []
    for layers in args.layers:
        rows.append(row := in_process(layers))
        steps = sorted(row["steps"].items(), key=lambda item: -item[1])[:6]
        said = ", ".join(f"{name} {seconds:.0f}" for name, seconds in steps)
        print(f"{row['layers']:6} {row['parameters'] / 1e9:7.2f}B {row['seconds']:8.1f} {row['device'] / 2**30:8.1f} "
              f"{row['host'] / 2**30:9.1f}  {said}", flush=True)  # fmt: skip
        if "copy" in row:
            print(f"       copying the file takes {row['copy']:.1f} s: {row['seconds'] / row['copy']:.1f}x of it")
    if len(rows) > 2:
        straightness([row["layers"] for row in rows], [row["seconds"] for row in rows])


def in_process(layers: int) -> dict[str, Any]:
    done = subprocess.run([sys.executable, *sys.argv, "--child", str(layers)], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"the export of {layers} layers failed")
    return json.loads(done.stdout.splitlines()[-1])


def straightness(layers: list[int], seconds: list[float]) -> None:
    slope, start = np.polyfit(layers, seconds, 1)
    off = max(abs(s / (start + slope * n) - 1) for n, s in zip(layers, seconds, strict=True))
    print(f"{start:.1f} s and {slope:.2f} s a layer; no point is off that line by more than {off:.1%}")


def exported(args: argparse.Namespace, layers: int) -> dict[str, Any]:
    import torch

    import qcompile as qc

    with tempfile.TemporaryDirectory(prefix="qcompile-large-") as scratch:
        folder = args.keep or Path(scratch)
        options: dict[str, Any] = {"method": args.method, "device": args.device, "overwrite": True}
        if args.memory:
            options["memory"] = dict(pair.split("=", 1) for pair in args.memory)
        model, count, layers, extra = made(args.model, layers, folder, args.tokens, args.evaluation)
        options |= extra
        start = time.time()

        def said(step: str, done: int, total: int) -> None:
            if done >= total:
                print(f"{time.time() - start:7.1f} s {step}", file=sys.stderr, flush=True)

        artifact = qc.export(model, args.target, Path(scratch) / "artifact", progress=said, **options)
        seconds = time.time() - start
        device = torch.cuda.max_memory_allocated() if args.device == "cuda" else 0
        found = {
            "layers": layers, "parameters": count, "seconds": seconds, "steps": artifact.effort["steps"],
            "device": device, "host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }  # fmt: skip
        if not args.tokens[0] and isinstance(model, Path):
            start = time.time()
            shutil.copy(model.with_name("model.onnx.data"), Path(scratch) / "copy")
            found["copy"] = time.time() - start
        return found


def made(name: str, layers: int, folder: Path, tokens: Any, evaluation: Any) -> tuple[Any, int, int, dict[str, Any]]:
    """The model, its parameters and layers, and the options that it needs."""
    if name in DECODERS:
        *shape, full, tied = DECODERS[name]
        path, count = decoder(folder / f"{name}-{layers or full}", shape, layers or full, tied, wide=name == "smollm2")
        data = {"calibration": tokens, "evaluation": evaluation}
        found = {key: {"input_ids": texts(shape[-1], *size)} for key, size in data.items() if size and size[0]}
        return path, count, layers or full, found
    module, example, data, depth = modules(name, layers, tokens)
    count = sum(parameter.numel() for parameter in module.parameters())
    return module, count, depth, {"example_inputs": example, "calibration": data}


def texts(vocabulary: int, rows: int, length: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    followers, found = rng.integers(0, vocabulary, (vocabulary, 4)), [rng.integers(0, vocabulary, rows)]
    for _ in range(length - 1):
        found.append(followers[found[-1], rng.integers(0, 4, rows)])
    return np.stack(found, 1)


# -- decoders, as ONNX -------------------------------------------------------------------------------------------------


def decoder(folder: Path, shape: Any, layers: int, tied: bool, wide: bool) -> tuple[Path, int]:
    """A decoder with some loud channels, as real ones have; its file, and how many parameters it has."""
    import torch

    path = folder / "model.onnx"
    writer = Writer(folder, torch.float32 if wide else torch.bfloat16)
    hidden, inner, heads, pairs, vocabulary = shape
    size, device = hidden // heads, "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    loud = torch.ones(hidden, device=device)
    loud[torch.randperm(hidden)[: max(hidden // 100, 1)]] = 8

    def matrix(name: str, rows: int, columns: int, scale: float = 1.0) -> str:
        return writer.weight(name, torch.randn(rows, columns, device=device) * (scale / rows**0.5))

    def norm(x: str, name: str, last: bool = False) -> str:
        scale = torch.ones(hidden) if last else 1 + 0.1 * torch.randn(hidden)
        return writer.node("RMSNormalization", [x, writer.weight(f"{name}.scale", scale)], name, axis=-1, epsilon=1e-5)

    def in_heads(x: str, form: str, name: str) -> str:
        return writer.node(
            "Transpose", [writer.node("Reshape", [x, form], f"{name}.r")], f"{name}.t", perm=[0, 2, 1, 3]
        )

    def turned(x: str, name: str) -> str:
        first, second = writer.nodes("Split", [x], [f"{name}.a", f"{name}.b"], axis=-1, num_outputs=2)
        swapped = writer.node("Concat", [writer.node("Neg", [second], f"{name}.n"), first], f"{name}.w", axis=-1)
        terms = [writer.node("Mul", [y, angle], f"{name}.{angle}") for y, angle in ((x, "cos"), (swapped, "sin"))]
        return writer.node("Add", terms, f"{name}.o")

    table = writer.weight("table", torch.randn(vocabulary, hidden, device=device) * 0.5 * loud)
    writer.angles(size)
    for name, form in (("queries", [0, 0, heads, size]), ("keys", [0, 0, pairs, size]), ("joined", [0, 0, hidden])):
        writer.constant(name, np.array(form, np.int64))
    x = writer.node("Gather", [table, "input_ids"], "x")
    for i in range(layers):
        own = f"layers.{i}"
        a = norm(x, f"{own}.norm1")
        three = (("q", hidden, "queries"), ("k", pairs * size, "keys"), ("v", pairs * size, "keys"))
        made = [(f"{own}.{name}", matrix(f"{own}.w{name}", hidden, wide), form) for name, wide, form in three]
        q, k, v = (in_heads(writer.node("MatMul", [a, weight], name), form, name) for name, weight, form in made)
        mixed = writer.node("Attention", [turned(q, f"{own}.q"), turned(k, f"{own}.k"), v], f"{own}.mixed", is_causal=1)
        flat = writer.node("Transpose", [mixed], f"{own}.mt", perm=[0, 2, 1, 3])
        flat = writer.node("Reshape", [flat, "joined"], f"{own}.mr")
        y = writer.node("MatMul", [flat, matrix(f"{own}.wo", hidden, hidden, 0.5)], f"{own}.o")
        x = writer.node("Add", [x, y], f"{own}.x1")
        a = norm(x, f"{own}.norm2")
        both = [matrix(f"{own}.{name}", hidden, inner) for name in ("gate", "up")]
        gate, up = (writer.node("MatMul", [a, weight], f"{weight}.y") for weight in both)
        active = writer.node("Mul", [gate, writer.node("Sigmoid", [gate], f"{own}.s")], f"{own}.active")
        y = writer.node("Mul", [active, up], f"{own}.wide")
        x = writer.node("Add", [x, writer.node("MatMul", [y, matrix(f"{own}.down", inner, hidden, 0.5)], f"{own}.d")],
                        f"{own}.x2")  # fmt: skip
    head = writer.node("Transpose", [table], "head", perm=[1, 0]) if tied else matrix("head", hidden, vocabulary)
    writer.node("MatMul", [norm(x, "norm", last=True), head], "logits")
    return writer.finish(path, vocabulary)


class Writer:
    """A graph of ONNX whose weights go to a file as they are made."""

    def __init__(self, folder: Path, dtype: Any) -> None:
        import onnx
        import torch

        folder.mkdir(parents=True, exist_ok=True)
        self.onnx, self.dtype, self.count = onnx, dtype, 0
        self.kind = onnx.TensorProto.FLOAT if dtype is torch.float32 else onnx.TensorProto.BFLOAT16
        self.data = (folder / "model.onnx.data").open("wb")
        self.made: list[Any] = []
        self.tensors: list[Any] = []

    def weight(self, name: str, values: Any) -> str:
        import torch

        stored = values.to(self.dtype)
        start = self.data.tell() + -self.data.tell() % 4096
        self.data.seek(start)
        stored.contiguous().view(torch.uint8).cpu().numpy().tofile(self.data)
        tensor = self.onnx.TensorProto(name=name, data_type=self.kind, dims=stored.shape, data_location=1)
        for key, value in (("location", "model.onnx.data"), ("offset", start), ("length", stored.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        self.tensors.append(tensor)
        self.count += stored.numel()
        return name

    def constant(self, name: str, array: np.ndarray) -> str:
        self.tensors.append(self.onnx.numpy_helper.from_array(array, name))
        return name

    def node(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        return self.nodes(op, inputs, [output], **attributes)[0]

    def nodes(self, op: str, inputs: list[str], outputs: list[str], **attributes: Any) -> list[str]:
        self.made.append(self.onnx.helper.make_node(op, inputs, outputs, name=outputs[0], **attributes))
        return outputs

    def angles(self, size: int) -> None:
        """``cos`` and ``sin`` of the positions."""
        for name, value in (("zero", np.array(0)), ("one", np.array(1)), ("second", np.array([1]))):
            self.constant(name, value.astype(np.int64))
        self.constant("frequencies", (1e-4 ** (np.arange(0, size, 2) / size)).astype(np.float32)[None])
        length = self.node("Gather", [self.node("Shape", ["input_ids"], "shape"), "one"], "length")
        places = self.node("Range", ["zero", length, "one"], "places")
        column = self.node("Cast", [self.node("Unsqueeze", [places, "second"], "column")], "column.f", to=1)
        angles = self.node("MatMul", [column, "frequencies"], "angles")
        for name in ("cos", "sin"):
            half = self.node("Cast", [self.node(name.title(), [angles], f"{name}.f")], f"{name}.half", to=self.kind)
            self.node("Concat", [half, half], name, axis=-1)

    def finish(self, path: Path, vocabulary: int) -> tuple[Path, int]:
        self.data.close()
        info = self.onnx.helper.make_tensor_value_info
        graph = self.onnx.helper.make_graph(
            self.made, "decoder", [info("input_ids", self.onnx.TensorProto.INT64, ["batch", "length"])],
            [info("logits", self.kind, ["batch", "length", vocabulary])], self.tensors,
        )  # fmt: skip
        model = self.onnx.helper.make_model(graph, opset_imports=[self.onnx.helper.make_opsetid("", 23)], ir_version=11)
        path.write_bytes(model.SerializeToString())
        return path, self.count


# -- modules -----------------------------------------------------------------------------------------------------------


def modules(name: str, layers: int, tokens: Any) -> tuple[Any, Any, Any, int]:
    """A module, example inputs, calibration data, and how many layers it has."""
    import torch

    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    if name == "dit-xl":
        sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "zoo"))
        from dit import DiT, Shape

        shape = Shape(image=32, channels=4, patch=2, classes=1000, hidden=1152, layers=layers or 28, heads=16,
                      intermediate=4608)  # fmt: skip
        rows = tokens[0]
        batch = (torch.randn(2, 4, 32, 32), torch.rand(2), torch.zeros(2, dtype=torch.int64))
        data = [rng.standard_normal((rows, 4, 32, 32)).astype(np.float32), rng.random(rows).astype(np.float32),
                rng.integers(0, 1000, rows)]  # fmt: skip
        module = DiT(shape).eval()
        for parameter in module.parameters():  # those that begin as zeros would leave nothing to do
            torch.nn.init.normal_(parameter, std=0.02)
        return module, batch, named(module, data), shape.layers
    depth, vocabulary = layers or 48, 50288
    module = mamba2(depth, 2048, vocabulary).eval()
    data = [texts(vocabulary, *tokens)]
    return module, (torch.zeros(2, 64, dtype=torch.int64),), named(module, data), depth


def named(module: Any, arrays: list[np.ndarray]) -> dict[str, np.ndarray]:
    import inspect

    return dict(zip(inspect.signature(module.forward).parameters, arrays, strict=False))


def mamba2(layers: int, hidden: int, vocabulary: int) -> Any:
    import torch
    import torch.nn.functional as F
    from torch import nn

    import qcompile as qc

    inner, state, width = 2 * hidden, 128, 64

    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = inner // width
            self.norm = nn.RMSNorm(hidden)
            self.into = nn.Linear(hidden, 2 * inner + 2 * state + self.heads, bias=False)
            self.conv = nn.Conv1d(inner + 2 * state, inner + 2 * state, 4, padding=3, groups=inner + 2 * state)
            self.step = nn.Parameter(torch.rand(self.heads) - 4)
            self.rate, self.skip = nn.Parameter(torch.rand(self.heads)), nn.Parameter(torch.ones(self.heads))
            self.gated, self.out = nn.RMSNorm(inner), nn.Linear(inner, hidden, bias=False)

        def forward(self, x: Any) -> Any:
            z, xbc, dt = self.into(self.norm(x)).split([inner, inner + 2 * state, self.heads], -1)
            xbc = F.silu(self.conv(xbc.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2))
            u, b, c = xbc.split([inner, state, state], -1)
            delta = F.softplus(dt + self.step)
            u = u.unflatten(-1, (self.heads, width))
            y = qc.state_space_duality(u, delta, -torch.exp(self.rate), b.unsqueeze(2), c.unsqueeze(2), self.skip)
            return x + self.out(self.gated(y.flatten(2) * F.silu(z)))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(vocabulary, hidden)
            self.layers = nn.ModuleList(Mixer() for _ in range(layers))
            self.norm, self.head = nn.RMSNorm(hidden), nn.Linear(hidden, vocabulary, bias=False)

        def forward(self, input_ids: Any) -> Any:
            x = self.table(input_ids)
            for layer in self.layers:
                x = layer(x)
            return self.head(self.norm(x))

    return Model()


if __name__ == "__main__":
    main()
