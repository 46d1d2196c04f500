"""Scale search: never worse, and better by what it should be."""

import pytest
import torch

from qcompile.errors import InputError
from qcompile.formats import FORMATS, fake_quantize, search_scales

NAMES = [
    "int4-g32",
    "uint4-g32",
    "e2m1-g16",
    "mxfp4",
    "mxint4-ceil",
    "nvfp4",
    "nvfp4-16x16",
    "int4-ue5m3",
    "nf4-g64",
    "int4-channel",
]


def loss(x, y, weight=None):
    error = (y - x).double().square()
    return error if weight is None else error * weight


@pytest.mark.parametrize("weighted", ["none", "line", "full"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [128, 100])
def test_no_group_gets_worse(name, weighted, size):
    fmt = FORMATS[name]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, size, generator=generator)
    shape = {"none": None, "line": (size,), "full": (32, size)}[weighted]
    weight = None if shape is None else torch.rand(shape, generator=generator)
    before = loss(x, fake_quantize(x, fmt), weight)
    after = loss(x, fake_quantize(x, fmt, scales=search_scales(x, fmt, weight=weight)), weight)
    group = fmt.group or size
    for start in range(0, size, group):
        part = slice(start, start + group)
        rows = lambda e: e[:, part].sum(1).view(-1, fmt.rows).sum(1)  # noqa: B023, E731
        assert (rows(after) <= rows(before) * (1 + 1e-5)).all()
    assert after.sum() < before.sum()


def test_importance_is_followed():
    x = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    weight = torch.ones(32)
    weight[:4] = 1000
    fmt = FORMATS["int3-g32"]
    plain = loss(x, fake_quantize(x, fmt, scales=search_scales(x, fmt)))[:, :4].sum()
    heeded = loss(x, fake_quantize(x, fmt, scales=search_scales(x, fmt, weight=weight)))[:, :4].sum()
    assert heeded < 0.8 * plain


def test_broken_groups_stay_nan():
    x = torch.randn(4, 64)
    x[1, 3] = torch.nan
    for name in NAMES:
        assert fake_quantize(x, FORMATS[name], scales=search_scales(x, FORMATS[name]))[1, 3].isnan()


def test_importance_of_the_wrong_size_is_refused():
    with pytest.raises(InputError, match=r"\(7,\) does not fit \(4, 64\)"):
        search_scales(torch.randn(4, 64), FORMATS["mxfp4"], weight=torch.ones(7))
