"""Convolutions as sites: kernels in codes, decoded in front of the operator, and inputs rounded place by place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

import qcompile as qc
from qcompile.analysis.analyze import analyze
from qcompile.analysis.matrices import layout_of
from qcompile.backends.ort import lowering, runner
from qcompile.compiler import Options, plan
from qcompile.formats import fake_quantize_rows
from qcompile.run.compare import compare
from qcompile.run.data import example_inputs
from qcompile.run.session import evaluate
from qcompile.targets.eligible import quantizable
from qcompile.targets.plans import planned
from qcompile.targets.registry import get_target

KINDS = {
    "line": ("float[n,8,20] x", "Conv<pads=[1,1]>(x, w)", "float[16,8,3] w"),
    "square": ("float[n,8,9,9] x", "Conv<pads=[1,1,1,1], strides=[2,2]>(x, w, b)", "float[16,8,3,3] w, float[16] b"),
    "cube": ("float[n,8,5,5,5] x", "Conv(x, w)", "float[16,8,2,2,2] w"),
    "dilated": ("float[n,8,9,9] x", "Conv<dilations=[2,2]>(x, w)", "float[16,8,3,3] w"),
    "same": ("float[n,8,9,9] x", 'Conv<auto_pad="SAME_UPPER", strides=[2,2]>(x, w)', "float[16,8,3,3] w"),
    "strided product": ("float[n,8,9,9] x", "Conv<strides=[2,2]>(x, w)", "float[16,8,1,1] w"),
    "grouped": ("float[n,8,9,9] x", "Conv<group=2>(x, w)", "float[16,4,3,3] w"),
    "depthwise": ("float[n,8,9,9] x", "Conv<group=8, pads=[1,1,1,1]>(x, w)", "float[8,1,3,3] w"),
    "transposed": ("float[n,8,9,9] x", "ConvTranspose<strides=[2,2]>(x, w, b)", "float[8,16,4,4] w, float[16] b"),
    "transposed groups": ("float[n,8,9,9] x", "ConvTranspose<strides=[2,2], group=2>(x, w)", "float[8,6,3,3] w"),
    "odd": ("float[n,3,9,9] x", "Conv(x, w)", "float[5,3,3,3] w"),
}  # fmt: skip


def graph(parse, name: str, dtype: str = "float") -> ir.Model:
    x, line, weights = KINDS[name]
    sizes = ",".join(["n", "c", *"pqr"[: x.count(",") - 1]])
    text = f"g ({x}) => (float[{sizes}] y) <{weights}> {{ y = {line} }}"
    model = parse(text.replace("float[", f"{dtype}["))
    next(iter(model.graph)).name = "conv"
    return model


def exactly(model: ir.Model, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """The planned convolution by its definition: the kernel as its codes read, the input rounded at each place."""
    ((node, item),) = planned(model)
    (site,) = analyze(model).sites
    exact = model.clone()
    kernel = layout_of(site).weight(item.weight.dequantize()).contiguous().numpy()
    exact.graph.initializers[site.weight.name].const_value = ir.tensor(kernel)
    x = inputs["x"]
    if item.scheme.activation is not None:
        rows = torch.from_numpy(np.moveaxis(x, 1, -1).reshape(-1, x.shape[1]).copy())
        rounded = fake_quantize_rows(rows, item.scheme.activation).numpy()
        x = np.moveaxis(rounded.reshape(*np.moveaxis(x, 1, -1).shape), -1, 1)
    return evaluate(exact, {"x": np.ascontiguousarray(x)})["y"]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("scheme", ["int4-g32", "nvfp4/nvfp4", "int8-channel/int8-channel", "mxfp4/mxfp8-e4m3"])
def test_the_reference_runs_every_convolution(parse, tmp_path: Path, name: str, scheme: str) -> None:
    model = plan(graph(parse, name), Options("reference", format_for={"kind:convolution": scheme}, transforms="none"))
    ((_, item),) = planned(model)
    assert item.scheme.name == scheme
    inputs = example_inputs(model, sizes={"n": 2})
    want = exactly(model, inputs)
    lowering.lower(model, get_target("reference"), tmp_path)
    assert compare({"y": want}, runner.load(tmp_path)(inputs))[0] < 1e-6


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("target", ["cpu-int8", "cpu-int4"])
def test_processors_decode_kernels_when_they_load_them(parse, tmp_path: Path, name: str, target: str) -> None:
    model = plan(graph(parse, name), Options(target))
    ((_, item),) = planned(model)
    assert item.scheme.activation is None  # inputs stay float
    inputs = example_inputs(model, sizes={"n": 2})
    want, source = exactly(model, inputs), evaluate(model, inputs)["y"]
    lowering.lower(model, get_target(target), tmp_path)
    lowered = ir.load(tmp_path / "model.onnx")
    made = runner.load(tmp_path)(inputs)
    assert compare({"y": want}, made)[0] < 1e-6
    assert 1e-4 < compare({"y": source}, made)[0] < 0.2
    assert "w" not in lowered.graph.initializers
    assert [node.op_type for node in lowered.graph][-1] in ("Conv", "ConvTranspose")


def test_half_precision_graphs_compute_in_float(parse, tmp_path: Path) -> None:
    half = graph(parse, "square", "float16")
    for value in half.graph.initializers.values():
        value.const_value = ir.tensor(value.const_value.numpy().astype(np.float16), name=value.name)
        value.type = ir.TensorType(ir.DataType.FLOAT16)
    model = plan(half, Options("reference", format_for={"conv": "int8-channel/int8-channel"}))
    inputs = example_inputs(model, sizes={"n": 2})
    source = evaluate(model, inputs)["y"].astype(np.float32)
    lowering.lower(model, get_target("reference"), tmp_path)
    made = runner.load(tmp_path)(inputs)["y"]
    assert made.dtype == np.float16
    assert compare({"y": source}, {"y": made.astype(np.float32)})[0] < 0.02


def test_targets_without_kernels_say_so(parse) -> None:
    for name in ("hopper-int4", "tvm-cpu", "blackwell-fp4"):
        chosen, (declined,) = quantizable(analyze(graph(parse, "square")), get_target(name))
        assert chosen == []
        assert declined.reason == (
            f"target '{name}' computes no convolution but products at each place: no taps, strides or groups"
        )


NET = """g (float[n,8,12,12] x) => (float[n,12,6,6] y)
<float[32,8,3,3] a, float[32] ab, float[32,1,3,3] d, float[32,32,1,1] p, float[12,32,3,3] z> {
    h = Conv<pads=[1,1,1,1]>(x, a, ab)
    i = Relu(h)
    j = Conv<group=32, pads=[1,1,1,1]>(i, d)
    k = Relu(j)
    l = Conv(k, p)
    m = Relu(l)
    o = Add(m, i)
    y = Conv<pads=[1,1,1,1], strides=[2,2]>(o, z) }"""


def named(parse) -> ir.Model:
    model = parse(NET)
    for node in model.graph:
        node.name = node.outputs[0].name
    return model


def images(path: Path, count: int = 24) -> Path:
    """Smooth images, whose neighbouring places say much of each other."""
    rng = np.random.default_rng(0)
    path.mkdir()
    for number in range(count):
        x = rng.standard_normal((2, 8, 12, 12)).cumsum(2).cumsum(3).astype(np.float32)
        np.savez(path / f"{number:02}.npz", x=x / x.std())
    return path


def test_rounding_that_learns_errs_less(parse, tmp_path: Path) -> None:
    data, errors = images(tmp_path / "data"), {}
    for method in ("rtn", "gptq"):
        artifact = qc.export(
            named(parse), "reference", tmp_path / method, method=method, calibration=data, transforms="none",
            formats=["int4-channel"], format_for={"kind:edge": "int4-channel"},
        )  # fmt: skip
        errors[method] = artifact.manifest["quantization"]["rel_l2"]
    assert errors["gptq"] < 0.8 * errors["rtn"]


def test_budgets_share_bits_out_among_kernels(parse, tmp_path: Path) -> None:
    artifact = qc.export(
        named(parse), "cpu-int4", tmp_path / "out", budget={"bits": 5.5}, formats=["int4-g32", "int8-g32"],
        calibration=images(tmp_path / "data"),
    )  # fmt: skip
    sites = {entry["name"]: entry for entry in artifact.manifest["sites"]}
    assert sites.keys() == {"h", "j", "l", "y"}
    assert {entry["format"] for entry in sites.values()} == {"int4-g32", "int8-g32"}
    assert all(entry["alpha"] > 0 for entry in sites.values())
    assert artifact.manifest["bits_per_weight"] < 7


def test_a_target_with_float_inputs_says_that_it_rounds_none(parse, tmp_path: Path) -> None:
    artifact = qc.export(named(parse), "cpu-int8", tmp_path / "out", method="rtn")
    said = [entry for entry in artifact.manifest["declined"] if entry["what"] == "quantizing its input"]
    assert {entry["site"] for entry in said} == {"h", "j", "l", "y"}
    assert {entry["activation"] for entry in artifact.manifest["sites"]} == {None}


@pytest.mark.parametrize("name", KINDS)
def test_channels_change_basis_in_front_of_a_kernel(parse, tmp_path, name):
    """Between transposes, zeros around stay zeros; groups see channels apart, and three have no Hadamard matrix."""
    x, line, weights = KINDS[name]
    sizes = ",".join(["n", "c", *"pqr"[: x.count(",") - 1]])
    made = weights.split("]")[0].split("[")[1].split(",")
    channels = int(made[1]) * (2 if "group=2" in line else 1) if "Transpose" in line else int(made[0])
    ones = ",1" * (x.count(",") - 1)
    model = parse(
        f"g ({x}) => (float[{sizes}] y) <{weights}, float[4,{channels}{ones}] head>"
        f" {{ a = {line}\n r = Relu(a)\n y = Conv(r, head) }}"
    )  # what writes an output keeps its input
    artifact = qc.export(
        model, "reference", tmp_path / "out", transforms="hadamard", method="rtn", formats=["mxfp4/mxfp4"]
    )
    apart = name in ("grouped", "depthwise", "transposed groups", "odd")
    assert bool(artifact.manifest["online_transforms"]) is not apart
    equivalence = artifact.manifest["equivalence"]["rel_l2"]
    assert (equivalence == 0) is apart
    assert equivalence < 1e-6
    inputs = example_inputs(model)
    want = evaluate(model, inputs)
    assert 1e-3 < compare(want, artifact.run(inputs))[0] < 0.5


LOUD = """g (float[n,32,8,8] x) => (float[n,16,8,8] y) <float[16,32,3,3] w, float[16,32,1,1] v, float[16,16,1,1] u>
    { s = Sigmoid(x)\n h = Mul(x, s)\n a = Conv<pads=[1,1,1,1]>(h, w)\n r = Relu(a)\n y = Conv(r, u) }"""
TWO = LOUD.replace("r = Relu(a)", "b = Conv(h, v)\n c = Add(a, b)\n r = Relu(c)")


@pytest.mark.parametrize(("text", "count"), [(LOUD, 1), (TWO, 2)])
def test_a_fitted_transform_in_front_of_a_kernel_lowers_the_error(parse, tmp_path, text, count):
    """One loud channel in each block spoils the scales of the others; kernels of two sizes have a basis each."""
    rng, model = np.random.default_rng(0), parse(text)
    loud = np.where(np.arange(32) % 16 == 0, 12, 1)[:, None, None]
    np.savez(tmp_path / "x.npz", x=(rng.standard_normal((96, 32, 8, 8)) * loud).astype(np.float32))
    errors = {}
    for transforms in ("none", "auto"):
        artifact = qc.export(
            model, "reference", tmp_path / transforms, transforms=transforms, method="rtn", formats=["mxfp4/mxfp4"],
            calibration=tmp_path / "x.npz",
        )  # fmt: skip
        errors[transforms] = artifact.manifest["quantization"]["rel_l2"]
    assert len(artifact.manifest["online_transforms"]) == count
    assert errors["auto"] < 0.6 * errors["none"]


def test_targets_whose_kernels_read_floats_or_integers_put_nothing_in_front_of_them(parse, tmp_path):
    artifact = qc.export(parse(LOUD), "cpu-int8", tmp_path / "out", transforms="hadamard", method="rtn")
    assert not artifact.manifest["online_transforms"]
