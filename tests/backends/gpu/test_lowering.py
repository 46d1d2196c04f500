"""Shipped models and single sites, planned and lowered: what the programs compute, write and refuse."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import onnx_ir as ir
import pytest
import torch
from planning import plan_site

from qcompile.analysis.analyze import analyze
from qcompile.analysis.matrices import weight_matrix
from qcompile.analysis.siblings import siblings_of
from qcompile.backends.gpu.manifest import ARCHITECTURES
from qcompile.compiler import prepare
from qcompile.errors import InputError, TargetError
from qcompile.passes.rotate import insert_online
from qcompile.run.compare import compare
from qcompile.run.data import example_inputs
from qcompile.run.session import evaluate
from qcompile.stages import Prepared
from qcompile.targets.eligible import quantizable
from qcompile.targets.plans import planned
from qcompile.targets.registry import get_target
from qcompile.transforms import (
    BlockDense,
    BlockDiagonal,
    Compose,
    Dense,
    Diagonal,
    Hadamard,
    Kronecker,
    Permutation,
    Transform,
)

pytest.importorskip("triton", reason="the generated programs import triton")

ZOO = Path(__file__).parents[3] / "examples" / "zoo"
ROUNDING = 5e-6
RNG = np.random.default_rng(1)


@cache
def prepared(name: str) -> Prepared:
    return prepare(ZOO / f"{name}.onnx")


def planned_for(model: Prepared, target: str) -> ir.Model:
    """A copy with every site in the target's default schemes, rounded to nearest."""
    graph, chosen = model.model.clone(), get_target(target)
    for site in quantizable(model.analysis, get_target(target))[0]:
        scheme = chosen.scheme(chosen.edge if site.input is None else chosen.default)
        plan_site(graph, site.name, weight_matrix(site).float().numpy(), scheme)
    return graph


def emulated(model: ir.Model, folder: Path) -> Callable:
    """The reference target in onnxruntime."""
    from qcompile.backends.ort import lowering, runner

    folder.mkdir()
    lowering.lower(model.clone(), get_target("reference"), folder)
    return runner.load(folder)


@pytest.mark.parametrize("target", ["hopper-int4", "hopper-fp4", "blackwell-fp4"])
@pytest.mark.parametrize("name", ["language_model", "dit", "mamba"])
def test_shipped_models(name: str, target: str, lower: Callable, tmp_path: Path) -> None:
    model = planned_for(prepared(name), target)
    sites = len(planned(model))
    inputs = example_inputs(model, sizes={"batch": 1, "length": 4})  # small: no code lies on a border of two
    want = emulated(model, tmp_path / "reference")(inputs)
    run, source = lower(model, target)
    assert compare(want, run(inputs))[0] < ROUNDING
    assert "CAPTURES" not in source  # nothing waits for the GPU
    assert source.count("kernels.Linear(") < sites


# ---- single sites ------------------------------------------------------------------------------------------------


def build(graph: str, version: int = 18, **constants: np.ndarray) -> ir.Model:
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": {version}]> {graph}')
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in constants.items())
    loaded = ir.from_proto(onnx.shape_inference.infer_shapes(model))
    for node in loaded.graph:
        node.name = node.name or node.outputs[0].name
    return loaded


def weight(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


SITES = {
    "product": ("float[batch,length,40] x", "z = MatMul(x, w)", (40, 24), (2, 3, 40), lambda w: w.T),
    "weight on the left": ("float[batch,40,length] x", "z = MatMul(w, x)", (24, 40), (2, 40, 3), lambda w: w),
    "gemm": ("float[n,40] x", "z = Gemm<alpha=0.5, beta=2.0, transB=1>(x, w, b)", (24, 40), (5, 40), lambda w: w),
    "gemm, transposed": ("float[40,n] x", "z = Gemm<transA=1>(x, w, b)", (40, 24), (40, 5), lambda w: w.T),
    "convolution": ("float[batch,40,h,v] x", "z = Conv(x, w, b)", (24, 40, 1, 1), (2, 40, 3, 5),
                    lambda w: w[..., 0, 0]),
    "bias behind it": ("float[n,40] x", "y = MatMul(x, w) z = Add(b, y)", (40, 24), (5, 40), lambda w: w.T),
}  # fmt: skip


@pytest.mark.parametrize("scheme", ["int4-g32", "uint4-g32", "nf4-g64", "int8-g32", "nvfp4", "mxfp4"])
@pytest.mark.parametrize("name", SITES)
def test_sites(name: str, scheme: str, lower: Callable, tmp_path: Path) -> None:
    inputs, body, shape, given, rows = SITES[name]
    model = build(f"g ({inputs}) => (float z) {{ {body} }}", w=weight(*shape), b=weight(24))
    site = next(node.name for node in model.graph if node.op_type != "Add")
    plan_site(model, site, rows(model.graph.initializers["w"].const_value.numpy()), scheme)
    x = {"x": weight(*given)}
    want = emulated(model, tmp_path / "reference")(x)
    run, _ = lower(model, "hopper-fp4" if "fp4" in scheme else "hopper-int4")
    assert compare(want, run(x))[0] < ROUNDING


@pytest.mark.parametrize("scheme", ["int8-g32", "mxfp8-e4m3"])
def test_tables(scheme: str, lower: Callable, tmp_path: Path) -> None:
    model = build("g (int64[batch,length] i) => (float[batch,length,40] z) { z = Gather(w, i) }", w=weight(50, 40))
    plan_site(model, "z", weight(50, 40), scheme)
    ids = {"i": RNG.integers(0, 50, (2, 3))}
    run, _ = lower(model.clone())
    assert compare(emulated(model, tmp_path / "reference")(ids), run(ids))[0] < 1e-7


TRANSFORMS: dict[str, Callable[[], Transform]] = {
    "hadamard": lambda: Hadamard(64),
    "blocks": lambda: BlockDiagonal(Hadamard(16), 4),
    "kronecker": lambda: Kronecker(Hadamard(4), Dense(torch.from_numpy(weight(16, 16)).double())),
    "stack along the slow half": lambda: Kronecker(BlockDense(torch.eye(4).repeat(2, 1, 1) + 1), Hadamard(8)),
    "signs": lambda: Compose((Diagonal(torch.tensor([1.0, -1.0] * 32).double()), Hadamard(64))),
    "order": lambda: Permutation(torch.randperm(64, generator=torch.Generator().manual_seed(0))),
}


@pytest.mark.parametrize("kind", TRANSFORMS)
def test_online_transforms(kind: str, lower: Callable) -> None:
    model = build("g (float[batch,length,64] x) => (float z) { h = Exp(x) z = MatMul(h, w) }", w=weight(64, 24))
    (group,) = siblings_of(analyze(model).sites)
    insert_online(model, group, TRANSFORMS[kind](), set())
    x = {"x": weight(2, 3, 64)}
    want = evaluate(model, x)
    run, source = lower(model)
    assert "kernels.Transform(" in source
    assert compare(want, run(x))[0] < ROUNDING


# ---- what is written and what is refused -------------------------------------------------------------------------


def test_the_same_bytes_for_the_same_plans(compiled: list, tmp_path: Path) -> None:
    from qcompile.backends.gpu.lowering import lower as lower_to

    model = prepared("language_model")
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
        said = lower_to(planned_for(model, "hopper-int4"), get_target("hopper-int4"), folder)
    written = [{p.relative_to(f): p.read_bytes() for p in f.rglob("*") if p.is_file()} for f in folders]
    assert written[0] == written[1]
    assert {str(name) for name in written[0]} == set(said.files)
    assert compiled == [("sm_90",)] * 2


def test_the_manifest_says_what_is_only_compiled(compiled: list, tmp_path: Path) -> None:
    from qcompile.backends.gpu.lowering import lower as lower_to

    model = build("g (float[n,32] x) => (float z) { z = MatMul(x, w) }", w=weight(32, 16))
    plan_site(model, "z", weight(16, 32), "mxfp4/mxfp4")
    said = lower_to(model, get_target("blackwell-mxfp4"), tmp_path)
    assert said.notes["compiled_for"] == ["sm_100", "sm_103", "sm_120"]
    assert said.notes["roofline_us"]["estimate"] is True
    assert said.notes["cuda_graphs"] is True
    assert said.notes["checked_on"]
    assert said.sites["z"]["kernel"].startswith("Linear (")


def test_a_site_that_equals_another_is_refused(lower: Callable) -> None:
    """One of the two goes before sites are placed, and its plan with it."""
    model = build("g (float[n,32] x) => (float z, float y) { z = MatMul(x, w) y = MatMul(x, w) }", w=weight(32, 16))
    for name in ("z", "y"):
        plan_site(model, name, weight(16, 32), "int4-g32")
    with pytest.raises(InputError, match="no site named y"):
        lower(model)


def test_a_format_without_a_kernel_is_refused(lower: Callable) -> None:
    model = build("g (float[n,32] x) => (float z) { z = MatMul(x, w) }", w=weight(32, 16))
    plan_site(model, "z", weight(16, 32), "int3-g32")
    with pytest.raises(TargetError, match="no kernel decodes a weight in 'int3-g32'"):
        lower(model)


@pytest.mark.slow
@pytest.mark.parametrize(
    "target, scheme",
    [
        ("hopper-int4", "int4-g128"),
        ("hopper-w4a8", "int4-g128/fp8-e4m3-channel"),
        ("blackwell-fp4", "nvfp4/nvfp4"),
        ("mi350-mxfp4", "mxfp4/mxfp4"),
    ],
)
def test_kernels_are_compiled_ahead(target: str, scheme: str, tmp_path: Path) -> None:
    from qcompile.backends.gpu.lowering import lower as lower_to

    model = build("g (float[n,128] x) => (float z) { z = MatMul(x, w) }", w=weight(128, 64))
    plan_site(model, "z", weight(64, 128), scheme)
    said = lower_to(model, get_target(target), tmp_path)
    binaries = [name for name in said.files if name.endswith((".cubin", ".hsaco"))]
    assert {Path(name).parent.name for name in binaries} == set(ARCHITECTURES[target])
    assert all((tmp_path / name).read_bytes()[:4] == b"\x7fELF" for name in binaries)


@pytest.mark.slow
def test_a_codebook_is_exported_as_a_table(tmp_path: Path) -> None:
    from qcompile.compiler import Options, export

    options = Options(target="hopper-int4", formats=("higgs-p1-n16",))
    artifact = export(ZOO / "language_model.onnx", options, tmp_path / "artifact")
    formats = {site["format"] for site in artifact.manifest["sites"]}
    assert "higgs-p1-n16" in formats
    assert artifact.manifest["runtimes"]["triton"]["rel_l2_to_reference"] < ROUNDING


@pytest.mark.slow
def test_mamba_2_is_one_kernel_a_layer(tmp_path: Path) -> None:
    from state_spaces import Mamba2, StateSpaceModel

    from qcompile.compiler import Options, export

    dimensions = ({0: torch.export.Dim("batch", max=64), 1: torch.export.Dim("length", min=2, max=512)},)
    ids = torch.randint(0, 8, (2, 8))
    program = torch.export.export(StateSpaceModel(Mamba2).eval(), (ids,), dynamic_shapes=dimensions)
    torch.export.save(program, tmp_path / "mamba.pt2")
    options = Options(target="hopper-int4", formats=("int4-g32",))
    artifact = export(tmp_path / "mamba.pt2", options, tmp_path / "artifact")
    source = (tmp_path / "artifact" / "model.py").read_text()
    assert source.count("kernels.state_space_duality(") == 2
    assert "range(" not in source  # no loop over time
    assert artifact.manifest["runtimes"]["triton"]["rel_l2_to_reference"] < ROUNDING
    assert artifact.manifest["notes"]["cuda_graphs"]
