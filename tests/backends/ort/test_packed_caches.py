"""Artifacts with packed caches: codes and outputs token by token equal the definition, in both forms of attention."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cached_decoder import FEATURES, HEADS, PLACES, cached_decoder, prompts, with_past
from commands import refused
from onnx_ir.passes.common import TopologicalSortPass

import qcompile as qc
from qcompile.backends.ort.packed_caches import lower_caches
from qcompile.choice.cache_choice import choose_caches
from qcompile.errors import InputError
from qcompile.formats.cache_words import parse_cache_format
from qcompile.preparation import prepare
from qcompile.run.data import load_data
from qcompile.run.session import Session
from qcompile.targets.cache_plans import CachePlan, cache_plans_in, drop_cache_plans

KEY, VALUE = "past_key", "past_value"


def export(folder: Path, target: str, word: str, attention: str = "one", loud: float = 1.0, **more: Any) -> Any:
    """An artifact whose weights stay float, so that its cache alone makes a difference, and the path of its model."""
    path = cached_decoder(folder / "model.onnx", attention, loud)
    artifact = qc.export(
        path, target, folder=folder / "artifact", calibration=prompts(16, 24), cache_format=word, seed=0,
        format_for={"*": "float", "logits": "int8"} | more.pop("format_for", {}), method="rtn", **more,
    )  # fmt: skip
    return artifact, path


def plans_of(artifact: Any) -> dict[str, CachePlan]:
    return {plan.past: plan for plan in cache_plans_in(artifact.manifest, artifact.folder)}


def steps(length: int = 11) -> list[slice]:
    """A prompt of five tokens, then one at a time."""
    return [slice(0, 5), *(slice(at, at + 1) for at in range(5, length))]


def by_definition(path: Path, plans: dict[str, CachePlan], ids: np.ndarray) -> tuple[list[np.ndarray], dict]:
    """Logits of each step by the float graph, given what the caches hold, and the codes in the end."""
    session = Session(path, optimize=False)
    held = {name: np.zeros((len(ids), HEADS, 0, FEATURES), np.float32) for name in plans}
    exact = dict(held)
    logits = []
    for step in steps():
        tokens = ids[:, step]
        new = session.run(with_past(tokens, held[KEY], held[VALUE]))
        for name, plan in plans.items():
            grown = new[plan.present][:, :, held[name].shape[2] :]
            exact[name] = np.concatenate([exact[name], grown], 2)
            held[name] = plan.fake(exact[name])
        behind = {name: held[name][:, :, : held[name].shape[2] - tokens.shape[1]] for name in plans}
        own = {name: held[name][:, :, behind[name].shape[2] :] for name in plans}
        logits.append(attended(path, tokens, behind, own))
    return logits, {name: plan.pack(exact[name]) for name, plan in plans.items()}


def attended(path: Path, tokens: np.ndarray, behind: dict, own: dict) -> np.ndarray:
    """The float graph on tokens, whose own keys and values are replaced by what the cache holds of them."""
    model = onnx.load(path)
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if node.op_type == "Concat" and name in ("k", "v2"):
                node.input[index] = f"given_{name}"
    for name in ("k", "v2"):
        model.graph.input.append(onnx.helper.make_tensor_value_info(f"given_{name}", 1, ["B", HEADS, "L", FEATURES]))
    import onnxruntime as ort

    session = ort.InferenceSession(model.SerializeToString())
    feeds = with_past(tokens, behind[KEY], behind[VALUE]) | {"given_k": own[KEY], "given_v2": own[VALUE]}
    (logits,) = session.run(["logits"], feeds)
    return logits


def by_artifact(artifact: Any, plans: dict[str, CachePlan], ids: np.ndarray) -> tuple[list[np.ndarray], dict]:
    run = artifact.load()
    empty = np.zeros((len(ids), HEADS, 0, FEATURES), np.float32)
    caches = {name: plan.pack(empty) for name, plan in plans.items()}
    logits = []
    for step in steps():
        feeds = with_past(ids[:, step], np.zeros((len(ids), 1, step.start, 1)))
        outputs = run(feeds | caches[KEY] | caches[VALUE])
        logits.append(outputs["logits"])
        for name, plan in plans.items():
            assert caches[name].keys() == plan.parts.keys()
            caches[name] = {past: outputs[present] for past, present in plan.parts.items()}
    return logits, caches


CASES = [
    ("reference", "int8", "one"), ("reference", "int4-g16", "spelled"), ("reference", "uint2-token", "one"),
    ("reference", "int4-channel", "spelled"), ("cpu-int4", "int8", "one"), ("cpu-int4", "int4", "one"),
    ("cpu-int4", "int4-tensor", "one"), ("cpu-int4", "int4-token", "one"), ("cpu-int8", "int8-tensor", "one"),
    ("cpu-int8", "int4", "spelled"), ("cpu-int4", "int4-token,uint4-g16", "one"),
    ("cpu-int8", "float32", "one"), ("reference", "float32", "spelled"), ("reference", "fp8-tensor", "one"),
    ("cpu-int4", "fp8", "spelled"), ("cpu-int8", "nvfp4", "one"), ("reference", "mxfp4,nvfp4", "spelled"),
    ("reference", "eden2", "one"), ("cpu-int4", "turboquant4", "one"), ("reference", "uint2-token{recent=3}", "one"),
    ("cpu-int4", "int8", "held"), ("reference", "int4-g16", "causal"), ("cpu-int8", "int4", "flat"),
    ("cpu-int4", "int4", "grouped"), ("cpu-int8", "int8-tensor", "grouped"),
    ("cpu-int4", "uint2-token{recent=4}", "held"), ("cpu-int4", "int4{recent=3,first=2}", "spelled"),
    ("cpu-int8", "nvfp4{first=7}", "one"),
]  # fmt: skip


@pytest.mark.parametrize("target, word, attention", CASES)
def test_token_by_token(target: str, word: str, attention: str, tmp_path: Path) -> None:
    artifact, _ = export(tmp_path, target, word, attention)
    plans = plans_of(artifact)
    integers = word.startswith("int") and plans[KEY].format.static is not None and not plans[KEY].format.keeps
    fused = target != "reference" and (integers or word == "float32")
    assert {plan.form for plan in plans.values()} == {"fused" if fused else "standard"}
    graph = onnx.load(artifact.folder / "model.onnx").graph
    assert ("GroupQueryAttention" in {node.op_type for node in graph.node}) == fused
    ids = prompts(3, 11, seed=5)["input_ids"]
    definition = cached_decoder(tmp_path / "plain.onnx")  # the same function, whatever holds its caches
    want, codes = by_definition(definition, plans, ids)
    have, caches = by_artifact(artifact, plans, ids)
    for name in plans:
        for part, array in codes[name].items():
            assert array.dtype == caches[name][part].dtype
            rounding = 1e-5 if array.dtype == np.float32 else 0.0  # of what is stored as it is
            apart = np.count_nonzero(np.abs(array.astype(np.float64) - caches[name][part]) > rounding)
            assert apart <= 2e-3 * array.size, (name, part)  # keys are sums in another order
    head = 0.02 * float(np.abs(np.concatenate(want, 1)).max())  # the head has 8 bits, so that there is a site
    for a, b in zip(want, have, strict=True):
        np.testing.assert_allclose(a, b, atol=head)


@pytest.mark.parametrize("word", ["int4-tensor", "int4-token"])
def test_loud_keys_and_values_are_rotated(word: str, tmp_path: Path) -> None:
    artifact, path = export(tmp_path, "cpu-int4", word, loud=12.0)
    key, value = artifact.manifest["caches"]
    assert "none" not in {key["transform"], value["transform"]}
    assert key["candidates"]["hadamard"] < 0.5 * key["candidates"]["none"]
    assert key["candidates"]["wush"] < key["candidates"]["none"]
    plans, ids = plans_of(artifact), prompts(2, 11, seed=6)["input_ids"]
    want, _ = by_definition(path, plans, ids)
    have, _ = by_artifact(artifact, plans, ids)
    for a, b in zip(want, have, strict=True):
        np.testing.assert_allclose(a, b, atol=0.02 * float(np.abs(np.concatenate(want, 1)).max()))
    (tmp_path / "plain").mkdir()
    plain, _ = export(tmp_path / "plain", "cpu-int4", word, loud=12.0, transforms="none")
    assert {entry["transform"] for entry in plain.manifest["caches"]} == {"none"}
    ours, theirs = (made.manifest["quantization"]["divergence"] for made in (artifact, plain))
    assert ours < 0.7 * theirs


@pytest.mark.parametrize("attention", ["one", "spelled"])
def test_float_caches_are_read_by_one_operator(attention: str, tmp_path: Path) -> None:
    """Attention over float caches makes the same in GroupQueryAttention, for a prompt and token by token."""
    prepared = prepare(cached_decoder(tmp_path / "model.onnx", attention)).model
    whole = Session(prepared, optimize=False)
    plans = choose_caches(
        prepared, [parse_cache_format("float32")], load_data(prompts(4, 12), prepared), lambda *_: None,
        rotates=True, fuses=True,
    )  # fmt: skip
    assert {plan.form for plan in plans} == {"fused"}
    lower_caches(prepared)
    drop_cache_plans(prepared)
    assert not {"Attention", "Softmax"} & {node.op_type for node in prepared.graph}
    TopologicalSortPass()(prepared)
    fused = Session(prepared)
    held = {name: np.zeros((3, HEADS, 0, FEATURES), np.float32) for name in (KEY, VALUE)}
    ids = prompts(3, 11, seed=5)["input_ids"]
    for step in steps():
        feeds = with_past(ids[:, step], held[KEY], held[VALUE])
        want, have = whole.run(feeds), fused.run(feeds)
        for name, array in want.items():
            np.testing.assert_allclose(have[name], array, atol=1e-5 * float(np.abs(array).max()))
        held = {KEY: have["present_key"], VALUE: have["present_value"]}


def test_bases_are_fitted_to_queries_and_keys_and_judged_on_others(tmp_path: Path) -> None:
    """The artifact writes and reads its caches in them; with few rows there are none."""
    artifact, path = export(tmp_path, "reference", "uint4-g16", loud=12.0)
    plans, ids = plans_of(artifact), prompts(2, 11, seed=6)["input_ids"]
    assert plans[KEY].transform == "wush"
    assert "caches.npz" in artifact.manifest["files"]
    x = np.random.default_rng(0).standard_normal((1, HEADS, 4, FEATURES)).astype(np.float32)
    basis = plans[KEY].basis
    assert basis is not None
    np.testing.assert_allclose(basis.out_of(basis.into(x)), x, atol=1e-4)
    want, _ = by_definition(path, plans, ids)
    have, _ = by_artifact(artifact, plans, ids)
    for a, b in zip(want, have, strict=True):
        np.testing.assert_allclose(a, b, atol=0.02 * float(np.abs(np.concatenate(want, 1)).max()))
    few = qc.export(
        path, "reference", folder=tmp_path / "few", calibration=prompts(3, 24), cache_format="uint4-g16", method="rtn"
    )
    assert {entry["transform"] for entry in few.manifest["caches"]} <= {"none", "hadamard"}
    assert "fitting a basis to the cache" in {entry["what"] for entry in few.manifest["declined"]}


@pytest.mark.parametrize("budget, formats", [(72, ["int8-token"] * 2), (71, ["int8-token", "uint4-token"])])
def test_a_budget_of_bytes_for_each_token(budget: int, formats: list[str], tmp_path: Path) -> None:
    artifact, _ = export(tmp_path, "cpu-int4", "float", budget={"cache": budget})
    entries = artifact.manifest["caches"]
    assert sorted(entry["format"] for entry in entries) == formats
    spent = artifact.manifest["budget"]["cache"]
    assert spent["spent"] == sum(entry["bytes_per_token"] for entry in entries) <= spent["bound"] == budget
    for entry in entries:
        assert entry["formats"][entry["format"]] == entry["error"]
        assert entry["formats"]["uint2-token"] > entry["formats"]["uint4-token"] > entry["formats"]["int8-token"]
        assert entry["bits"] == 8 * entry["bytes_per_token"] / (HEADS * FEATURES)


def test_caches_and_weights_have_budgets_at_once(tmp_path: Path) -> None:
    path = cached_decoder(tmp_path / "model.onnx")
    artifact = qc.export(
        path, "cpu-int4", folder=tmp_path / "artifact", calibration=prompts(16, 24), formats=["int4", "int8"],
        method="rtn", budget={"bits": 6, "cache": 50},
    )  # fmt: skip
    assert set(artifact.manifest["budget"]) == {"bits", "cache"}
    assert artifact.manifest["bits_per_weight"] < 8
    for entry in artifact.manifest["caches"]:
        assert entry["alpha"] > 0
        assert entry["predicted_delta"] == pytest.approx(entry["alpha"] * entry["error"], rel=1e-3)


def test_the_manifest_and_the_tools(tmp_path: Path) -> None:
    artifact, path = export(tmp_path, "cpu-int4", "int4")
    manifest = json.loads((artifact.folder / "manifest.json").read_text())
    for entry in manifest["caches"]:
        assert entry["float_bytes_per_token"] / entry["bytes_per_token"] == 8
        assert 0 < entry["error"] < 0.1
    assert manifest["options"]["cache_format"] == "int4"
    assert [v["dtype"] for v in manifest["inputs"] if "past" in v["name"]] == ["uint8", "uint8"]
    assert manifest["engine"]["rel_l2"] < 1e-5  # of the lowered graph, beside the formats' definition on the engine
    measured = qc.verify(artifact.folder, path, prompts(4, 20, seed=9))
    assert 0 < measured.divergence < 0.1
    found = qc.compare(path, artifact.folder, prompts(4, 20, seed=9), generate=6)
    assert 0 < found["divergence"]["mean"] < 0.1
    assert found["generation"]["tokens"] == 6


@pytest.mark.parametrize("target, word", [("reference", "int8-token"), ("cpu-int4", "nvfp4"), ("cpu-int8", "int4")])
def test_caches_of_one_size_that_are_written_into(target: str, word: str, tmp_path: Path) -> None:
    """TensorScatter writes codes and scales where it wrote numbers; what is elsewhere stays."""
    path = cached_decoder(tmp_path / "model.onnx", "written")
    empty = np.zeros((16, HEADS, PLACES, FEATURES), np.float32)
    ids = prompts(16, 24)["input_ids"]
    data = with_past(ids, empty) | {"position_ids": np.tile(np.arange(24), (16, 1))}
    artifact = qc.export(
        path, target, folder=tmp_path / "artifact", calibration=data, cache_format=word, method="rtn",
        format_for={"*": "float", "logits": "int8"}, transforms="none",
    )  # fmt: skip
    plans = plans_of(artifact)
    assert {plan.form for plan in plans.values()} == {"standard"}
    run, session = artifact.load(), Session(path, optimize=False)
    caches = {name: plan.pack(empty[:2]) for name, plan in plans.items()}
    held = dict.fromkeys(plans, empty[:2])
    for step in steps():
        places = {"position_ids": np.tile(np.arange(step.start, step.stop), (2, 1))}
        want = session.run(with_past(ids[:2, step], held[KEY], held[VALUE]) | places)
        have = run(with_past(ids[:2, step], empty[:2]) | places | caches[KEY] | caches[VALUE])
        assert np.linalg.norm(have["logits"] - want["logits"]) < 0.1 * np.linalg.norm(want["logits"])
        for name, plan in plans.items():
            exact = np.concatenate([held[name][:, :, : step.start], want[plan.present][:, :, step.start :]], 2)
            for part, array in plan.pack(exact).items():
                apart = np.count_nonzero(array[:, :, step] != have[plan.parts[part]][:, :, step])
                assert apart <= 2e-3 * array.size, part  # keys are sums in another order
                np.testing.assert_array_equal(
                    have[plan.parts[part]][:, :, : step.start], caches[name][part][:, :, : step.start]
                )
            caches[name] = {past: have[present] for past, present in plan.parts.items()}
            held[name] = plan.unpack(have)
    with pytest.raises(InputError, match="no cache that can be quantized"):
        qc.export(path, target, folder=tmp_path / "other", calibration=data, cache_format="int8-token{recent=4}")


def test_caches_that_an_operator_holds_itself_take_what_it_packs(tmp_path: Path) -> None:
    path = cached_decoder(tmp_path / "model.onnx", "grouped")
    data = prompts(8, 12)
    for target, word in (("cpu-int4", "int8-token"), ("reference", "int8-tensor"), ("cpu-int8", "fp8")):
        artifact = qc.export(
            path, target, folder=tmp_path / target, calibration=data, cache_format=word, method="rtn", transforms="none"
        )
        assert artifact.manifest["caches"] == []
        reasons = {entry["reason"] for entry in artifact.manifest["declined"] if entry["site"] in (KEY, VALUE)}
        assert all(reason.startswith("GroupQueryAttention holds it, and") for reason in reasons)
        assert reasons


def test_tools_write_on_with_all_parts_of_a_cache(tmp_path: Path) -> None:
    artifact, path = export(tmp_path, "reference", "uint4-token{recent=4,first=2}", "held")
    for entry in artifact.manifest["caches"]:
        assert entry["bytes_per_token"] == HEADS * (FEATURES // 2 + 4)
        assert entry["fixed_bytes"] == HEADS * FEATURES * 4 * 6
    assert artifact.manifest["engine"]["rel_l2"] < 1e-5
    found = qc.compare(path, artifact.folder, prompts(4, 20, seed=9), generate=6)
    assert found["generation"]["tokens"] == 6
    assert 0 < found["divergence"]["mean"] < 0.1
    assert qc.verify(artifact.folder, path, prompts(4, 20, seed=9)).divergence > 0


def test_fused_attention_needs_positions_that_see_none_behind_them(tmp_path: Path) -> None:
    path = cached_decoder(tmp_path / "causal.onnx")
    model = onnx.load(path)
    later = onnx.helper.make_node("Add", ["position_ids", "many"], ["later"], "later")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(1000), "many"))
    for node in model.graph.node:
        if node.name == "own":
            node.input[0] = "later"  # everything is seen
    model.graph.node.insert(0, later)
    onnx.save(model, tmp_path / "model.onnx")
    artifact = qc.export(
        tmp_path / "model.onnx", "cpu-int4", folder=tmp_path / "a", calibration=prompts(8, 12), cache_format="int8"
    )
    assert {entry["form"] for entry in artifact.manifest["caches"]} == {"standard"}
    assert "positions see later ones" in {entry["reason"] for entry in artifact.manifest["declined"]}


def test_mistakes(tmp_path: Path) -> None:
    path = cached_decoder(tmp_path / "model.onnx")

    def said(*arguments: object) -> str:
        return refused(tmp_path, "export", path, "-o", tmp_path / "out", *arguments)

    assert "static scales" in said("--target", "cpu-int4", "--cache-format", "int8")
    assert "unknown cache format" in said("--target", "cpu-int4", "--cache-format", "int5")
    assert "needs a budget" in said("--target", "cpu-int4", "--cache-format", "auto")
    assert "cache=1" in said("--target", "cpu-int4", "--budget", "cache=1")
    assert "cannot quantize caches" in said("--target", "tvm-cpu", "--budget", "cache=100")
    assert "cannot quantize caches" in said("--target", "blackwell-fp4", "--cache-format", "int8")
    from running_sums import plain, save

    other = save(plain(), tmp_path / "plain.onnx")
    assert "no cache" in refused(
        tmp_path, "export", other, "-o", tmp_path / "out", "--target", "reference", "--cache-format", "int8"
    )
