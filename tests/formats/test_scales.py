"""Scale rules and scale storage, against their definitions in exact arithmetic."""

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import torch

from qcompile.formats import FORMATS, ScaleType, compute_scales, quantize
from qcompile.formats.scales import scale_code, scale_from_code, store_scale

ELEMENTS = ["mxfp4", "mxfp6-e2m3", "mxfp6-e3m2", "mxfp8-e4m3", "mxfp8-e5m2", "mxint4", "mxint8"]


def floor_log2(value):
    exponent = value.numerator.bit_length() - value.denominator.bit_length()
    return exponent if Fraction(2) ** exponent <= value else exponent - 1


def ceil_log2(value):
    low = floor_log2(value)
    return low if Fraction(2) ** low == value else low + 1


def exponent_by_definition(rule, amax, fmt):
    value, top = Fraction(float(amax)), Fraction(fmt.element.max)
    emax = fmt.element.max_exponent
    if rule == "ceil":
        return ceil_log2(value) - emax
    if rule == "rceil":
        return ceil_log2(value / top)
    if rule == "even":
        mantissa = fmt.element.mantissa_bits or fmt.element.bits - 2
        bits = np.float32(amax).view(np.uint32) + np.uint32(1 << (22 - mantissa))
        value = Fraction(float(bits.view(np.float32)))
    return floor_log2(value) - emax


def magnitudes():
    base = torch.tensor([1.0, 1.25, 1.5, 1.75, 1.875, 4 / 3, 1.1, 1.9, 1.96875])
    base = torch.cat([base, torch.nextafter(base, torch.tensor(9.0)), torch.nextafter(base, torch.tensor(0.0))])
    powers = torch.tensor([2.0**e for e in (-149, -130, -127, -126, -60, -3, -1, 0, 1, 5, 60, 126)])
    every = (base[:, None] * powers).flatten()
    return every[(every > 0) & every.isfinite()]


@pytest.mark.parametrize("rule", ["floor", "ceil", "rceil", "even", "mrgptq"])
@pytest.mark.parametrize("name", ELEMENTS)
def test_power_of_two_rules(name, rule):
    fmt = FORMATS[name if rule == "floor" else f"{name}-{rule}"]
    amax = magnitudes()
    x = torch.zeros(len(amax), 32)
    x[:, 7] = -amax
    scale = compute_scales(x, fmt).scale[:, 0]
    expected = [min(max(exponent_by_definition(rule, a, fmt), -127), 127) for a in amax.tolist()]
    assert scale.tolist() == [2.0**e for e in expected]


def test_four_thirds_lands_elements_in_three_to_six():
    fmt = FORMATS["mxfp4-mrgptq"]
    amax = torch.linspace(0.6, 40, 999)
    scales = compute_scales(amax[:, None], fmt)
    ratio = amax / scales.effective[:, 0]
    assert scales.tensor_scale == torch.tensor(4 / 3)
    assert ratio.min() >= 3 - 1e-5
    assert ratio.max() <= 6 + 1e-5


@pytest.mark.parametrize("name", ["mxfp4-rceil", "mxfp6-e2m3-mrgptq", "mxint8-rceil", "mxfp8-e4m3-mrgptq"])
def test_rules_that_never_clip(name):
    fmt = FORMATS[name]
    amax = magnitudes()
    amax = amax[(amax > 1e-30) & (amax < 1e30)]
    ratio = amax / compute_scales(amax[:, None], fmt).effective[:, 0]
    assert ratio.max() <= fmt.element.max * (1 + 1e-6)


def test_e8m0_bytes():
    codes = torch.arange(256).to(torch.uint8)
    values = scale_from_code(codes, ScaleType.E8M0)
    reference = codes.numpy().view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    assert np.array_equal(values.numpy(), reference, equal_nan=True)
    assert torch.equal(scale_code(values, ScaleType.E8M0), codes)


@pytest.mark.parametrize("storage", [ScaleType.E4M3, ScaleType.UE5M3])
def test_byte_floats_of_scales(storage):
    count = 127 if storage is ScaleType.E4M3 else 255
    codes = torch.arange(count).to(torch.uint8)
    values = scale_from_code(codes, storage)
    assert torch.equal(scale_code(values, storage), codes)
    assert torch.equal(store_scale(values, storage), values)
    assert (values.diff() > 0).all()
    middle = (values[1:] + values[:-1]) / 2  # exact in float32: ties go to the even code
    even = torch.where(codes[:-1] % 2 == 0, values[:-1], values[1:])
    assert torch.equal(store_scale(middle, storage), even)
    assert float(store_scale(torch.tensor(1e9), storage)) == float(values[-1])
    assert scale_code(torch.tensor(torch.nan), storage) == {ScaleType.E4M3: 127, ScaleType.UE5M3: 255}[storage]


def test_ue5m3_covers_what_the_field_says():
    values = scale_from_code(torch.tensor([1, 8, 254], dtype=torch.uint8), ScaleType.UE5M3)
    assert values.tolist() == [2.0**-17, 2.0**-14, 1.75 * 2**16]


def test_nvfp4_by_its_definition():
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    q = quantize(x, FORMATS["nvfp4"])
    blocks = x.view(8, 4, 16)
    tensor_scale = x.abs().max() / (6 * 448)
    scale = (blocks.abs().amax(-1) / 6 / tensor_scale).clamp(0, 448).numpy().astype(ml_dtypes.float8_e4m3fn)
    step = torch.from_numpy(scale.astype(np.float32)) * tensor_scale
    codes = (blocks / step[..., None]).clamp(-6, 6).numpy().astype(ml_dtypes.float4_e2m1fn)
    assert torch.equal(q.tensor_scale, tensor_scale)
    assert np.array_equal(q.scales.numpy(), scale.astype(np.float32))
    assert np.array_equal(q.codes.view(8, 4, 16).numpy(), codes.view(np.uint8))


def test_four_over_six_takes_the_better_target():
    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(1))
    fmt = FORMATS["nvfp4-4over6"]
    scales = compute_scales(x, fmt)
    assert torch.equal(scales.tensor_scale, x.abs().max() / (6 * 256))
    amax = x.abs().amax(1, keepdim=True) / scales.tensor_scale
    errors = []
    for target in (6, 4):
        step = (amax / target).numpy().astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * scales.tensor_scale.numpy()
        rounded = (x.numpy() / step).clip(-6, 6).astype(ml_dtypes.float4_e2m1fn).astype(np.float32) * step
        errors.append(((rounded - x.numpy()) ** 2).sum(1))
    chosen = np.where(errors[1] < errors[0], 4, 6)
    assert set(chosen) == {4, 6}
    got = scales.scale[:, 0].numpy() * chosen / amax[:, 0].numpy()
    assert np.allclose(got, 1, atol=0.07)


def test_square_blocks_share_their_scale():
    x = torch.randn(40, 50, generator=torch.Generator().manual_seed(2))
    scale = compute_scales(x, FORMATS["nvfp4-16x16"]).scale
    assert scale.shape == (40, 4)
    for rows in (slice(0, 16), slice(16, 32), slice(32, 40)):
        assert (scale[rows] == scale[rows][0]).all()
    assert torch.equal(compute_scales(x.t(), FORMATS["nvfp4-16x16"], axis=0).scale, scale)


def test_signed_max_uses_the_full_range():
    x = torch.tensor([[3.0, -1.0, 0.5, 0.0], [-4.0, 2.0, 1.0, 0.0], [2.0, -2.0, 0.0, 1.0]])
    q = quantize(x, FORMATS["int4-signedmax-channel"])
    assert q.scales[:, 0].tolist() == [-3 / 8, 0.5, 0.25]
    assert torch.equal(q.dequantize()[:, 0], torch.tensor([3.0, -4.0, 1.75]))


def test_minmax_keeps_zero_exact():
    x = torch.tensor([[5.0, 6.0, 5.5, 5.2], [-3.0, 0.0, 7.0, 1.0], [-6.0, -5.0, -5.5, -6.0]])
    q = quantize(x, FORMATS["uint4-channel"])
    assert q.zero_points[:, 0].tolist() == [0, 4, 15]
    assert float(q.dequantize()[1, 1]) == 0.0
