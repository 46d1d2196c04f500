"""Whole tensors: shapes, axes, padding, broken values, and given scales."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.errors import InputError
from qcompile.formats import FORMATS, ScaleRule, compute_scales, fake_quantize, get_format, quantize, round_to
from qcompile.formats.quantizer import decode, encode

SOME = [
    "int2-g32", "int4-g32", "int8-channel", "uint4-g32", "uint3-g16-fp16", "int4-signedmax-g32", "q4_0", "e2m1-g16",
    "mxfp4", "mxfp4-mrgptq", "mxfp6-e3m2", "mxfp8-e5m2-rceil", "mxint8", "nvfp4", "nvfp4-4over6", "nvfp4-16x16",
    "e2m1-ue5m3", "e1m2-e4m3", "fp8-e4m3-channel", "nf4-g64", "af4-g64", "bnb-fp4-g64",
]  # fmt: skip


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0), (1,), (1, 1), (7,), (3, 33), (2, 3, 40), (17, 256)])
@pytest.mark.parametrize("name", SOME)
def test_shapes_and_axes(name, shape):
    x = randn(*shape)
    for axis in range(-len(shape), len(shape)):
        q = quantize(x, FORMATS[name], axis)
        assert q.dequantize().shape == x.shape
        assert torch.equal(q.dequantize(), fake_quantize(x, FORMATS[name], axis))
        moved = q.dequantize().movedim(axis, -1)
        if q.format.rows == 1:  # square blocks depend on the order of the other axes
            assert torch.equal(moved, fake_quantize(x.movedim(axis, -1).contiguous(), FORMATS[name]))


@pytest.mark.parametrize("name", SOME)
def test_padding_changes_nothing(name):
    fmt, x = FORMATS[name], randn(16, 40)
    padded = torch.nn.functional.pad(x, (0, 24))
    assert torch.equal(fake_quantize(x, fmt), fake_quantize(padded, fmt)[:, :40])
    q = quantize(x, fmt)
    group = fmt.group or 40
    assert q.codes.shape == (16, -(-40 // group) * group)
    assert q.scales.shape == (16, -(-40 // group))


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_broken_value_makes_its_group_nan_and_no_other(name, bad):
    x = randn(32, 128)
    x[3, 70] = bad
    fmt = FORMATS[name]
    q = quantize(x, fmt)
    group = fmt.group or 128
    rows = slice(3 // fmt.rows * fmt.rows, 3 // fmt.rows * fmt.rows + fmt.rows)
    broken = torch.zeros(32, 128, dtype=torch.bool)
    broken[rows, 70 // group * group : (70 // group + 1) * group] = True
    assert torch.equal(q.dequantize().isnan(), broken)
    clean = fake_quantize(x.masked_fill(broken, 0), fmt, tensor_scale=q.tensor_scale)
    assert torch.equal(q.dequantize()[~broken], clean[~broken])


@pytest.mark.parametrize("name", SOME)
def test_zero_and_tiny_blocks(name):
    fmt = FORMATS[name]
    x = randn(48, 64)
    x[:16] = 0
    x[16:32] *= 1e-44  # subnormal, and below every stored scale but those of float32
    value = fake_quantize(x, fmt)
    assert value.isfinite().all()
    assert (value[:16] == 0).all()
    assert value[16:32].abs().max() <= x[16:32].abs().max() * 1.5 + 1e-44
    zero = quantize(torch.zeros(4, 64), fmt)
    assert (zero.dequantize() == 0).all()


@pytest.mark.parametrize("name", SOME)
def test_given_scales_are_used_and_make_it_idempotent(name):
    fmt, x = FORMATS[name], randn(32, 100)
    scales = compute_scales(x, fmt)
    q = quantize(x, fmt, scales=scales)
    assert torch.equal(q.scales, scales.scale)
    again = quantize(q.dequantize(), fmt, scales=scales)
    assert torch.equal(again.dequantize(), q.dequantize())


@pytest.mark.parametrize("name", SOME)
def test_columns_rounded_one_at_a_time_agree(name):
    fmt, x = FORMATS[name], randn(16, 96)
    scales, group = compute_scales(x, fmt), fmt.group or 96
    step, zero = scales.effective, scales.zero_point
    columns, read = [], []
    for j in range(96):
        z = None if zero is None else zero[:, j // group]
        columns.append(round_to(x[:, j], step[:, j // group], z, fmt))
        codes = encode(x[:, j], step[:, j // group], z, fmt)
        read.append(decode(codes, step[:, j // group], z, fmt))
    assert torch.equal(torch.stack(columns, 1), fake_quantize(x, fmt))
    assert torch.equal(torch.stack(read, 1), fake_quantize(x, fmt))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes_are_read_as_float32(dtype):
    x = randn(4, 64).to(dtype)
    assert torch.equal(fake_quantize(x, FORMATS["nvfp4"]), fake_quantize(x.float(), FORMATS["nvfp4"]))


def test_a_shared_tensor_scale():
    a, b = randn(4, 64), randn(4, 64, seed=1) * 9
    shared = b.abs().max() / (6 * 448)
    q = quantize(a, FORMATS["nvfp4"], tensor_scale=shared)
    assert torch.equal(q.tensor_scale, shared)
    assert torch.equal(quantize(a, FORMATS["nvfp4"], tensor_scale=float(shared)).codes, q.codes)


def test_mistakes_are_named():
    with pytest.raises(InputError, match="int64"):
        quantize(torch.zeros(3, dtype=torch.int64), FORMATS["mxfp4"])
    with pytest.raises(InputError, match="axis 2"):
        quantize(torch.zeros(3, 3), FORMATS["mxfp4"], axis=2)
    with pytest.raises(InputError, match="scales have shape"):
        quantize(torch.zeros(3, 64), FORMATS["mxfp4"], scales=compute_scales(torch.zeros(3, 32), FORMATS["mxfp4"]))
    with pytest.raises(InputError, match="did you mean nvfp4"):
        get_format("nvfp5")
    with pytest.raises(InputError, match="no format 'qqqqqq'$"):
        get_format("qqqqqq")


@pytest.mark.parametrize("name", FORMATS)
def test_every_registered_format_reads_back_close(name):
    fmt, x = FORMATS[name], randn(32, 256)
    assert fmt.name == name
    value = quantize(x, fmt).dequantize()
    relative = float((value - x).square().sum() / x.square().sum())
    float_digits = fmt.element.mantissa_bits + 1 if fmt.element.exponent_bits else 99
    digits = min(float_digits - 0.2, fmt.bits - 2.6, 3.0 if fmt.rule is ScaleRule.NEAREST else 4.5)
    assert relative < 0.6 * 4.0**-digits  # about 6 dB a digit
    assert fmt.bits <= fmt.bits_per_weight(256) <= fmt.bits + 4


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(SOME), st.integers(1, 5), st.integers(1, 70), st.floats(-8, 8), st.integers(0, 2**31))
def test_errors_stay_within_the_bound(name, rows, size, exponent, seed):
    fmt = FORMATS[name]
    x = randn(rows, size, seed=seed) * 2.0**exponent
    q = quantize(x, fmt)
    step = q.all_scales.effective.abs().repeat_interleave(q.codes.shape[1] // q.scales.shape[1], 1)[:, :size]
    assert ((q.dequantize() - x).abs() <= fmt.error_bound() * step * (1 + 1e-5)).all()


@pytest.mark.parametrize(
    ("name", "bound"), [("int4-g32-fp32", 0.5), ("mxfp4", 2.0), ("mxfp4-even", 1.0), ("mxfp4-rceil", 1.0)]
)
def test_known_bounds(name, bound):
    assert FORMATS[name].error_bound() == pytest.approx(bound, abs=1e-5)
