"""Checkpoints: transformers and compressed-tensors read back what was planned, in the layout of llmcompressor."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

import qcompile as qc
from qcompile.errors import InputError
from qcompile.formats import fake_quantize_rows
from qcompile.formats.catalogue import get_activation
from qcompile.formats.static import Range

transformers = pytest.importorskip("transformers", reason="the extra hf is not installed")
pytest.importorskip("compressed_tensors", reason="the extra hf is not installed")
torch = pytest.importorskip("torch")

LAYOUTS = json.loads((Path(__file__).parents[2] / "support" / "llmcompressor_layouts.json").read_text())

SIZES = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip

TARGETS = ("checkpoint-int4", "checkpoint-mxfp4", "checkpoint-nvfp4")

#: By target, the scheme that rounds inputs too.
WITH_INPUTS = {"checkpoint-mxfp4": "mxfp4-even/mxfp4-even", "checkpoint-nvfp4": "nvfp4-4over6/nvfp4-static"}

#: Largest relative L2 to the planned graph on the engine: float32 rounds sums in another order.
LIMIT = 1e-5


def made(kind: str, seed: int = 0, **changes: object) -> torch.nn.Module:
    """A random module with norms, biases and outlying channels that are no ones and zeros."""
    torch.manual_seed(seed)
    config, model = {
        "llama": ("LlamaConfig", "LlamaForCausalLM"), "qwen2": ("Qwen2Config", "Qwen2ForCausalLM"),
        "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM"), "bert": ("BertConfig", "BertForMaskedLM"),
        "phi3": ("Phi3Config", "Phi3ForCausalLM"),
    }[kind]  # fmt: skip
    module = getattr(transformers, model)(getattr(transformers, config)(**{**SIZES, **changes})).eval()
    with torch.no_grad():
        for name, value in module.named_parameters():
            if value.ndim == 1:
                value += torch.empty_like(value).uniform_(-0.4, 0.4)
            elif "proj" in name:
                value *= 4
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llama")
    made("llama", tie_word_embeddings=True).save_pretrained(path)
    (path / "tokenizer_config.json").write_text("{}")
    return path


def tokens(rows: int = 24, length: int = 16) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(0).integers(0, SIZES["vocab_size"], (rows, length))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def stored(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize(
    ("target", "transforms"),
    [(target, transforms) for target in TARGETS for transforms in ("auto", "wush-shared")]
    + [("checkpoint-int4", "hadamard"), ("checkpoint-int4", "diagonal"), ("checkpoint-nvfp4-online", "wush")],
)
def test_it_computes_what_was_planned(target: str, transforms: str, folder: Path, tmp_path: Path) -> None:
    artifact = qc.export(
        folder, target, tmp_path / "out", calibration=tokens(), transforms=transforms, method="rtn", cache=False
    )
    runtime = artifact.manifest["runtimes"]["transformers"]
    assert "not_checked" not in runtime
    assert runtime["rel_l2_to_reference"] < LIMIT


@pytest.mark.parametrize("target", WITH_INPUTS)
def test_with_rounded_inputs_it_computes_what_was_planned(target: str, folder: Path, tmp_path: Path) -> None:
    found = {}
    for formats in (WITH_INPUTS[target], WITH_INPUTS[target].partition("/")[0]):
        artifact = qc.export(
            folder, target, tmp_path / formats.replace("/", "-"), calibration=tokens(), formats=[formats], method="rtn",
            transforms="none", cache=False,
        )  # fmt: skip
        assert artifact.manifest["runtimes"]["transformers"]["rel_l2_to_reference"] < LIMIT
        found[formats] = artifact.manifest["quantization"]["rel_l2"]
    both, weights = found.values()
    assert both > 1.1 * weights  # inputs are rounded indeed


@pytest.mark.parametrize("target", WITH_INPUTS)
def test_inputs_are_rounded_to_the_bit_as_compressed_tensors_rounds_them(
    target: str, folder: Path, tmp_path: Path
) -> None:
    from compressed_tensors.quantization.lifecycle.forward import forward_quantize

    from qcompile.backends.checkpoint.runner import load_module

    artifact = qc.export(
        folder, target, tmp_path / "out", calibration=tokens(), formats=[WITH_INPUTS[target]], method="rtn", cache=False
    )
    layer = load_module(artifact.folder).model.layers[1].mlp.down_proj
    (site,) = (one for one in artifact.manifest["sites"] if one.get("module") == "model.layers.1.mlp.down_proj")
    activation = get_activation(site["activation"])
    if "range" in site:
        activation = Range(activation, site["range"]["scale"])
        assert float(layer.input_global_scale) == 1 / activation.scale
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(400, 128, generator=draw) * torch.logspace(-9, 2, 400)[:, None]
    x[0] = 0
    levels = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0]).repeat(16)  # ties, below a scale of one
    x[1:9] = levels * torch.exp2(torch.arange(-4.0, 4.0))[:, None]
    theirs = forward_quantize(layer, x, "input", layer.quantization_scheme.input_activations)
    torch.testing.assert_close(theirs, fake_quantize_rows(x, activation), rtol=0, atol=0)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), torch.nn.functional.linear(theirs, layer.weight), rtol=0, atol=0)


def test_transformers_alone_rounds_inputs_too(folder: Path, tmp_path: Path) -> None:
    """Its own way keeps weights packed, and decodes FP4 to bfloat16, in which ours are exact, at the first call."""
    artifact = qc.export(
        folder, "checkpoint-nvfp4", tmp_path / "out", calibration=tokens(), formats=["nvfp4/nvfp4-static"],
        method="rtn", cache=False,
    )  # fmt: skip
    given = tokens(rows=3)
    inputs = {name: torch.from_numpy(array) for name, array in given.items()}
    module = transformers.AutoModelForCausalLM.from_pretrained(artifact.folder, dtype=torch.float32)
    with pytest.raises(RuntimeError, match="dtype"):
        module(**inputs)
    for layer in module.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.weight.data = layer.weight.data.float()
    with torch.no_grad():
        logits = module(**inputs).logits.numpy()
    np.testing.assert_allclose(logits, artifact.run(given)["logits"], rtol=1e-5, atol=1e-5)


def test_transformers_alone_reads_it(folder: Path, tmp_path: Path) -> None:
    artifact = qc.export(folder, "checkpoint-int4", tmp_path / "out", calibration=tokens(), cache=False)
    given = tokens(rows=3)
    module = transformers.AutoModelForCausalLM.from_pretrained(artifact.folder, dtype=torch.float32)
    with torch.no_grad():
        logits = module(**{name: torch.from_numpy(array) for name, array in given.items()}).logits.numpy()
    np.testing.assert_allclose(logits, artifact.run(given)["logits"], rtol=1e-5, atol=1e-5)
    source = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        exact = source(**{name: torch.from_numpy(array) for name, array in given.items()}).logits.numpy()
    assert np.linalg.norm(logits - exact) < 0.3 * np.linalg.norm(exact)  # it is that model, rounded to four bits


def test_folded_norms_are_ones_and_the_head_is_untied(folder: Path, tmp_path: Path) -> None:
    qc.export(folder, "checkpoint-int4", tmp_path / "out", transforms="none", method="rtn", cache=False)
    found, config = stored(tmp_path / "out"), json.loads((tmp_path / "out" / "config.json").read_text())
    norms = [tensor for name, tensor in found.items() if "norm" in name]
    assert len(norms) == 5
    assert all(bool((norm == 1).all()) for norm in norms)
    assert config["tie_word_embeddings"] is False
    assert {"lm_head.weight", "model.embed_tokens.weight"} <= found.keys()
    assert config["quantization_config"]["ignore"] == ["lm_head"]
    assert (tmp_path / "out" / "tokenizer_config.json").is_file()


def test_siblings_share_their_global_scale(folder: Path, tmp_path: Path) -> None:
    qc.export(
        folder, "checkpoint-nvfp4", tmp_path / "out", calibration=tokens(), formats=["nvfp4/nvfp4"], transforms="none",
        method="rtn", cache=False,
    )  # fmt: skip
    found = stored(tmp_path / "out")
    for names in (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("mlp.gate_proj", "mlp.up_proj")):
        for kind in ("weight", "input"):
            assert len({float(found[f"model.layers.0.{name}.{kind}_global_scale"]) for name in names}) == 1
    others = {float(tensor) for name, tensor in found.items() if name.endswith("global_scale")}
    assert len(others) > 1


@pytest.mark.parametrize("ours", LAYOUTS)
def test_the_layout_is_llmcompressors(ours: str, tmp_path: Path) -> None:
    theirs = LAYOUTS[ours]
    module = made("llama", hidden_size=128, intermediate_size=256, num_hidden_layers=1).bfloat16()
    module.save_pretrained(tmp_path / "source")
    kind = next((kind for kind in ("nvfp4", "mxfp4") if ours.startswith(kind)), "int4")
    given = tokens() if "/" in ours else None
    qc.export(
        tmp_path / "source", f"checkpoint-{kind}", tmp_path / "out", formats=[ours], calibration=given, method="rtn",
        cache=False,
    )  # fmt: skip
    found = {name: [str(tensor.dtype), list(tensor.shape)] for name, tensor in stored(tmp_path / "out").items()}
    assert found == theirs["tensors"]
    source, made_here = ({path.name for path in (tmp_path / name).iterdir()} for name in ("source", "out"))
    assert {"config.json", "generation_config.json", "model.safetensors"} <= source <= made_here  # save_pretrained's
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config.keys() <= theirs["config"].keys() | {"transform_config"}
    for key in ("format", "ignore", "kv_cache_scheme", "quant_method", "quantization_status"):
        assert config[key] == theirs["config"][key]
    (group,), (other,) = config["config_groups"].values(), theirs["config"]["config_groups"].values()
    assert group["targets"] == other["targets"]
    if "/" in ours:
        assert group["input_activations"].items() <= other["input_activations"].items()
    else:
        assert group["input_activations"] == other["input_activations"]
    assert group["weights"].items() <= {"scale_dtype": None, **other["weights"]}.items()


@pytest.mark.parametrize("kind", ["qwen2", "gemma3", "bert", "phi3"])
def test_other_families(kind: str, tmp_path: Path) -> None:
    changes = {"gemma3": {"head_dim": 16}, "phi3": {"pad_token_id": 0}}.get(kind, {})
    artifact = qc.export(
        made(kind, **changes), "checkpoint-mxfp4", tmp_path / "out", calibration=tokens(),
        example_inputs={name: torch.from_numpy(array[:2]) for name, array in tokens().items()},
    )  # fmt: skip
    assert artifact.manifest["runtimes"]["transformers"]["rel_l2_to_reference"] < LIMIT


def test_a_decoder_with_its_cache(folder: Path, tmp_path: Path) -> None:
    artifact = qc.export(folder, "checkpoint-int4", tmp_path / "out", method="rtn")
    assert artifact.manifest["source"]["cache"]
    assert artifact.manifest["runtimes"]["transformers"]["rel_l2_to_reference"] < LIMIT


def test_formats_may_differ_by_layer(folder: Path, tmp_path: Path) -> None:
    artifact = qc.export(
        folder, "checkpoint-int4", tmp_path / "out", method="rtn", cache=False, exclude=["*.0.mlp.up_proj"],
        format_for={"*.down_proj": "int8-g64"},
    )  # fmt: skip
    assert artifact.manifest["runtimes"]["transformers"]["rel_l2_to_reference"] < LIMIT
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert {group["weights"]["num_bits"] for group in config["config_groups"].values()} == {4, 8}
    assert config["ignore"] == ["lm_head", "model.layers.0.mlp.up_proj"]


def test_online_transforms_have_one_matrix_for_each_layer(folder: Path, tmp_path: Path) -> None:
    artifact = qc.export(
        folder, "checkpoint-nvfp4", tmp_path / "out", calibration=tokens(), transforms="wush-shared", method="rtn",
        cache=False,
    )  # fmt: skip
    groups = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["transform_config"]
    named = {path for group in groups["config_groups"].values() for item in group["apply"] for path in item["targets"]}
    assert any(path.endswith("mlp.down_proj") for path in named)
    assert {f"{path}.weight_packed" for path in named} <= stored(tmp_path / "out").keys()
    assert "transformers leaves them out" in artifact.manifest["notes"]["online"]


def test_online_transforms_compete_where_readers_apply_them(folder: Path, tmp_path: Path) -> None:
    artifact = qc.export(
        folder, "checkpoint-nvfp4-online", tmp_path / "out", calibration=tokens(64), transforms="wush", method="rtn",
        cache=False,
    )  # fmt: skip
    assert any("wush-shared" in name for found in artifact.manifest["candidates"].values() for name in found)


def test_a_transform_of_many_matrices_is_declined(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qcompile.transforms.shared_block.MOST", 64)
    artifact = qc.export(
        folder,
        "checkpoint-nvfp4",
        tmp_path / "out",
        calibration=tokens(),
        transforms="duquant",
        method="rtn",
        cache=False,
    )
    reasons = {entry["reason"] for entry in artifact.manifest["declined"] if "online" in entry["what"]}
    assert any("'duquant' has more" in reason for reason in reasons)


def test_graphs_without_modules_are_refused(tmp_path: Path) -> None:
    zoo = Path(__file__).parents[3] / "examples" / "zoo" / "language_model.onnx"
    with pytest.raises(InputError, match="neither the paths of modules nor a configuration"):
        qc.export(zoo, "checkpoint-int4", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_parts_beside_a_layer_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--split would add products"):
        qc.export(folder, "checkpoint-int4", tmp_path / "out", split=["columns{count=4}"])
