"""Families of networks: what the mathematics allows, written down beforehand.

For each family: how many spaces of which size rotate offline, and in front of which sites, as (features read,
features made), an online transform remains with ``--transforms hadamard``. The sizes tell what is what: the residual
stream has 32 features, a head 8, a feed-forward layer 48.

Exporting takes seconds a network, so their graphs are kept in ``tests/data/families.npz``, without large weights, which
are drawn anew; ``python tests/support/families.py`` exports them, or those that it is given, again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import torch
from audio import AudioEncoder, ConvolutionalPositions
from blocks import Attention, FeedForward, PlusOneNorm, RMSNorm, randomize
from decoders import (
    BatchedExperts,
    Cached,
    Decoder,
    DenseExperts,
    GatheredExperts,
    InterleavedExperts,
    LatentAttention,
    ParallelDecoder,
    SandwichDecoder,
    SinkAttention,
    alibi,
    experts,
    window,
)
from diffusion import DiT, MMDiT, SingleStream
from encoders import (
    ConvNeXt,
    EncoderDecoder,
    MergedKeys,
    PostNormEncoder,
    RelativePositions,
    TwoTowers,
    UNet,
    VisionTransformer,
    Windowed,
)
from state_spaces import Hybrid, Mamba1, Mamba2, StateSpaceModel
from torch import nn

import qcompile as qc

__all__ = ["FAMILIES", "Family", "export", "load", "stored"]

STORED = Path(__file__).parent.parent / "data" / "families.npz"

#: Constants with more elements are not kept but drawn anew, unless all have one sign, as decays have.
KEPT = 64

IDS = torch.arange(10).reshape(2, 5)
TEXT = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=16)}


ROWS = {0: TEXT[0]}
PIXELS = torch.randn(2, 3, 4, 4)
IMAGE = {"inputs": (torch.randn(2, 3, 6, 6),), "dynamic": (ROWS,)}


@dataclass
class Family:
    """A network, example inputs, their dynamic axes, and the expectation."""

    make: Callable[[], nn.Module]
    offline: dict[int, int]
    online: dict[tuple[int, int], int]
    inputs: tuple = (IDS,)
    dynamic: tuple = (TEXT,)
    because: dict[int, str] = field(default_factory=dict)  # size of a space that stays -> a part of the reason
    boundaries: int = 0  # online transforms where a space begins or ends


def layer_norm() -> nn.Module:
    return nn.LayerNorm(32)


# Pre-norm decoders: the whole stream, V to O in each layer; one online transform before each down-projection.
DECODER = {"offline": {32: 1, 8: 2}, "online": {(48, 32): 2}}
FAMILIES = {
    "biases, layer norms, learned positions": Family(
        lambda: Decoder(lambda: Attention(bias=True), FeedForward, layer_norm, positions=True), **DECODER
    ),
    "fused projection with biases": Family(
        lambda: Decoder(lambda: Attention(bias=True, fused=True, rope=1.0), FeedForward, layer_norm), **DECODER
    ),
    "fused projection, stacked": Family(
        lambda: Decoder(lambda: Attention(bias=True, fused=True, layout="parts", rope=1.0), FeedForward, layer_norm),
        **DECODER,
    ),
    "fused projection, heads first": Family(
        lambda: Decoder(lambda: Attention(fused=True, layout="heads", rope=1.0, qk_norm=RMSNorm)), **DECODER
    ),
    "fused projection, groups of heads": Family(
        lambda: ParallelDecoder(lambda: Attention(fused=True, layout="groups", rope=1.0, kv_heads=2), FeedForward,
                                layer_norm), **DECODER
    ),
    "gated, rotary, grouped heads": Family(lambda: Decoder(lambda: Attention(kv_heads=2, rope=1.0)), **DECODER),
    "tied embedding": Family(lambda: Decoder(lambda: Attention(rope=1.0), tied=True), **DECODER),
    "norms on queries and keys": Family(
        lambda: Decoder(lambda: Attention(kv_heads=2, rope=1.0, qk_norm=RMSNorm)), **DECODER
    ),
    "partial rotary": Family(
        lambda: Decoder(lambda: Attention(bias=True, rope=0.5), FeedForward, layer_norm), **DECODER
    ),
    "parallel block": Family(lambda: ParallelDecoder(lambda: Attention(rope=1.0), FeedForward, layer_norm), **DECODER),
    "one plus gamma, scaled embedding": Family(
        lambda: Decoder(lambda: Attention(kv_heads=2, rope=1.0), norm=PlusOneNorm, scale=32**0.5), **DECODER
    ),
    "alibi": Family(lambda: Decoder(Attention, FeedForward, layer_norm, bias=alibi), **DECODER),
    "sliding window": Family(lambda: Decoder(lambda: Attention(rope=1.0), bias=window), **DECODER),
    # A scale behind each layer, on what is added to the stream: no rotation passes it. An online transform behind each
    # of the four scales, and the stream rotates; in front of its readers there would be five.
    "norms behind the layers too": Family(
        SandwichDecoder, {32: 1, 8: 2}, {(48, 32): 2}, because={32: "has a scale that could not be folded away"},
        boundaries=4,
    ),
    # V is shown to the outside, so its basis stays, and O needs an online transform.
    "cache": Family(
        Cached, {32: 1}, {(32, 32): 1, (48, 32): 1},
        inputs=(IDS, torch.randn(2, 4, 3, 8), torch.randn(2, 4, 3, 8)),
        dynamic=(TEXT, *[{0: TEXT[0], 2: torch.export.Dim("past")}] * 2),
        because={8: "comes from outside"},
    ),
    "experts one by one": Family(lambda: experts(DenseExperts), {32: 1, 8: 2}, {(48, 32): 8}),
    "experts batched": Family(lambda: experts(BatchedExperts), {32: 1, 8: 2}, {(48, 4 * 32): 2}),
    "experts gathered": Family(lambda: experts(GatheredExperts), {32: 1, 8: 2}, {(48, 4 * 32): 2}),
    # What a head looks at besides is a number, gates and values in turn are a factor of two: neither is in the way.
    "attention sinks, experts with interleaved gates": Family(
        lambda: Decoder(SinkAttention, InterleavedExperts), {32: 1, 8: 2}, {(48, 4 * 32): 2}
    ),
    # The low ranks behind their norms rotate like streams; V to O within a head.
    "latent attention": Family(lambda: Decoder(LatentAttention), {32: 1, 24: 2, 16: 2, 8: 2}, {(48, 32): 2}),
    # A scale on the stream itself, which the residual path reads as well: V to O is left, and behind the last scale
    # but one (the last folds into the head) one online transform serves the layer and the head.
    "post-norm encoder": Family(
        PostNormEncoder, {32: 1, 8: 2}, {(32, 96): 2, (32, 48): 1, (48, 32): 2},
        because={32: "has a scale that could not be folded away"}, boundaries=1,
    ),
    "encoder and decoder": Family(
        EncoderDecoder, {40: 1, 32: 1, 8: 3}, {(48, 40): 1, (48, 32): 1}, (IDS, IDS + 1), (TEXT, TEXT),
    ),
    # One table for both streams and the head, so both streams are one space; the biases are numbers on scores.
    "relative positions, one table": Family(
        RelativePositions, {32: 1, 8: 3}, {(48, 32): 2}, (IDS, IDS + 1), (TEXT, TEXT)
    ),
    # The space in which they are compared has a rotation of its own, which no site reads.
    "two towers": Family(
        TwoTowers, {40: 1, 32: 1, 8: 2}, {(48, 40): 1, (48, 32): 1}, (IDS, torch.randn(2, 3, 6, 6)), (TEXT, ROWS)
    ),
    # The stream begins behind a GELU: one online transform there. Kernels over several places are no sites of any.
    "audio encoder": Family(
        AudioEncoder, {32: 1, 8: 2}, {(48, 32): 2}, (torch.randn(2, 6, 8),), (ROWS,), boundaries=1
    ),
    # A grouped convolution reads where the stream begins, and a GELU is added: one online transform behind the sum.
    "convolutional positions": Family(
        ConvolutionalPositions, {32: 1, 8: 2}, {(48, 32): 2, (20, 32): 1}, (torch.randn(2, 7, 20),), (ROWS,),
        because={20: "comes from outside"}, boundaries=1,
    ),
    # The convolution mixes channels as a matrix does; what it writes is a stream of its own behind its norm.
    "keys of merged places": Family(
        MergedKeys, {32: 2, 8: 1}, {(48, 32): 1}, (torch.randn(2, 3, 8, 8),), (ROWS,)
    ),
    "vision transformer": Family(VisionTransformer, {32: 1, 8: 1}, {(48, 32): 1}, **IMAGE),
    "layer scale": Family(lambda: VisionTransformer(True), {32: 1, 8: 1}, {(48, 32): 1}, **IMAGE),
    # A norm with a scale where the stream begins: one online transform behind it, and the stream rotates.
    "norm in front of the stream": Family(
        lambda: VisionTransformer(normed=True), {32: 1, 8: 1}, {(48, 32): 1}, **IMAGE, boundaries=1
    ),
    # A norm over four places at once subtracts their common mean, so the stream's own mean must stay: a rotation that
    # keeps the vector of ones.
    "windowed attention, merged patches": Family(
        Windowed, {32: 1, 64: 1, 8: 1}, {(48, 32): 1}, (torch.randn(2, 3, 8, 8),), (ROWS,),
        because={32: "normalizes over it"},
    ),
    # A kernel of its own for each channel of the stream.
    "convnext": Family(
        ConvNeXt, {}, {(32, 48): 1, (48, 32): 1, (32, 24): 1}, **IMAGE,
        because={32: "Conv 'node_conv2d_1' multiplies along the axis"},
    ),
    # Siblings norms on the stream of places; within the transformer block the last projection reads the mean as well.
    "u-net with attention": Family(
        UNet, {64: 1, 8: 2}, {(32, 64): 1, (24, 64): 1, (48, 64): 1}, (PIXELS, torch.randn(2, 5, 24)),
        (ROWS, ROWS), because={8: "has statistics over it"},
    ),
    "mamba": Family(
        lambda: StateSpaceModel(Mamba1), {32: 1, 4: 2}, {(64, 32): 2}, because={64: "acts on each element"}
    ),
    "mamba, unrolled": Family(
        lambda: StateSpaceModel(Mamba1, unrolled=True), {32: 1, 4: 2}, {(64, 32): 2}, dynamic=(ROWS,)
    ),
    "mamba-2": Family(lambda: StateSpaceModel(Mamba2), {32: 1}, {(64, 32): 2}),
    "hybrid": Family(Hybrid, {32: 1, 8: 1, 4: 1}, {(64, 32): 2, (48, 32): 2}),
    # Each sample scales its stream: online behind each modulation, and V to O.
    "dit": Family(
        DiT, {8: 1}, {(32, 96): 1, (32, 48): 1, (48, 32): 1, (32, 24): 1, (24, 256): 1},
        (torch.randn(2, 1, 4, 4), torch.randn(2, 24)), (ROWS, ROWS), because={32: "multiplies along the axis"},
    ),
    # Of what the last projection reads, attention's part rotates within heads, the other by one online transform.
    "single-stream block": Family(
        SingleStream, {8: 1, 48: 1}, {(16, 32): 1, (24, 96): 1, (32, 144): 1, (32, 24): 1},
        (torch.randn(2, 5, 16), torch.randn(2, 24)), (ROWS, ROWS), because={32: "multiplies along the axis"},
        boundaries=1,
    ),
    # Two streams share the heads of one attention.
    "mmdit": Family(
        MMDiT, {8: 1}, {(32, 96): 2, (32, 48): 2, (48, 32): 2, (32, 24): 1, (24, 384): 1, (24, 32): 1, (16, 32): 1},
        (torch.randn(2, 4, 24), torch.randn(2, 3, 16), torch.randn(2, 24)), (ROWS,) * 3,
        because={32: "multiplies along the axis"},
    ),
}  # fmt: skip


def export(name: str) -> onnx.ModelProto:
    """The network as torch exports it today, without notes and large weights."""
    family = FAMILIES[name]
    source = qc.capture(randomize(family.make()), family.inputs, dynamic_shapes=family.dynamic)
    model = ir.to_proto(source.model)
    graph = model.graph
    for item in (*graph.node, *graph.value_info, *graph.input, *graph.output, graph):
        del item.metadata_props[:]
        item.doc_string = ""
    for tensor in list(graph.initializer):
        array = onnx.numpy_helper.to_array(tensor)
        if array.dtype == np.float32 and array.size > KEPT and array.min() < 0 < array.max():
            graph.initializer.remove(tensor)
            if tensor.name not in {info.name for info in graph.value_info}:
                graph.value_info.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return model


def load(model: onnx.ModelProto, seed: int = 0) -> ir.Model:
    """A graph with its large weights drawn anew."""
    rng = np.random.default_rng(seed)
    made = {name for node in model.graph.node for name in node.output} | {t.name for t in model.graph.initializer}
    for info in [info for info in model.graph.value_info if info.name not in made]:
        shape = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
        array = (rng.standard_normal(shape) / shape[-1] ** 0.5).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, info.name))
        model.graph.value_info.remove(info)
    return ir.from_proto(model)


def stored(name: str) -> onnx.ModelProto:
    """The graph as it was exported when the file was made."""
    with np.load(STORED) as graphs:
        return onnx.load_from_string(graphs[name].tobytes())


if __name__ == "__main__":
    wanted = sys.argv[1:] or list(FAMILIES)
    graphs = dict(np.load(STORED)) if sys.argv[1:] else {}
    graphs |= {name: np.frombuffer(export(name).SerializeToString(), np.uint8) for name in wanted}
    np.savez_compressed(STORED, **graphs)
