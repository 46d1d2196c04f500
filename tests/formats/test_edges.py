"""What every kind of format does at the edges: no values, one value, odd sizes, zeros, the ends of float32, NaN."""

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.errors import InputError
from qcompile.formats import EXTENDED_FORMATS, FORMATS, Format, fake_quantize, quantize
from qcompile.formats.format import Kind, ScaleType
from qcompile.formats.structured.family import FamilyFormat
from qcompile.formats.structured.trit_planes import PlaneFormat
from qcompile.formats.structured.twin_log import TwinLogFormat
from qcompile.formats.structured.two_axis import TwoAxisFormat
from qcompile.formats.structured.vector import VectorFormat


def kind_of(name, fmt):
    """What distinguishes how a format computes; group sizes and other numbers left out."""
    if isinstance(fmt, Format):
        level = fmt.tensor_scale is not None
        return fmt.element.name, fmt.rule, fmt.scale, fmt.rows, len(fmt.targets), level, fmt.group is None
    return type(fmt), re.sub(r"-(g\d+|n\d+)$", "", name), fmt.group is None


def one_of_each():
    """The first name of every kind, without integers of unusual widths and storages that others have too."""
    seen = {}
    for name, fmt in (FORMATS | EXTENDED_FORMATS).items():
        if not re.search(r"^u?int[5-7]|-fp16$|-fp32$", name):
            seen.setdefault(kind_of(name, fmt), name)
    return sorted(seen.values())


KINDS = one_of_each()


def get(name):
    return (FORMATS | EXTENDED_FORMATS)[name]


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def absolute_bound(fmt, q, x):
    """``error_bound`` in the units of ``x``, for each value, groups along the last axis."""
    size = x.shape[-1]
    if isinstance(fmt, TwoAxisFormat):
        return absolute_bound(fmt.inner, q.inner, x) * q.second.abs()
    if isinstance(fmt, Format | FamilyFormat):
        unit, group = q.all_scales.effective.abs(), q.codes.shape[-1] // q.scales.shape[-1]
        bound = fmt.error_bound() * unit + (saturated_by_subnormal_scales(fmt, q) if isinstance(fmt, Format) else 0)
        return bound.repeat_interleave(group, -1)[..., :size]
    group = q.codes[0, 0].numel() * (fmt.dimension if isinstance(fmt, VectorFormat) else 1)
    parts = x.double().split(group, -1)
    if isinstance(fmt, PlaneFormat | TwinLogFormat):
        unit = [part.abs().amax(-1, keepdim=True).expand(part.shape) for part in parts]
        return fmt.error_bound() * torch.cat(unit, -1)
    unit = [part.square().mean(-1, keepdim=True).sqrt().expand(part.shape) for part in parts]
    return fmt.error_bound(size) * torch.cat(unit, -1)


#: The smallest normal scale, and half the step between the scales below: they are rounded by so much.
SUBNORMAL = {ScaleType.E4M3: (2.0**-6, 2.0**-10), ScaleType.UE5M3: (2.0**-14, 2.0**-18)}


def saturated_by_subnormal_scales(fmt, q):
    """What a subnormal scale, rounded down, lets stick out above the largest level more than a normal one does."""
    least, half = SUBNORMAL.get(fmt.scale, (0.0, 0.0))
    whole = 1.0 if q.tensor_scale is None else q.tensor_scale
    return (q.scales < least) * fmt.element.max * half * whole


def within_range(fmt, q, x):
    """Features whose groups no scale saturates: without a second-level scale, UE5M3 ends at 114688."""
    if not isinstance(fmt, Format) or fmt.scale is not ScaleType.UE5M3:
        return slice(None)
    group = q.codes.shape[-1] // q.scales.shape[-1]
    inside = (q.scales.reshape(-1, q.scales.shape[-1]) < 114688).all(0)
    return inside.repeat_interleave(group, -1)[: x.shape[-1]]


@pytest.mark.parametrize("name", KINDS)
def test_sizes(name):
    """Nothing, one value, and groups that do not divide the axis, along every axis: the shape comes back."""
    fmt = get(name)
    for shape in ((0,), (1,), (7,), (0, 5), (5, 0), (1, 1), (3, 33), (2, 3, 40)):
        x = randn(*shape)
        for axis in range(len(shape)):
            if isinstance(fmt, TwoAxisFormat) and len(shape) == 1:
                with pytest.raises(InputError, match="needs two axes"):
                    quantize(x, fmt, axis)
                continue
            value = quantize(x, fmt, axis).dequantize()
            assert value.shape == x.shape
            assert value.isfinite().all()
            assert torch.equal(value, fake_quantize(x, fmt, axis))


@pytest.mark.parametrize("name", KINDS)
def test_axes_of_any_strides_are_the_same(name):
    fmt, x = get(name), randn(3, 4, 40)
    if isinstance(fmt, Format) and fmt.rows > 1:
        x = x[:1]  # square blocks depend on the order of the other axes
    moved = x.movedim(-1, 1).contiguous().movedim(1, -1)  # the same values, laid out otherwise
    assert torch.equal(fake_quantize(moved, fmt), fake_quantize(x, fmt))
    assert torch.equal(fake_quantize(moved.movedim(-1, 0), fmt, 0), fake_quantize(x, fmt).movedim(-1, 0))


@pytest.mark.parametrize("name", KINDS)
def test_the_padding_is_stored_and_never_read(name):
    fmt, x = get(name), randn(4, 33)
    q = quantize(x, fmt)
    inner = q.inner if isinstance(fmt, TwoAxisFormat) else q
    stored = inner.codes[0].numel() * getattr(fmt, "dimension", 1)
    group = min(fmt.group or 33, 1024 if isinstance(fmt, VectorFormat) else math.inf)
    if isinstance(fmt, VectorFormat):
        group = -(-min(group, 33) // fmt.dimension) * fmt.dimension  # a short axis is one group
    assert stored == -(-33 // group) * group
    assert q.dequantize().shape == (4, 33)


@pytest.mark.parametrize("name", KINDS)
def test_zeros_and_subnormal_values(name):
    fmt, x = get(name), randn(48, 64)
    x[:16] = 0
    x[16:32] *= 1e-44
    value = fake_quantize(x, fmt)
    assert value.isfinite().all()
    assert (value[:16].abs() <= (1e-30 if isinstance(fmt, TwoAxisFormat) else 0)).all()
    assert value[16:32].abs().max() <= x[16:32].abs().max() * 1.5 + 1e-44
    assert (fake_quantize(torch.zeros(4, 64), fmt) == 0).all()


@pytest.mark.parametrize("name", KINDS)
def test_the_largest_floats_saturate(name):
    fmt = get(name)
    x = torch.full((32, 64), torch.finfo(torch.float32).max) * randn(32, 64).sign()
    value = fake_quantize(x, fmt)
    assert not value.isnan().any()
    if getattr(fmt, "zero_point", False) and fmt.scale is ScaleType.FP16:  # it ends at 65,504: codes count from one end
        assert (value * x >= 0).all()
        return
    assert (value.sign() == x.sign()).float().mean() > (0.75 if fmt.bits == 1 else 0.95)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_broken_value_breaks_its_group_alone(name, bad):
    fmt, x = get(name), randn(32, 128)
    x[19, 70] = bad
    broken = fake_quantize(x, fmt).isnan()
    group = min(fmt.group or 128, 128)
    rows = getattr(fmt, "rows", 1)
    expected = torch.zeros(32, 128, dtype=torch.bool)
    expected[19 // rows * rows : 19 // rows * rows + rows, 70 // group * group : (70 // group + 1) * group] = True
    assert torch.equal(broken, expected)


def test_signed_zeros():
    """Floats keep the sign, in codes and values; integers and tables have one zero."""
    x = torch.tensor([[-0.0, 0.0, 1.0, -1.0] * 8])
    for name in KINDS:
        fmt = get(name)
        if not isinstance(fmt, Format):
            continue
        q = quantize(x, fmt)
        codes = q.codes[0, :2].tolist()
        if fmt.element.kind is Kind.FLOAT:
            assert codes == [1 << (fmt.bits - 1), 0]
            assert q.dequantize()[0, :2].signbit().tolist() == [True, False]
        else:
            assert codes[0] == codes[1]
            assert (q.dequantize()[0, :2] == 0).all()


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(KINDS), st.integers(1, 5), st.integers(1, 140), st.floats(-8, 8), st.booleans(), st.data())
def test_no_error_exceeds_the_bound(name, rows, size, exponent, spiky, data):
    fmt, seed = get(name), data.draw(st.integers(0, 2**31))
    x = randn(rows, size, seed=seed) * 2.0**exponent
    if spiky:
        x = x * torch.exp(3 * randn(rows, size, seed=seed + 1))
    q = quantize(x, fmt)
    bound = absolute_bound(fmt, q, x)
    assert ((q.dequantize() - x).abs() <= bound * (1 + 1e-4))[..., within_range(fmt, q, x)].all()


def test_a_subnormal_scale_saturates_by_no_more_than_its_rounding():
    fmt, x = get("e1m2-e4m3"), randn(1, 17, seed=1) * torch.exp(3 * randn(1, 17, seed=2))
    q = quantize(x, fmt)
    error = (q.dequantize() - x).abs()
    assert (error[:, 16] > fmt.error_bound() * q.all_scales.effective[:, 1]).all()
    assert (error <= absolute_bound(fmt, q, x)).all()


@pytest.mark.parametrize(
    ("name", "bound"), [("int4-g32-fp32", 0.5), ("mxfp4", 2.0), ("mxfp4-even", 1.0), ("mxfp4-rceil", 1.0)]
)
def test_known_bounds(name, bound):
    assert FORMATS[name].error_bound() == pytest.approx(bound, abs=1e-5)


def test_bounds_of_vectors_are_reached():
    """All energy in one place is as bad as it gets: √g less the largest level."""
    x = torch.zeros(1, 1024)
    x[0, 5] = 32.0
    fmt = get("higgs-p1-n16")
    error = (fake_quantize(x, fmt) - x).abs().max()
    assert float(error) == pytest.approx(32 - 2.7325895709951715, rel=1e-5)
    assert float(error) <= fmt.error_bound() <= float(error) * 1.001
    with pytest.raises(InputError, match="give its size"):
        get("turboquant4").error_bound()
