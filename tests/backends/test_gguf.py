"""GGUF files: what transformers and the package gguf read back is what was planned, under the names of llama.cpp."""

import json
from pathlib import Path

import numpy as np
import pytest

import qcompile as qc
from qcompile.errors import TargetError
from qcompile.formats import FORMATS, quantize
from qcompile.formats.tensor_scale import default_tensor_scale

transformers = pytest.importorskip("transformers", reason="the extra gguf is not installed")
gguf = pytest.importorskip("gguf", reason="the extra gguf is not installed")
pytest.importorskip("accelerate", reason="the extra gguf is not installed")
torch = pytest.importorskip("torch")

SIZES = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("llama")
    module = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, tie_word_embeddings=True, rope_theta=5e5))
    with torch.no_grad():
        for name, value in module.named_parameters():
            value += torch.empty_like(value).uniform_(-0.4, 0.4) if "norm" in name else 3 * value * ("proj" in name)
    module.save_pretrained(path)
    return path


def tokens(rows: int = 24) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(0).integers(0, SIZES["vocab_size"], (rows, 16))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


@pytest.mark.parametrize(  # Q4_1: see ``to_gguf``
    ("fmt", "limit"),
    [("q4_0", 1e-5), ("q5_0", 1e-5), ("q8_0", 1e-5), ("mxfp4-even", 1e-5), ("nvfp4", 1e-5), ("q4_1", 2e-3)],
)
def test_it_computes_what_was_planned(fmt: str, limit: float, folder: Path, tmp_path: Path) -> None:
    artifact = qc.export(
        folder, "gguf", tmp_path / "out", formats=[fmt], calibration=tokens(), method="rtn", cache=False
    )
    runtime = artifact.manifest["runtimes"]["gguf"]
    assert "not_checked" not in runtime
    assert runtime["rel_l2_to_reference"] < limit
    types = {
        tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "out" / "model.gguf").tensors
    }
    assert types["blk.1.ffn_down.weight"] == fmt.partition("-")[0].upper()
    assert types["output.weight"] == "Q8_0"
    assert types["blk.0.attn_norm.weight"] == types["token_embd.weight"] == "F32"


@pytest.mark.parametrize("fmt", ["q4_0", "q5_0", "q8_0", "mxfp4-even", "nvfp4", "nvfp4-4over6"])
def test_the_package_gguf_reads_every_bit(fmt: str, folder: Path, tmp_path: Path) -> None:
    qc.export(folder, "gguf", tmp_path / "out", formats=[fmt], transforms="none", method="rtn", cache=False)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "out" / "model.gguf").tensors}
    stored = tensors["blk.1.ffn_down.weight"]
    read = gguf.quants.dequantize(stored.data, stored.tensor_type)
    weight = transformers.LlamaForCausalLM.from_pretrained(folder).model.layers[1].mlp.down_proj.weight.detach()
    if fmt.startswith("nvfp4"):
        assert stored.tensor_type.name == "NVFP4"
        scale = tensors["blk.1.ffn_down.scale"].data
        assert scale.shape == (1,)
        second = torch.exp2(default_tensor_scale(weight, FORMATS[fmt]).log2().ceil())  # see ``Quantize``
        assert scale[0] == second
        read, want = read * scale, quantize(weight, FORMATS[fmt], tensor_scale=second)
    else:
        assert not [name for name in tensors if name.endswith(".scale")]
        want = quantize(weight, FORMATS[fmt])
    np.testing.assert_array_equal(read, want.dequantize().numpy())


def test_blocks_of_nvfp4_hold_four_groups(tmp_path: Path) -> None:
    module = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**SIZES, "intermediate_size": 96})).eval()
    with pytest.raises(TargetError, match="96 features, no multiple of 64"):
        qc.export(
            module, "gguf", tmp_path / "out", formats=["nvfp4"], transforms="none", method="rtn", cache=False,
            example_inputs={name: torch.from_numpy(array[:2]) for name, array in tokens().items()},
        )  # fmt: skip


def test_sizes_and_tokens(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[:90]
    vocabulary = {text: number for number, text in enumerate([*alphabet, alphabet[0] + alphabet[1]])}
    made = Tokenizer(models.BPE(vocabulary, [(alphabet[0], alphabet[1])]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    source = tmp_path / "source"
    transformers.LlamaForCausalLM.from_pretrained(folder).save_pretrained(source)
    made.save(str(source / "tokenizer.json"))
    (source / "tokenizer_config.json").write_text(json.dumps({"eos_token": alphabet[2]}))
    artifact = qc.export(source, "gguf", tmp_path / "out", transforms="none", method="rtn", cache=False)
    assert "tokenizer.ggml.pre" in artifact.manifest["notes"]["tokenizer"]
    fields = gguf.GGUFReader(tmp_path / "out" / "model.gguf").fields
    read = {name: field.contents() for name, field in fields.items()}
    assert read["general.architecture"] == "llama"
    assert read["llama.block_count"] == 2
    assert read["llama.attention.head_count_kv"] == 2
    assert read["llama.rope.freq_base"] == 5e5
    assert read["llama.rope.dimension_count"] == 16
    assert read["tokenizer.ggml.tokens"] == [*vocabulary, *(f"[PAD{number}]" for number in range(91, 96))]
    assert read["tokenizer.ggml.merges"] == [f"{alphabet[0]} {alphabet[1]}"]
    assert read["general.file_type"] == 2


def test_other_families_are_refused(tmp_path: Path) -> None:
    module = transformers.BertForMaskedLM(
        transformers.BertConfig(
            vocab_size=96, hidden_size=64, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64
        )
    ).eval()
    with pytest.raises(TargetError, match="model_type 'bert'"):
        qc.export(
            module, "gguf", tmp_path / "out", method="rtn",
            example_inputs={name: torch.from_numpy(array[:2]) for name, array in tokens().items()},
        )  # fmt: skip
