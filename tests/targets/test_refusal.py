"""A model of which nothing can be quantized is refused with the reasons, each once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest

import qcompile as qc

KERNELS = """
    vocoder (float[batch, 8, time] x) => (float[batch, 4, longer] y)
    <float[8, 8, 3] one, float[8, 8, 3] two, float[8, 8, 3] three, float[8, 8, 3] four, float[8, 4, 8] up> {
        a = Conv<kernel_shape = [3], pads = [1, 1]>(x, one)
        b = Conv<kernel_shape = [3], pads = [1, 1]>(a, two)
        c = Conv<kernel_shape = [3], pads = [1, 1]>(b, three)
        d = Conv<kernel_shape = [3], pads = [1, 1]>(c, four)
        y = ConvTranspose<kernel_shape = [8], strides = [4]>(d, up)
    }
"""


def test_a_model_of_convolutions_with_kernels(parse: Callable[..., ir.Model], tmp_path: Path) -> None:
    model = parse(KERNELS)
    for number, node in enumerate(model.graph):
        node.name = f"layer{number}"
    with pytest.raises(qc.InputError) as refused:
        qc.export(model, "hopper-int4", tmp_path / "out")
    assert str(refused.value) == (
        "'<model>' has no linear map with a constant weight that can be quantized: target 'hopper-int4' computes no "
        "convolution but products at each place: no taps, strides or groups "
        "('layer0', 'layer1', 'layer2' and 2 more)"
    )
    assert not (tmp_path / "out").exists()


def test_a_model_without_weights(parse: Callable[..., ir.Model], tmp_path: Path) -> None:
    with pytest.raises(qc.InputError, match="no linear map with a constant weight that can be quantized$"):
        qc.export(parse("g (float[n, 8] x) => (float[n, 8] y) { y = Relu(x) }"), "cpu-int8", tmp_path / "out")
