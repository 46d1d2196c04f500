"""Whole graphs: what is written, what it computes, what is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from planning import plan_site

from qcompile.backends.ort import lowering
from qcompile.backends.ort.manifest import TARGETS
from qcompile.backends.ort.runner import load
from qcompile.errors import InputError, TargetError
from qcompile.formats import fake_quantize, fake_quantize_rows
from qcompile.ir.functions import DOMAIN
from qcompile.targets.plans import Plan
from qcompile.targets.registry import Lowered, get_target

ROUNDING = 2e-6  # relative L2 of a float32 product of a few hundred terms against float64
LEVEL_4 = 1.5e-2  # of a product whose activation is rounded to int8 in blocks
#: Schemes that standard operators emulate: 4-bit integers are MatMulNBits', or pairs that ``test_qdq`` looks at.
_PAIRS = ("qdq-int8", "int4")
ACTIVATIONS = [s for t in TARGETS if t.name != "cpu-int4" for s in t.schemes if s != "*" and (t.name, s[:4]) != _PAIRS]
OTHERS = [
    "nf4-g64/nf4-g64",
    "int3-g32/uint5-g16",
    "mxfp6-e3m2/mxfp4",
    "int4-g32/int8-g64",
    "uint4-g16-fp16",
    "nvfp4-16x16",
]

Run = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]


def build(
    nodes: list, inputs: dict, output: str, weights: dict, opset: int = 18, dtype: int = TensorProto.FLOAT
) -> ir.Model:
    """A model with inferred shapes; inputs are ``{name: (type, shape)}``."""
    infos = [helper.make_tensor_value_info(name, *info) for name, info in inputs.items()]
    result = helper.make_tensor_value_info(output, dtype, None)
    constants = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", infos, [result], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    return ir.from_proto(onnx.shape_inference.infer_shapes(model))


def product(x: np.ndarray, plan: Plan) -> np.ndarray:
    """What a linear site should compute, in float64: every row of ``x`` is quantized on its own."""
    rows = torch.tensor(x.astype(np.float32)).reshape(-1, x.shape[-1])
    if plan.range is not None:
        rows = plan.range.round(rows)
    elif plan.scheme.activation is not None and plan.scheme.activation.whole:
        rows = fake_quantize_rows(rows, plan.scheme.activation)
    elif plan.scheme.activation is not None:
        rows = torch.stack([fake_quantize(row[None], plan.scheme.activation)[0] for row in rows])
    out = rows.double() @ plan.weight.dequantize().double().T
    return out.reshape(*x.shape[:-1], -1).numpy()


def error(have: np.ndarray, want: np.ndarray) -> float:
    """Relative L2."""
    assert have.shape == want.shape
    return float(np.linalg.norm(have.astype(np.float64) - want) / np.linalg.norm(want))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture
def lower(tmp_path: Path) -> Callable[..., tuple[Run, Lowered, ir.Model]]:
    """Lower a planned model: the runner, what the backend said, and the graph on disk."""

    def make(model: ir.Model, target: str) -> tuple[Run, Lowered, ir.Model]:
        said = lowering.lower(model, get_target(target), tmp_path)
        return load(tmp_path), said, ir.load(tmp_path / "model.onnx")

    return make


def linear(rng: np.random.Generator, size: int = 96, out: int = 40, opset: int = 18) -> tuple[ir.Model, np.ndarray]:
    """One MatMul ``y = x W`` and its weight as ``[out, in]``."""
    weight = rng.standard_normal((size, out)).astype(np.float32)
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="site")
    model = build([node], {"x": (TensorProto.FLOAT, ["batch", "length", size])}, "y", {"w": weight}, opset)
    return model, np.ascontiguousarray(weight.T)


def target_of(scheme: str) -> str:
    """The first target that names the scheme."""
    return next((t.name for t in TARGETS if scheme in t.schemes), "reference")


# ---- linear sites ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted({*ACTIVATIONS, *OTHERS}))
@pytest.mark.parametrize("size", [96, 100])  # 100: groups that do not divide, codes that do not fill a byte
def test_emulated_product_is_exact(name: str, size: int, rng: np.random.Generator, lower: Callable) -> None:
    model, weight = linear(rng, size)
    plan = plan_site(model, "site", weight, get_target("reference").scheme(name))
    x = rng.standard_normal((2, 5, size)).astype(np.float32)
    run, _, _ = lower(model, target_of(name))
    have = run({"x": x})["y"]
    if "4over6" in name:  # where both targets err alike, either may be taken
        assert np.median(np.abs(have - product(x, plan))) < 1e-5
    else:
        assert error(have, product(x, plan)) < ROUNDING


@pytest.mark.parametrize(
    "name",
    [
        "int8-channel/int8-channel", "int8-channel/uint8-tensor", "nvfp4-4over6/nvfp4-4over6", "mxfp4/mxfp4",
        "nf4-g64/nf4-g64", "int4-g32",
    ],
)  # fmt: skip
def test_no_rows_give_no_rows(name: str, rng: np.random.Generator, lower: Callable) -> None:
    """An expert may get no token: onnxruntime does not reduce what is empty."""
    model, weight = linear(rng)
    plan_site(model, "site", weight, get_target("reference").scheme(name))
    run, _, _ = lower(model, target_of(name))
    assert run({"x": np.zeros((2, 0, 96), np.float32)})["y"].shape == (2, 0, 40)


@pytest.mark.parametrize(
    "name",
    [
        "int4-g16", "int4-g32", "int4-g128", "int4-g256", "uint4-g32", "uint4-g64", "int8-g32", "uint8-g64",
        "int2-g32", "int2-g128", "uint2-g32", "uint2-g64",
    ],
)  # fmt: skip
@pytest.mark.parametrize("size", [256, 200])
def test_matmulnbits(name: str, size: int, rng: np.random.Generator, lower: Callable) -> None:
    model, weight = linear(rng, size)
    plan = plan_site(model, "site", weight, name)
    x = rng.standard_normal((1, 3, size)).astype(np.float32)
    run, said, graph = lower(model, "cpu-int4")
    node = next(node for node in graph.graph if node.op_type == "MatMulNBits")
    assert (node.name, node.outputs[0].name) == ("site", "y")
    assert said.sites["site"]["accuracy_level"] == node.attributes["accuracy_level"].value == 4
    assert ROUNDING < error(run({"x": x})["y"], product(x, plan)) < LEVEL_4


@pytest.mark.parametrize("name", ["int3-g32", "uint3-g16", "uint3-g128"])
@pytest.mark.parametrize("size", [256, 200])
def test_what_no_operator_multiplies_is_decoded(
    name: str, size: int, rng: np.random.Generator, lower: Callable
) -> None:
    """Codes stay packed in the file; the manifest says that they are decoded as it is loaded."""
    model, weight = linear(rng, size)
    plan = plan_site(model, "site", weight, name)
    x = rng.standard_normal((1, 3, size)).astype(np.float32)
    run, said, graph = lower(model, "cpu-int4")
    assert error(run({"x": x})["y"], product(x, plan)) < ROUNDING
    assert "decoded when the model is loaded" in said.sites["site"]["kernel"]
    assert "MatMulNBits" not in {node.op_type for node in graph.graph}
    codes = next(v for v in graph.graph.initializers.values() if v.name.endswith(".codes"))
    assert codes.const_value.nbytes <= 40 * (-(-size // 128) * 128) * 3 / 8


@pytest.mark.parametrize("name", ["int4-g32", "uint2-g64", "int8-g16"])
def test_the_input_is_rounded_to_what_is_said(name: str, rng: np.random.Generator, lower: Callable) -> None:
    from qcompile.formats import FORMATS, fake_quantize_rows

    model, weight = linear(rng, 256)
    plan = plan_site(model, "site", weight, name)
    x = rng.standard_normal((6, 256)).astype(np.float32)
    run, said, _ = lower(model, "cpu-int4")
    read = fake_quantize_rows(torch.from_numpy(x), FORMATS[said.sites["site"]["rounds_input_to"]]).numpy()
    assert error(run({"x": x[None]})["y"][0], product(read, plan)) < 1e-4  # ties of a scale's last place


@pytest.mark.parametrize("level", [0, 1])
def test_matmulnbits_in_float(level: int, rng: np.random.Generator, tmp_path: Path) -> None:
    from dataclasses import replace

    model, weight = linear(rng)
    target = get_target("cpu-int4")
    target = replace(target, options={**target.options, "accuracy_level": level})
    plan = plan_site(model, "site", weight, "int4-g32")
    said = lowering.lower(model, target, tmp_path)
    x = rng.standard_normal((1, 3, 96)).astype(np.float32)
    assert error(load(tmp_path)({"x": x})["y"], product(x, plan)) < ROUNDING
    assert said.sites["site"]["accuracy_level"] == level


def test_eight_bits_stay_at_level_four(rng: np.random.Generator, tmp_path: Path) -> None:
    from dataclasses import replace

    model, weight = linear(rng)
    target = replace(get_target("cpu-int4"), options={"kernels": ("nbits",), "accuracy_level": 0})
    plan_site(model, "site", weight, "int8-g32")
    said = lowering.lower(model, target, tmp_path)
    assert said.sites["site"]["accuracy_level"] == 4
    assert "int8 activations" in said.sites["site"]["why"]


def graphs(
    rng: np.random.Generator,
) -> dict[str, tuple[ir.Model, np.ndarray, Callable[[np.ndarray, Plan], np.ndarray], tuple]]:
    """Every spelling of a linear site: (model, weight [out, in], what it computes, shape of x)."""
    w, bias = rng.standard_normal((64, 48)).astype(np.float32), rng.standard_normal(48).astype(np.float32)
    make, kernel = helper.make_node, np.ascontiguousarray(w.T).reshape(48, 64, 1, 1)
    gemm = make("Gemm", ["x", "w", "b"], ["y"], name="site", transB=1, alpha=0.5, beta=2.0)
    flipped = make("Gemm", ["x", "w"], ["y"], name="site", transA=1)
    conv = make("Conv", ["x", "w", "b"], ["y"], name="site", kernel_shape=[1, 1])
    left = make("MatMul", ["w", "x"], ["y"], name="site")
    image = {"x": (TensorProto.FLOAT, ["n", 64, "h", "v"])}
    spellings = {
        "gemm": ([gemm], {"x": (TensorProto.FLOAT, ["n", 64])}, {"w": kernel[..., 0, 0], "b": bias}, (5, 64)),
        "gemm-transposed": ([flipped], {"x": (TensorProto.FLOAT, [64, "n"])}, {"w": w}, (64, 5)),
        "conv": ([conv], image, {"w": kernel, "b": bias}, (2, 64, 3, 4)),
        "left": ([left], {"x": (TensorProto.FLOAT, ["n", 64, "m"])}, {"w": kernel[..., 0, 0]}, (2, 64, 5)),
    }
    meaning = {
        "gemm": lambda x, plan: 0.5 * product(x, plan) + 2 * bias,
        "gemm-transposed": lambda x, plan: product(x.T, plan),
        "conv": lambda x, plan: np.moveaxis(product(np.moveaxis(x, 1, -1), plan) + bias, -1, 1),
        "left": lambda x, plan: np.swapaxes(product(np.swapaxes(x, -1, -2), plan), -1, -2),
    }
    return {
        name: (build(nodes, inputs, "y", weights), np.ascontiguousarray(w.T), meaning[name], shape)
        for name, (nodes, inputs, weights, shape) in spellings.items()
    }


@pytest.mark.parametrize("spelling", ["gemm", "gemm-transposed", "conv", "left"])
@pytest.mark.parametrize(
    "target, scheme", [("blackwell-fp4", "nvfp4/nvfp4"), ("cpu-int4", "int4-g32"), ("cpu-int8", "int8-channel")]
)
def test_every_spelling(spelling: str, target: str, scheme: str, rng: np.random.Generator, lower: Callable) -> None:
    model, weight, meaning, shape = graphs(rng)[spelling]
    plan = plan_site(model, "site", weight, get_target(target).scheme(scheme))
    x = rng.standard_normal(shape).astype(np.float32)
    run, _, graph = lower(model, target)
    assert error(run({"x": x})["y"], meaning(x, plan)) < (LEVEL_4 if target == "cpu-int4" else ROUNDING)
    assert "w" not in graph.graph.initializers


@pytest.mark.parametrize("opset", [13, 17, 21, 23])
@pytest.mark.parametrize(
    "scheme", ["nvfp4/nvfp4", "mxfp4-even/mxfp4-even", "int8-channel/int8-channel", "int3-g32/int3-g32"]
)
def test_every_opset(opset: int, scheme: str, rng: np.random.Generator, lower: Callable) -> None:
    model, weight = linear(rng, 100, opset=opset)
    plan = plan_site(model, "site", weight, scheme)
    x = rng.standard_normal((2, 3, 100)).astype(np.float32)
    assert error(lower(model, target_of(scheme))[0]({"x": x})["y"], product(x, plan)) < ROUNDING


@pytest.mark.parametrize(
    "target, scheme", [("blackwell-fp4", "nvfp4/nvfp4"), ("cpu-int4", "int4-g32"), ("cpu-int8", "int8-channel")]
)
def test_half_precision_graphs(target: str, scheme: str, rng: np.random.Generator, lower: Callable) -> None:
    weight = rng.standard_normal((64, 32)).astype(np.float16)
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="site")
    model = build([node], {"x": (TensorProto.FLOAT16, ["n", 64])}, "y", {"w": weight}, dtype=TensorProto.FLOAT16)
    plan = plan_site(model, "site", weight.T, get_target(target).scheme(scheme))
    x = rng.standard_normal((5, 64)).astype(np.float16)
    have = lower(model, target)[0]({"x": x})["y"]
    assert have.dtype == np.float16
    assert error(have, product(x, plan)) < (LEVEL_4 if target == "cpu-int4" else 2e-3)


# ---- lookups, sharing, size --------------------------------------------------------------------------------------


def tied(rng: np.random.Generator, size: int = 96) -> tuple[ir.Model, np.ndarray]:
    """An embedding and a head with the same table ``[rows, size]``."""
    table = rng.standard_normal((50, size)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["x"], name="embed"),
        helper.make_node("MatMul", ["x", "w"], ["y"], name="head"),
    ]
    weights = {"table": table, "w": np.ascontiguousarray(table.T)}
    return build(nodes, {"ids": (TensorProto.INT64, ["batch", "length"])}, "y", weights), table


@pytest.mark.parametrize(
    "target, scheme",
    [
        ("cpu-int4", "int4-g32"), ("cpu-int4", "uint4-g32"), ("cpu-int4", "int8-g32"), ("cpu-int4", "uint8-g16"),
        ("cpu-int4", "uint2-g32"), ("cpu-int4", "int3-g32"), ("cpu-int4", "uint3-g32"),
        ("cpu-int8", "int8-channel"), ("blackwell-fp4", "nvfp4"), ("blackwell-fp4", "fp8-e4m3-channel"),
        ("blackwell-mxfp4", "mxfp8-e4m3"), ("reference", "int3-g32"), ("reference", "uint5-g32"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("size", [96, 100])
def test_tied_tables_are_exact_and_stored_once(
    target: str, scheme: str, size: int, rng: np.random.Generator, lower: Callable
) -> None:
    model, table = tied(rng, size)
    model.graph.outputs.append(model.graph.node(0).outputs[0])
    scheme = get_target(target).scheme(scheme)
    plans = [plan_site(model, name, table, scheme) for name in ("embed", "head")]
    ids = rng.integers(0, 50, (2, 7))
    run, _, graph = lower(model, target)
    out = run({"ids": ids})
    assert np.array_equal(out["x"], plans[0].weight.dequantize().numpy()[ids])
    assert error(out["y"], product(out["x"], plans[1])) < (LEVEL_4 if target == "cpu-int4" else ROUNDING)
    if target != "cpu-int8":  # there the product wants its weight transposed
        codes = [
            v
            for v in graph.graph.initializers.values()
            if v.dtype == ir.DataType.UINT8 and v.const_value.size >= 50 * 24
        ]
        assert len(codes) == 1


def test_siblings_share_one_quantization(rng: np.random.Generator, lower: Callable) -> None:
    weights = {f"w{i}": rng.standard_normal((64, 32)).astype(np.float32) for i in range(3)}
    nodes = [helper.make_node("MatMul", ["x", name], [f"y{name}"], name=name) for name in weights]
    nodes.append(helper.make_node("Sum", [f"y{name}" for name in weights], ["y"]))
    model = build(nodes, {"x": (TensorProto.FLOAT, ["n", 64])}, "y", weights)
    plans = [plan_site(model, name, array.T, "nvfp4/nvfp4") for name, array in reversed(weights.items())]
    x = rng.standard_normal((4, 64)).astype(np.float32)
    run, _, graph = lower(model, "blackwell-fp4")
    kinds = [node.op_type for node in graph.graph if node.domain == DOMAIN]
    assert kinds == ["QuantizeNVFP4", "LinearNVFP4", "LinearNVFP4", "LinearNVFP4"]
    assert error(run({"x": x})["y"], sum(product(x, plan) for plan in plans)) < ROUNDING


@pytest.mark.parametrize(
    "target, scheme", [("blackwell-fp4", "nvfp4/nvfp4"), ("blackwell-mxfp4", "mxfp4/mxfp4"), ("cpu-int4", "int4-g32")]
)
def test_the_file_is_as_small_as_the_format(
    target: str, scheme: str, rng: np.random.Generator, lower: Callable, tmp_path: Path
) -> None:
    model, weight = linear(rng, 512, 512)
    plan = plan_site(model, "site", weight, scheme)
    lower(model, target)
    bits = plan.weight.format.bits_per_weight(512) + (16 / 32 if target == "cpu-int4" else 0)  # its scales are float32
    assert (tmp_path / "model.onnx").stat().st_size < 512 * 512 * bits / 8 + 12_000


def test_a_float_product_per_row_whatever_the_batch(rng: np.random.Generator, lower: Callable) -> None:
    model, weight = linear(rng)
    plan_site(model, "site", weight, "int8-channel/int8-channel")
    run, _, _ = lower(model, "cpu-int8")
    x = rng.standard_normal((1, 4, 96)).astype(np.float32)
    other = np.concatenate([x, 100 * x], 1)
    assert np.array_equal(run({"x": other})["y"][:, :4], run({"x": x})["y"])


def test_the_reference_reads_a_whole_tensor_in_one_range(rng: np.random.Generator, lower: Callable) -> None:
    model, weight = linear(rng, 100)
    plan = plan_site(model, "site", weight, "int4-g32/uint8-tensor")
    x = rng.standard_normal((2, 5, 100)).astype(np.float32) * np.linspace(1, 9, 5, dtype=np.float32)[:, None]
    assert error(lower(model, "reference")[0]({"x": x})["y"], product(x, plan)) < ROUNDING


# ---- files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inline", [1 << 30, 0])
def test_the_same_bytes_twice(inline: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lowering, "INLINE_BYTES", inline)
    written = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        model, table = tied(np.random.default_rng(0))
        for name in ("embed", "head"):
            plan_site(model, name, table, "nvfp4-4over6/nvfp4-4over6")
        said = lowering.lower(model, get_target("blackwell-fp4"), folder)
        assert said.files == (("model.onnx",) if inline else ("model.onnx", "model.onnx.data"))
        assert {path.name for path in folder.iterdir()} == set(said.files)
        written.append([(folder / name).read_bytes() for name in said.files])
        assert load(folder)({"ids": np.zeros((1, 2), np.int64)})["y"].shape == (1, 2, 50)
        nodes = onnx.load(folder / "model.onnx", load_external_data=False).graph.node
        assert any(name.startswith("_") for node in nodes for name in node.output)  # both kinds of files are compact
    assert written[0] == written[1]


def test_packed_weights_at_run_time_change_nothing(rng: np.random.Generator, lower: Callable, tmp_path: Path) -> None:
    model, weight = linear(rng)
    plan_site(model, "site", weight, "nvfp4/nvfp4")
    run, _, _ = lower(model, "blackwell-fp4")
    x = rng.standard_normal((1, 4, 96)).astype(np.float32)
    assert np.allclose(run({"x": x})["y"], load(tmp_path, keep_packed=True)({"x": x})["y"], rtol=1e-5, atol=1e-5)


def test_a_site_without_a_plan_is_left_alone(rng: np.random.Generator, lower: Callable) -> None:
    model, weight = linear(rng)
    x = rng.standard_normal((1, 4, 96)).astype(np.float32)
    run, said, _ = lower(model, "blackwell-fp4")
    assert error(run({"x": x})["y"], x.astype(np.float64) @ weight.T) < ROUNDING
    assert not said.sites


@pytest.mark.parametrize("target", ["cpu-int4", "reference"])
def test_sites_without_a_name_are_told_apart(target: str, rng: np.random.Generator, lower: Callable) -> None:
    """They go by the names of their results."""
    weights = [rng.standard_normal((64, 64)).astype(np.float32) for _ in range(2)]
    nodes = [helper.make_node("MatMul", ["x", "v"], ["h"]), helper.make_node("MatMul", ["h", "w"], ["y"])]
    model = build(nodes, {"x": (TensorProto.FLOAT, ["n", 64])}, "y", dict(zip("vw", weights, strict=True)))
    first, second = (plan_site(model, name, array.T, "int4-g32") for name, array in zip("hy", weights, strict=True))
    x = rng.standard_normal((4, 64)).astype(np.float32)
    run, said, _ = lower(model, target)
    assert list(said.sites) == ["h", "y"]
    bound = 2 * LEVEL_4 if target == "cpu-int4" else ROUNDING
    assert error(run({"x": x})["y"], product(product(x, first), second)) < bound


# ---- refusals ----------------------------------------------------------------------------------------------------


def test_refuses_an_operator_before_any_edit(rng: np.random.Generator, tmp_path: Path) -> None:
    kernel = rng.standard_normal((8, 16, 3, 3)).astype(np.float32)
    nodes = [helper.make_node("Conv", ["x", "k"], ["z"], name="conv")]
    model = build(nodes, {"x": (TensorProto.FLOAT, ["n", 16, 8, 8])}, "z", {"k": kernel})
    plan_site(model, "conv", kernel[:, :, 0, 0], "nvfp4/nvfp4")
    with pytest.raises(TargetError, match="no kernel for site 'conv' .Conv. in format 'nvfp4/nvfp4'"):
        lowering.lower(model, get_target("blackwell-fp4"), tmp_path)
    assert [node.op_type for node in model.graph] == ["Conv"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "target, scheme", [("cpu-int4", "nvfp4"), ("cpu-int8", "int4-g32/int4-g32"), ("reference", "int4-g32/nvfp4-16x16")]
)
def test_refuses_a_scheme_that_no_kernel_computes(
    target: str, scheme: str, rng: np.random.Generator, tmp_path: Path
) -> None:
    model, weight = linear(rng)
    plan_site(model, "site", weight, scheme)
    with pytest.raises(TargetError, match="no kernel for site 'site'"):
        lowering.lower(model, get_target(target), tmp_path)


def test_refuses_old_operators(rng: np.random.Generator, tmp_path: Path) -> None:
    model, weight = linear(rng, opset=11)
    plan_site(model, "site", weight, "nvfp4")
    with pytest.raises(InputError, match="13 or later"):
        lowering.lower(model, get_target("blackwell-fp4"), tmp_path)


def test_runner_errors(rng: np.random.Generator, lower: Callable, tmp_path: Path) -> None:
    model, weight = linear(rng)
    plan_site(model, "site", weight, "nvfp4")
    run, _, _ = lower(model, "blackwell-fp4")
    with pytest.raises(InputError, match="lacks x"):
        run({})
    with pytest.raises(InputError, match="cannot run"):
        run({"x": np.zeros((1, 2, 3), np.float32)})
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(InputError, match="cannot load"):
        load(tmp_path)
    (tmp_path / "model.onnx").unlink()
    with pytest.raises(InputError, match="holds no model.onnx"):
        load(tmp_path)


def test_every_scheme_of_every_target_has_a_kernel() -> None:
    from qcompile.backends.ort.kernels import KERNELS

    for target in TARGETS:
        names = [*(s for s in target.schemes if s != "*"), target.default, target.edge]
        for scheme in map(target.scheme, names):
            assert any(KERNELS[kernel].takes(scheme) for kernel in target.options["kernels"]), (
                target.name,
                scheme.name,
            )
