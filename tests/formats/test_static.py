"""Static ranges: what they hold is what QuantizeLinear and DequantizeLinear of onnxruntime make of it, to the bit."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx_ir as ir
import pytest
import torch
from changes import parse
from hypothesis import given
from hypothesis import strategies as st

from qcompile.errors import InputError
from qcompile.formats import fake_quantize_rows, get_format, quantize
from qcompile.formats.static import STATIC_FORMATS, TENSOR_FORMATS, Range, range_of, range_within
from qcompile.run.session import Session
from qcompile.targets.scheme import Scheme

TYPES = {"int8-static": "int8", "uint8-static": "uint8", "fp8-e4m3-static": "float8e4m3fn"}


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("span", [(-3.7, 1.2), (0.0, 5.1), (-1e-20, 2e-20), (-9.0, -2.0), (0.0, 0.0)])
def test_a_range_rounds_as_onnxruntime_does(parse, name, span):
    within = Range.spanning(STATIC_FORMATS[name], *span)
    drawn = np.random.default_rng(0).standard_normal(4096).astype(np.float32)
    ties = (np.arange(-300, 300) + 0.5).astype(np.float32) * np.float32(within.scale)
    x = np.concatenate([drawn * np.float32(max(map(abs, span)) or 1), ties])
    model = parse(
        f"""g (float[n] x) => (float[n] y) <float s = {{1.0}}, {TYPES[name]} z = {{0}}>
        {{ q = QuantizeLinear(x, s, z)\n y = DequantizeLinear(q, s, z) }}""",
        opset=21,
    )
    constants = model.graph.initializers
    constants["s"].const_value = ir.tensor(np.array(within.scale, np.float32), name="s")
    zero = np.array(within.zero_point).astype(constants["z"].dtype.numpy())
    constants["z"].const_value = ir.Tensor(zero, dtype=constants["z"].dtype, name="z")
    want = Session(model).run({"x": x})["y"]
    np.testing.assert_array_equal(within.round(torch.from_numpy(x)).numpy(), want)


@pytest.mark.parametrize("amax", [1e-30, 0.3, 1.0, 2688.0, 3e4, 0.0])
def test_a_range_of_groups_is_the_power_of_two_that_clips_no_group(amax):
    fmt = STATIC_FORMATS["nvfp4-static"]
    within = Range.spanning(fmt, -amax, amax / 2)
    assert within.scale == 2.0 ** round(np.log2(within.scale))
    if amax:
        assert within.scale / 2 < amax / (6 * 448) <= within.scale
    x = torch.randn(64, 48, generator=torch.Generator().manual_seed(0)) * (amax / 4)
    x[0, 0] = amax
    read = within.round(x)
    assert read[0, 0] == pytest.approx(amax, rel=1 / 16)  # a scale of a group has three bits behind the comma
    assert torch.equal(read, quantize(x, fmt, tensor_scale=within.scale).dequantize())
    widest = x.abs().view(64, 3, 16).amax(-1, keepdim=True).expand(-1, -1, 16).reshape(64, 48)
    assert bool(((read - x).abs() <= widest / 5).all())  # half of the widest step, 2 of 6, and what the scale clips


FLOATS = st.floats(-(2.0**100), 2.0**100, width=32)


@given(FLOATS, FLOATS, st.sampled_from(sorted(TYPES)))
def test_a_range_has_a_code_for_zero_and_clips_nothing_within(a, b, name):
    low, high = min(a, b), max(a, b)
    within = Range.spanning(STATIC_FORMATS[name], low, high)
    read = within.round(torch.tensor([0.0, low, high]))
    assert read[0] == 0
    step = within.scale * (32 if name.startswith("fp8") else 1.0)  # between 224 and 448 levels are 32 apart
    assert (read[1:] - torch.tensor([low, high])).abs().max() <= step * (1 + 1e-5)


def test_a_range_is_found_that_clips_what_is_rare():
    x = torch.cat([torch.randn(100000, generator=torch.Generator().manual_seed(0)), torch.tensor([60.0, -60.0])])
    fmt = STATIC_FORMATS["int8-static"]
    found, widest = range_within(x, fmt), Range.spanning(fmt, -60, 60)
    assert found.scale < widest.scale
    assert (found.round(x) - x).square().sum() < (widest.round(x) - x).square().sum()
    np.testing.assert_array_equal(fake_quantize_rows(x[:, None], fmt)[:, 0], found.round(x))


READ = """g (float[n, k] x) => (float[n, k] y)
    { q, s, z = DynamicQuantizeLinear(x)\n y = DequantizeLinear(q, s, z) }"""


@given(st.integers(0, 10**6), st.floats(-20, 20), st.floats(-3, 3))
def test_a_tensor_as_it_comes_is_rounded_as_onnxruntime_does(seed, exponent, shift):
    x = np.random.default_rng(seed).standard_normal((5, 7)).astype(np.float32)
    x = ((x + np.float32(shift)) * np.float32(2.0**exponent)).astype(np.float32)
    have = fake_quantize_rows(torch.from_numpy(x), TENSOR_FORMATS["uint8-tensor"])
    np.testing.assert_array_equal(have.numpy(), reading().run({"x": x})["y"])


@cache
def reading() -> Session:
    return Session(parse(READ, opset=21))


def test_a_range_of_what_is_empty_or_not_finite_is_one_of_numbers():
    fmt = TENSOR_FORMATS["uint8-tensor"]
    assert range_of(torch.zeros(0, 4), fmt).scale == 1.0
    x = torch.tensor([1.0, float("nan"), -1.0, float("inf")])
    assert range_of(x, fmt) == Range.spanning(fmt, -1.0, 1.0)


def test_static_is_a_word_of_activations():
    scheme = Scheme.parse("int8-channel/uint8-static")
    assert scheme.static
    assert scheme.name == "int8-channel/uint8-static"
    assert not Scheme.parse("int8-channel/int8-channel").static
    assert not Scheme.parse("int8-channel/uint8-tensor").static
    with pytest.raises(InputError, match="'uint8-static' is a format of activations"):
        Scheme.parse("uint8-static/uint8-static")
    with pytest.raises(InputError, match="there is no format"):
        get_format("uint8-static")
