"""The module of an operator: as torch's exporters, TensorFlow's and names of weights say it."""

from __future__ import annotations

import onnx_ir as ir
import pytest
import torch

import qcompile as qc
from qcompile.compiler import prepare
from qcompile.ir.module_paths import SCOPES, module_path


@pytest.mark.parametrize(
    ("name", "scopes", "weight", "path"),
    [
        ("node_linear", "['', 'model', 'model.layers.3', 'model.layers.3.up', 'linear']", "w", "model.layers.3.up"),
        ("node_linear", "['', 'linear']", "model.up.weight", "model.up"),
        ("node_linear", "not a list", "val_2", None),
        ("/model/layers.0/mlp/down_proj/MatMul", None, "onnx::MatMul_31", "model.layers.0.mlp.down_proj"),
        ("model/dense/MatMul", None, "w", "model.dense"),
        ("/MatMul_1", None, "encoder.0.query.weight_transposed", "encoder.0.query"),
        ("first", None, "up", None),
        ("first", "['_empty_nn_module_stack_from_metadata_hook', 'sym_size']", "up", None),
        ("first", None, "onnx::MatMul.3", None),
        ("", None, "", None),
    ],
)
def test_paths(name: str, scopes: str | None, weight: str, path: str | None) -> None:
    node = ir.Node("", "MatMul", [], name=name)
    if scopes is not None:
        node.metadata_props[SCOPES] = scopes
    assert module_path(node, weight) == path


class Block(torch.nn.Module):
    """A norm and two maps, of which the exporter decomposes one with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(16)
        self.up, self.down = torch.nn.Linear(16, 32), torch.nn.Linear(32, 16, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


@pytest.mark.filterwarnings("ignore")
def test_paths_stay_through_all_passes() -> None:
    model = torch.nn.Sequential(Block(), Block())
    prepared = prepare(qc.capture(model, (torch.randn(2, 3, 16),)))
    assert [site.module for site in prepared.analysis.sites] == ["0.up", "0.down", "1.up", "1.down"]
    found = qc.inspect(model, example_inputs=(torch.randn(2, 3, 16),))
    assert [site["module"] for site in found["sites"]] == ["0.up", "0.down", "1.up", "1.down"]
    named = {site["name"]: site["module"] for site in found["sites"]}
    assert {entry["module"] for entry in found["declined"] if entry["site"] in named} == set(named.values())


def test_what_a_function_holds_came_from_the_module_of_its_call() -> None:
    text = """<ir_version: 10, opset_import: ["" : 20, "local" : 1]>
    g (float[2, 8] x) => (float[2, 8] y) { [called] y = local.Linear(x, w) }
    <domain: "local", opset_import: ["" : 20]> Linear (a, b) => (c) { c = MatMul(a, b) }"""
    model = ir.from_onnx_text(text.replace("x) =>", "x, float[8, 8] w) =>"))
    weight = model.graph.inputs.pop()
    weight.const_value = ir.tensor([[0.5] * 8] * 8, dtype=ir.DataType.FLOAT, name="w")
    model.graph.register_initializer(weight)
    (node,) = model.graph
    node.metadata_props[SCOPES] = "['', 'layers.2.up', 'linear']"
    (site,) = prepare(model).analysis.sites
    assert site.module == "layers.2.up"
