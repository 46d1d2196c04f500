"""Whole tensors: padding, broken values, given scales; the edges of all formats are in test_edges."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.errors import InputError
from qcompile.formats import (
    FORMATS,
    compute_scales,
    fake_quantize,
    fake_quantize_rows,
    get_format,
    quantize,
    round_to,
)
from qcompile.formats.quantizer import decode, encode

SOME = [
    "int2-g32", "int4-g32", "int8-channel", "uint4-g32", "uint3-g16-fp16", "int4-signedmax-g32", "q4_0", "e2m1-g16",
    "mxfp4", "mxfp4-mrgptq", "mxfp6-e3m2", "mxfp8-e5m2-rceil", "mxint8", "nvfp4", "nvfp4-4over6", "nvfp4-16x16",
    "e2m1-ue5m3", "e1m2-e4m3", "fp8-e4m3-channel", "nf4-g64", "af4-g64", "bnb-fp4-g64",
]  # fmt: skip


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


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


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(FORMATS)), st.integers(1, 4), st.integers(1, 70), st.floats(-8, 8), st.integers(0, 2**31))
def test_every_value_is_the_nearest_and_stays_itself(name, rows, size, exponent, seed):
    """Against all levels in float64, with the scales that were stored; then encoded again with them."""
    fmt, x = FORMATS[name], randn(rows, size, seed=seed) * 2.0**exponent
    q = quantize(x, fmt)
    group = q.codes.shape[1] // q.scales.shape[1]
    step = q.all_scales.effective.double().repeat_interleave(group, 1)[:, :size, None]
    levels = torch.tensor(fmt.element.levels, dtype=torch.float32).double()
    if q.zero_points is not None:
        levels = levels - q.zero_points.double().repeat_interleave(group, 1)[:, :size, None]
    distance = (levels * step - x.double()[..., None]).abs()
    found = (q.dequantize().double() - x).abs()
    assert (found <= distance.amin(-1) + 1e-6 * (x.double().abs() + step[..., 0].abs())).all()
    again = quantize(q.dequantize(), fmt, scales=q.all_scales)
    assert torch.equal(again.dequantize(), q.dequantize())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("name", FORMATS)
def test_graphs_of_kernels_round_as_the_processor_does(name):
    """Small tensors on a GPU are rounded by captured graphs, which may ask nothing: not whether values are finite."""
    fmt, x = FORMATS[name], randn(48, 256)
    x[3], x[5, 7], x[9] = 0, torch.inf, x[9] * 1e-14
    for rounded in (fake_quantize, fake_quantize_rows):
        want = rounded(x, fmt)
        for _ in range(2):
            torch.testing.assert_close(rounded(x.cuda(), fmt).cpu(), want, rtol=0, atol=0, equal_nan=True)
