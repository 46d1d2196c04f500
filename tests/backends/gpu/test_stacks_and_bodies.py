"""Stacks of experts, and sites in the bodies of If, Loop and Scan, in the generated programs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from families import load, stored
from stack_cases import BODIES, STACKS, body_model, stack_model

from qcompile.compiler import Options, plan
from qcompile.ir.state_space_export import add_bodies
from qcompile.run.compare import compare
from qcompile.run.data import example_inputs
from qcompile.run.session import evaluate
from qcompile.targets.registry import get_target, lowered_to

pytest.importorskip("triton", reason="the generated programs import triton")

ROUNDING = 5e-6


def check(model, target: str, lower: Callable, **options) -> str:
    """The program computes what the reference does; returns its source."""
    graph = plan(model, Options(target=target, **options))
    inputs = example_inputs(graph, sizes={"batch": 1, "length": 3})
    with lowered_to(get_target("reference"), graph.clone()) as run:
        want = run(inputs)
    program, source = lower(graph, target)
    assert compare(want, program(inputs))[0] < ROUNDING
    return source


@pytest.mark.parametrize("name", STACKS)
def test_every_form_of_stack(name: str, lower: Callable) -> None:
    assert "CAPTURES" not in check(stack_model(name), "hopper-int4", lower, formats=["int4-g32"])


@pytest.mark.parametrize("target", ["hopper-fp4", "hopper-w4a8", "mi350-mxfp4", "blackwell-fp4", "blackwell-mxfp4"])
@pytest.mark.parametrize("name", ["rows of its own", "two looked up"])
def test_stacks_in_the_formats_of_every_target(name: str, target: str, lower: Callable) -> None:
    check(stack_model(name), target, lower)


@pytest.mark.parametrize("name", ["experts batched", "experts gathered"])
def test_mixtures_of_experts(name: str, lower: Callable) -> None:
    check(load(stored(name)), "hopper-int4", lower, formats=["int4-g32"])


@pytest.mark.parametrize("transforms", ["none", "hadamard"])
@pytest.mark.parametrize("target", ["hopper-int4", "blackwell-fp4"])
@pytest.mark.parametrize("name", BODIES)
def test_sites_in_bodies(name: str, target: str, transforms: str, lower: Callable) -> None:
    source = check(body_model(name), target, lower, transforms=transforms)
    assert "F.linear" not in source
    assert " @ " not in source


def test_a_weight_in_several_companies_is_packed_once(parse, lower: Callable) -> None:
    """One layer multiplies by it beside another matrix, the next one by it alone: packed together there were two."""
    model = parse("""g (float[batch,length,64] x) => (float[batch,length,64] y) <float[64,64] v, float[64,64] w>
        { a = MatMul(x, v)\n b = MatMul(x, w)\n s = Add(a, b)\n r = Relu(s)\n c = MatMul(r, w)\n y = Sigmoid(c) }""")
    source = check(model, "hopper-w4a8", lower)
    packed = [name for name in ("v", "w", "v_w") if f'packed("{name}")' in source]
    assert packed == ["v", "w"]


def test_a_scan_goes_on_from_a_state(lower: Callable) -> None:
    """By its body: there is no kernel for it."""
    text = """<ir_version: 10, opset_import: ["" : 21, "qcompile": 1]>
    g (float[b,l,3] u, float[b,l,3] d, float[b,l,2] B, float[b,l,2] C, float[b,3,2] s)
    => (float[b,l,3] y, float[b,3,2] z)
    <float[3,2] A = {-1, -2, -3, -1, -2, -3}, float[3] D = {1, 2, 3}> {
        y, z = qcompile.SelectiveScanWithState(u, d, A, B, C, D, s) }"""
    model = ir.from_proto(onnx.parser.parse_model(text))
    add_bodies(model)
    rng = np.random.default_rng(0)
    sizes = {"u": (2, 4, 3), "d": (2, 4, 3), "B": (2, 4, 2), "C": (2, 4, 2), "s": (2, 3, 2)}
    inputs = {name: rng.random(size).astype(np.float32) for name, size in sizes.items()}
    want = evaluate(model.clone(), inputs)
    run, _ = lower(model)
    for name, array in run(inputs).items():
        np.testing.assert_allclose(array, want[name], rtol=1e-5)
