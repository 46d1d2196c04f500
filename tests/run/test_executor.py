"""The engine computes what onnxruntime does: every operator, every family of networks, whole and in parts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest
import torch
from families import FAMILIES, load, stored
from torch_cases import CASES, example, graph_of_case

from qcompile.compiler import prepare
from qcompile.errors import InputError
from qcompile.ir.widen import to_double
from qcompile.run.compare import compare
from qcompile.run.data import example_inputs
from qcompile.run.executor import Executor
from qcompile.run.session import Session, evaluate

ZOO = Path(__file__).parents[2] / "examples" / "zoo"

#: By how much bfloat16, of 8 significant bits, errs in a number at most. Errors of operators behind each other are
#: independent, and norms keep them from growing: their squares add up.
HALF_STEP = 2.0**-8

#: onnxruntime computes a part of these in float32 whatever their type is: factors of attention, constants.
SINGLE = {"attention", "attention in rows", "attention with a past", "activations"}


def arrays(found: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy() for name, value in found.items()}


def depth(model: ir.Model) -> int:
    """Operators one behind another, at most."""
    found: dict[ir.Value | None, int] = {}
    for node in model.graph:
        found |= dict.fromkeys(node.outputs, 1 + max((found.get(value, 0) for value in node.inputs), default=0))
    return max(found.values())


def widened(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {k: v.astype(np.float64) if v.dtype == np.float32 else v for k, v in inputs.items()}


def mlp(seed: int = 0) -> ir.Model:
    """``y = b(tanh(a(x)))`` with a name for every value."""
    text = """<ir_version: 9, opset_import: ["": 18]> g (float[N,6] x) => (float[N,3] y) <float[6,8] a, float[8,3] b>
        { h = MatMul(x, a) t = Tanh(h) y = MatMul(t, b) }"""
    proto = onnx.parser.parse_model(text)
    rng = np.random.default_rng(seed)
    for name, shape in (("a", (6, 8)), ("b", (8, 3))):
        array = rng.standard_normal(shape, dtype=np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    del proto.graph.value_info[:]
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


# -- it agrees -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_an_operator_computes_what_onnxruntime_does(name: str) -> None:
    model = graph_of_case(name)
    engine = Executor(model)
    assert engine.foreign == {}
    for batch in (2, 3):
        given = example(model, batch, batch)
        want, have = evaluate(model, given), arrays(engine(given))
        assert {key: (v.shape, v.dtype) for key, v in have.items()} == {k: (v.shape, v.dtype) for k, v in want.items()}
        assert compare(want, have)[0] < 3e-6


@pytest.mark.parametrize("name", CASES)
def test_in_float64(name: str) -> None:
    single = graph_of_case(name)
    model, given = to_double(single), widened(example(single, 2, 0))
    try:
        want = Session(model).run(given)
    except InputError:
        pytest.skip("onnxruntime has no kernel for float64")
    have = arrays(Executor(model, dtype=torch.float64)(given))
    assert compare(want, have)[0] < (1e-6 if name in SINGLE else 1e-12)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_of_networks(name: str) -> None:
    model = load(stored(name))
    inputs = example_inputs(model, sizes={"batch": 3, "length": 7, "past": 2})
    engine, want = Executor(model), evaluate(model, inputs)
    assert engine.foreign == {}
    with torch.no_grad():
        assert compare(want, arrays(engine(inputs)))[0] < 1e-5
        found = Executor(model, dtype=torch.bfloat16)(inputs)
    floats = {key: value for key, value in want.items() if value.dtype.kind == "f"}
    narrow = arrays({key: found[key].float() for key in floats})
    assert compare(floats, narrow)[0] < HALF_STEP * depth(model) ** 0.5


@pytest.mark.parametrize("name", ["language_model", "mamba", "dit"])
def test_a_shipped_model(name: str) -> None:
    model = prepare(ZOO / f"{name}.onnx").model
    engine, inputs = Executor(model), example_inputs(model)
    want = evaluate(model, inputs)
    with torch.no_grad():
        assert compare(want, arrays(engine(inputs)))[0] < 1e-5
        narrow = Executor(model, dtype=torch.bfloat16)(inputs)
    assert compare(want, arrays({key: value.float() for key, value in narrow.items()}))[0] < 0.03


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("name", [*FAMILIES, *CASES])
def test_on_a_gpu(name: str) -> None:
    model = load(stored(name)) if name in FAMILIES else graph_of_case(name)
    sizes = {"batch": 3, "length": 7, "past": 2}
    inputs = example_inputs(model, sizes=sizes) if name in FAMILIES else example(model, 3, 3)
    engine = Executor(model, device="cuda")
    assert engine.foreign == {}
    found = {key: value.cpu() for key, value in engine(inputs).items()}
    assert compare(evaluate(model, inputs), arrays(found))[0] < 1e-5


# -- parts -----------------------------------------------------------------------------------------------------------


def test_the_part_between_given_values() -> None:
    model, x = mlp(), np.random.default_rng(1).standard_normal((4, 6), np.float32)
    want = Session(model, ["h", "t"]).run({"x": x})
    for given, made in ((["x"], ["h"]), (["h"], ["y"]), (["h"], ["t", "y"]), (["t"], ["y"]), (["x"], ["t", "h", "x"])):
        part = Executor(model, inputs=given, outputs=made)
        assert (part.inputs, part.outputs) == (given, made)
        have = arrays(part({name: {**want, "x": x}[name] for name in given}))
        assert compare({**want, "x": x}, {**want, "x": x, **have})[0] < 1e-6
    assert set(Executor(model, inputs=["t"])({"t": want["t"]})) == {"y"}
    assert [value.name for value in model.graph.inputs] == ["x"]  # the graph stays as it is


def test_a_part_that_needs_more_is_refused() -> None:
    with pytest.raises(InputError, match="the part needs x besides what is given"):
        Executor(mlp(), inputs=["t"], outputs=["h", "y"])
    with pytest.raises(InputError, match="no value named magic"):
        Executor(mlp(), outputs=["magic"])
    with pytest.raises(InputError, match="lacks x"):
        Executor(mlp())({})


# -- hooks, weights, gradients ---------------------------------------------------------------------------------------


def test_hooks_read_and_replace_values() -> None:
    model, x = mlp(), np.ones((2, 6), np.float32)
    engine, seen = Executor(model, hooked=["x", "h", "t"]), {}
    plain = engine({"x": x})["y"]
    same = engine({"x": x}, {name: lambda value, name=name: seen.update({name: value}) for name in ("x", "h", "t")})
    assert torch.equal(plain, same["y"])
    assert torch.equal(seen["t"], torch.tanh(seen["h"]))
    doubled = engine({"x": x}, {"t": lambda value: 2 * value})["y"]
    torch.testing.assert_close(doubled, 2 * plain)
    with pytest.raises(InputError, match="no hook at y"):
        engine({"x": x}, {"y": lambda value: value})


def test_a_value_with_a_hook_is_computed_though_no_output_needs_it() -> None:
    seen, engine = [], Executor(mlp(), outputs=["h"], hooked=["t"])
    found = engine({"x": np.ones((2, 6), np.float32)}, {"t": seen.append})
    assert torch.equal(seen[0], torch.tanh(found["h"]))


def test_weights_may_be_replaced() -> None:
    model, x = mlp(), np.ones((2, 6), np.float32)
    engine = Executor(model)
    other = torch.zeros(8, 3)
    engine.weights["b"] = other
    assert not engine({"x": x})["y"].any()
    assert engine.weights["a"].shape == (6, 8)


@pytest.mark.parametrize("name", [
    "gated, rotary, grouped heads", "u-net with attention", "hybrid", "experts batched", "encoder and decoder", "mmdit"
])  # fmt: skip
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    model = to_double(load(stored(name)))
    inputs = example_inputs(model, sizes={"batch": 2, "length": 4, "past": 2})
    engine = Executor(model, dtype=torch.float64)

    def total() -> torch.Tensor:
        return sum((value * torch.cos(torch.arange(value.numel()).reshape(value.shape))).sum()
                   for value in engine(inputs).values() if value.is_floating_point())  # fmt: skip

    with torch.no_grad():
        total()
    weights = {key: w for key, w in engine.weights.items() if w.is_floating_point() and w.ndim > 1}
    assert weights
    for w in weights.values():
        w.requires_grad_(True)
    gradients = torch.autograd.grad(total(), list(weights.values()), allow_unused=True)
    generator = torch.Generator().manual_seed(0)
    step, used = 1e-6, 0
    for w, gradient in zip(weights.values(), gradients, strict=True):
        direction = torch.randn(w.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            w += step * direction
            above = total()
            w -= 2 * step * direction
            difference = (above - total()) / (2 * step)
            w += step * direction
        found = torch.zeros(()) if gradient is None else (gradient * direction).sum()
        assert abs(found - difference) <= 1e-5 * max(abs(difference), abs(found), 1.0)
        used += bool(found != 0)
    assert used > len(weights) // 2


def test_a_function_keeps_the_names_of_its_constants() -> None:
    """They are in files: what is written does not depend on whether the engine has run the graph."""
    text = """<ir_version: 9, opset_import: ["": 18, "f": 1]> g (float[n,4] x) => (float[n,4] y) {
        t = f.twice(x) y = f.twice(t) }
        <domain: "f", opset_import: ["": 18]> twice (a) => (b) { c = Constant<value = float[1] {2}>() b = Mul(a, c) }"""
    model = ir.from_proto(onnx.parser.parse_model(text))
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    (y,) = Executor(model)({"x": np.ones((2, 4), np.float32)}).values()
    assert (y == 4).all()
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_what_torch_refuses_is_said_in_a_sentence() -> None:
    with pytest.raises(InputError, match="^the engine cannot run the graph: mat1 and mat2 shapes cannot be multiplied"):
        Executor(mlp())({"x": np.ones((2, 5), np.float32)})
