"""Every format against a second implementation, code by code, on data and sizes that no table lists."""

import numpy as np
import pytest
import torch
from format_oracle import distributions, trit_planes
from format_oracle import quantize as oracle

from qcompile.errors import InputError
from qcompile.formats import EXTENDED_FORMATS, FORMATS, Format, fake_quantize, quantize
from qcompile.formats.structured.family import FamilyFormat
from qcompile.formats.structured.trit_planes import PlaneFormat
from qcompile.formats.structured.twin_log import TwinLogFormat, twin_log_levels
from qcompile.formats.structured.two_axis import TwoAxisFormat
from qcompile.formats.structured.vector import VectorFormat
from qcompile.transforms import Hadamard


def of_type(kind):
    return [name for name, fmt in EXTENDED_FORMATS.items() if isinstance(fmt, kind)]


def one_of_each_rule():
    """One scalar format for every element, rule, storage and structure; group sizes left out."""
    found = {(f.element.name, f.rule, f.scale, f.rows, f.targets, f.tensor_scale, f.group is None): name
             for name, f in FORMATS.items()}  # fmt: skip
    return sorted(found.values())


def same(ours, expected):
    """Equal to the bit; NaN where NaN."""
    assert (ours is None) == (expected is None)
    if ours is None:
        return
    ours, expected = np.asarray(ours), np.asarray(expected)
    assert ours.shape == expected.shape
    assert np.array_equal(ours, expected, equal_nan=ours.dtype == np.float32)
    assert np.array_equal(np.signbit(ours[ours == 0]), np.signbit(expected[ours == 0]))


def agree(fmt, x, axis=-1, tensor_scale=None):
    """Codes, scales, zero points, tensor scale and values of one tensor."""
    q = quantize(x, fmt, axis, tensor_scale=tensor_scale)
    moved = np.ascontiguousarray(x.float().movedim(axis, -1).numpy())
    expected = oracle(moved, fmt, tensor_scale=tensor_scale)
    if len(fmt.targets) > 1:  # float32 sums may take the other target where both are as good
        given = oracle(moved, fmt, (q.scales.numpy(), None, expected.tensor_scale))
        assert (np.nan_to_num(given.error) <= np.nan_to_num(expected.error) * (1 + 1e-5)).all()
        expected = given
    same(q.tensor_scale, expected.tensor_scale)
    same(q.scales, expected.scales)
    same(q.zero_points, expected.zero_points)
    same(q.codes, expected.codes)
    same(q.dequantize().movedim(axis, -1), expected.values)
    same(fake_quantize(x, fmt, axis, tensor_scale=tensor_scale).movedim(axis, -1), expected.values)


@pytest.mark.parametrize("part", range(16))
def test_every_scalar_format_on_every_distribution(part):
    for i, name in enumerate(sorted(FORMATS)[part::16]):
        for kind, x in distributions((5, 77), i).items():
            try:
                agree(FORMATS[name], torch.from_numpy(x))
            except AssertionError as error:
                raise AssertionError(f"{name} on {kind}: {error}") from error


@pytest.mark.parametrize(("shape", "axis"), [((1,), 0), ((1, 1), 0), ((70, 3), 0), ((2, 35, 3), 1), ((1, 301), 1)])
def test_shapes_axes_strides_and_dtypes(shape, axis):
    """Magnitudes beyond float16 or bfloat16 become infinite there, and their groups NaN."""
    dtypes = torch.float32, torch.float16, torch.bfloat16, torch.float64
    for i, name in enumerate(one_of_each_rule()):
        x = torch.from_numpy(np.stack(list(distributions(shape, i).values())[i % 5 :: 5], -1))
        for values in x.to(dtypes[i % 4]).unbind(-1):  # not contiguous
            agree(FORMATS[name], values, axis)


@pytest.mark.parametrize("name", [name for name, fmt in FORMATS.items() if fmt.tensor_scale])
@pytest.mark.parametrize("tensor_scale", [1e-3, 0.4, 30.0])
def test_static_tensor_scales(name, tensor_scale):
    for x in distributions((5, 77), 0).values():
        agree(FORMATS[name], torch.from_numpy(x), tensor_scale=torch.tensor(tensor_scale))


@pytest.mark.parametrize("name", [*FORMATS, *EXTENDED_FORMATS][::7])
def test_a_scalar_has_no_axis(name):
    with pytest.raises(InputError, match="axis|axes"):
        quantize(torch.tensor(1.0), (FORMATS | EXTENDED_FORMATS)[name])


# ---- formats with a structure of their own -----------------------------------------------------------------------


@pytest.mark.parametrize("name", of_type(FamilyFormat))
def test_families_take_the_best_member_and_code_it_right(name):
    fmt = EXTENDED_FORMATS[name]
    for x in distributions((6, 77), 0).values():
        q = quantize(torch.from_numpy(x), fmt)
        given = oracle(x, q.format, (q.scales.numpy(), None, None))
        same(q.codes, given.codes)
        same(q.dequantize(), given.values)
        assert given.error.sum() <= min(oracle(x, member).error.sum() for member in fmt.members) * (1 + 1e-5)


@pytest.mark.parametrize("name", of_type(TwoAxisFormat))
def test_two_axis_formats_code_the_leveled_tensor(name):
    fmt = EXTENDED_FORMATS[name]
    for x in distributions((6, 77), 0).values():
        q = quantize(torch.from_numpy(x), fmt)
        with np.errstate(over="ignore"):  # at the end of float32
            expected = oracle(x / q.second.numpy(), fmt.inner)
            values = expected.values * q.second.numpy()
        same(q.inner.codes, expected.codes)
        same(q.inner.scales, expected.scales)
        same(q.dequantize(), values)


def unit(x, width):
    """Groups of ``width`` over their root mean square in float64, and that; the padding does not count."""
    groups = np.pad(x.astype(float), ((0, 0), (0, -x.shape[1] % width))).reshape(len(x), -1, width)
    counts = np.minimum(x.shape[1] - np.arange(groups.shape[1]) * width, width)
    rms = np.sqrt((groups**2).sum(-1) / counts)
    return groups / np.where(rms > 0, rms, 1)[..., None], rms


@pytest.mark.parametrize("name", of_type(VectorFormat))
def test_vector_formats_take_the_nearest_point(name):
    """Against all points, and for rotated ones through a dense rotation."""
    fmt, size = EXTENDED_FORMATS[name], 80
    points = fmt._points(torch.arange(2**fmt.code_bits, dtype=torch.int32).view(-1, 1)).double()
    for kind, x in distributions((6, size), 0).items():
        q = quantize(torch.from_numpy(x), fmt)
        values, rms = unit(x, size)
        if kind in ("zeros", "subnormal"):  # scales of bfloat16 end here: any code will do
            assert np.abs(q.dequantize().numpy() - x).max() <= 4 * np.abs(x).max()
            continue
        if fmt.rotated:
            values = values @ Hadamard(size, q.seed).matrix().numpy().T
        runs = torch.from_numpy(values).reshape(-1, fmt.dimension)
        found = (points[q.codes.flatten().long()] - runs).norm(dim=1)
        assert (found <= torch.cdist(runs, points).amin(1) + 1e-5 * (1 + runs.norm(dim=1))).all()
        code = points[q.codes.flatten().long()].view(values.shape).numpy()
        inner, square = (values * code).sum(-1), (values**2).sum(-1)
        factor = {"none": 1, "least-squares": inner / (code**2).sum(-1), "unbiased": square / inner}
        scale = rms * factor[fmt.correction.value]
        assert np.allclose(q.scales.numpy(), scale, rtol=2**-8, atol=0)


@pytest.mark.parametrize("name", of_type(PlaneFormat))
def test_trit_planes_take_the_nearest_sum_and_are_no_worse_than_the_paper(name):
    fmt, size = EXTENDED_FORMATS[name], 128
    trits = np.array([(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1)], float)
    ours = paper = 0.0
    for kind, x in distributions((6, size), 0).items():
        q = quantize(torch.from_numpy(x), fmt)
        groups, scales = x.astype(float).reshape(6, -1, q.codes.shape[-1]), q.scales.double().numpy()
        distance = np.abs(groups[..., None] - (scales @ trits.T)[..., None, :])
        chosen = np.take_along_axis(distance, q.codes.numpy().astype(int)[..., None], -1)[..., 0]
        assert (chosen <= distance.min(-1) + 1e-6 * np.abs(groups)).all()
        if kind not in ("zeros", "subnormal"):
            top = np.abs(groups).max(-1).clip(min=1e-300)
            ours += ((chosen / top[..., None]) ** 2).sum()
            paper += sum(trit_planes(g / t) for g, t in zip(groups.reshape(-1, groups.shape[-1]), top.ravel()))
    assert ours <= paper


@pytest.mark.parametrize("name", of_type(TwinLogFormat))
def test_twin_log_takes_the_nearest_level(name):
    fmt = EXTENDED_FORMATS[name]
    for x in distributions((6, 77), 0).values():
        q = quantize(torch.from_numpy(x), fmt)
        levels = twin_log_levels(q.tops, q.steps, fmt.bits).double().numpy()
        width = q.codes.shape[-1]
        groups = np.pad(x.astype(float), ((0, 0), (0, -77 % width))).reshape(6, -1, width)
        distance = np.abs(groups[..., None] - levels[..., None, :])
        chosen = np.take_along_axis(distance, q.codes.numpy().astype(int)[..., None], -1)[..., 0]
        assert (chosen <= distance.min(-1) + 1e-6 * np.abs(groups)).all()


def test_every_kind_of_format_has_an_oracle_here():
    """A new kind needs one as well."""
    checked = Format | FamilyFormat | TwoAxisFormat | VectorFormat | PlaneFormat | TwinLogFormat
    assert all(isinstance(fmt, checked) for fmt in (FORMATS | EXTENDED_FORMATS).values())
