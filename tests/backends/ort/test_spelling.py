"""Artifacts as onnxruntime optimizes them: they lose no fusion that it makes of their sources, and few bytes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from blocks import Attention
from decoders import Decoder
from encoders import PostNormEncoder

import qcompile as qc
from qcompile.ir.transform_nodes import is_transform, read_transform

ZOO = Path(__file__).parents[3] / "examples" / "zoo"
NORMS = ("LayerNormalization", "SkipLayerNormalization", "SimplifiedLayerNormalization", "RMSNormalization",
         "SkipSimplifiedLayerNormalization")  # fmt: skip
FUSED = ("Attention", "MultiHeadAttention", "RotaryEmbedding", "Gelu", "BiasGelu", "FastGelu", "QuickGelu", "FusedConv")


def optimized(path: Path, folder: Path) -> onnx.GraphProto:
    """The graph that onnxruntime runs."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(folder / "optimized.onnx"), 3
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "optimized.onnx").graph


def fusions(graph: onnx.GraphProto) -> Counter[str]:
    """Fused operators by kind; a norm is one whether a sum is fused with it or stands in front of it."""
    kinds = Counter(node.op_type for node in graph.node)
    found = Counter({kind: kinds[kind] for kind in FUSED})
    found["norms"] = sum(kinds[kind] for kind in NORMS)
    found["products of activations"] = sum(_multiplies(graph, node) for node in graph.node)
    return found


def _multiplies(graph: onnx.GraphProto, node: onnx.NodeProto) -> bool:
    constants = {tensor.name for tensor in graph.initializer}
    return node.op_type == "FusedMatMul" and constants.isdisjoint(node.input)


def small(name: str, folder: Path) -> Path:
    """A network of the shape of BERT or of Llama, in operators that know no norm over a root of squares."""
    module = {"encoder": PostNormEncoder, "decoder": lambda: Decoder(lambda: Attention(rope=True))}[name]()
    path = folder / f"{name}.onnx"
    ids = (torch.zeros(2, 8, dtype=torch.int64),)
    torch.onnx.export(module.eval(), ids, dynamo=True, opset_version=18, verbose=False).save(path, external_data=False)
    return path


@pytest.mark.parametrize("target", ["cpu-int8", "cpu-int4"])
@pytest.mark.parametrize("name", ["language_model", "mamba", "dit", "encoder", "decoder"])
def test_no_fusion_of_the_source_is_lost(name: str, target: str, tmp_path: Path) -> None:
    source = ZOO / f"{name}.onnx" if (ZOO / f"{name}.onnx").is_file() else small(name, tmp_path)
    qc.export(source, target, tmp_path / "artifact", transforms="none", method="rtn")
    want = fusions(optimized(source, tmp_path))
    have = fusions(optimized(tmp_path / "artifact" / "model.onnx", tmp_path))
    assert have["norms"] >= 4
    assert not {kind: (want[kind], have[kind]) for kind in want if have[kind] < want[kind]}


SPELLED = """
<ir_version: 8, opset_import: ["" : 14]>
g (float[n, 32] x) => (float[n, 32] y)
<float[32, 32] w, float[32] scale, float[32] shift, float two = {2.0}, float epsilon = {1e-5}>
{
  product = MatMul(x, w)
  sum = Add(product, x)
  mean = ReduceMean <axes = [-1]> (sum)
  centered = Sub(sum, mean)
  squares = Pow(centered, two)
  variance = ReduceMean <axes = [-1]> (squares)
  positive = Add(variance, epsilon)
  root = Sqrt(positive)
  normed = Div(centered, root)
  scaled = Mul(normed, scale)
  y = Add(scaled, shift)
}
"""


def test_old_graphs_have_norms_and_sums_apart(tmp_path: Path) -> None:
    """Before version 17 the standard has no norm; the sum in front of it is no ``Add``, with which it would be slow."""
    rng, model = np.random.default_rng(0), onnx.parser.parse_model(SPELLED)
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
        for name, shape in (("w", (32, 32)), ("scale", (32,)), ("shift", (32,)))
    )
    onnx.save(model, tmp_path / "old.onnx")
    artifact = qc.export(tmp_path / "old.onnx", "cpu-int8", tmp_path / "artifact", transforms="none")
    kinds = Counter(node.op_type for node in optimized(tmp_path / "artifact" / "model.onnx", tmp_path).node)
    assert kinds["LayerNormalization"] == kinds["Sum"] == 1
    assert not kinds["SkipLayerNormalization"]
    assert not kinds["Sqrt"]
    x = {"x": rng.standard_normal((5, 32)).astype(np.float32)}
    want = onnxruntime.InferenceSession(tmp_path / "old.onnx").run(None, x)[0]
    assert np.linalg.norm(artifact.run(x)["y"] - want) < 0.02 * np.linalg.norm(want)


BIASED = """
<ir_version: 8, opset_import: ["" : 20]>
g (float[n, 32] x) => (float[n, 32] y)
<float[32, 64] w, float[64] b, float[32, 64] v, float[64] c, float[64, 32] u, float[32] d>
{
  first = MatMul(x, w)
  h = Add(first, b)
  activated = Gelu(h)
  second = MatMul(x, v)
  gate = Add(c, second)
  gated = Mul(activated, gate)
  last = MatMul(gated, u)
  y = Add(last, d)
}
"""


def test_products_of_a_whole_tensor_are_one_operator_with_their_biases(tmp_path: Path) -> None:
    """Where a Gelu reads the sum, onnxruntime fuses these two; siblings share the codes of their input."""
    rng, model = np.random.default_rng(0), onnx.parser.parse_model(BIASED)
    shapes = {"w": (32, 64), "b": (64,), "v": (32, 64), "c": (64,), "u": (64, 32), "d": (32,)}
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
        for name, shape in shapes.items()
    )
    onnx.save(model, tmp_path / "biased.onnx")
    every = {"*": "int8-channel/uint8-tensor"}
    artifact = qc.export(
        tmp_path / "biased.onnx", "cpu-int8", tmp_path / "artifact", transforms="none", format_for=every
    )
    kinds = Counter(node.op_type for node in optimized(tmp_path / "artifact" / "model.onnx", tmp_path).node)
    assert kinds["DynamicQuantizeMatMul"] == kinds["BiasGelu"] == kinds["DynamicQuantizeLinear"] == 1, kinds
    assert kinds["MatMulIntegerToFloat"] == 2
    assert not kinds["Add"]
    x = {"x": rng.standard_normal((5, 32)).astype(np.float32)}
    want = onnxruntime.InferenceSession(tmp_path / "biased.onnx").run(None, x)[0]
    assert np.linalg.norm(artifact.run(x)["y"] - want) < 0.02 * np.linalg.norm(want)
    assert artifact.manifest["implementation"]["rel_l2"] < 1e-5


def test_files_keep_no_traces_of_exporters(tmp_path: Path) -> None:
    source = small("encoder", tmp_path)
    assert b"stack_trace" in source.read_bytes()
    qc.export(source, "cpu-int8", tmp_path / "artifact", transforms="none", method="rtn")
    written = (tmp_path / "artifact" / "model.onnx").read_bytes()
    assert b"stack_trace" not in written
    assert b"name_scopes" in written
    nodes = onnx.load_from_string(written).graph.node
    scopes = {prop.value for node in nodes for prop in node.metadata_props if "scopes" in prop.key}
    assert all(text.count(",") == 1 for text in scopes)  # the innermost module of each operator


def test_a_layer_that_runs_twice_is_stored_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Sequential(torch.nn.LayerNorm(32), torch.nn.Linear(32, 32), torch.nn.Tanh())
    module = torch.nn.Sequential(layer, layer, layer).eval()
    program = torch.onnx.export(module, (torch.randn(4, 32),), dynamo=True, opset_version=18, verbose=False)
    program.save(tmp_path / "twice.onnx", external_data=False)
    qc.export(tmp_path / "twice.onnx", "cpu-int8", tmp_path / "artifact", transforms="none", method="rtn")
    stored = onnx.load(tmp_path / "artifact" / "model.onnx").graph.initializer
    contents = [tensor.raw_data for tensor in stored if tensor.dims]
    assert sum(len(content) == 32 * 32 for content in contents) == 1
    assert len(contents) == len(set(contents))
    x = {"input": np.random.default_rng(0).standard_normal((4, 32)).astype(np.float32)}
    plain, exact = (_runs(tmp_path / "artifact" / "model.onnx", x, mode) for mode in ("0", "1"))
    np.testing.assert_array_equal(plain, exact)


def _runs(path: Path, x: dict[str, np.ndarray], exact: str) -> np.ndarray:
    """The result as the runner loads a graph where products of bytes are added up in 16 bits, or elsewhere."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", exact)
    return onnxruntime.InferenceSession(path, options).run(None, x)[0]


def test_a_tied_head_takes_no_bytes(tmp_path: Path) -> None:
    """Its weight is the table, turned when the model is loaded."""
    torch.manual_seed(0)
    module = TiedPair().eval()
    ids = torch.arange(24).reshape(2, 12)
    torch.onnx.export(module, (ids,), dynamo=True, verbose=False).save(tmp_path / "tied.onnx", external_data=False)
    artifact = qc.export(tmp_path / "tied.onnx", "cpu-int8", tmp_path / "artifact", transforms="none", method="rtn")
    graph = onnx.load(tmp_path / "artifact" / "model.onnx").graph
    assert (
        sum(np.prod(tensor.dims) for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.INT8) == 4096
    )
    (have,), want = artifact.run({graph.input[0].name: ids.numpy()}).values(), module(ids).detach().numpy()
    assert np.linalg.norm(have - want) < 0.02 * np.linalg.norm(want)
    assert not any(
        node.op_type == "Transpose" for node in optimized(tmp_path / "artifact" / "model.onnx", tmp_path).node
    )


class TiedPair(torch.nn.Module):
    """A table and a head that is the table again."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(128, 32)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.table(ids)
        return torch.tanh(x) @ self.table.weight.T


def test_matrices_of_transforms_take_half_the_bytes(tmp_path: Path) -> None:
    """Those of blocks are stored in float16, which onnxruntime widens once, as it loads them; they are read back."""
    data = {"calibration": ZOO / "dit_calibration.npz", "formats": ["int4-g32/int4-g32"], "method": "rtn"}
    made = qc.export(ZOO / "dit.onnx", "reference", tmp_path / "artifact", transforms="wush", **data)
    stored = onnx.load(tmp_path / "artifact" / "model.onnx")
    halves = {tensor.name for tensor in stored.graph.initializer if tensor.name.startswith("transform_")}
    assert halves
    assert all(name.endswith("_half") for name in halves)
    assert "Cast" not in [node.op_type for node in optimized(tmp_path / "artifact" / "model.onnx", tmp_path).node
                          if set(node.input) & halves]  # fmt: skip
    assert made.manifest["equivalence"]["rel_l2"] < 1e-5
    online = [node for node in ir.load(tmp_path / "artifact" / "model.onnx").graph if is_transform(node)]
    assert len(online) == len(made.manifest["online_transforms"])
    for node in online:
        structure = read_transform(node)
        assert structure is not None
        assert structure.steps[0][2].dtype == np.float32
