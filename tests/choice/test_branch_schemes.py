"""Schemes with a branch: their names, the three ways of fitting one, and what exports make of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from changes import parse

import qcompile as qc
from qcompile.analysis.siblings import Siblings, siblings_of
from qcompile.choice.branch_fits import fit_branches
from qcompile.choice.branches import Apart, scheme_of
from qcompile.choice.scoring import probes_of, site_error
from qcompile.choice.splits import SPLIT, Branch
from qcompile.compiler import prepare
from qcompile.errors import InputError, TargetError
from qcompile.formats import fake_quantize, fake_quantize_rows
from qcompile.passes.split_branches import SplitBranches
from qcompile.run.data import Data, hold_out
from qcompile.statistics.calibration import collect
from qcompile.statistics.collected import Statistics
from qcompile.targets.registry import get_target
from qcompile.targets.scheme import Scheme

#: Two readers of one value, then a third; inputs and outputs of the graph stand at no site that has a branch.
GRAPH = """g (float[n,64] x) => (float[n,64] y) <float[64,64] a, float[64,32] b, float[32] bias, float[96,64] c> {
    [one] h = MatMul(x, a)
    [two] k = Gemm(x, b, bias)
    s = Concat<axis=-1>(h, k)
    t = Tanh(s)
    [three] l = MatMul(t, c)
    y = Sigmoid(l) }"""

BOTH = "int4-g32/int4-g32"


def model(seed: int = 1) -> ir.Model:
    found, rng = parse(GRAPH), np.random.default_rng(seed)
    for name, value in found.graph.initializers.items():
        array = rng.standard_normal(tuple(value.shape)).astype(np.float32) / 8
        value.const_value = ir.tensor(array, name=name)
    return found


def rows(count: int, seed: int) -> np.ndarray:
    """All but of rank 6: loud directions that no feature shows alone."""
    rng = np.random.default_rng(seed)
    directions = np.random.default_rng(0).standard_normal((6, 64))
    return (rng.standard_normal((count, 6)) @ directions * 2 + rng.standard_normal((count, 64)) * 0.3).astype(
        np.float32
    )


def known(seed: int = 2, made=rows) -> tuple[list[Siblings], dict[str, Statistics]]:
    found = prepare(model())
    data = hold_out(Data(tuple({"x": made(32, seed + i)} for i in range(8)), random=False), found.model)
    groups = siblings_of(found.analysis.sites)
    return groups, collect(found.model, {group.name: group.reading for group in groups}, data)


def white(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 64)).astype(np.float32)


# -- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "text", "name"),
    [
        ("cpu-int4", "int4+r8", "int4-g32+r8"),
        ("reference", "nvfp4/nvfp4+r32", "nvfp4/nvfp4+r32"),
        ("blackwell-fp4", "nvfp4/nvfp4+r16", "nvfp4/nvfp4+r16"),
        ("hopper-int4", "int4+r32", "int4-g128+r32"),
    ],
)
def test_names_are_read_as_they_are_written(target: str, text: str, name: str) -> None:
    found = scheme_of(get_target(target), text)
    assert isinstance(found, Apart)
    assert found.name == name
    assert scheme_of(get_target(target), name) == found
    assert found.alone == get_target(target).scheme(text.partition("+")[0])


@pytest.mark.parametrize(
    ("target", "text", "error", "reason"),
    [
        ("reference", "int4-g32+r0", InputError, "a whole number above 0, such as int4-g32\\+r32"),
        ("reference", "int4-g32+rx", InputError, "a whole number above 0"),
        ("reference", "float+r8", InputError, "stays float has no use for a branch"),
        ("cpu-int4", "nvfp4+r8", TargetError, "cannot run format 'nvfp4'"),
        ("checkpoint-int4", "int4+r8", InputError, "writes modules as they are"),
    ],
)
def test_names_that_are_refused(target: str, text: str, error: type[Exception], reason: str) -> None:
    with pytest.raises(error, match=reason):
        scheme_of(get_target(target), text)


# -- fitting ---------------------------------------------------------------------------------------------------------


def weights(group: Siblings) -> list[torch.Tensor]:
    from qcompile.analysis.matrices import weight_matrix

    return [weight_matrix(site).clone() for site in group.sites]


def test_directions_of_the_input_are_shared_and_cancel() -> None:
    groups, statistics = known()
    group = next(own for own in groups if own.name == "x")
    whole = weights(group)
    found = fit_branches(whole, statistics["x"], Scheme.parse(BOTH), Branch(rank=8, of="input"))
    (right, back), x = (found[0].right, found[0].back), torch.from_numpy(rows(64, 5))
    assert found[1].right is right
    torch.testing.assert_close(right @ back, torch.eye(8), rtol=0, atol=1e-4)
    for weight, branch in zip(whole, found, strict=True):
        assert branch.rest(weight) is weight
        made = branch.seen(x) @ weight.T + x @ branch.right.T @ branch.left.T
        torch.testing.assert_close(made, x @ weight.T, rtol=1e-4, atol=1e-4)
    assert float(found[0].seen(x).square().sum()) < 0.05 * float(x.square().sum())


def low_rank(weight: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return weight + 3 * torch.randn(len(weight), 4, generator=generator) @ torch.randn(4, 64, generator=generator)


@pytest.mark.parametrize(
    ("made", "scheme", "change", "way"),
    [(rows, BOTH, lambda w: w, "input"), (white, "int4-g32", low_rank, "weight")],
)
def test_the_best_way_is_that_of_the_data(made, scheme: str, change, way: str) -> None:
    """Loud directions of what is rounded are taken off it; of a weight that has some, those."""
    groups, statistics = known(made=made)
    group = next(own for own in groups if own.name == "x")
    whole = [change(weight) for weight in weights(group)]
    x, found = torch.from_numpy(made(512, 77)), {}
    parsed = Scheme.parse(scheme)
    for own in ("weight", "error", "input", "best"):
        branches, lost = fit_branches(whole, statistics["x"], parsed, Branch(rank=6, of=own)), 0.0
        for weight, branch in zip(whole, branches, strict=True):
            seen = branch.seen(x)
            read = seen if parsed.activation is None else fake_quantize_rows(seen, parsed.activation)
            out = read @ fake_quantize(branch.rest(weight), parsed.weight).T + x @ branch.right.T @ branch.left.T
            lost += float((out - x @ weight.T).square().sum() / (x @ weight.T).square().sum())
        found[own] = lost
    assert found["best"] == pytest.approx(found[way], rel=1e-5)
    assert found[way] == min(found.values())
    assert found[way] < 0.5 * max(found.values())


def test_other_formats_than_float_have_none_of_the_input() -> None:
    groups, statistics = known()
    group = next(own for own in groups if own.name == "x")
    how = Branch(rank=8, of="input", format="int8-channel")
    assert fit_branches(weights(group), statistics["x"], Scheme.parse(BOTH), how)[0].back is None
    assert fit_branches(weights(group), None, Scheme.parse(BOTH), Branch(rank=8))[0].back is None


def test_what_is_predicted_is_what_the_pass_makes() -> None:
    found = prepare(model())
    groups, (_, statistics) = siblings_of(found.analysis.sites), known()
    group = next(own for own in groups if own.name == "x")
    scheme = Apart(*_formats(BOTH), Branch(rank=6, of="input"))
    item = probes_of(group, statistics["x"]).items[0]
    part, x = item.under(scheme), item.samples.rows
    assert part.samples.rows.shape == x.shape
    read = part.samples.rows
    lost = fake_quantize_rows(read, scheme.activation) @ fake_quantize(item.weight, scheme.weight).T
    error = float((lost - read @ item.weight.T).square().sum() / (x @ item.weight.T).square().sum())
    assert site_error(item, scheme) == pytest.approx(error, rel=1e-3)
    assert site_error(item, scheme) < 0.2 * site_error(item, scheme.alone)
    SplitBranches([group], statistics, scheme.alone, scheme.branch).apply(found.state)
    (rest,) = (node.outputs[0] for node in found.model.graph if node.op_type == "Sub")
    assert {node.name for node, _ in rest.uses()} == {"one", "two"}
    marked = [node.name for node in found.model.graph if SPLIT in node.metadata_props]
    assert marked == [f"one.branch.{word}" for word in ("down", "back", "up")] + ["two.branch.up"]
    found.model.graph.outputs.append(rest)
    session = ort.InferenceSession(ir.to_proto(found.model).SerializeToString())
    (made,) = session.run([rest.name], {"x": x.numpy()})
    np.testing.assert_allclose(made, read.numpy(), rtol=1e-3, atol=1e-3)


def _formats(text: str):
    parsed = Scheme.parse(text)
    return parsed.weight, parsed.activation


# -- exports ---------------------------------------------------------------------------------------------------------


def exported(folder: Path, formats: list[str], target: str = "reference", **options) -> qc.Artifact:
    data = {"x": rows(256, 3)}
    return qc.export(model(), target, folder, formats=formats, calibration=data, transforms="none", **options)


def error(artifact: qc.Artifact) -> float:
    x = {"x": rows(128, 4)}
    want = ort.InferenceSession(ir.to_proto(model()).SerializeToString()).run(None, x)[0]
    return float(np.linalg.norm(artifact.load()(x)["y"] - want) / np.linalg.norm(want))


def test_a_scheme_puts_a_branch_beside_each_site(tmp_path: Path) -> None:
    plain, apart = exported(tmp_path / "a", [BOTH]), exported(tmp_path / "b", [f"{BOTH}+r8"])
    assert error(apart) < 0.5 * error(plain)
    sites = {site["name"]: site for site in apart.manifest["sites"]}
    assert {site["bits"] for name, site in sites.items() if ".branch." in name} == {16}
    assert {site["format"] for name, site in sites.items() if ".branch." not in name} == {"int4-g32"}
    assert apart.manifest["equivalence"]["rel_l2"] < 1e-5
    stored = {tensor.name: tensor.data_type for tensor in onnx.load(tmp_path / "b" / "model.onnx").graph.initializer}
    thin = {name for name, kind in stored.items() if kind == onnx.TensorProto.FLOAT16}
    assert {name.rpartition("_")[0] for name in thin} >= {"a_down", "a_back", "a_up", "b_up"}
    again = exported(tmp_path / "c", [f"{BOTH}+r8"])
    assert again.manifest["digests"] == apart.manifest["digests"]


def test_under_a_budget_it_competes_and_is_paid_for(tmp_path: Path) -> None:
    formats = ["int4-channel", "int4-channel+r8", "int8-channel"]
    free = exported(tmp_path / "a", formats, budget={"bits": 4.0})
    assert not [site for site in free.manifest["sites"] if ".branch." in site["name"]]
    paid = exported(tmp_path / "b", formats, budget={"bits": 7.5})
    assert paid.manifest["budget"]["bits"]["spent"] <= 7.5
    assert error(paid) < error(free)


def test_single_sites_have_one(tmp_path: Path) -> None:
    artifact = exported(tmp_path / "a", [BOTH], format_for={"three": f"{BOTH}+r8"})
    thin = {site["name"].partition(".")[0] for site in artifact.manifest["sites"] if ".branch." in site["name"]}
    assert thin == {"three"}


@pytest.mark.parametrize("target", ["cpu-int4", "cpu-int8"])
def test_targets_run_it(target: str, tmp_path: Path) -> None:
    word = get_target(target).default
    plain, apart = exported(tmp_path / "a", [word], target), exported(tmp_path / "b", [f"{word}+r8"], target)
    assert error(apart) < error(plain)
