"""Attention over caches is found as one operator and spelled out, and nothing that computes something else is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from cached_decoder import FEATURES, HEADS, QUERIES, cached_decoder, prompts

from qcompile.analysis.attentions import CacheAttention, cache_attentions
from qcompile.analysis.cache_sites import CacheSite, cache_sites
from qcompile.choice.cache_samples import attention_samples, cache_batches
from qcompile.preparation import prepare
from qcompile.run.data import load_data

_Edit = Callable[[dict[str, onnx.NodeProto], onnx.GraphProto], None]


def found(path: Path, edit: _Edit | None = None) -> tuple[CacheAttention | None, dict[str, CacheSite], list]:
    """The attention of a decoder that was edited, and samples of it."""
    model = onnx.load(path)
    if edit is not None:
        edit({node.output[0]: node for node in model.graph.node}, model.graph)
    onnx.save(model, path)
    prepared = prepare(path).model
    pairs = cache_attentions(cache_sites(prepared)[0])
    attention, sites = pairs[0]
    if attention is None:
        assert len(pairs) == 2, "each cache stands alone"
        return None, sites, []
    assert len(pairs) == 1
    data = load_data(prompts(2, 8), prepared)
    return attention, sites, attention_samples(attention, sites, cache_batches(prepared, pairs, data.batches))


@pytest.mark.parametrize("spelling", ["one", "spelled"])
def test_both_spellings(spelling: str, tmp_path: Path) -> None:
    attention, sites, samples = found(cached_decoder(tmp_path / "m.onnx", spelling))
    assert attention is not None
    assert set(sites) == {"key", "value"}
    assert (attention.scale, attention.heads, attention.causal) == (0.25, QUERIES, False)
    (sample,) = samples
    assert sample.query.shape == (2, QUERIES, 8, FEATURES)
    assert sample.key.shape == (2, HEADS, 8, FEATURES)
    assert np.all((sample.bias > -1) == np.tri(8, dtype=bool))


def _scores_are_read(nodes: dict[str, onnx.NodeProto], graph: onnx.GraphProto) -> None:
    graph.output.append(onnx.helper.make_tensor_value_info("scores", 1, ["B", QUERIES, "L", "T"]))


def _bias_is_scaled(nodes: dict[str, onnx.NodeProto], graph: onnx.GraphProto) -> None:
    nodes["scaled"].input[:], nodes["scores"].input[:] = ["sum", "eighth"], ["products", "bias"]
    nodes["scores"].output[0], nodes["scaled"].output[0] = "sum", "scores"
    order = [node for node in graph.node if node.output[0] not in ("sum", "scores")]
    at = next(i for i, node in enumerate(order) if node.output[0] == "weights")
    order[at:at] = [nodes["scores"], nodes["scaled"]]
    del graph.node[:]
    graph.node.extend(order)


def _another_axis(nodes: dict[str, onnx.NodeProto], graph: onnx.GraphProto) -> None:
    nodes["weights"].attribute[0].i = 2


@pytest.mark.parametrize("edit", [_scores_are_read, _bias_is_scaled, _another_axis])
def test_something_else(edit: _Edit, tmp_path: Path) -> None:
    attention, _, _ = found(cached_decoder(tmp_path / "m.onnx", "spelled"), edit)
    assert attention is None


def test_other_heads_share_than_neighbours(tmp_path: Path) -> None:
    """Copies of all heads behind each other are found by what attention makes of them."""

    def tiled(nodes: dict[str, onnx.NodeProto], graph: onnx.GraphProto) -> None:
        graph.initializer.append(onnx.numpy_helper.from_array(np.array([1]), "first"))
        graph.initializer.append(onnx.numpy_helper.from_array(np.array([1, 2, 1, 1, 1]), "tiles"))
        for name in ("k", "v"):
            nodes[f"{name}3"].input[1], nodes[f"{name}4"].input[1] = "first", "tiles"

    attention, _, samples = found(cached_decoder(tmp_path / "m.onnx", "spelled"), tiled)
    assert attention is not None
    assert samples == []
