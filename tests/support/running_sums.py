"""Small graphs that score next tokens by a running sum of embeddings: without a cache, with one, with one length."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

__all__ = ["VOCABULARY", "plain", "save", "with_cache"]

VOCABULARY = 17
WIDTH = 6

_HEAD = '<ir_version: 10, opset_import: ["" : 21]>\n'


def _constants(noise: float, seed: int = 0) -> str:
    """The table and the head as text; noise moves the head."""
    rng = np.random.default_rng(seed)
    table, head = rng.standard_normal((VOCABULARY, WIDTH)), rng.standard_normal((WIDTH, VOCABULARY))
    head += noise * rng.standard_normal(head.shape)
    numbers = [", ".join(f"{x:.6f}" for x in array.ravel()) for array in (table, head)]
    return (
        f"<float[{VOCABULARY},{WIDTH}] table = {{{numbers[0]}}}, float[{WIDTH},{VOCABULARY}] head = {{{numbers[1]}}},"
        " int64 one = {1}, int64[1] zero = {0}, int64[1] unit = {1}, int64[1] end = {9223372036854775807}>"
    )


def plain(length: str = "L", noise: float = 0.0) -> str:
    """``ids [B, length]`` to ``logits``; each position sees those before it, later ones count more."""
    return (
        _HEAD
        + f"""agraph (int64[B,{length}] ids) => (float[B,{length},{VOCABULARY}] logits)
    {_constants(noise)} {{
      e = Gather(table, ids)
      sums = CumSum(e, one)
      seen = Tanh(sums)
      logits = MatMul(seen, head)
    }}"""
    )


def with_cache(noise: float = 0.0) -> str:
    """The same with the embeddings of what was before as a cache, and positions, which change nothing, beside it."""
    return (
        _HEAD
        + f"""agraph (int64[B,L] ids, int64[B,L] position, int64[B,T] mask, float[B,P,{WIDTH}] past)
      => (float[B,L,{VOCABULARY}] logits, float[B,T,{WIDTH}] present, int64[B,L] places, int64[B,T] masked) 
    {_constants(noise)} {{
      e = Gather(table, ids)
      present = Concat <axis = 1> (past, e)
      sums = CumSum(present, one)
      before = Shape <start = 1, end = 2> (past)
      own = Slice(sums, before, end, unit)
      seen = Tanh(own)
      logits = MatMul(seen, head)
      places = Identity(position)
      masked = Identity(mask)
    }}"""
    )


def save(text: str, path: Path) -> Path:
    """Write a graph to a file."""
    onnx.save(onnx.parser.parse_model(text), path)
    return path
