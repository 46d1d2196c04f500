"""Bytes and back, for every format that has a name."""

import dataclasses
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.errors import InputError
from qcompile.formats import EXTENDED_FORMATS, FORMATS, Format, pack, quantize, unpack
from qcompile.formats.packed import pack_trits, unpack_trits
from qcompile.formats.packing import pack_codes, unpack_codes

ALL = FORMATS | EXTENDED_FORMATS
FAMILIES = sorted({re.sub(r"-(g\d+|channel|n\d+).*", "", name) for name in ALL})


def members(family):
    return [fmt for name, fmt in ALL.items() if re.sub(r"-(g\d+|channel|n\d+).*", "", name) == family]


@given(st.integers(1, 8), st.data())
def test_codes_are_a_little_endian_bit_stream(bits, data):
    codes = data.draw(st.lists(st.integers(0, 2**bits - 1), max_size=40))
    packed = pack_codes(torch.tensor(codes, dtype=torch.uint8), bits)
    number = sum(code << (bits * i) for i, code in enumerate(codes))
    assert bytes(packed.tolist()) == number.to_bytes(-(-len(codes) * bits // 8), "little")
    assert unpack_codes(packed, bits, len(codes)).tolist() == codes


@given(st.lists(st.integers(0, 2), max_size=23))
def test_five_trits_are_a_byte_in_base_three(trits):
    packed = pack_trits(torch.tensor(trits, dtype=torch.uint8))
    groups = [trits[i : i + 5] for i in range(0, len(trits), 5)]
    assert packed.tolist() == [sum(trit * 3**i for i, trit in enumerate(group)) for group in groups]
    assert unpack_trits(packed, len(trits)).tolist() == trits


def test_the_low_nibble_comes_first():
    assert pack_codes(torch.tensor([1, 2, 3], dtype=torch.uint8), 4).tolist() == [0x21, 0x03]


def test_the_low_byte_of_e8p_comes_first():
    q = quantize(torch.randn(1, 16), ALL["e8p"])
    assert pack(q).codes[0].tolist() == [
        byte for code in q.codes.flatten().tolist() for byte in (code & 255, code >> 8)
    ]


def test_wrong_sizes_are_refused():
    with pytest.raises(InputError, match="3 bytes do not hold 8 codes of 4 bits"):
        unpack_codes(torch.zeros(3, dtype=torch.uint8), 4, 8)
    with pytest.raises(InputError, match="9 bits"):
        pack_codes(torch.zeros(3, dtype=torch.uint8), 9)
    with pytest.raises(TypeError, match="cannot pack a str"):
        pack("weight")
    with pytest.raises(TypeError, match="cannot unpack a str"):
        unpack("bytes")


def assert_same(a, b):
    """Two quantized tensors agree in every field to the bit (NaN counts as equal to NaN)."""
    assert type(a) is type(b)
    for field in dataclasses.fields(a):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if isinstance(x, torch.Tensor):
            assert x.dtype == y.dtype
            assert x.shape == y.shape
            assert torch.equal(x.nan_to_num(-5), y.nan_to_num(-5))
        elif dataclasses.is_dataclass(x) and not hasattr(x, "bits"):
            assert_same(x, y)
        else:
            assert x == y


SHAPES = (((33, 100), 1), ((100, 33), 0), ((2, 3, 64), 2), ((0, 4), 0), ((4, 0), 1), ((1,), 0), ((2, 1), 1))


@pytest.mark.parametrize("family", FAMILIES)
def test_pack_and_unpack_are_inverse(family):
    for fmt in members(family):
        for shape, axis in SHAPES:
            x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
            if x.numel() > 100:
                x.view(-1)[3] = torch.nan
            if len(shape) > 1 or not family.startswith("sinq"):
                q = quantize(x, fmt, axis)
                assert_same(unpack(pack(q)), q)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(ALL)), st.integers(1, 5), st.integers(1, 300), st.integers(0, 2**31))
def test_any_shape_survives_packing(name, rows, size, seed):
    x = torch.randn(rows, size, generator=torch.Generator().manual_seed(seed))
    q = quantize(x, ALL[name])
    assert_same(unpack(pack(q)), q)
    assert torch.equal(unpack(pack(q)).dequantize(), q.dequantize())


@pytest.mark.parametrize("family", FAMILIES)
def test_bytes_are_what_bits_per_weight_says(family):
    for fmt in members(family):
        packed = pack(quantize(torch.randn(32, 512, generator=torch.Generator().manual_seed(0)), fmt))
        stored = packed.nbytes * 8 / (32 * 512)
        bits = fmt.bits_per_weight(512, 32) if family.startswith("sinq") else fmt.bits_per_weight(512)
        # Rounded up to whole bytes in each row (zero points, planes), and 32 bits for a tensor scale.
        assert bits <= stored + 1e-9 <= bits + (7 + 16 * family.startswith("ptqtp")) / 512 + 32 / (32 * 512)
        assert (fmt.bits_per_weight(500) if isinstance(fmt, Format) else bits) >= fmt.bits
