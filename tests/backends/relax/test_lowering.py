"""Whole graphs: what they compute at any shape, what is written, what is refused before anything is."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from planning import plan_site
from stack_cases import body_model

pytest.importorskip("tvm", reason="TVM is not installed: it is the extra 'tvm'")

import tvm

from qcompile.backends.relax import lowering
from qcompile.backends.relax.runner import load, rehearse
from qcompile.errors import InputError, TargetError
from qcompile.formats import fake_quantize
from qcompile.run.compare import compare
from qcompile.run.session import Session
from qcompile.targets.plans import Plan
from qcompile.targets.registry import Lowered, get_target

ROUNDING = 2e-6  # relative L2 of a float32 product of a few hundred terms against float64
AARCH64 = 183  # e_machine of the ELF header

Run = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]


@pytest.fixture
def lower(tmp_path: Path) -> Callable[..., tuple[Run, Lowered]]:
    """Lower a planned model and load what was written."""

    def make(model: ir.Model, target: str = "tvm-cpu") -> tuple[Run, Lowered]:
        said = lowering.lower(model, get_target(target), tmp_path)
        return load(tmp_path), said

    return make


def product(x: np.ndarray, plan: Plan) -> np.ndarray:
    """What a linear site should compute, in float64: every row of ``x`` is quantized on its own."""
    rows = torch.tensor(np.ascontiguousarray(x)).reshape(-1, x.shape[-1])
    if plan.scheme.activation is not None:
        rows = torch.cat([fake_quantize(row[None], plan.scheme.activation) for row in rows])
    out = rows.double() @ plan.weight.dequantize().double().T
    return out.reshape(*x.shape[:-1], -1).numpy()


def error(have: np.ndarray, want: np.ndarray) -> float:
    """Relative L2."""
    assert have.shape == want.shape
    return float(np.linalg.norm(have.astype(np.float64) - want) / np.linalg.norm(want))


def content(model: ir.Model, name: str) -> np.ndarray:
    return model.graph.initializers[name].const_value.numpy()


# ---- sites -------------------------------------------------------------------------------------------------------

SCHEMES = [
    "int4-g32", "uint4-g16", "nvfp4/nvfp4", "nvfp4-4over6", "mxfp4-even/mxfp4-even", "int8-channel/int8-channel",
    "fp8-e4m3-channel", "mxfp8-e4m3/mxfp8-e4m3", "nf4-g64",
]  # fmt: skip


def test_sites_in_every_format_at_any_shape(parse: Callable, lower: Callable, rng: np.random.Generator) -> None:
    """One graph of a site for each scheme; 100 inputs fill no group."""
    count = len(SCHEMES)
    outputs = ", ".join(f"float[B, L, 40] y{i}" for i in range(count))
    declared = ", ".join(f"float[100, 40] w{i}" for i in range(count))
    body = "\n".join(f"y{i} = MatMul(x, w{i})" for i in range(count))
    model = parse(f"g (float[B, L, 100] x) => ({outputs}) <{declared}> {{ {body} }}")
    for i, node in enumerate(model.graph):
        node.name = f"site{i}"
    plans = [plan_site(model, f"site{i}", content(model, f"w{i}").T, scheme) for i, scheme in enumerate(SCHEMES)]
    run, said = lower(model)
    assert set(said.sites) == {f"site{i}" for i in range(count)}
    for batch, length in ((1, 1), (2, 5), (3, 7)):
        x = rng.standard_normal((batch, length, 100)).astype(np.float32)
        have = run({"x": x})
        for i, plan in enumerate(plans):
            assert error(have[f"y{i}"], product(x, plan)) < ROUNDING, plan.scheme.name


def test_every_spelling(parse: Callable, lower: Callable, rng: np.random.Generator) -> None:
    model = parse("""g (float[N, 64] x, float[64, N] t, float[N, 64, 3, 4] image, float[N, 64, M] columns)
        => (float[N, 48] gemm, float[N, 48] turned, float[N, 48, 3, 4] conv, float[N, 48, M] left)
        <float[48, 64] w, float[64, 48] v, float[48, 64, 1, 1] kernel, float[48] bias> {
        gemm = Gemm <transB = 1, alpha = 0.5, beta = 2.0> (x, w, bias)
        turned = Gemm <transA = 1> (t, v)
        conv = Conv <kernel_shape = [1, 1]> (image, kernel, bias)
        left = MatMul(w, columns) }""")
    names = ("gemm", "turned", "conv", "left")
    for node, name in zip(model.graph, names, strict=True):
        node.name = name
    w, v, bias = content(model, "w"), content(model, "v"), content(model, "bias")
    weights = (w, v.T, content(model, "kernel")[..., 0, 0], w)
    plans = [plan_site(model, name, weight, "nvfp4/nvfp4") for name, weight in zip(names, weights, strict=True)]
    shapes = {"x": (5, 64), "t": (64, 5), "image": (5, 64, 3, 4), "columns": (5, 64, 7)}
    inputs = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    have = lower(model)[0](inputs)
    swapped = np.swapaxes(inputs["columns"], 1, 2)
    assert error(have["gemm"], 0.5 * product(inputs["x"], plans[0]) + 2 * bias) < ROUNDING
    assert error(have["turned"], product(inputs["t"].T, plans[1])) < ROUNDING
    image = product(np.moveaxis(inputs["image"], 1, -1), plans[2]) + bias
    assert error(have["conv"], np.moveaxis(image, -1, 1)) < ROUNDING
    assert error(have["left"], np.swapaxes(product(swapped, plans[3]), 1, 2)) < ROUNDING


def test_tied_tables_are_stored_once(parse: Callable, lower: Callable, tmp_path: Path) -> None:
    model = parse("""g (int64[B, L] ids) => (float[B, L, 50] y, float[B, L, 96] x)
        <float[50, 96] table, float[96, 50] w> {
        x = Gather(table, ids)
        y = MatMul(x, w) }""")
    table = content(model, "table")
    model.graph.initializers["w"].const_value = ir.tensor(np.ascontiguousarray(table.T), name="w")
    for node, name in zip(model.graph, ("embed", "head"), strict=True):
        node.name = name
    plans = [plan_site(model, name, table, "int8-g32") for name in ("embed", "head")]
    run, _ = lower(model)
    ids = np.array([[3, 49, 0], [7, 7, 1]])
    have = run({"ids": ids})
    assert np.array_equal(have["x"], plans[0].weight.dequantize().numpy()[ids])
    assert error(have["y"], product(have["x"], plans[1])) < ROUNDING
    stored = tvm.runtime.load_param_dict_from_file(str(tmp_path / "tvm.params"))
    assert sum(name.endswith(".codes") for name in stored) == 1


# ---- graphs ------------------------------------------------------------------------------------------------------

COMPUTED = """g (float[B, L, 24] x) => (float[B, L, 24] y, float[B, 4, L, 6] h, float[L, L] causal)
    <int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64[1] heads = {4}, int64[1] rest = {-1},
    int64 first = {0}, int64 step = {1}, int64[1] end = {9223372036854775807}> {
    s = Shape(x)
    b = Slice(s, zero, one)
    l = Slice(s, one, two)
    target = Concat <axis = 0> (b, l, heads, rest)
    r = Reshape(x, target)
    h = Transpose <perm = [0, 2, 1, 3]> (r)
    back = Transpose <perm = [0, 2, 1, 3]> (h)
    flat = Concat <axis = 0> (b, l, rest)
    merged = Reshape(back, flat)
    left, right = Split <axis = 2, num_outputs = 2> (merged)
    turned = Neg(right)
    z = Concat <axis = 2> (turned, left)
    tail = Slice(z, one, end, one)
    head = Slice(z, zero, one, one)
    y = Concat <axis = 1> (tail, head)
    n = Squeeze(l, zero)
    places = Range(first, n, step)
    row = Unsqueeze(places, zero)
    column = Unsqueeze(places, one)
    seen = LessOrEqual(row, column)
    causal = Cast <to = 1> (seen) }"""


def test_shapes_that_the_graph_computes(parse: Callable, lower: Callable, rng: np.random.Generator) -> None:
    model = parse(COMPUTED)
    session = Session(model.clone(), optimize=False)
    run, _ = lower(model)
    for batch, length in ((1, 1), (2, 9), (3, 4)):
        x = {"x": rng.standard_normal((batch, length, 24)).astype(np.float32)}
        have, want = run(x), session.run(x)
        assert all(np.array_equal(have[name], value) for name, value in want.items())


def test_operators_against_onnxruntime(parse: Callable, lower: Callable, rng: np.random.Generator) -> None:
    model = parse(
        """g (float[B, 6, 8] x, float[8] v, int64[B, 6] at)
        => (float[B, 6, 8] y, int64[B, 6, 8] k, float[B, 6, 8] s, float[B, 6] z, int64[B, 6] order, float[B, 2, 8] best,
            float[B, 6, 8] n, float[B, 1, 8] m, float[B, 2, 6, 4] t, float[B, 8, 8] c)
        <int64[1] one = {1}, float[1] small = {0.1}, float zero = {0.0}, int64[1] three = {3}, int64 axis = {1},
         int64[1] last = {-1},
         int64[1] two = {2}, int64 none = {0}, float[8] scale, float[8] shift, int64[4] heads = {0, 0, 2, 4},
         float[8, 6, 3] kernel, float[1] fill = {0.5}, int64[6] pads = {0, 1, 0, 0, 1, 0}> {
        a = Sigmoid(x) b = Gelu(x) c1 = Erf(a) d = Softplus(b) e = Tanh(d) f = Max(c1, e, v) p = Pow(f, small)
        less = Less(x, v) q = Where(less, p, e) y = Clip(q, zero, small) i = Cast <to = 7> (x) k = Mod(i, three)
        column = Unsqueeze(at, last) pairs = Concat <axis = 2> (column, column)
        z = GatherND <batch_dims = 1> (x, pairs)
        lower = Trilu <upper = 0> (x) sums = CumSum(lower, axis) first = Gather <axis = 1> (sums, none)
        wide = Unsqueeze(first, one) s = Add(sums, wide)
        order = ArgMax <axis = 2, keepdims = 0> (x) best, where = TopK <axis = 1> (x, two)
        n1 = LayerNormalization(x, scale, shift) n2 = Softmax(n1) n = RMSNormalization(n2, scale)
        m = ReduceMean(x, one)
        h = Reshape(x, heads) hq = Transpose <perm = [0, 2, 1, 3]> (h) t = Attention <is_causal = 1> (hq, hq, hq)
        c = Conv <pads = [1, 1]> (x, kernel) }""",
        23,
    )
    session = Session(model.clone(), optimize=False)
    run, _ = lower(model)
    for batch in (1, 3):
        x = {
            "x": rng.standard_normal((batch, 6, 8)).astype(np.float32), "v": rng.random(8).astype(np.float32),
            "at": rng.integers(0, 6, (batch, 6)),
        }  # fmt: skip
        have, want = run(x), session.run(x)
        for name, value in want.items():
            assert have[name].dtype == value.dtype
            if value.dtype.kind == "f":
                assert compare({name: value}, have)[0] < 1e-6, name
            else:
                assert np.array_equal(have[name], value), name


# ---- files -------------------------------------------------------------------------------------------------------


def small(parse: Callable, scheme: str = "int4-g32") -> ir.Model:
    model = parse("""g (float[B, 64] x) => (float[B, 32] y) <float[64, 32] w, float[64, 64] v> {
        h = MatMul(x, v)
        a = Relu(h)
        y = MatMul(a, w) }""")
    model.graph.node(2).name = "site"
    plan_site(model, "site", content(model, "w").T, scheme)
    return model


def test_the_same_bytes_twice(parse: Callable, tmp_path: Path) -> None:
    written = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        files = lowering.lower(small(parse), get_target("tvm-cpu"), folder).files
        written.append({name: (folder / name).read_bytes() for name in files})
    assert written[0] == written[1]


def test_plain_tvm_runs_it(parse: Callable, lower: Callable, tmp_path: Path, rng: np.random.Generator) -> None:
    """The five lines of the runner's documentation."""
    inputs = {"x": rng.standard_normal((3, 64)).astype(np.float32)}
    run, _ = lower(small(parse))
    about = json.loads((tmp_path / "tvm.json").read_text())
    machine = tvm.relax.VirtualMachine(tvm.runtime.load_module(str(tmp_path / "tvm.so")), tvm.cpu())
    parameters = tvm.runtime.load_param_dict_from_file(str(tmp_path / "tvm.params"))
    arguments = [tvm.runtime.tensor(inputs[entry["name"]]) for entry in about["inputs"]]
    outputs = machine["main"](*arguments, *(parameters[name] for name in about["parameters"]))
    assert np.array_equal(outputs[0].numpy(), run(inputs)["y"])


def on(machine: str, target: str = "tvm-cpu") -> Any:
    return get_target(target).on_machine(machine)


def test_objects_for_another_processor(parse: Callable, tmp_path: Path) -> None:
    said = lowering.lower(small(parse), on("llvm -mtriple=aarch64-linux-gnu -mattr=+neon"), tmp_path)
    assert "tvm.tar" in said.files
    with tarfile.open(tmp_path / "tvm.tar") as archive:
        objects = [archive.extractfile(member) for member in archive if member.name.endswith(".o")]
        headers = [file.read(20) for file in objects if file is not None]
    assert headers
    for header in headers:
        assert header[:4] == b"\x7fELF"
        assert int.from_bytes(io.BytesIO(header[18:]).read(), "little") == AARCH64
    assert rehearse(tmp_path) is None
    with pytest.raises(InputError, match="compiled for another machine: llvm aarch64-linux-gnu"):
        load(tmp_path)


def test_cuda_source_compiles_where_nvcc_is(parse: Callable, tmp_path: Path) -> None:
    said = lowering.lower(small(parse), get_target("tvm-cuda"), tmp_path)
    source = (tmp_path / "tvm.cu").read_text()
    assert "linear_int4_g32_32x64" in source
    if shutil.which("nvcc") is None:
        assert said.notes["cuda"].startswith("not compiled: nvcc is not installed")
        pytest.skip("nvcc is not installed: the source was written, not compiled")
    assert said.notes["cuda"].startswith("compiled by nvcc for sm_90")
    assert (tmp_path / "tvm.cubin").read_bytes()[:4] == b"\x7fELF"
    assert rehearse(tmp_path) is None


# ---- what is refused ---------------------------------------------------------------------------------------------


def refused(model: ir.Model, target: Any, folder: Path) -> str:
    with pytest.raises(TargetError) as caught:
        lowering.lower(model, target, folder)
    assert not list(folder.iterdir())
    return str(caught.value)


def test_an_unknown_operator_is_named(parse: Callable, tmp_path: Path) -> None:
    model = parse("g (float[N] x) => (int64[1, M] y) { y = NonZero(x) }")
    model.graph.node(0).name = "which"
    assert "operator NonZero of node 'which' cannot be lowered" in refused(model, get_target("tvm-cpu"), tmp_path)


def test_a_shape_that_depends_on_data_is_named(parse: Callable, tmp_path: Path) -> None:
    model = parse("g (float[N] x, int64[2] s) => (float[A, B] y) { y = Reshape(x, s) }")
    model.graph.node(0).name = "bend"
    message = refused(model, get_target("tvm-cpu"), tmp_path)
    assert "operator Reshape of node 'bend' cannot be lowered: its sizes depend on data" in message


def test_a_format_without_a_kernel(parse: Callable, tmp_path: Path) -> None:
    message = refused(small(parse, "higgs-p1-n16"), get_target("tvm-cpu"), tmp_path)
    assert "no kernel for site 'site' in format 'higgs-p1-n16'" in message


def test_a_planned_site_in_a_body(tmp_path: Path) -> None:
    model = body_model("rounds")
    plan_site(model, "u", content(model, "m").T, "int4-g32")
    assert "operator Loop of node 'g' cannot be lowered" in refused(model, get_target("tvm-cpu"), tmp_path)


@pytest.mark.parametrize(
    "machine, reason",
    [
        ("llvm aarch64", "is not an option of the form -name=value"),
        ("llvm -mcolor=red", "TVM does not know the target"),
        ("cuda -arch=sm_90", "a cpu artifact cannot be compiled for"),
    ],
)
def test_an_unknown_machine(machine: str, reason: str, parse: Callable, tmp_path: Path) -> None:
    assert reason in refused(small(parse), on(machine), tmp_path)


def test_another_target_takes_no_machine() -> None:
    with pytest.raises(TargetError, match="'cpu-int4' is not compiled by TVM"):
        get_target("cpu-int4").on_machine("llvm")


def test_an_old_version(parse: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tvm, "__version__", "0.19.0")
    message = refused(small(parse), get_target("tvm-cpu"), tmp_path)
    assert message == "TVM 0.19.0 is installed; 0.27 or newer is needed"


def test_wrong_inputs(parse: Callable, lower: Callable) -> None:
    run, _ = lower(small(parse))
    with pytest.raises(InputError, match="lacks x"):
        run({})
    with pytest.raises(InputError, match="input 'x' has type float64, but the artifact takes float32"):
        run({"x": np.zeros((2, 64))})
    with pytest.raises(InputError, match="TVM cannot run the artifact"):
        run({"x": np.zeros((2, 63), np.float32)})


def test_sizes_of_one_name_are_equal(parse: Callable, lower: Callable) -> None:
    run, _ = lower(parse("g (float[N, 2] x, float[N, 2] y) => (float[N, 2] z) { z = Add(x, y) }"))
    with pytest.raises(InputError, match="inputs 'x' and 'y' have sizes 3 and 1 where the graph says 'N' of both"):
        run({"x": np.zeros((3, 2), np.float32), "y": np.zeros((1, 2), np.float32)})
