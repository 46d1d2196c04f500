"""Time and memory of `rotate` on large graphs: decoders of many layers, and a model larger than memory.

    python benchmarks/scale.py                      # 5,000 to 20,000 nodes: seconds of processor time
    python benchmarks/scale.py --gigabytes 10       # random weights in external data, made in the temporary folder

Weights of the first are tiny, so that what is timed is the graph; the second prints the largest resident size of the
process that rotates, and its swap is not limited.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx_ir as ir

#: One layer as an exporter spells it: attention with rotary halves in pieces, SiLU in two operators.
LAYER = """
 n{i} = RMSNormalization(h{i}, g{i})
 q{i} = MatMul(n{i}, wq{i})\n k{i} = MatMul(n{i}, wk{i})\n v{i} = MatMul(n{i}, wv{i})
 {heads}
 o{i} = MatMul(c{i}, wo{i})\n r{i} = Add(h{i}, o{i})
 m{i} = RMSNormalization(r{i}, f{i})
 u{i} = MatMul(m{i}, wu{i})\n t{i} = MatMul(m{i}, wt{i})
 e{i} = Sigmoid(t{i})\n s{i} = Mul(t{i}, e{i})\n p{i} = Mul(s{i}, u{i})
 d{i} = MatMul(p{i}, wd{i})\n h{j} = Add(r{i}, d{i})
"""
HEADS = """
 q{i}r = Reshape(q{i}, split)\n q{i}t = Transpose<perm=[0,2,1,3]>(q{i}r)
 k{i}r = Reshape(k{i}, split)\n k{i}t = Transpose<perm=[0,2,3,1]>(k{i}r)
 v{i}r = Reshape(v{i}, split)\n v{i}t = Transpose<perm=[0,2,1,3]>(v{i}r)
 a{i} = MatMul(q{i}t, k{i}t)\n b{i} = Softmax(a{i})\n x{i} = MatMul(b{i}, v{i}t)
 y{i} = Transpose<perm=[0,2,1,3]>(x{i})\n c{i} = Reshape(y{i}, join)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=0.0)
    args = parser.parse_args()
    if args.gigabytes:
        large(args.gigabytes)
        return
    print(f"{'layers':>7} {'nodes':>7} {'CPU s':>7} {'nodes/s':>8} {'rotated':>8}")
    for nodes in (5_000, 10_000, 20_000):
        timed(nodes)


def decoder(layers: int, size: int, wide: int, heads: bool) -> tuple[str, dict[str, tuple[int, ...]]]:
    """The graph of a decoder in textual syntax, and the shapes of its weights."""
    shapes: dict[str, tuple[int, ...]] = {"table": (64, size)}
    lines = ["h0 = Gather(table, ids)"]
    for i in range(layers):
        attention = HEADS.format(i=i) if heads else f"c{i} = Add(q{i}, v{i})"
        lines.append(LAYER.format(i=i, j=i + 1, heads=attention))
        shapes |= {f"w{name}{i}": (size, size) for name in "qkvo"} | {f"{name}{i}": (size,) for name in "gf"}
        shapes |= {f"wu{i}": (size, wide), f"wt{i}": (size, wide), f"wd{i}": (wide, size)}
    lines.append(f"y = MatMul(h{layers}, head)")
    return "\n".join(lines), shapes | {"head": (size, 64)}


def model_of(layers: int, size: int, wide: int, heads: bool = True) -> tuple[ir.Model, dict[str, tuple[int, ...]]]:
    """The decoder without the contents of its weights."""
    import onnx
    import onnx.parser

    body, shapes = decoder(layers, size, wide, heads)
    header = '<ir_version: 10, opset_import: ["" : 23]>'
    signature = "g (int64[batch, length] ids) => (float[batch, length, 64] y)"
    proto = onnx.parser.parse_model(f"{header} {signature} {{ {body} }}")
    constants = {"split": np.array([0, 0, 4, size // 4]), "join": np.array([0, 0, size])} if heads else {}
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in constants.items())
    proto.graph.input.extend(onnx.helper.make_tensor_value_info(name, 1, shape) for name, shape in shapes.items())
    inferred = ir.from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=True))
    for value in list(inferred.graph.inputs)[1:]:
        inferred.graph.inputs.remove(value)
        inferred.graph.register_initializer(_filled(value, shapes[value.name]))
    return inferred, shapes


def _filled(value: ir.Value, shape: tuple[int, ...]) -> ir.Value:
    def make() -> ir.Tensor:
        rng = np.random.default_rng(sum(map(ord, value.name)))
        return ir.tensor(rng.standard_normal(shape, np.float32) / np.float32(np.sqrt(shape[0])), name=value.name)

    value.const_value = ir.LazyTensor(make, dtype=ir.DataType.FLOAT, shape=ir.Shape(shape), name=value.name)
    return value


def timed(nodes: int) -> None:
    """Rotate a graph of about that many nodes, and print its row."""
    from qcompile.api import rotate

    per_layer = 27
    model, _ = model_of(nodes // per_layer, 16, 32)
    ir.external_data.load_to_model(model)
    for value in model.graph.initializers.values():
        value.const_value = ir.tensor(value.const_value.numpy(), name=value.name)
    started = time.process_time()
    rotated = rotate(model)
    seconds = time.process_time() - started
    count, layers = len(model.graph), nodes // per_layer
    print(f"{layers:7} {count:7} {seconds:7.1f} {count / seconds:8.0f} {len(rotated.placement.offline):8}", flush=True)


def large(gigabytes: float) -> None:
    """Rotate a model of that size in a process of its own, and print its time and its largest resident size."""
    size, wide = 4096, 14336
    per_layer = 4 * (4 * size * size + 3 * size * wide)
    layers = max(1, round(gigabytes * 1e9 / per_layer))
    code = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder) / "source.onnx", Path(folder) / "rotated.onnx"
        model, _ = model_of(layers, size, wide, heads=False)
        ir.save(model, source, external_data="source.onnx.data")
        del model
        stored = sum(path.stat().st_size for path in Path(folder).iterdir())
        started = time.perf_counter()
        command = [sys.executable, "-m", "qcompile", "rotate", str(source), "-o", str(made), "-q"]
        done = subprocess.run([sys.executable, "-c", code, *command], check=True, capture_output=True, text=True)
        seconds, peak = time.perf_counter() - started, int(done.stdout.split()[-1]) * 1024
        print(f"{stored / 1e9:.1f} GB in {layers} layers: {seconds:.0f} s, peak {peak / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
