"""Modules as they are: arguments and results of any form, names, and axes that are open where the module allows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

import qcompile as qc
from qcompile.ir.module_paths import module_path
from qcompile.ir.programs import _give_angles_the_batch
from qcompile.run.session import Session


@dataclass
class Result:
    """Has a part that may be absent, as results of libraries do."""

    hidden: Tensor
    extra: Tensor | None
    pair: tuple[Tensor, Tensor]


class Memory:
    """A cache: an object of no known kind that holds tensors."""

    def __init__(self, rows: list[Tensor]) -> None:
        self.rows, self.scale = rows, 2


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, *, memory: Memory | None = None, double: bool = False
    ) -> Any:
        y = self.linear(x)
        y = y if mask is None else y * mask[..., None]
        if memory is None:
            return Result(y * (2 if double else 1), None, (y.sum(1), x))
        grown = Memory([torch.cat([row, y], 1) for row in memory.rows])
        return {"y": y * memory.scale, "memory": grown}


class Strided(nn.Module):
    """Every fourth step meets a row of a table, of which it takes the first ones or all."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.linear, self.table, self.first = nn.Linear(8, 8), nn.Parameter(torch.randn(4, 8)), first

    def forward(self, x: Tensor) -> Tensor:
        kept = x[:, ::4]
        return self.linear(kept) + (self.table[: kept.shape[1]] if self.first else self.table)


class Pairs(nn.Module):
    """Scores of all pairs from two batches of their own, or of pairs one by one from two batches of one size."""

    def __init__(self, each: bool) -> None:
        super().__init__()
        self.linear, self.each = nn.Linear(8, 8), each

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (self.linear(x) * y).sum(1) if self.each else self.linear(x) @ y.T


def shapes(values: Any) -> dict[str, list[str]]:
    return {value.name: [str(dim) for dim in value.shape] for value in values}


def same(module: nn.Module, source: qc.Source, *tensors: Tensor, **named: Tensor) -> None:
    names = [value.name for value in source.model.graph.inputs]
    given = dict(zip(names, tensors, strict=False)) | named
    found = Session(source.model).run({name: value.numpy() for name, value in given.items()})
    with torch.no_grad():
        result = module(*tensors, **named)
    np.testing.assert_allclose(next(iter(found.values())), result.hidden.numpy(), rtol=1e-5, atol=1e-6)


def test_keywords_name_the_inputs_and_parts_the_outputs() -> None:
    module = Layer()
    call = {"x": torch.randn(2, 5, 8), "mask": torch.ones(2, 5), "double": True}
    source = qc.capture(module, call)
    assert shapes(source.model.graph.inputs) == {"x": ["batch", "x_1", "8"], "mask": ["batch", "x_1"]}
    assert list(shapes(source.model.graph.outputs)) == ["hidden", "pair.0", "pair.1"]
    found = Session(source.model).run({"x": call["x"].numpy(), "mask": call["mask"].numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(found["hidden"], module(**call).hidden.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("example", [(torch.randn(2, 5, 8),), torch.randn(2, 5, 8), [torch.randn(1, 5, 8)]])
def test_positions_and_a_batch_of_one(example: Any) -> None:
    module = Layer()
    source = qc.capture(module, example)
    assert shapes(source.model.graph.inputs) == {"x": ["batch", "x_1", "8"]}
    same(module, source, torch.randn(3, 7, 8))


def test_objects_that_hold_tensors_go_in_and_out() -> None:
    module, rows = Layer(), [torch.randn(2, 3, 8), torch.randn(2, 3, 8)]
    source = qc.capture(module, {"x": torch.randn(2, 5, 8), "memory": Memory(rows)})
    assert list(shapes(source.model.graph.inputs)) == ["x", "memory.rows.0", "memory.rows.1"]
    assert list(shapes(source.model.graph.outputs)) == ["y", "memory.rows.0_out", "memory.rows.1_out"]


def test_names_can_be_given() -> None:
    source = qc.capture(Layer(), (torch.randn(2, 5, 8),), input_names=["tokens"], output_names=["a", "b", "c"])
    assert list(shapes(source.model.graph.inputs)) == ["tokens"]
    assert list(shapes(source.model.graph.outputs)) == ["a", "b", "c"]


@pytest.mark.parametrize("first, expected", [(True, ["batch", "x_1", "8"]), (False, ["batch", "16", "8"])])
def test_an_axis_is_open_only_if_the_module_takes_other_sizes(first: bool, expected: list[str]) -> None:
    source = qc.capture(Strided(first), (torch.randn(2, 16, 8),))
    assert shapes(source.model.graph.inputs) == {"x": expected}


@pytest.mark.parametrize("each, expected", [(True, ["batch", "8"]), (False, ["y_0", "8"])])
def test_axes_that_change_together_have_one_name(each: bool, expected: list[str]) -> None:
    source = qc.capture(Pairs(each), (torch.randn(3, 8), torch.randn(3, 8)))
    assert shapes(source.model.graph.inputs) == {"x": ["batch", "8"], "y": expected}


@pytest.mark.parametrize("dynamic, expected", [
    ({}, ["2", "5", "8"]),
    ({"x": {0: "rows"}}, ["rows", "5", "8"]),
    (({0: torch.export.Dim("rows"), 1: torch.export.Dim("steps")},), ["rows", "steps", "8"]),
    ({"x": [None, "steps", None]}, ["2", "steps", "8"]),
])  # fmt: skip
def test_axes_can_be_given(dynamic: Any, expected: list[str]) -> None:
    source = qc.capture(Layer(), (torch.randn(2, 5, 8),), dynamic_shapes=dynamic)
    assert shapes(source.model.graph.inputs) == {"x": expected}


class Refuses(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


X = torch.randn(2, 5, 8)


@pytest.mark.parametrize("module, options, sentence", [
    (Layer(), {}, r"needs example_inputs: a tuple, or a mapping from the names .* Layer.forward to tensors, such as x"),
    (Layer(), {"example_inputs": {"y": X}}, "Layer does not take these example inputs: TypeError: .*'y'"),
    (Layer(), {"example_inputs": {"x": X[..., :3]}}, "does not take these example inputs: RuntimeError: mat1 and mat2"),
    (Layer(), {"example_inputs": {"x": 3}}, "hold no tensor"),
    (Layer(), {"example_inputs": (X,), "dynamic_shapes": {"z": {0: "n"}}}, "names 'z', but the inputs are x"),
    (Layer(), {"example_inputs": (X,), "dynamic_shapes": {"x": {3: "n"}}}, "axis 3 of 'x', which has 3 axes"),
    (Layer(), {"example_inputs": (X,), "output_names": ["a"]}, "1 output names for 3 outputs: hidden, pair.0, pair.1"),
    (Layer(), {"example_inputs": (X,), "input_names": ["a", "b"]}, "2 input names for 1 inputs: x"),
    (Layer(), {"example_inputs": (X,), "cache": True}, "cache=True needs a module of transformers, and Layer is none"),
    (Refuses(), {"example_inputs": (X,)}, "torch cannot export Refuses: "),
])  # fmt: skip
def test_what_cannot_be_captured_is_said_in_one_sentence(module: nn.Module, options: dict, sentence: str) -> None:
    with pytest.raises(qc.InputError, match=sentence) as refusal:
        qc.capture(module, **options)
    assert "\n" not in str(refusal.value)


def test_the_module_is_exported_by_one_call(tmp_path: Any) -> None:
    example = {"x": torch.randn(2, 5, 8), "mask": torch.ones(2, 5)}
    names = ["h", "s", "same"]
    artifact = qc.export(Layer(), "cpu-int4", tmp_path / "out", example_inputs=example, output_names=names)
    inputs = {"x": np.zeros((3, 4, 8), np.float32), "mask": np.ones((3, 4), np.float32)}
    assert list(artifact.run(inputs)) == names


def test_rotary_angles_get_the_batch_of_what_they_turn() -> None:
    text = """<ir_version: 10, opset_import: ["" : 23]>
        g (float[b, 2, n, 8] x, float[1, n, 4] c) => (float[b, 2, n, 8] y) {
            y = RotaryEmbedding <num_heads = 2> (x, c, c)
        }"""
    model = ir.from_proto(onnx.parser.parse_model(text))
    _give_angles_the_batch(model)
    rng = np.random.default_rng(0)
    x, c = (rng.standard_normal(size).astype(np.float32) for size in ((3, 2, 5, 8), (1, 5, 4)))
    (y,) = Session(model).run({"x": x, "c": c}).values()
    (first,) = Session(model).run({"x": x[1:2], "c": c}).values()
    np.testing.assert_allclose(y[1:2], first, rtol=1e-6)


def test_weights_and_operators_keep_the_paths_of_the_module() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(8, 8), nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    model = qc.capture(Outer(), (torch.randn(2, 8),)).model
    assert sorted(model.graph.initializers) == ["inner.0.bias", "inner.0.weight"]
    assert not [text for node in model.graph for text in node.metadata_props.values() if "qcompile_module." in text]
    assert module_path(next(node for node in model.graph if node.op_type == "Gemm")) == "inner.0"


def test_a_weight_that_has_the_name_of_an_input_gets_another() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.x = nn.Parameter(torch.randn(8, 8))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.x

    model = qc.capture(Named(), (torch.randn(2, 8),)).model
    assert [value.name for value in model.graph.inputs] == ["x"]
    assert list(model.graph.initializers) == ["x_weight"]
