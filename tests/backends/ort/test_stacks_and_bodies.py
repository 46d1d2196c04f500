"""Sites whose weight is a stack of matrices, and sites in the bodies of If, Loop and Scan."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from families import load, stored
from stack_cases import BODIES, STACKS, body_model, stack_model

from qcompile.analysis.forms import Stack, read_site
from qcompile.api import rotate
from qcompile.backends.ort import lowering, runner
from qcompile.compiler import Options, export, plan, prepare
from qcompile.ir.widen import to_double
from qcompile.run.compare import compare
from qcompile.run.data import example_inputs
from qcompile.run.session import evaluate
from qcompile.targets.eligible import quantizable
from qcompile.targets.plans import planned
from qcompile.targets.registry import get_target


def check(model: ir.Model, target: str, scheme: str, folder, **options) -> None:
    """The lowered graph is the rotated one with every planned weight read back from its format."""
    graph = plan(model, Options(target=target, formats=[scheme]))
    inputs = example_inputs(graph)
    exact, weights = graph.clone(), {site.name: site for site in prepare(model).analysis.sites}
    for node, item in planned(graph):
        site = weights[node.name]
        value = exact.graph.initializers[site.weight.name]
        axis = site.axis_out if site.input is None else site.axis_in
        shape = [dim for i, dim in enumerate(site.shape) if i != axis]
        array = np.moveaxis(item.weight.dequantize().numpy().reshape(*shape, site.shape[axis]), -1, axis)
        value.const_value = ir.tensor(np.ascontiguousarray(array))
    found = get_target(target)
    lowering.lower(graph, replace(found, options={**found.options, **options}), folder)
    run = runner.load(folder)
    assert compare(evaluate(exact, inputs), run(inputs))[0] < 1e-6
    assert not {site.weight.name for site in weights.values()} & set(graph.graph.initializers)


@pytest.mark.parametrize("scheme", ["int4-g32", "nvfp4", "int8-channel"])
@pytest.mark.parametrize("name", BODIES)
def test_sites_in_bodies_are_quantized(tmp_path, name, scheme):
    check(body_model(name), "reference", scheme, tmp_path)


@pytest.mark.parametrize("scheme", ["int4-g32", "nvfp4", "int8-channel"])
@pytest.mark.parametrize("name", STACKS)
def test_stacks_are_quantized_matrix_by_matrix(tmp_path, name, scheme):
    check(stack_model(name), "reference", scheme, tmp_path)


@pytest.mark.parametrize("scheme", ["int4-g32", "uint4-g16"])
@pytest.mark.parametrize("name", STACKS)
def test_stacks_become_products_of_onnxruntimes_own(tmp_path, name, scheme):
    check(stack_model(name), "cpu-int4", scheme, tmp_path, accuracy_level=1)
    kinds = {node.op_type for node in ir.load(tmp_path / "model.onnx").graph.all_nodes()}
    assert "MatMulNBits" in kinds
    assert not kinds & {"MatMul", "Einsum"}


@pytest.mark.parametrize("target", ["cpu-int4", "cpu-int8", "blackwell-fp4", "blackwell-mxfp4"])
@pytest.mark.parametrize("name", ["experts batched", "experts gathered"])
def test_stacks_are_stored_in_their_formats(tmp_path, name, target):
    artifact = export(load(stored(name)), Options(target=target), tmp_path / "a")
    stacks = [site for site in artifact.manifest["sites"] if len(site["weight_shape"]) == 3]
    assert len(stacks) == 6
    for site in stacks:
        assert site["bits_per_weight"] < (10 if target == "cpu-int8" else 7)  # 48 codes in groups of 32: two groups
        assert site["lowering"]["stored_bytes"] * 8 == pytest.approx(site["bits_per_weight"] * 4 * 32 * 48)
    assert artifact.manifest["implementation"]["rel_l2"] < 1e-5
    assert artifact.manifest["implementation"]["checked_sites"] >= 6
    assert artifact.manifest["quantization"]["rel_l2"] < 0.5
    graph = ir.load(tmp_path / "a" / "model.onnx").graph
    assert not any(math.prod(value.shape) == 4 * 32 * 48 and value.dtype == ir.DataType.FLOAT
                   for value in graph.initializers.values())  # fmt: skip


@pytest.mark.parametrize("name", STACKS)
def test_what_a_stack_contracts_is_read_from_the_operator(name):
    model = prepare(stack_model(name)).model
    (found,) = [site for site in map(read_site, [n for n in model.graph if n.op_type in ("MatMul", "Einsum")])
                if isinstance(site, Stack)]  # fmt: skip
    assert found.weight.shape[found.axis] == 32


def test_features_that_are_not_last_keep_their_stack(parse):
    prepared = prepare(parse(
        """g (float[2,32,3] x) => (float[4,2,48,3] y) <float[4,1,48,32] k> { y = MatMul(k, x) }"""
    ))  # fmt: skip
    chosen, declined = quantizable(prepared.analysis)
    assert not chosen
    assert [entry.reason for entry in declined] == ["the features that it reads are not along the last axis"]


@pytest.mark.parametrize("name", ["experts batched", "experts gathered"])
def test_activations_in_front_of_a_stack_are_quantized_row_by_row(tmp_path, name):
    artifact = export(load(stored(name)), Options(target="reference", formats=["mxfp4/mxfp4"]), tmp_path / "a")
    stacks = [site for site in artifact.manifest["sites"] if len(site["weight_shape"]) == 3]
    assert [site["format"] for site in stacks] == ["mxfp4"] * 6
    assert artifact.manifest["implementation"]["rel_l2"] < 1e-5
    assert 0 < artifact.manifest["quantization"]["rel_l2"] < 1


@pytest.mark.parametrize("target", ["cpu-int4", "cpu-int8", "blackwell-fp4", "blackwell-mxfp4"])
@pytest.mark.parametrize("name", BODIES)
def test_the_kernels_of_onnxruntime_stand_in_bodies_as_well(tmp_path, name, target):
    artifact = export(body_model(name), Options(target=target), tmp_path / "a")
    assert all(site["format"] != "float" for site in artifact.manifest["sites"])
    assert artifact.manifest["quantization"]["rel_l2"] < 0.5
    graph = ir.load(tmp_path / "a" / "model.onnx").graph
    assert not any(node.op_type in ("MatMul", "Gemm") for node in graph.all_nodes())


def test_a_target_says_what_it_cannot_compute():
    prepared = prepare(body_model("branches"))
    chosen, declined = quantizable(prepared.analysis, get_target("tvm-cpu"))
    assert not any(site.nested for site in chosen)
    (reason,) = {entry.reason for entry in declined}
    assert reason == "it stands in the body of another operator, where target 'tvm-cpu' computes with float weights"


def test_online_transforms_stand_in_bodies():
    for name in BODIES:
        model = to_double(body_model(name))
        inputs = example_inputs(model)
        rotated = rotate(model)
        inner = [n for g in rotated.prepared.model.graph.subgraphs() for n in g if n.domain == "qcompile"]
        assert inner
        assert 32 in [node.size for node in rotated.placement.offline]
        assert compare(evaluate(model, inputs), evaluate(rotated.prepared.model, inputs))[0] < 1e-10
