"""Rounding to a codebook: every code, every tie, and ml_dtypes to the bit."""

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.formats import ELEMENTS, Kind
from qcompile.formats.rounding import decode_element, encode_element, round_element, zero_code

ALL = sorted(ELEMENTS)
FLOATS = {
    "e2m1": ml_dtypes.float4_e2m1fn,
    "e2m3": ml_dtypes.float6_e2m3fn,
    "e3m2": ml_dtypes.float6_e3m2fn,
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
}
INTEGERS = {
    "int2-full": ml_dtypes.int2,
    "int4-full": ml_dtypes.int4,
    "uint2": ml_dtypes.uint2,
    "uint4": ml_dtypes.uint4,
}


def probes(element):
    """Levels, midpoints and the float32 neighbours of both, far values, subnormals and both zeros."""
    levels = torch.tensor(element.levels, dtype=torch.float64).float()
    middle = ((levels[1:].double() + levels[:-1].double()) / 2).float()
    points = torch.cat([levels, middle])
    up, down = (torch.nextafter(points, torch.tensor(s * torch.inf)) for s in (1, -1))
    far = torch.tensor([0.0, -0.0, 1e-45, -1e-45, 1e-38, 3e38, -3e38, torch.inf, -torch.inf])
    return torch.cat([points, up, down, far])


@pytest.mark.parametrize("name", FLOATS)
def test_floats_agree_with_ml_dtypes_to_the_bit(name):
    element = ELEMENTS[name]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(100_000, generator=generator) * element.max / 2
    y = torch.cat([probes(element), noise, noise * 1e-3])
    reference = y.clamp(-element.max, element.max).numpy().astype(FLOATS[name])
    codes = encode_element(y.clone(), element)
    assert np.array_equal(codes.numpy(), reference.view(np.uint8))
    values = reference.astype(np.float32).view(np.uint32)
    assert np.array_equal(round_element(y.clone(), element).numpy().view(np.uint32), values)
    assert np.array_equal(decode_element(codes, element).numpy().view(np.uint32), values)


@pytest.mark.parametrize("name", INTEGERS)
def test_integers_agree_with_ml_dtypes(name):
    element = ELEMENTS[name]
    y = torch.linspace(-20, 20, 4001)
    reference = np.rint(y.numpy()).clip(element.levels[0], element.max).astype(INTEGERS[name])
    assert np.array_equal(
        decode_element(encode_element(y.clone(), element), element).numpy(), reference.astype(np.float32)
    )


@pytest.mark.parametrize("name", ALL)
def test_every_code_survives_a_round_trip(name):
    element = ELEMENTS[name]
    levels = torch.tensor(element.levels)
    codes = encode_element(levels.clone(), element)
    assert len(set(codes.tolist())) == len(levels)
    assert int(codes.max()) < 2**element.bits
    assert torch.equal(decode_element(codes, element), levels)
    assert torch.equal(round_element(levels.clone(), element), levels)


@pytest.mark.parametrize("name", ALL)
def test_rounds_to_the_nearest_level_with_the_tie_rule(name):
    element = ELEMENTS[name]
    y = probes(element)
    y = y[y.abs() < 1e6]  # farther out float64 cannot tell the levels apart
    levels = torch.tensor(element.levels, dtype=torch.float32).double()
    distance = (y.double()[:, None] - levels).abs()
    value = round_element(y.clone(), element).double()
    assert torch.equal((value - y.double()).abs(), distance.amin(1))
    if element.kind is Kind.TABLE:
        lowest = levels[(distance == distance.amin(1, keepdim=True)).int().argmax(1)]
        assert torch.equal(value, lowest)


@pytest.mark.parametrize(
    ("y", "value"), [(0.25, 0), (0.75, 1), (1.25, 1), (1.75, 2), (2.5, 2), (3.5, 4), (5.0, 4), (9.0, 6)]
)
@pytest.mark.parametrize("sign", [1, -1])
def test_ties_of_e2m1(y, value, sign):
    assert float(round_element(torch.tensor([sign * y]), ELEMENTS["e2m1"])) == sign * value


def test_code_points_of_e2m1():
    values = decode_element(torch.arange(16, dtype=torch.uint8), ELEMENTS["e2m1"])
    assert values.tolist() == [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]
    assert np.signbit(values[8].numpy())


def test_e4m3_ties_at_the_top_saturate():
    element = ELEMENTS["e4m3"]
    assert round_element(torch.tensor([448.0, 464.0, 465.0, 1e9]), element).tolist() == [448.0] * 4


@pytest.mark.parametrize("name", ALL)
def test_zero_has_a_code(name):
    element = ELEMENTS[name]
    nearest = min(abs(level) for level in element.levels)
    assert abs(float(decode_element(torch.tensor([zero_code(element)], dtype=torch.uint8), element))) == nearest
    assert float(round_element(torch.zeros(1), element)) == 0


@pytest.mark.parametrize("name", ALL)
def test_nan_stays_nan(name):
    assert round_element(torch.tensor([torch.nan]), ELEMENTS[name]).isnan().all()


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(ALL), st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=20))
def test_decode_of_encode_is_the_nearest_level_and_idempotent(name, values):
    element = ELEMENTS[name]
    y = torch.tensor(values, dtype=torch.float32)
    value = decode_element(encode_element(y.clone(), element), element)
    levels = torch.tensor(element.levels, dtype=torch.float32).double()
    inside = y.double().clamp(levels[0], levels[-1])
    assert torch.equal((value.double() - inside).abs(), (inside[:, None] - levels).abs().amin(1))
    assert torch.equal(round_element(y.clone(), element), value)
    assert torch.equal(decode_element(encode_element(value.clone(), element), element), value)
