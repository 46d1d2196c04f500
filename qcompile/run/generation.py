"""Greedy generation by any graph that scores next tokens: with a cache, without, or with windows of a fixed length."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from qcompile.errors import InputError
from qcompile.ir.cache_pairs import cache_pairs
from qcompile.ir.required import name_of
from qcompile.run.session import Run
from qcompile.run.sources import input_values

__all__ = ["Decoder", "greedy", "shortened"]


@dataclass(frozen=True)
class Decoder:
    """How a graph is told what it has written.

    Args:
        tokens: the name of the input ``[batch, length]``.
        logits: the name of the output ``[batch, length, vocabulary]``.
        pasts: by the names of inputs that hold a cache or a state, the names of the outputs that take their place.
        with_tokens: inputs whose last axis is that of the tokens.
        fixed: whether the length is fixed: the window is then filled from the left.
    """

    tokens: str
    logits: str
    pasts: Mapping[str, str]
    with_tokens: frozenset[str]
    fixed: bool

    @staticmethod
    def of(model: ir.Model, tokens: str, logits: str) -> Decoder:
        """From the inputs and outputs that a graph states."""
        values = {name_of(value): value for value in input_values(model)}
        shape = values[tokens].shape
        if shape is None:
            raise InputError(f"the shape of input '{tokens}' is not known: nothing can be generated")
        last = {name: str(v.shape[-1]) for name, v in values.items() if v.shape is not None and len(v.shape)}
        pasts = {name_of(pair.past): name_of(pair.present) for pair in cache_pairs(model)}
        also = {name for name, dim in last.items() if dim == str(shape[-1]) and name not in pasts}
        return Decoder(tokens, logits, pasts, frozenset(also), isinstance(shape[-1], int))


def shortened(inputs: Mapping[str, np.ndarray], decoder: Decoder, length: int) -> dict[str, np.ndarray]:
    """The beginning of some prompts: so many tokens, and what stands beside them."""
    cut = inputs[decoder.tokens].shape[-1] - length
    return {name: array[..., : array.shape[-1] - cut] if _runs_along(name, array, inputs, decoder) else array
            for name, array in inputs.items()}  # fmt: skip


def _runs_along(name: str, array: np.ndarray, inputs: Mapping[str, np.ndarray], decoder: Decoder) -> bool:
    """Whether the last axis of an input is that of the tokens, or of these behind the past, such as that of a mask."""
    whole = array.ndim > 0 and array.dtype.kind in "iub" and array.shape[-1] >= inputs[decoder.tokens].shape[-1] > 1
    return name not in decoder.pasts and (name in decoder.with_tokens or whole)


def greedy(run: Run, decoder: Decoder, prompts: Mapping[str, np.ndarray], count: int) -> np.ndarray:
    """The tokens that a graph finds most likely behind some prompts, ``[batch, count]``.

    Inputs beside the tokens go on as they began: what counts goes on counting, what is constant stays.

    Args:
        run: the graph.
        decoder: how it is told what it has written.
        prompts: its inputs for at least two tokens of each prompt; an empty past where it takes one.
        count: how many tokens are generated.
    """
    feeds = dict(prompts)
    along = {name for name, array in feeds.items() if _runs_along(name, array, feeds, decoder)}
    steps = {name: feeds[name][..., -1:] - feeds[name][..., -2:-1] for name in along if feeds[name].dtype != bool}
    if decoder.fixed:
        return _in_window(run, decoder, feeds, count)
    made = []
    for _ in range(count):
        outputs = run(feeds)
        made.append(_likeliest(outputs[decoder.logits][:, -1]))
        grown: dict[str, Any] = {name: outputs[present] for name, present in decoder.pasts.items()}
        for name in along:
            last = feeds[name][..., -1:]
            following = made[-1][:, None].astype(last.dtype) if name == decoder.tokens else last + steps.get(name, last)
            kept = decoder.pasts and name in decoder.with_tokens  # the past knows what was before
            grown[name] = following if kept else np.concatenate([feeds[name], following], -1)
        feeds |= grown
    return np.stack(made, -1) if made else np.zeros([len(feeds[decoder.tokens]), 0], np.int64)


def _in_window(run: Run, decoder: Decoder, feeds: dict[str, np.ndarray], count: int) -> np.ndarray:
    """The same where the graph takes one length: the prompt stands at the left, and nothing that is read lies behind.

    ``feeds`` hold the whole window; the last ``count`` places of it are written.
    """
    tokens = feeds[decoder.tokens].copy()
    start = tokens.shape[-1] - count
    tokens[:, start:] = 0
    for place in range(start, tokens.shape[-1]):
        scores = run(feeds | {decoder.tokens: tokens})[decoder.logits]
        tokens[:, place] = _likeliest(scores[:, place - 1])
    return tokens[:, start:].astype(np.int64)


def _likeliest(scores: np.ndarray) -> np.ndarray:
    return np.asarray(scores).argmax(-1).astype(np.int64)
