"""Caches and states are found by what reads them, whatever they are called."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest
from running_sums import plain, with_cache

from qcompile.ir.cache_pairs import cache_pairs

HEAD = '<ir_version: 10, opset_import: ["" : 24, "com.microsoft" : 1]>\n'


def pairs(text: str) -> list[tuple[str, str, int | None]]:
    model = ir.serde.from_proto(onnx.parser.parse_model(text))
    return [(str(p.past.name), str(p.present.name), p.axis) for p in cache_pairs(model)]


def test_what_is_appended_to() -> None:
    assert pairs(with_cache()) == [("past", "present", 1)]
    assert pairs(plain()) == []


def test_attention_holds_its_cache() -> None:
    body = """agraph (float[B,4,S,8] q, float[B,4,S,8] k, float[B,4,S,8] v, float[B,4,P,8] a, float[B,4,P,8] b)
      => (float[B,4,S,8] y, float[B,4,T,8] c, float[B,4,T,8] d) { y, c, d = Attention(q, k, v, , a, b) }"""
    assert pairs(HEAD + body) == [("a", "c", 2), ("b", "d", 2)]


def test_group_query_attention_holds_its_cache_in_any_type() -> None:
    body = """agraph (float[B,S,32] q, float[B,S,16] k, float[B,S,16] v, uint8[B,2,P,4] a, uint8[B,2,P,4] b, int32[B] n,
      int32 t) => (float[B,S,32] y, uint8[B,2,T,4] c, uint8[B,2,T,4] d)
      { y, c, d = com.microsoft.GroupQueryAttention <num_heads = 4, kv_num_heads = 2> (q, k, v, a, b, n, t) }"""
    assert pairs(HEAD + body) == [("a", "c", 2), ("b", "d", 2)]


def test_a_state_of_one_size() -> None:
    body = """agraph (float[B,6,3] state, float[B,6,L] x, int64[1] from, int64[1] to, int64[1] axis)
      => (float[B,6,3] next, float[B,6,M] all) {
        all = Concat <axis = -1> (state, x)
        next = Slice(all, from, to, axis)
      }"""
    assert pairs(HEAD + body) == [("state", "all", 2)]


@pytest.mark.parametrize("made", ["Relu(past)", "Mul(past, x)", "Add(past, x)"])
def test_what_changes_its_past_is_no_cache(made: str) -> None:
    body = f"agraph (float[B,P,6] past, float[B,S,6] x) => (float[B,T,6] present) {{ present = {made} }}"
    assert pairs(HEAD + body) == []


def test_the_state_of_a_scan() -> None:
    body = """agraph (float[6] state, float[L,6] x) => (float[6] last, float[L,6] y) {
      last, y = Scan <num_scan_inputs = 1, body = step (float[6] h, float[6] u) => (float[6] g, float[6] out)
        { g = Add(h, u)  out = Identity(g) }> (state, x) }"""
    assert pairs(HEAD + body) == [("state", "last", None)]
