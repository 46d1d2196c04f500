"""Codes of which neighbours are bounded together, so that sums of two products of bytes fit 16 bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import qcompile as qc
from qcompile.formats import Scales, get_format, quantize
from qcompile.rounding.gptq import factorize, gptq, output_error
from qcompile.rounding.methods import method_of
from qcompile.rounding.neighbours import brought, together, within

FORMAT = get_format("int8-channel")
BOUND = 128


def levels(rounded) -> torch.Tensor:
    return rounded.codes.view(torch.int8)[:, : rounded.shape[1]].float()


def fitted(weight: torch.Tensor):
    again = method_of("rtn").with_scales
    return within(BOUND, weight, quantize(weight, FORMAT), None, lambda *rows: again(FORMAT, None, *rows))


@given(st.integers(1, 6), st.integers(1, 33), st.integers(0, 9), st.sampled_from([1.0, 3.0]))
def test_no_two_neighbours_of_one_sign_are_beyond_the_bound(out: int, inner: int, seed: int, power: float) -> None:
    weight = torch.randn(out, inner, generator=torch.Generator().manual_seed(seed)).abs().pow(power)
    weight *= torch.randn(out, inner, generator=torch.Generator().manual_seed(seed + 1)).sign()
    rounded = fitted(weight)
    codes = np.pad(levels(rounded).numpy(), ((0, 0), (0, inner % 2))).reshape(out, -1, 2)
    both = np.abs(codes.sum(-1))[codes[..., 0] * codes[..., 1] > 0]
    assert both.max(initial=0) <= BOUND
    assert float(together(levels(rounded)).max()) <= BOUND
    largest = weight.abs().amax(1, keepdim=True)
    assert ((rounded.dequantize() - weight).abs() <= largest * (128 / 127) / 2 + 1e-6).all()


def test_rows_that_fit_stay_as_they_are() -> None:
    weight = torch.tensor([[127.0, -127.0, 1.0, 100.0], [127.0, 127.0, 1.0, 1.0]])
    rounded, plain = fitted(weight), quantize(weight, FORMAT)
    assert torch.equal(levels(rounded)[0], levels(plain)[0])
    assert levels(rounded)[1, :2].sum() <= BOUND


@given(st.integers(1, 6), st.integers(2, 150), st.integers(0, 9))
def test_gptq_stays_within_the_bound(out: int, inner: int, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, inner, generator=rng).abs()  # all of one sign
    x = torch.randn(4 * inner, inner, generator=rng) @ torch.randn(inner, inner, generator=rng)
    made = gptq(weight, x.T @ x / len(x), FORMAT, together=BOUND, block=32).quantized
    assert float(together(levels(made)).max()) <= BOUND


def test_gptq_makes_up_for_the_bound() -> None:
    rng = torch.Generator().manual_seed(0)
    weight = torch.randn(32, 96, generator=rng).abs()
    x = torch.randn(4096, 96, generator=rng) @ torch.randn(96, 96, generator=rng)
    moment = x.T @ x / len(x)
    scales = quantize(weight, FORMAT).scales
    factor = factorize(moment)
    bounded, free = (
        gptq(weight, factor, FORMAT, scales=Scales(scales), together=most).quantized for most in (BOUND, None)
    )
    afterwards = brought(BOUND, free)
    lost = [output_error(weight, made.dequantize(), moment) for made in (free, bounded, afterwards)]
    assert not torch.equal(bounded.codes, free.codes)
    assert lost[0] < lost[1] < 0.6 * lost[2]


def test_it_costs_less_than_a_bit() -> None:
    weight = torch.randn(64, 576, generator=torch.Generator().manual_seed(0))
    lost = (fitted(weight).dequantize() - weight).square().mean()
    seven = weight.abs().amax(1, keepdim=True) / 63
    coarse = ((weight / seven).round() * seven - weight).square().mean()
    assert lost < 0.5 * coarse


GRAPHS = {
    "products": "g (float[n,64] x) => (float[n,8] y) <float[64,32] w, float[32,8] v>"
    " { a = MatMul(x, w)\n h = Relu(a)\n y = MatMul(h, v) }",
    "kernels": "g (float[n,6,8,8] x) => (float[n,8,8,8] y) <float[12,6,3,3] w, float[12] b, float[8,12,1,1] v>"
    " { a = Conv<pads=[1,1,1,1]>(x, w, b)\n h = Relu(a)\n y = Conv(h, v) }",
    "one channel": "g (float[n,1,8,8] x) => (float[n,8,8,8] y) <float[12,1,3,3] w, float[12] b, float[8,12,1,1] v>"
    " { a = Conv<pads=[1,1,1,1]>(x, w, b)\n h = Relu(a)\n y = Conv(h, v) }",
}


#: Exports in which bytes are multiplied: kernels are float on ``cpu-int8``.
EXPORTS = [("products", "cpu-int8", "gptq")] + [(n, "qdq-int8", m) for n in GRAPHS for m in ("gptq", "rtn")]


@pytest.mark.parametrize(("name", "target", "method"), EXPORTS)
def test_artifacts_are_exact_in_a_plain_session(
    parse: Callable[..., ir.Model], tmp_path: Path, name: str, target: str, method: str
) -> None:
    """Weights and inputs are all positive, so that sums of bytes in 16 bits would stop at once."""
    model = parse(GRAPHS[name])
    rng = np.random.default_rng(0)
    for value in model.graph.initializers.values():
        value.const_value = ir.tensor(rng.uniform(0.5, 1, value.shape.numpy()).astype(np.float32), name=value.name)
    shape = [size if isinstance(size, int) else 64 for size in model.graph.inputs[0].shape]
    x = rng.uniform(0, 1, shape).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    qc.export(model, target, tmp_path / "out", calibration=tmp_path / "x.npz", transforms="none", method=method)
    path, found = tmp_path / "out" / "model.onnx", []
    for level in (
        onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
        onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    ):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = level
        found.append(onnxruntime.InferenceSession(path, options).run(None, {"x": x})[0])
    codes = [v.const_value.numpy() for v in ir.load(path).graph.initializers.values() if v.dtype == ir.DataType.INT8]
    assert max(code.max(initial=0) for code in codes) >= 60
    np.testing.assert_allclose(found[0], found[1], rtol=0.02)  # codes of results on borders may move by one


def test_codes_that_were_learned_are_brought_within_the_bound() -> None:
    """Each of two neighbours may have moved by one; all others stay."""
    weight = quantize(torch.tensor([[64.0, 64.0, -127.0, 0.0], [127.0, -127.0, 3.0, 5.0]]), FORMAT)
    moved = replace(
        weight, codes=torch.tensor([[65, 65, -127, -2], [127, -127, 3, 5]]).to(torch.int8).view(torch.uint8)
    )
    found = levels(brought(BOUND, moved))
    assert found[0].tolist() == [64, 64, -127, -1]
    assert torch.equal(found[1], levels(moved)[1])
