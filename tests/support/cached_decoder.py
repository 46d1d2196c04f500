"""A decoder of one block with a cache, as exporters write it: with attention as one operator, or spelled out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

__all__ = ["FEATURES", "HEADS", "PLACES", "VOCABULARY", "cached_decoder", "prompts", "with_past"]

VOCABULARY, STREAM, QUERIES, HEADS, FEATURES, PLACES = 48, 64, 4, 2, 16, 64

#: Names of Hugging Face for caches.
NUMBERED = {"past": "past_key_values", "present": "present"}

_GRAPH = """<ir_version: 10, opset_import: ["" : 23]>
agraph (int64[B,L] input_ids, int64[B,L] position_ids, float[B,2,P,16] past_key,
        float[B,2,P,16] past_value)
  => (float[B,L,48] logits, float[B,2,T,16] present_key, float[B,2,T,16] present_value)
  <int64[4] heads = {0, 0, 4, 16}, int64[4] shared = {0, 0, 2, 16}, int64[3] flat = {0, 0, 64}, int64[1] two = {2},
   int64[3] narrow = {0, 0, 32}, int64[5] copies = {1, 1, 2, 1, 1}, int64[4] all = {0, 4, -1, 16}, int64 zero = {0},
   int64 one = {1}, int64[1] axis = {1}, int64[1] last = {2}, float eighth = {0.25}, float none = {-1e30},
   float some = {0.0}> {
    x = Gather(table, input_ids)
    q0 = MatMul(x, wq)  k0 = MatMul(x, wk)  v0 = MatMul(x, wv)
    q1 = Reshape(q0, heads)  k1 = Reshape(k0, shared)  v1 = Reshape(v0, shared)
    q2 = Transpose <perm = [0, 2, 1, 3]> (q1)
    k2 = Transpose <perm = [0, 2, 1, 3]> (k1)
    v2 = Transpose <perm = [0, 2, 1, 3]> (v1)
    q = RotaryEmbedding(q2, cosines, sines, position_ids)
    k = RotaryEmbedding(k2, cosines, sines, position_ids)
    present_key = Concat <axis = -2> (past_key, k)
    present_value = Concat <axis = -2> (past_value, v2)
    k3 = Unsqueeze(present_key, two)  k4 = Expand(k3, copies)  keys = Reshape(k4, all)
    v3 = Unsqueeze(present_value, two)  v4 = Expand(v3, copies)  values = Reshape(v4, all)
    length = Shape <start = 2, end = 3> (present_key)
    total = Squeeze(length)
    places = Range(zero, total, one)
    own = Unsqueeze(position_ids, last)
    seen = LessOrEqual(places, own)
    mask = Unsqueeze(seen, axis)
    ATTENTION
    back = Transpose <perm = [0, 2, 1, 3]> (mixed)
    joined = Reshape(back, flat)
    o = MatMul(joined, wo)
    y = Add(x, o)
    h0 = MatMul(y, up)  h1 = Relu(h0)  h = MatMul(h1, down)
    z = Add(y, h)
    logits = MatMul(z, head)
  }"""

_ATTENTION = {
    "one": "mixed = Attention <scale = 0.25> (q, keys, values, mask)",
    "spelled": """
      turned = Transpose <perm = [0, 1, 3, 2]> (keys)
      products = MatMul(q, turned)
      scaled = Mul(products, eighth)
      bias = Where(mask, some, none)
      scores = Add(scaled, bias)
      weights = Softmax <axis = -1> (scores)
      mixed = MatMul(weights, values)""",
    # the operator holds its caches itself: what the graph joined and copied is not there
    "held": "mixed, present_key, present_value = Attention <scale = 0.25> (q, k, v2, mask, past_key, past_value)",
    "causal": """mixed, present_key, present_value = Attention <scale = 0.25, is_causal = 1>
      (q, k, v2, , past_key, past_value)""",
    "grouped": """k5 = Transpose <perm = [0, 2, 1, 3]> (k)
      q5 = Transpose <perm = [0, 2, 1, 3]> (q)
      k6 = Reshape(k5, narrow)
      q6 = Reshape(q5, flat)
      last_place = Sub(total, one)
      rows = Shape <start = 0, end = 1> (input_ids)
      every = Expand(last_place, rows)
      lengths = Cast <to = 6> (every)
      whole = Cast <to = 6> (total)
      flat_mixed, present_key, present_value = com.microsoft.GroupQueryAttention
        <scale = 0.25, num_heads = 4, kv_num_heads = 2> (q6, k6, v0, past_key, past_value, lengths, whole)
      mixed4 = Reshape(flat_mixed, heads)
      mixed = Transpose <perm = [0, 2, 1, 3]> (mixed4)""",
    "written": """at = Gather <axis = 1> (position_ids, zero)
      present_key = TensorScatter (past_key, k, at)
      present_value = TensorScatter (past_value, v2, at)
      mixed = Attention <scale = 0.25> (q, present_key, present_value, mask)""",
    "flat": """k5 = Transpose <perm = [0, 2, 1, 3]> (k)
      q5 = Transpose <perm = [0, 2, 1, 3]> (q)
      k6 = Reshape(k5, narrow)
      q6 = Reshape(q5, flat)
      flat_mixed, present_key, present_value = Attention
        <scale = 0.25, q_num_heads = 4, kv_num_heads = 2, is_causal = 1> (q6, k6, v0, , past_key, past_value)
      mixed4 = Reshape(flat_mixed, heads)
      mixed = Transpose <perm = [0, 2, 1, 3]> (mixed4)""",
}


def cached_decoder(path: Path, attention: str = "one", loud: float = 1.0, numbered: bool = False) -> Path:
    """Write the decoder to a file.

    Args:
        attention: one operator, spelled out, or an operator that holds its caches: ``held``, ``causal``,
            ``flat``, ``grouped``; or ``written``: into caches of one size.
        loud: some features of its keys and values are so much louder than others.
        numbered: whether its caches are called as those of Hugging Face.
    """
    text = _GRAPH if attention in ("one", "spelled") else _without_joins(_GRAPH)
    if attention == "grouped":
        text = text.replace('"" : 23]>', '"" : 23, "com.microsoft" : 1]>')
    if attention == "written":
        text = text.replace("P,16]", f"{PLACES},16]").replace("T,16]", f"{PLACES},16]").replace("23]>", "24]>")
        text = text.replace("more = Shape <start = 2, end = 3> (k)", "more = Constant <value_ints = [0]> ()")
    model = onnx.parser.parse_model(text.replace("ATTENTION", _ATTENTION[attention]))
    if numbered:
        _rename(model, {f"{a}_{b}": f"{c}.0.{b}" for a, c in NUMBERED.items() for b in ("key", "value")})
    for node in model.graph.node:
        node.name = node.output[0]
    rng = np.random.default_rng(0)
    angles = np.arange(PLACES)[:, None] * 100.0 ** (-np.arange(FEATURES // 2) / (FEATURES // 2))
    shapes = {
        "table": (VOCABULARY, STREAM), "wq": (STREAM, QUERIES * FEATURES), "wk": (STREAM, HEADS * FEATURES),
        "wv": (STREAM, HEADS * FEATURES), "wo": (QUERIES * FEATURES, STREAM), "up": (STREAM, 96), "down": (96, STREAM),
        "head": (STREAM, VOCABULARY),
    }  # fmt: skip
    weights = {name: rng.standard_normal(shape) / np.sqrt(shape[0]) for name, shape in shapes.items()}
    weights["table"] *= np.sqrt(VOCABULARY)
    weights["wk"][:, 3::FEATURES] *= loud
    weights["wq"][:, 3::FEATURES] /= loud
    weights["wv"][:, 5::FEATURES] *= loud
    weights["wo"][5::FEATURES] /= loud
    weights |= {"cosines": np.cos(angles), "sines": np.sin(angles)}
    stored = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()]
    model.graph.initializer.extend(stored)
    onnx.save(model, path)
    return path


def _without_joins(text: str) -> str:
    """The graph without what joins caches and copies heads; the mask asks the past for its length."""
    start, end = text.index("    present_key = Concat"), text.index("    total = Squeeze")
    sizes = """    before = Shape <start = 2, end = 3> (past_key)
    more = Shape <start = 2, end = 3> (k)
    length = Add(before, more)
"""
    return text[:start] + sizes + text[end:]


def _rename(model: onnx.ModelProto, names: dict[str, str]) -> None:
    for value in (*model.graph.input, *model.graph.output):
        value.name = names.get(value.name, value.name)
    for node in model.graph.node:
        for part in (node.input, node.output):
            part[:] = [names.get(name, name) for name in part]


def prompts(rows: int, length: int, seed: int = 1) -> dict[str, np.ndarray]:
    """Random prompts with an empty past."""
    ids = np.random.default_rng(seed).integers(0, VOCABULARY, (rows, length))
    return with_past(ids, np.zeros((rows, HEADS, 0, FEATURES), np.float32))


def with_past(ids: np.ndarray, *past: np.ndarray) -> dict[str, np.ndarray]:
    """Tokens behind a past: keys and values, or one array for both."""
    places = past[0].shape[2] + np.arange(ids.shape[1])
    return {
        "input_ids": ids, "position_ids": np.tile(places, (len(ids), 1)),
        "past_key": past[0], "past_value": past[-1],
    }  # fmt: skip
