"""Caches as things that may be quantized, and why others may not."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from cached_decoder import cached_decoder
from running_sums import save, with_cache

import qcompile as qc
from qcompile.analysis.cache_sites import cache_sites


@pytest.mark.parametrize("attention", ["one", "spelled"])
def test_keys_and_values_with_the_attention_that_reads_them(attention: str, tmp_path: Path) -> None:
    sites, declined = cache_sites(ir.load(cached_decoder(tmp_path / "model.onnx", attention)))
    assert [(site.name, site.role, site.heads, site.features, site.kind) for site in sites] == [
        ("past_key", "key", 2, 16, "cache"), ("past_value", "value", 2, 16, "cache"),
    ]  # fmt: skip
    assert [site.new.name for site in sites] == ["k", "v2"]
    assert {site.reader.op_type for site in sites} == {"Attention" if attention == "one" else "MatMul"}
    assert declined == []


def test_what_is_left_alone_has_a_reason(tmp_path: Path) -> None:
    def reason(text: str) -> str:
        (left,) = cache_sites(ir.serde.from_proto(onnx.parser.parse_model(text)))[1]
        return left.reason

    assert "no cache [batch, heads, length, features]" in reason(with_cache())
    head = '<ir_version: 10, opset_import: ["" : 23]> agraph (TYPE[B,2,P,8] past, TYPE[B,2,L,8] x, TYPE[B,2,L,8] q)'
    body = " => (TYPE[B,2,T,8] present, TYPE[B,2,L,T] y) { present = Concat <axis = 2> (past, x)  MORE }"
    text = (head + body).replace("MORE", "t = Transpose <perm = [0, 1, 3, 2]> (present)  y = MatMul(q, t)")
    assert "not float32" in reason(text.replace("TYPE", "float16"))
    assert "not one attention alone" in reason(
        (head + body).replace("MORE", "y = Relu(present)").replace("TYPE", "float")
    )


def test_inspect_lists_them(tmp_path: Path) -> None:
    found = qc.inspect(cached_decoder(tmp_path / "model.onnx"))
    assert [(entry["past"], entry["kind"], entry["role"], entry["reader"]) for entry in found["caches"]] == [
        ("past_key", "cache", "key", "mixed"), ("past_value", "cache", "value", "mixed"),
    ]  # fmt: skip
    assert [entry["float_bytes_per_token"] for entry in found["caches"]] == [128, 128]
    left = qc.inspect(save(with_cache(), tmp_path / "other.onnx"))
    assert ("past", "quantizing the cache") in {(entry["site"], entry["what"]) for entry in left["declined"]}
