"""Packed weights decode to what the formats define, whatever the layout."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qcompile.errors import InputError, TargetError
from qcompile.formats import get_format, quantize
from qcompile.targets.scheme import Scheme
from qcompile.transforms import BlockDiagonal, Hadamard, Permutation

pytest.importorskip("triton", reason="the kernels need triton")

from qcompile.backends.gpu import packing
from qcompile.backends.gpu.kernels import Linear
from qcompile.backends.gpu.pack_words import FLOAT_BITS, pack_planes
from qcompile.backends.gpu.rotations import plan_transform


@pytest.fixture(autouse=True)
def seed() -> None:
    """The same random numbers in every run."""
    torch.manual_seed(0)


FORMATS = (
    "int4-g128", "int4-g32", "int4-g16", "int4-channel", "uint4-g64", "uint4-channel", "nvfp4", "nvfp4-4over6",
    "mxfp4", "mxfp4-mrgptq", "nf4-g64", "nf4-g256", "e2m1-g64", "e3m0-g32", "int4-e4m3", "int8-channel", "int8-g32",
    "uint8-g64", "fp8-e4m3-channel", "mxfp8-e4m3", "mxint8",
)  # fmt: skip


def tensors_of(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


@pytest.mark.parametrize("name", FORMATS)
def test_expanding_gives_the_weight_to_the_bit_or_a_rounding(name: str) -> None:
    fmt = get_format(name)
    weight = torch.randn(70, 328) * 0.02
    weight[3] = 0
    first, second = quantize(weight, fmt), quantize(weight[:33] * 3, fmt)  # siblings with tensor scales of their own
    arrays, meta = packing.pack([first, second], Scheme(fmt), "sm_90")
    expected = torch.cat([first.dequantize(), second.dequantize()])
    out = torch.empty(expected.shape)
    Linear(tensors_of(arrays), meta).product.expand(out, 0)
    # The product of level, group scale and tensor scale is taken in another order.
    torch.testing.assert_close(out, expected, rtol=2.0**-22, atol=0)
    assert meta["splits"] == [70, 33]


@pytest.mark.parametrize("size", [328, 1536])  # a group as long as the row, and one and a half
def test_a_codebook_of_single_values_is_packed_as_a_table(size: int) -> None:
    q = get_format("higgs-p1-n16").quantize(torch.randn(70, size) * 0.02)
    table = q.as_table()
    assert torch.equal(table.dequantize(), q.dequantize())
    arrays, meta = packing.pack([table], Scheme(table.format), "sm_90")
    out = torch.empty(70, size)
    Linear(tensors_of(arrays), meta).product.expand(out, 0)
    torch.testing.assert_close(out, q.dequantize(), rtol=2.0**-22, atol=0)
    with pytest.raises(InputError, match="higgs-p2-n16"):
        get_format("higgs-p2-n16").quantize(torch.randn(2, 64)).as_table()


def test_float_words_hold_every_bit_once() -> None:
    assert sorted(bit for plane in FLOAT_BITS for bit in plane) == list(range(16))


def test_codes_of_a_word_are_planes_of_a_tile() -> None:
    fmt = get_format("int4-g128")
    q = quantize(torch.randn(4, 256), fmt)
    arrays, meta = pack_planes([q])
    assert (meta["plane"], meta["tile"], arrays["words"].shape) == (64, 256, (1, 4, 64))
    word = int(arrays["words"][0, 2, 5]) & 0xFFFF
    codes = [(word >> 4 * p & 15) ^ 8 for p in range(4)]
    assert codes == [int(q.codes[2, 5 + 64 * p]) for p in range(4)]


@pytest.mark.parametrize(
    ("weight", "activation", "arch", "layout"),
    [
        ("int4-g128", None, "sm_100", "planes"),
        ("nvfp4", "nvfp4", "sm_100", "scaled"),
        ("nvfp4", "nvfp4", "sm_90", "planes"),
        ("nvfp4", "nvfp4", "gfx950", "planes"),  # has no scales of 16 elements
        ("mxfp4", "mxfp4-even", "gfx950", "scaled"),
        ("mxfp4", "nvfp4", "sm_120", "planes"),
        ("int4-g128", "fp8-e4m3-channel", "sm_90", "bytes"),
        ("int4-g32", "int8-channel", "sm_90", "bytes"),
        ("uint4-g128", "int8-channel", "sm_90", "planes"),
        ("int4-signedmax-g128", "fp8-e4m3-channel", "sm_90", "planes"),  # -8 has no E4M3 subnormal
    ],
)
def test_the_layout_follows_the_scheme_and_the_architecture(
    weight: str, activation: str | None, arch: str, layout: str
) -> None:
    fmt = get_format(weight)
    scheme = Scheme(fmt, None if activation is None else get_format(activation))
    _, meta = packing.pack([quantize(torch.randn(16, 256), fmt)], scheme, arch)
    assert meta["layout"] == layout


@pytest.mark.parametrize("name", ["int3-g32", "fp8-e5m2-g32"])
def test_a_format_without_kernel_is_refused(name: str) -> None:
    with pytest.raises(TargetError, match=f"no kernel decodes a weight in '{name}'"):
        packing.pack([quantize(torch.randn(8, 64), get_format(name))], Scheme(get_format(name)), "sm_90")


def test_scales_that_are_not_finite_are_refused() -> None:
    weight = torch.randn(8, 64)
    weight[0, 0] = torch.nan
    with pytest.raises(TargetError, match="scales that are not finite"):
        packing.pack([quantize(weight, get_format("mxfp4"))], Scheme(get_format("mxfp4")), "sm_90")


def steps_of(transform: object) -> list[tuple[int, int, np.ndarray]]:
    return [(outer, inner, m.numpy()) for outer, inner, m in transform.factors()]


def test_a_hadamard_matrix_becomes_signs_and_a_factor() -> None:
    tensors, plan = plan_transform(steps_of(Hadamard(1536, 3)), 1536)
    assert plan is not None
    assert plan["exact"]
    assert set(np.unique(tensors["left"])) | set(np.unique(tensors["right"])) == {-1.0, 1.0}
    assert plan["factor"] == pytest.approx(1536**-0.5)


def test_the_signs_of_equal_blocks_go_into_the_matrix() -> None:
    tensors, plan = plan_transform(steps_of(BlockDiagonal(Hadamard(32, 1), 6)), 192)
    assert plan is not None
    assert set(tensors) == {"right"}


def test_a_permutation_has_no_fused_kernel() -> None:
    permutation = Permutation(torch.randperm(64))
    assert plan_transform(steps_of(permutation), 64) == ({}, None)


def test_a_transform_without_steps_is_refused() -> None:
    with pytest.raises(TargetError, match="without steps"):
        packing.pack_transform([])
