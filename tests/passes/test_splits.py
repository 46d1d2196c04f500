"""Splits: a weight as a sum of two computes the same, and each part has the format that was asked for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from commands import refused

import qcompile as qc
from qcompile.analysis.siblings import Siblings, siblings_of
from qcompile.analysis.spaces import Analysis
from qcompile.choice.splits import SPLIT, Branch, Columns, Flatten, split_of
from qcompile.compiler import prepare
from qcompile.errors import InputError, TargetError
from qcompile.ir.required import constant
from qcompile.passes.split_branches import SplitBranches
from qcompile.passes.split_columns import SplitColumns
from qcompile.passes.split_features import SplitFeatures
from qcompile.passes.state import State
from qcompile.statistics.collected import Statistics
from qcompile.targets.scheme import FLOAT, Scheme

#: Siblings of both operators, with and without a bias.
GRAPH = """g (float[n,64] x) => (float[n,24] y, float[n,1] z)
    <float[64,48] a, float[32,64] b, float[32] c, float[80,24] d, float[64,1] e> {
    h = MatMul(x, a)
    k = Gemm<transB=1>(x, b, c)
    s = Concat<axis=-1>(h, k)
    t = Sigmoid(s)
    u = MatMul(t, d)
    y = Sigmoid(u)
    v = MatMul(x, e)
    z = Sigmoid(v) }"""

LOUD = [3, 17, 40]


def rows(count: int = 256) -> np.ndarray:
    """Rows of which a few features are loud, one of them seldom."""
    x = np.random.default_rng(0).standard_normal((count, 64)).astype(np.float32)
    x[:, LOUD[:2]] *= 20
    x[::50, LOUD[2]] = 9.0
    return x


def statistics(analysis: Analysis, model: ir.Model) -> dict[str, Statistics]:
    from qcompile.run.data import Data
    from qcompile.statistics.calibration import collect

    wanted = {group.name: group.reading for group in siblings_of(analysis.sites)}
    return collect(model, wanted, Data(({"x": rows()},), random=False))


def outputs(model: ir.Model) -> list[np.ndarray]:
    return ort.InferenceSession(ir.to_proto(model).SerializeToString()).run(None, {"x": rows(32)})


def prepared(parse, text: str = GRAPH) -> tuple[State, list[Siblings], dict[str, Statistics]]:
    found = prepare(parse(text))
    return found.state, siblings_of(found.analysis.sites), statistics(found.analysis, found.model)


def split(how: str, state: State, groups: list[Siblings], known: dict[str, Statistics]) -> bool:
    made = split_of(how)
    if isinstance(made, Columns):
        return SplitColumns(groups, known, made).apply(state)
    return SplitBranches(groups, known, Scheme.parse("int4-g32"), made).apply(state)


def beside(state: State) -> dict[str, ir.Node]:
    return {node.name: node for node in state.model.graph if SPLIT in node.metadata_props}


@pytest.mark.parametrize("how", ["columns{count=4}", "columns{above=8}", "branch{rank=6}", "branch{rank=6,rounds=1}"])
def test_the_function_stays(parse, how: str) -> None:
    state, groups, known = prepared(parse)
    before = outputs(state.model)
    assert split(how, state, groups, known)
    assert len(beside(state)) >= 2
    for old, new in zip(before, outputs(state.model), strict=True):
        np.testing.assert_allclose(new, old, rtol=1e-5, atol=1e-5)
    nodes = [node.name for node in state.model.graph]
    assert not split(how, state, groups, known)  # another time there is nothing to do
    assert [node.name for node in state.model.graph] == nodes


def places(state: State, word: str) -> list[int]:
    (found,) = (v for n, v in state.model.graph.initializers.items() if n == f"x_{word}_places")
    return constant(found).numpy().tolist()


@pytest.mark.parametrize(
    ("how", "loud"),
    [("columns{count=2}", LOUD[:2]), ("columns{above=8.5}", LOUD), ("columns{count=1,above=8.5}", LOUD)],
)
def test_loud_features_are_those_of_the_data(parse, how: str, loud: list[int]) -> None:
    state, groups, known = prepared(parse)
    assert split(how, state, groups, known)
    assert places(state, "columns") == loud
    assert places(state, "rest") == [i for i in range(64) if i not in loud]


def test_at_most_an_eighth_of_the_features(parse) -> None:
    state, groups, known = prepared(parse)
    split("columns{count=1000}", state, groups, known)
    assert len(places(state, "columns")) == 8


def test_nothing_reaches_infinity_and_all_reach_almost_nothing(parse) -> None:
    state, groups, known = prepared(parse)
    assert not split("columns{above=1e9}", state, groups, known)
    assert not beside(state)
    assert split("columns{above=1e-9}", state, groups, known)
    assert {node.op_type for node in beside(state).values()} == {"MatMul", "Gemm"}  # the sites themselves
    assert "Gather" not in {node.op_type for node in state.model.graph}


def test_what_a_branch_leaves_is_smaller_where_it_counts(parse) -> None:
    state, groups, known = prepared(parse)
    (group,) = (group for group in groups if group.name == "x")
    site = group.sites[0]
    whole, energy = constant(site.weight).numpy().copy(), known["x"].second_moment.diagonal()
    split("branch{rank=8,rounds=1}", state, groups, known)
    rest = constant(site.node.inputs[1]).numpy()
    loss = {"rest": (rest**2 * energy[:, None]).sum(), "whole": (whole**2 * energy[:, None]).sum()}
    assert loss["rest"] < 0.5 * loss["whole"]
    assert [node.name for node in beside(state).values()][:2] == [f"{site.name}.branch.down", f"{site.name}.branch.up"]


def test_rounds_never_make_a_branch_worse(parse) -> None:
    """The best of several is kept: the loss of rounding the rest does not grow with their number."""
    from qcompile.formats import fake_quantize

    losses = []
    for rounds in (1, 2, 4):
        state, groups, _ = prepared(parse)
        split(f"branch{{rank=4,rounds={rounds},smooth=0}}", state, groups, {})
        site = groups[0].sites[0]
        import torch

        rest = torch.from_numpy(constant(site.node.inputs[1]).numpy().T.copy())
        losses.append(float((fake_quantize(rest, Scheme.parse("int4-g32").weight) - rest).square().sum()))
    assert losses[1] <= losses[0] * (1 + 1e-5)
    assert losses[2] <= losses[1] * (1 + 1e-5)
    assert losses[2] < losses[0]


def test_a_branch_of_the_error_leaves_the_codes_and_takes_the_leading_part(parse) -> None:
    """``‖E - E_r‖² = Σ_{i>r} σ_i²``, and what is left rounds to what the whole weight does."""
    import torch

    from qcompile.formats import fake_quantize, quantize

    fmt = Scheme.parse("int8-channel").weight
    found = prepare(parse(GRAPH))
    groups = siblings_of(found.analysis.sites)
    site = groups[0].sites[0]
    whole = torch.from_numpy(constant(site.weight).numpy().T.copy())
    how = Branch(rank=5, rounds=1, smooth=0.0, of="error")
    SplitBranches(groups, {}, Scheme.parse("int8-channel"), how).apply(found.state)
    rest = torch.from_numpy(constant(site.node.inputs[1]).numpy().T.copy())
    error, branch = whole - fake_quantize(whole, fmt), whole - rest
    left = float((error - branch).square().sum())
    assert left == pytest.approx(float(torch.linalg.svdvals(error)[5:].square().sum()), rel=1e-3)
    assert (quantize(rest, fmt).codes == quantize(whole, fmt).codes).float().mean() > 0.9


def test_what_cannot_be_split_is_said(parse) -> None:
    text = """g (float[n,64] x) => (float[n,32] y) <float[64,32] a, float[64,32] b> {
        h = MatMul(x, a)
        r = Sigmoid(x)
        k = MatMul(r, b)
        l = MatMul(x, b)
        s = Add(h, k)
        t = Add(s, l)
        y = Sigmoid(t) }"""
    state, groups, known = prepared(parse, text)
    assert SplitColumns(groups, known, Columns(count=2)).apply(state)
    assert len(beside(state)) == 1
    said = {entry.site: entry.reason for entry in state.declined if "loud features" in entry.what}
    assert len(said) == 2
    assert all("'b' is read elsewhere, too" in reason for reason in said.values())


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("colums{count=2}", "unknown split 'colums'.*the nearest: columns"),
        ("columns", "needs a count above 0, or a magnitude"),
        ("columns{count=-1,above=2}", "needs a count above 0"),
        ("flatten{most=1}", "at least 2 pieces"),
        ("branch{rank=0}", "needs a rank and rounds of at least 1"),
        ("branch{count=2}", "split 'branch' has no option 'count'"),
        ("branch,columns{count=2}", "is no split, such as"),
    ],
)
def test_words_that_make_no_sense(word: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        split_of(word)


# -- exports ---------------------------------------------------------------------------------------------------------

OPTIONS = {"formats": "int4-g32/int4-g32", "transforms": "none", "method": "rtn", "calibration": {"x": rows()}}


def test_parts_have_their_formats(parse, tmp_path: Path) -> None:
    plain = qc.export(parse(GRAPH), "reference", tmp_path / "plain", **OPTIONS)
    errors = {}
    for word, formats in (
        ("columns{count=4,format=int8-channel/int8-channel}", {"int8-channel", "int4-g32"}),
        ("columns{count=4}", {"float", "int4-g32"}),
        ("branch{rank=12}", {"float", "int4-g32"}),
    ):
        artifact = qc.export(parse(GRAPH), "reference", tmp_path / word, split=[word], **OPTIONS)
        assert {site["format"] for site in artifact.manifest["sites"]} == formats
        asked = [site["asked"] for site in artifact.manifest["sites"] if site["name"].endswith((".columns", ".up"))]
        assert asked
        assert all(words == [f"--split '{word}'"] for words in asked)
        errors[word] = artifact.manifest["quantization"]["rel_l2"]
        (options,) = [json.loads((tmp_path / word / "manifest.json").read_text())["options"]]
        assert options["split"] == [word]
        assert SPLIT not in (tmp_path / word / "model.onnx").read_bytes().decode("latin1")
    assert max(errors.values()) < 0.7 * plain.manifest["quantization"]["rel_l2"]


def test_a_wish_about_a_part_counts_more(parse, tmp_path: Path) -> None:
    wishes = {"format_for": {"*.columns": "int8-g32"}, "exclude": ["node_1"]}
    artifact = qc.export(parse(GRAPH), "reference", tmp_path / "out", split=["columns{count=4}"], **OPTIONS, **wishes)
    formats = {site["name"]: site["format"] for site in artifact.manifest["sites"]}
    assert {form for name, form in formats.items() if name.endswith(".columns")} == {"int8-g32"}
    assert not any(name.startswith("node_1.") for name in formats)
    assert Branch().format == "float"
    assert FLOAT.name == "float"


def test_random_inputs_show_no_loud_features(parse, tmp_path: Path) -> None:
    options = {**OPTIONS, "calibration": None}
    manifest = qc.export(parse(GRAPH), "reference", tmp_path / "out", split=["columns{count=4}"], **options).manifest
    said = [entry["reason"] for entry in manifest["declined"] if "loud features" in entry["what"]]
    assert said == ["there is no calibration data, and what is loud on random inputs is so on no others"]


def test_a_target_refuses_a_format_beside_sites(parse, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="target 'cpu-int4' cannot run format 'nvfp4'"):
        qc.export(parse(GRAPH), "cpu-int4", tmp_path / "out", split=["columns{count=4,format=nvfp4}"])
    assert not (tmp_path / "out").exists()
    ir.save(parse(GRAPH), tmp_path / "m.onnx")
    words = ["export", tmp_path / "m.onnx", "--target", "cpu-int4", "-o", tmp_path / "out", "--split", "colums"]
    assert "unknown split 'colums'" in refused(tmp_path, *words)


def test_what_is_kept_for_other_exports_is_told_apart(parse, tmp_path: Path) -> None:
    """Another split, format or method finds nothing in the folder of work that is not its own."""
    work, options = tmp_path / "work", {**OPTIONS, "method": "gptq"}
    asked = [
        {"split": ["branch{rank=6}"]},
        {"split": ["branch{rank=12}"]},
        {"split": ["branch{rank=12}"], "formats": "int8-channel/int8-channel"},
        {"split": ["columns{count=4}"]},
        {"method": "gptq{shift=1}"},
        {"method": "comq"},
    ]
    for number, words in enumerate(asked):
        kept = qc.export(parse(GRAPH), "reference", tmp_path / f"kept{number}", work=work, **{**options, **words})
        fresh = qc.export(parse(GRAPH), "reference", tmp_path / f"fresh{number}", **{**options, **words})
        assert kept.manifest["digests"] == fresh.manifest["digests"]
        again = qc.export(parse(GRAPH), "reference", tmp_path / f"again{number}", work=work, **{**options, **words})
        assert again.manifest["digests"] == fresh.manifest["digests"]


def test_pieces_add_up_and_none_is_louder(parse) -> None:
    """``Σ p = x``, the largest is the bound, and the width grows by the pieces that are more than one a feature."""
    state, groups, known = prepared(parse)
    before = outputs(state.model)
    how = Flatten(times=2.0, most=32)
    assert SplitFeatures(groups, known, how).apply(state)
    assert not SplitFeatures(groups, known, how).apply(state)
    for old, new in zip(before, outputs(state.model), strict=True):
        np.testing.assert_allclose(new, old, rtol=1e-5, atol=1e-5)
    (flat,) = (node.outputs[0] for node in state.model.graph if node.name == "x_flat")
    peaks = np.abs(known["x"].sample).max(0)
    bound = 2.0 * np.median(peaks)
    counts = np.ceil(peaks / bound)
    assert 4 < counts.max() < 32
    assert flat.shape[-1] == counts.sum() > 64
    assert {node.op_type for node, _ in flat.uses()} == {"MatMul", "Gemm"}
    state.model.graph.outputs.append(flat)
    (pieces,) = ort.InferenceSession(ir.to_proto(state.model).SerializeToString()).run(["x_flat"], {"x": rows()})
    assert np.abs(pieces).max() == pytest.approx(bound, rel=1e-5)
    assert np.abs(pieces.sum(-1) - rows().sum(-1)).max() < 1e-3


def test_flat_inputs_lose_less(parse, tmp_path: Path) -> None:
    options = {**OPTIONS, "formats": "int8-channel/int4-channel"}
    errors = []
    for words in ([], ["flatten{most=32}"]):
        artifact = qc.export(parse(GRAPH), "reference", tmp_path / str(len(words)), split=words, **options)
        errors.append(artifact.manifest["quantization"]["rel_l2"])
    assert errors[1] < 0.9 * errors[0]
