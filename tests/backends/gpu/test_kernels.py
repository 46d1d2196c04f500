"""The kernels against the formats and torch; in Triton's interpreter where there is no GPU.

The interpreter cuts results off when it stores bfloat16, which doubles that rounding, and reads E4M3 scales of scaled
products wrongly, so that those take the expanding path there. Both are known, and checked on a GPU by
``benchmarks/gpu.py``.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qcompile.errors import TargetError
from qcompile.formats import fake_quantize, get_format, quantize
from qcompile.targets.scheme import Scheme
from qcompile.transforms import BlockDiagonal, Compose, Hadamard, Kronecker, RandomOrthogonal, Transform

pytest.importorskip("triton", reason="the kernels need triton")

from qcompile.backends.gpu import kernels, packing
from qcompile.backends.gpu.kernels import Activation, Linear, dequantize, quantize_activation
from qcompile.backends.gpu.kernels.launch import Tile


@pytest.fixture(autouse=True)
def seed() -> None:
    """The same random numbers in every run."""
    torch.manual_seed(0)


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 4.5e-3}  # relative L2


def distance(y: Tensor, expected: Tensor) -> float:
    return float((y.double().cpu() - expected.double()).norm() / expected.double().norm())


def make_linear(weight: str, activation: str | None, size: int, arch: str = "sm_90") -> tuple[Linear, Tensor]:
    """Two siblings of 70 and 33 rows, and what they decode to."""
    fmt = get_format(weight)
    parts = [quantize(torch.randn(70, size) * 0.02, fmt), quantize(torch.randn(33, size), fmt)]
    scheme = Scheme(fmt, None if activation is None else get_format(activation))
    arrays, meta = packing.pack(parts, scheme, arch)
    tensors = {name: torch.from_numpy(array).to(DEVICE) for name, array in arrays.items()}
    return Linear(tensors, meta), torch.cat([part.dequantize() for part in parts])


# ---- products ----------------------------------------------------------------------------------------------------

SMALL, SHARED, HALF = Tile(32, 16, 4, 1, 0), Tile(32, 16, 4, 1, 64), Tile(64, 16, 4, 1, 64, 16)


@pytest.mark.parametrize("name", ["int4-g128", "int4-g32", "uint4-g64", "nvfp4-4over6", "mxfp4", "nf4-g64",
                                  "int4-channel", "int8-channel", "fp8-e4m3-g128", "mxfp8-e4m3"])  # fmt: skip
@pytest.mark.parametrize("tokens", [1, 7])
def test_fused_products_over_shares_of_k_and_parts_of_tiles(name: str, tokens: int) -> None:
    linear, weight = make_linear(name, None, 328)
    x = torch.randn(tokens, 328)
    for tile in (SMALL, SHARED) if name == "mxfp4" else (SMALL, SHARED, HALF):
        y = linear.product.fused(x.to(DEVICE), None, tile)
        assert distance(y, x.double() @ weight.double().T) < TOLERANCE[torch.float32], tile


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("tokens", [2, 16, 33])
def test_every_dtype_at_any_number_of_tokens(dtype: torch.dtype, tokens: int) -> None:
    linear, weight = make_linear("int4-g64", None, 192)
    x = torch.randn(tokens, 192).to(dtype)
    y, bias = linear(x.to(DEVICE)), torch.randn(103).to(dtype)
    assert y.dtype is dtype
    expected = x.double() @ weight.double().T
    assert distance(y, expected) < TOLERANCE[dtype]
    assert distance(linear(x.to(DEVICE), bias.to(DEVICE)), expected + bias.double()) < TOLERANCE[dtype]


@pytest.mark.slow
def test_many_tokens() -> None:
    linear, weight = make_linear("int4-g128", None, 256)
    x = torch.randn(4097, 256)
    assert distance(linear(x.to(DEVICE)), x.double() @ weight.double().T) < TOLERANCE[torch.float32]


def test_many_tokens_with_scales_on_the_weight() -> None:
    linear, weight = make_linear("uint4-g128", None, 512)
    x = torch.randn(40, 512).bfloat16()
    y = linear.product.fused(x.to(DEVICE), None, Tile(128, 128, 4, 1, 0, 32))
    assert distance(y, x.double() @ weight.double().T) < 2 * TOLERANCE[torch.bfloat16]


def test_an_expanded_weight_larger_than_a_slab(monkeypatch: pytest.MonkeyPatch) -> None:
    from qcompile.backends.gpu.kernels import weight_only

    monkeypatch.setattr(weight_only, "_ROWS", 128)  # of 206
    monkeypatch.setattr(weight_only, "_SLAB", 1)
    fmt = get_format("int4-g32")
    q = quantize(torch.randn(206, 64), fmt)
    arrays, meta = packing.pack([q], Scheme(fmt), "sm_90")
    linear = Linear({name: torch.from_numpy(array).to(DEVICE) for name, array in arrays.items()}, meta)
    x = torch.randn(3, 64)
    assert distance(linear.product.expanded(x.to(DEVICE), None), x.double() @ q.dequantize().double().T) < 1e-6


@pytest.mark.parametrize(
    ("weight", "activation", "arch"),
    [
        ("int4-g128", "fp8-e4m3-channel", "sm_90"), ("int4-g32", "int8-channel", "sm_90"),
        ("nvfp4", "nvfp4", "sm_90"), ("nvfp4-4over6", "nvfp4-4over6", "sm_100"), ("mxfp4", "mxfp4-even", "sm_120"),
        ("mxfp4-mrgptq", "mxfp4-mrgptq", "gfx950"), ("int8-channel", "int8-channel", "sm_90"),
        ("fp8-e4m3-channel", "fp8-e4m3-channel", "sm_90"), ("int4-g32", "int4-g32", "sm_90"),
    ],
)  # fmt: skip
@pytest.mark.skipif(DEVICE == "cuda", reason="the layouts of other architectures run there or in the interpreter")
def test_quantized_activations(weight: str, activation: str, arch: str) -> None:
    linear, levels = make_linear(weight, activation, 200, arch)
    bias = torch.randn(103)
    for shape in ((3, 1), (2, 17)):
        x = torch.randn(*shape, 200) * 3
        rounded = torch.stack([fake_quantize(row, get_format(activation)) for row in x.view(-1, 200)])
        y = linear(x, bias)
        assert y.shape == (*shape, 103)
        assert distance(y.view(-1, 103), rounded.double() @ levels.double().T + bias.double()) < 1e-6


def test_an_activation_quantized_beforehand() -> None:
    linear, _ = make_linear("int4-g128", "int8-channel", 256)
    x = torch.randn(2, 3, 256).to(DEVICE)
    made = quantize_activation(x, packing.describe(get_format("int8-channel")))
    assert torch.equal(linear(made), linear(x))


@pytest.mark.parametrize("activation", [None, "fp8-e4m3-channel", "nvfp4"])
def test_an_empty_batch(activation: str | None) -> None:
    linear, _ = make_linear("int4-g128" if activation != "nvfp4" else "nvfp4", activation, 256)
    y = linear(torch.empty(0, 5, 256, device=DEVICE))
    assert y.shape == (0, 5, 103)
    assert [part.shape[-1] for part in linear.split(y)] == [70, 33]


# ---- activations -------------------------------------------------------------------------------------------------

ACTIVATIONS = (
    "nvfp4", "nvfp4-4over6", "nvfp4-4over6-448", "mxfp4", "mxfp4-even", "mxfp4-rceil", "mxfp4-ceil", "mxfp4-nearest",
    "mxfp4-mrgptq", "fp8-e4m3-channel", "fp8-e5m2-channel", "int8-channel", "int4-channel", "int4-g32", "int8-g32",
    "mxfp8-e4m3", "mxfp8-e5m2", "e2m1-g64",
)  # fmt: skip


def hard_rows(size: int) -> Tensor:
    """Ties, zeros, outliers and extreme exponents."""
    x = torch.randn(8, size) * torch.exp(2 * torch.randn(8, size))
    x[1], x[2, :40], x[3], x[4], x[6] = 0, 0, x[3] * 1e-30, x[4] * 1e15, x[6] * 1e-40
    x[5] = torch.randint(-12, 13, (size,)) * 0.25
    x[7, -32:] *= 1e-44  # scales of zero over values that are not
    return x


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("size", [64, 328])
def test_activation_codes_are_those_of_the_format(name: str, size: int) -> None:
    fmt, x = get_format(name), hard_rows(size)
    made = quantize_activation(x.to(DEVICE), packing.describe(fmt))
    expected = [quantize(row, fmt) for row in x]
    codes = made.codes.cpu()
    codes = torch.stack([codes & 15, codes >> 4], -1).flatten(1) if fmt.bits == 4 else codes
    assert torch.equal(codes[:, :size], torch.stack([q.codes for q in expected])[:, :size])
    assert torch.equal(dequantize(made).cpu(), torch.stack([q.dequantize() for q in expected]))


@pytest.mark.parametrize("name", ["mxint8", "int4-signedmax-g32", "uint4-g32"])
def test_activations_that_no_kernel_makes_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        quantize_activation(torch.randn(2, 64, device=DEVICE), packing.describe(get_format(name)))
    fmt = get_format("int4-g32")
    with pytest.raises(TargetError, match=f"no kernel quantizes activations to '{name}'"):
        packing.pack([quantize(torch.randn(8, 64), fmt)], Scheme(fmt, get_format(name)), "sm_90")


@pytest.mark.parametrize("name", ["nvfp4", "mxfp4"])
def test_broken_values_stay_in_their_group(name: str) -> None:
    fmt = get_format(name)
    x = torch.randn(2, 64)
    x[0, 3], x[1, 40] = torch.nan, torch.inf
    values = dequantize(quantize_activation(x.to(DEVICE), packing.describe(fmt))).cpu()
    group = fmt.group or 64
    broken = torch.zeros(2, 64, dtype=torch.bool)
    broken[0, :group], broken[1, 40 // group * group : 40 // group * group + group] = True, True
    assert torch.equal(values.isnan(), broken)


# ---- transforms --------------------------------------------------------------------------------------------------

TRANSFORMS: dict[str, Transform] = {
    "hadamard": Hadamard(576, 3),
    "transposed": Hadamard(768, 5).transpose(),
    "blocks": BlockDiagonal(Hadamard(32), 18),
    "random blocks": BlockDiagonal(Hadamard(128, 1), 5),
    "pieces of rows": BlockDiagonal(Hadamard(64, 1), 64),
    "kronecker": Kronecker(RandomOrthogonal(24, 1), RandomOrthogonal(32, 2)),
    "left alone": Kronecker(Hadamard(24), BlockDiagonal(Hadamard(1), 32)),
    "one level": Hadamard(4096, 1),
    "two levels": Hadamard(14336, 1),
    "three factors": Compose((Hadamard(192, 1), Kronecker(Hadamard(12), Hadamard(16)), Hadamard(192, 2))),
}


def make_transform(transform: Transform) -> kernels.Transform:
    arrays, meta = packing.pack_transform([(o, i, m.numpy()) for o, i, m in transform.factors()])
    return kernels.Transform({name: torch.from_numpy(array).to(DEVICE) for name, array in arrays.items()}, meta)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms(name: str) -> None:
    transform = TRANSFORMS[name]
    ours, x = make_transform(transform), torch.randn(2, 3, transform.size)
    expected = transform.apply(x.double())
    assert distance(ours(x.to(DEVICE)), expected) < 2e-6
    if ours.meta["plan"] is not None:
        assert distance(ours.fused(x.to(DEVICE), None), expected) < 2e-6
    else:
        assert name == "three factors"
    empty = ours(torch.empty(0, transform.size, device=DEVICE))
    assert empty.shape == (0, transform.size)


@pytest.mark.parametrize(("name", "levels"), [("one level", 1), ("two levels", 2)])
def test_sylvester_factors_are_sums_and_differences_in_part(name: str, levels: int) -> None:
    ours = make_transform(TRANSFORMS[name])
    assert ours.meta["plan"]["levels"] == levels
    assert "signs" in ours.tensors
    x = torch.randn(2, TRANSFORMS[name].size).bfloat16()  # whose signs are changed as bits
    expected = TRANSFORMS[name].apply(x.double())
    assert distance(ours.fused(x.to(DEVICE), None), expected) < TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize("name", ["transposed", "blocks", "pieces of rows", "kronecker", "one level"])
@pytest.mark.parametrize("fmt", ["mxfp4-even", "nvfp4", "int8-channel", "int4-g32"])
def test_transforms_fused_with_quantization(name: str, fmt: str) -> None:
    transform, meta = TRANSFORMS[name], packing.describe(get_format(fmt))
    ours, x = make_transform(transform), torch.randn(3, transform.size)
    assert ours.fuses(meta)
    made = ours.fused(x.to(DEVICE), meta)
    wide = ours.fused(x.to(DEVICE), None)
    expected = quantize_activation(wide, meta)
    assert isinstance(made, Activation)
    # The scale of a row rounds with the last bit of its largest value, and a code at a tie with it.
    assert (made.codes != expected.codes).float().mean() < 1e-3
    torch.testing.assert_close(dequantize(made), dequantize(expected), rtol=1e-5, atol=0.2)
    assert (dequantize(made) - dequantize(expected)).norm() < 1e-3 * dequantize(expected).norm()


# ---- other operators ---------------------------------------------------------------------------------------------


def test_norm_gate_and_modulation() -> None:
    x, weight = torch.randn(2, 5, 96, device=DEVICE), torch.rand(96, device=DEVICE)
    shift, scale = torch.randn(2, 1, 96, device=DEVICE), torch.randn(2, 1, 96, device=DEVICE)
    close = {"rtol": 2e-6, "atol": 2e-6}
    functional = torch.nn.functional
    torch.testing.assert_close(kernels.rms_norm(x, weight, 1e-5), functional.rms_norm(x, (96,), weight, 1e-5), **close)
    torch.testing.assert_close(kernels.rms_norm(x, None, 1e-5), functional.rms_norm(x, (96,), None, 1e-5), **close)
    expected = {
        "silu": functional.silu(x), "gelu": functional.gelu(x), "gelu-tanh": functional.gelu(x, approximate="tanh"),
        "relu": functional.relu(x), "sigmoid": torch.sigmoid(x), "none": x,
    }  # fmt: skip
    for kind, value in expected.items():
        torch.testing.assert_close(kernels.gate(x, 2 * x, kind), value * 2 * x, **close)
    torch.testing.assert_close(kernels.modulate(x, shift, scale), x * (1 + scale) + shift, **close)
    torch.testing.assert_close(kernels.modulate(x, shift[0, 0], scale), x * (1 + scale) + shift[0, 0], **close)


def test_operators_fused_with_quantization() -> None:
    x, weight = torch.randn(3, 96, device=DEVICE), torch.rand(96, device=DEVICE)
    meta = packing.describe(get_format("mxfp4"))
    made = kernels.rms_norm(x, weight, 1e-5, activation=meta)
    expected = quantize_activation(kernels.rms_norm(x, weight, 1e-5), meta)
    assert torch.equal(made.codes, expected.codes)
    assert torch.equal(made.scales, expected.scales)
    ours = make_transform(BlockDiagonal(Hadamard(32), 3))
    both = kernels.gate(x, x, transform=ours, activation=meta)
    assert torch.equal(dequantize(both), dequantize(ours.quantize(kernels.gate(x, x), meta)))


@pytest.mark.parametrize("name", ["int4-g32", "uint4-g32", "nvfp4", "int8-channel"])
def test_rows_of_a_table(name: str) -> None:
    q = quantize(torch.randn(50, 72), get_format(name))
    arrays, meta = packing.pack_table(q)
    ids = torch.tensor([[3, 49], [0, 3]], device=DEVICE)
    rows = kernels.embedding(ids, {k: torch.from_numpy(v).to(DEVICE) for k, v in arrays.items()}, meta)
    assert torch.equal(rows.cpu(), q.dequantize()[ids.cpu()])


@pytest.mark.parametrize(("batch", "length", "channels", "states"), [(2, 17, 70, 16), (1, 1, 3, 10), (0, 4, 8, 16)])
def test_the_selective_scan(batch: int, length: int, channels: int, states: int) -> None:
    u, delta = torch.randn(batch, length, channels), torch.rand(batch, length, channels) * 0.1
    A, D = -torch.rand(channels, states), torch.randn(channels)
    B, C = torch.randn(batch, length, states), torch.randn(batch, length, states)
    y = kernels.selective_scan(*(v.to(DEVICE) for v in (u, delta, A, B, C, D))).cpu()
    h, steps = torch.zeros(batch, channels, states), []
    for t in range(length):
        h = torch.exp(delta[:, t, :, None] * A) * h + (delta[:, t] * u[:, t])[..., None] * B[:, t, None]
        steps.append((h * C[:, t, None]).sum(-1) + D * u[:, t])
    torch.testing.assert_close(y, torch.stack(steps, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("batch", "length", "heads", "groups"), [(2, 9, 4, 2), (1, 1, 3, 1), (0, 4, 2, 1)])
def test_mamba_2_is_the_scan_with_one_decay_a_head(batch: int, length: int, heads: int, groups: int) -> None:
    from qcompile.ir.state_space import state_space_duality

    x, delta = torch.randn(batch, length, heads, 8), torch.rand(batch, length, heads) * 0.1
    A, D = -torch.rand(heads), torch.randn(heads)
    B, C = torch.randn(batch, length, groups, 16), torch.randn(batch, length, groups, 16)
    y = kernels.state_space_duality(*(v.to(DEVICE) for v in (x, delta, A, B, C, D))).cpu()
    torch.testing.assert_close(y, state_space_duality(x, delta, A, B, C, D), rtol=1e-5, atol=1e-5)
