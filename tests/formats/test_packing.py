"""Bytes and back."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qcompile.errors import InputError
from qcompile.formats import FORMATS, quantize
from qcompile.formats.packing import pack, pack_codes, unpack, unpack_codes


@given(st.integers(1, 8), st.data())
def test_codes_are_a_little_endian_bit_stream(bits, data):
    codes = data.draw(st.lists(st.integers(0, 2**bits - 1), max_size=40))
    packed = pack_codes(torch.tensor(codes, dtype=torch.uint8), bits)
    number = sum(code << (bits * i) for i, code in enumerate(codes))
    assert bytes(packed.tolist()) == number.to_bytes(-(-len(codes) * bits // 8), "little")
    assert unpack_codes(packed, bits, len(codes)).tolist() == codes


def test_the_low_nibble_comes_first():
    assert pack_codes(torch.tensor([1, 2, 3], dtype=torch.uint8), 4).tolist() == [0x21, 0x03]


def test_wrong_sizes_are_refused():
    with pytest.raises(InputError, match="3 bytes do not hold 8 codes of 4 bits"):
        unpack_codes(torch.zeros(3, dtype=torch.uint8), 4, 8)
    with pytest.raises(InputError, match="9 bits"):
        pack_codes(torch.zeros(3, dtype=torch.uint8), 9)


def assert_same(a, b):
    assert (a.format, a.shape, a.axis) == (b.format, b.shape, b.axis)
    for field in ("codes", "scales", "zero_points", "tensor_scale"):
        x, y = getattr(a, field), getattr(b, field)
        assert (x is None) == (y is None)
        if x is not None:
            assert x.shape == y.shape
            assert torch.equal(x.float().nan_to_num(-5), y.float().nan_to_num(-5))


@pytest.mark.parametrize("name", FORMATS)
def test_pack_and_unpack_any_format(name):
    fmt = FORMATS[name]
    for shape, axis in (((33, 100), 1), ((100, 33), 0), ((2, 3, 64), 2), ((0, 4), 0), ((1,), 0)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        if x.numel() > 100:
            x.view(-1)[3] = torch.nan
        q = quantize(x, fmt, axis)
        assert_same(unpack(pack(q)), q)


@pytest.mark.parametrize("name", FORMATS)
def test_bytes_are_what_bits_per_weight_says(name):
    fmt = FORMATS[name]
    packed = pack(quantize(torch.randn(32, 512), fmt))
    parts = [packed.codes, packed.scales, packed.zero_points]
    stored = sum(part.nbytes for part in parts if part is not None) * 8 / (32 * 512)
    spare = 7 / 512 if fmt.zero_point else 0  # the last byte of zero points in a row
    assert fmt.bits_per_weight(512) <= stored <= fmt.bits_per_weight(512) + spare
