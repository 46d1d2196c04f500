"""Modules of transformers and diffusers are exported by the first call, with their own keywords and their cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from pretrained import DIFFUSION, PRETRAINED, make, tokens

import qcompile as qc
from qcompile.run.session import Session

transformers = pytest.importorskip("transformers", reason="the extra hf is not installed: pip install -e '.[hf]'")

QUICK = ("Llama", "Mamba")


def check(family: str, folder: Path) -> None:
    """The graph is the module at the sizes of the example and at others, and the artifact is near it."""
    if family in DIFFUSION:
        pytest.importorskip("diffusers", reason="diffusers is not installed")
    module, call = make(family)
    source = qc.capture(module, call)
    if getattr(module.config, "use_cache", False):
        (declined,) = source.declined
        assert declined.what == "returning its cache"
        assert "cache=True" in declined.reason
    session = Session(source.model)
    rows = {name: torch.cat([value, value[:1]]) for name, value in call.items()}
    for inputs in (call, rows):
        with torch.no_grad():
            expected = module(**inputs)
        found = session.run({name: value.numpy() for name, value in inputs.items()})
        assert set(found) >= {name for name, value in expected.items() if isinstance(value, torch.Tensor)}
        for name in set(found) & set(expected):
            np.testing.assert_allclose(found[name], expected[name].numpy(), rtol=1e-3, atol=1e-5, err_msg=name)
    artifact = qc.export(source, "cpu-int4", folder / "out", method="rtn")
    assert artifact.manifest["equivalence"]["rel_l2"] < 1e-5
    assert artifact.manifest["quantization"]["rel_l2"] < 0.6
    assert sum("format" in site for site in artifact.manifest["sites"]) >= 6


@pytest.mark.parametrize("family", QUICK)
def test_is_exported_by_the_first_call(family: str, tmp_path: Path) -> None:
    check(family, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("family", [family for family in (*PRETRAINED, *DIFFUSION) if family not in QUICK])
def test_every_family_is_exported_by_the_first_call(family: str, tmp_path: Path) -> None:
    check(family, tmp_path)


def stepwise(model: ir.Model, ids: np.ndarray, cuts: list[int]) -> np.ndarray:
    """Logits of some tokens, a few at a time, from an empty cache."""
    session, values = Session(model), {value.name: value for value in model.graph.inputs}
    cache = {
        name: np.zeros((len(ids), int(value.shape[1]), 0, int(value.shape[3])), np.float32)
        for name, value in values.items() if name.startswith("past_key_values.")
    }  # fmt: skip
    logits, done = [], 0
    for cut in cuts:
        positions = np.broadcast_to(np.arange(done, cut), (len(ids), cut - done))
        inputs = {"input_ids": ids[:, done:cut], "attention_mask": np.ones((len(ids), cut), np.int64)}
        found = session.run(inputs | {"position_ids": np.ascontiguousarray(positions)} | cache)
        logits.append(found["logits"])
        cache = {name: found[name.replace("past_key_values", "present")] for name in cache}
        done = cut
    return np.concatenate(logits, 1)


def cached(family: str) -> None:
    module, call = make(family)
    source = qc.capture(module, call, cache=True)
    layers, parts = range(2), ("key", "value")
    names = [f"{i}.{part}" for i in layers for part in parts]
    found = [value.name for value in source.model.graph.inputs]
    assert found == ["input_ids", "attention_mask", "position_ids", *(f"past_key_values.{name}" for name in names)]
    assert [value.name for value in source.model.graph.outputs] == ["logits", *(f"present.{name}" for name in names)]
    assert [str(dim) for dim in source.model.graph.inputs[3].shape][::2] == ["batch_size", "past_sequence_length"]
    ids = tokens(3, 20)
    with torch.no_grad():
        whole = module(input_ids=ids).logits.numpy()
    for cuts in ([20], [12, 20], [1, 2, 20], [5, *range(6, 21)]):
        np.testing.assert_allclose(stepwise(source.model, ids.numpy(), cuts), whole, rtol=1e-5, atol=1e-5)


def test_a_decoder_with_its_cache_gives_in_steps_what_it_gives_at_once() -> None:
    cached("Llama")


@pytest.mark.slow
@pytest.mark.parametrize("family", ["Qwen3", "Gemma3", "Phi3"])
def test_every_decoder_with_its_cache(family: str) -> None:
    cached(family)


@pytest.mark.slow
def test_a_cache_that_is_given_is_an_input() -> None:
    module, call = make("Llama")
    with torch.no_grad():
        (cache,) = [value for value in module(**call, use_cache=True).values() if isinstance(value, transformers.Cache)]
    more = {"input_ids": tokens(2, 3), "past_key_values": cache, "attention_mask": torch.ones(2, 15, dtype=torch.int64)}
    source = qc.capture(module, more)
    names = [value.name for value in source.model.graph.inputs]
    assert {"past_key_values.0.key", "past_key_values.0.value"} < set(names)


@pytest.mark.parametrize("family, length, sentence", [
    ("ModernBERT", 12, "needs a decoder that takes input_ids and a cache"),
    ("Llama", 3, "at least 4 tokens, not 3"),
    ("Mamba", 12, "keeps a state: leave it out"),
])  # fmt: skip
def test_a_cache_that_cannot_be_had_is_refused(family: str, length: int, sentence: str) -> None:
    module, _ = make(family)
    with pytest.raises(qc.InputError, match=sentence):
        qc.capture(module, {"input_ids": tokens(2, length)}, cache=True)
