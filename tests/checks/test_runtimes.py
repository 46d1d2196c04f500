"""Runtimes agree site by site, and what shows it notices one that does not."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from qcompile.checks.runtimes import agreement, between_sites, observe, picking, sites_alone, tapped
from qcompile.choice.export_options import Options
from qcompile.compiler import plan
from qcompile.formats import get_format
from qcompile.run.data import example_inputs
from qcompile.targets.registry import get_target, lowered_to

ZOO = Path(__file__).parents[2] / "examples" / "zoo"
ROUNDING = 1e-6  # relative L2 of a float32 sum of a few hundred terms against another

RUNTIMES = {
    "onnxruntime": ("ort", "reference", "onnxruntime"),
    "Triton": ("gpu", "blackwell-fp4", "triton"),
    "TVM": ("relax", "tvm-cpu", "tvm"),
}


@cache
def planned(name: str, scheme: str):
    """A shipped model, planned, and what the reference interpreter gives for every site."""
    model = plan(ZOO / f"{name}.onnx", Options("reference", formats=(scheme,), method="rtn"))
    inputs = example_inputs(model, sizes={"batch": 1, "length": 6})
    with lowered_to(get_target("reference"), tapped(model)) as run:
        return model, inputs | run(inputs)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("cut", [sites_alone, between_sites])
@pytest.mark.parametrize(
    "shipped",
    ["language_model", pytest.param("mamba", marks=pytest.mark.slow), pytest.param("dit", marks=pytest.mark.slow)],
)
def test_the_shipped_models_have_equal_codes(shipped: str, cut, runtime: str) -> None:
    backend, name, package = RUNTIMES[runtime]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    model, values = planned(shipped, "nvfp4/nvfp4")
    case = cut(model, values, **({"count": 8} if cut is sites_alone else {}))
    target = get_target(name)
    quick = replace(target, options={**target.options, "ahead": False})
    found = agreement(case, observe(case, quick, backend))
    assert found.differing == 0
    assert found.rel_l2 < ROUNDING
    assert found.codes > 1000


def test_a_wrong_code_is_noticed() -> None:
    model, values = planned("language_model", "nvfp4/nvfp4")
    case = sites_alone(model, values, count=2)
    outputs = dict(case.results | case.codes)
    assert agreement(case, outputs).differing == 0
    name = next(iter(case.codes))
    outputs[name] = outputs[name].copy()
    outputs[name].flat[np.flatnonzero(outputs[name])[0]] *= 1.25  # one level of E2M1 away at most
    outputs[next(iter(case.results))] = np.zeros_like(next(iter(case.results.values())))
    found = agreement(case, outputs)
    assert (found.differing, found.rel_l2) == (1, 1.0)


def test_other_inputs_give_other_codes() -> None:
    """The codes are those of the values that were given, not a constant of the graph."""
    model, values = planned("language_model", "nvfp4/nvfp4")
    case = sites_alone(model, values, features=16, count=2)
    name = next(iter(case.inputs))
    moved = replace(case, inputs=case.inputs | {name: case.inputs[name] * 1.5})
    found = agreement(moved, observe(moved, get_target("reference"), "ort"))
    assert 0 < found.differing <= found.codes
    assert all(v.shape[-1] == 16 for v in case.codes.values())


@pytest.mark.parametrize("name", ["int4-g32", "uint4-g32", "int8-channel", "nvfp4", "mxfp4", "mxfp8-e4m3", "nf4-g64"])
def test_picking_weights_are_exact(name: str) -> None:
    features = np.array([0, 3, 69])
    assert torch.equal(picking(get_format(name), features, 70).dequantize(), torch.eye(70)[features])


BRANCHES = """
    merged (int64[batch, length] ids, float[batch, length, 64] past, bool first) => (float[batch, length, 96] y)
    <float[96, 64] table, float[64, 64] up, float[64, 96] head> {
        h = Gather(table, ids)
        mixed = If (first) <
            then_branch = prefill () => (a) { a = MatMul(h, up) },
            else_branch = decode () => (c) { b = MatMul(h, up)  c = Add(b, past) }
        >
        y = MatMul(mixed, head)
    }
"""
LOOPS = """
    steps (float[batch, 64] x, int64 times) => (float[batch, 64] y) <float[64, 64] up, float[64, 64] again> {
        h = MatMul(x, up)
        last = Loop (times, "", h) <
            body = step (int64 i, bool go, float[batch, 64] s) => (bool goes, float[batch, 64] t) {
                goes = Identity(go)
                m = MatMul(s, again)
                t = Tanh(m)
            }
        >
        y = MatMul(last, up)
    }
"""


@pytest.mark.parametrize("runtime", ["onnxruntime", "Triton"])
@pytest.mark.parametrize("graph", [BRANCHES, LOOPS], ids=["If", "Loop"])
def test_sites_behind_bodies_are_cut_off_from_them(graph: str, runtime: str, parse) -> None:
    """Nothing of a body is left in front of a site that reads it, and the value is typed though its operator is not."""
    backend, name, package = RUNTIMES[runtime]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    model = plan(parse(graph), Options("reference", formats=("nvfp4/nvfp4",), method="rtn"))
    for node in model.graph:
        for value in node.outputs:
            value.type = None
    inputs = example_inputs(model, sizes={"batch": 2, "length": 6})
    with lowered_to(get_target("reference"), tapped(model)) as run:
        values = inputs | run(inputs)
    case = sites_alone(model, values)
    assert not [node for node in case.model.graph if node.op_type in ("If", "Loop", "Gather")]
    target = get_target(name)
    quick = replace(target, options={**target.options, "ahead": False})
    found = agreement(case, observe(case, quick, backend))
    assert found.results > 0
    assert found.rel_l2 < ROUNDING
