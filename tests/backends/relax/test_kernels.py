"""Kernels alone, against the formats' definition and NumPy: in vectors, and one lane wide as on a GPU."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch

pytest.importorskip("tvm", reason="TVM is not installed: it is the extra 'tvm'")

from tvm import IRModule, tirx

from qcompile.backends.relax.compilation import machine
from qcompile.backends.relax.kernels.lanes import Lanes
from qcompile.backends.relax.kernels.linear import linear
from qcompile.backends.relax.kernels.lookup import lookup
from qcompile.backends.relax.kernels.matmul import Product, matmul
from qcompile.backends.relax.kernels.quantize import quantize_rows
from qcompile.backends.relax.kernels.rows import layer_norm, rms_norm, softmax
from qcompile.backends.relax.kernels.scan import selective_scan, state_space_duality
from qcompile.backends.relax.weights import layout_of, pack_parts
from qcompile.formats import Quantized, fake_quantize, get_format, quantize
from qcompile.ir.state_space import selective_scan as torch_scan
from qcompile.ir.state_space import state_space_duality as torch_duality

ROUNDING = 2e-6  # relative L2 of a float32 sum of a few hundred products
HERE = machine(None, "cpu").lanes
PORTABLE = Lanes(16)
SCALAR = Lanes(1)  # what each thread of a GPU does

#: Every element, container, storage of scales, zero points, groups that are a whole axis.
WEIGHTS = [
    "int4-g32", "uint4-g16", "int8-g32", "uint8-g64-fp16", "int3-g32", "int2-g32", "int8-channel", "nvfp4",
    "nvfp4-16x16", "mxfp4", "mxfp4-mrgptq", "mxfp6-e3m2", "mxfp8-e4m3", "fp8-e4m3-channel", "fp8-e5m2-g64-bf16",
    "nf4-g64", "mxint8", "int4-ue5m3", "q4_0",
]  # fmt: skip
ACTIVATIONS = [
    "int4-g32", "uint4-g32", "int8-channel", "uint8-channel", "nvfp4", "nvfp4-4over6", "fp8-e4m3-channel", "mxfp8-e4m3",
    "nf4-g64", "int4-g32-fp16", "int4-ue5m3", "mxint8", "q4_0", "mxfp4", "mxfp4-ceil", "mxfp4-rceil", "mxfp4-even",
    "mxfp4-nearest", "mxfp4-mrgptq",
]  # fmt: skip


def weight(name: str, rows: int, size: int, rng: np.random.Generator) -> Quantized:
    return quantize(torch.tensor(rng.standard_normal((rows, size)).astype(np.float32)), get_format(name))


def error(have: np.ndarray, want: np.ndarray) -> float:
    """Relative L2."""
    assert have.shape == want.shape
    return float(np.linalg.norm(have - want) / np.linalg.norm(want))


def padded(x: np.ndarray, width: int) -> np.ndarray:
    return np.pad(x, ((0, 0), (0, width - x.shape[1])))


@pytest.mark.parametrize("name", WEIGHTS)
def test_packed_product(name: str, rng: np.random.Generator, compiled: Callable) -> None:
    """Sizes off the tile; one row takes another path than several."""
    packed = weight(name, 40, 100, rng)
    layout, exact = layout_of(packed), packed.dequantize().double().numpy()
    run = compiled(linear(HERE, layout))
    for rows in (1, 2, 7, 15):
        x = rng.standard_normal((rows, 100)).astype(np.float32)
        y = run(padded(x, layout.padded_size), *pack_parts(packed).values(), shape=(rows, layout.padded_rows))
        assert error(y[:, :40], x.astype(np.float64) @ exact.T) < ROUNDING


@pytest.mark.parametrize(
    "name, size", [("int4-g32", 320), ("uint4-g256", 512), ("int8-channel", 600), ("nf4-g64", 320)]
)
def test_packed_product_over_several_panels(name: str, size: int, rng: np.random.Generator, compiled: Callable) -> None:
    packed = weight(name, 64, size, rng)
    layout = layout_of(packed)
    x = rng.standard_normal((3, size)).astype(np.float32)
    run = compiled(linear(PORTABLE, layout))
    y = run(padded(x, layout.padded_size), *pack_parts(packed).values(), shape=(3, layout.padded_rows))
    assert error(y[:, :64], x.astype(np.float64) @ packed.dequantize().double().numpy().T) < ROUNDING


@pytest.mark.parametrize("lanes", [HERE, SCALAR], ids=["vectors", "scalars"])
@pytest.mark.parametrize("name", ["int4-g32", "uint4-g16", "nvfp4", "fp8-e4m3-channel", "nf4-g64", "int3-g32"])
def test_lookup_is_exact(name: str, lanes: Lanes, rng: np.random.Generator, compiled: Callable) -> None:
    packed = weight(name, 50, 100, rng)
    layout = layout_of(packed)
    indices = rng.integers(-50, 50, 9)
    y = compiled(lookup(lanes, layout, "int64"))(indices, *pack_parts(packed).values(), shape=(9, layout.padded_size))
    assert np.array_equal(y[:, :100], packed.dequantize().numpy()[indices])


def awkward(size: int, rng: np.random.Generator) -> np.ndarray:
    """Rows of all magnitudes, with ties, zeros, subnormals, infinity and NaN."""
    x = rng.standard_normal((24, size)).astype(np.float32)
    x *= np.exp(8 * rng.standard_normal((24, 1))).astype(np.float32)
    x[1], x[2, :16], x[3], x[4] = 0, 0, x[3] * 1e-30, x[4] * 1e30
    x[5], x[6] = np.round(x[5] * 4) / 4, np.float32(1e-42) * rng.integers(0, 9, size)
    x[7] = rng.choice(np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, 6, 7, -0.25, -5, 448, 464], np.float32), size)
    x[8, 5], x[9, 7], x[10], x[11] = np.inf, np.nan, np.abs(x[10]), -np.abs(x[11])
    return x


@pytest.mark.parametrize("lanes", [HERE, SCALAR], ids=["vectors", "scalars"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_quantized_to_the_bit(
    name: str, lanes: Lanes, rng: np.random.Generator, compiled: Callable
) -> None:
    fmt, x = get_format(name), awkward(256, rng)
    have = compiled(quantize_rows(lanes, fmt, 256))(x, shape=x.shape)
    want = torch.cat([fake_quantize(torch.tensor(row)[None], fmt) for row in x]).numpy()
    assert np.array_equal(have, want, equal_nan=True)


FORMS = [
    (Product(None, None, False, False, False), 3, (7, 300, 70)),
    (Product(64, None, True, False, False), 2, (200, 64, 67)),
    (Product(None, 64, False, False, False), 2, (3, 260, 64)),
    (Product(100, 40, False, True, False), 3, (13, 100, 40)),
    (Product(100, 128, True, False, True), 1, (9, 100, 128)),
]


@pytest.mark.parametrize("form, batch, sizes", FORMS, ids=[form.name for form, *_ in FORMS])
def test_float_product(
    form: Product, batch: int, sizes: tuple[int, int, int], rng: np.random.Generator, compiled: Callable
) -> None:
    m, k, n = sizes
    a = rng.standard_normal((1 if form.a_shared else batch, m, k)).astype(np.float32)
    b = rng.standard_normal((1 if form.b_shared else batch, k, n)).astype(np.float32)
    given = b.swapaxes(1, 2) if form.transposed else b
    c = compiled(matmul(HERE, form))(a, given, shape=(batch, m, n))
    assert error(c, a.astype(np.float64) @ b) < ROUNDING


@pytest.mark.parametrize("size", [1, 40, 64])
def test_softmax(size: int, rng: np.random.Generator, compiled: Callable) -> None:
    x = (30 * rng.standard_normal((5, size))).astype(np.float32)
    x[0, size // 2 :] = -np.inf
    x[1] = -np.inf
    wide = x.astype(np.float64)[2:]
    want = np.exp(wide - wide.max(1, keepdims=True))
    want /= want.sum(1, keepdims=True)
    plain = compiled(softmax(HERE, None))(x, shape=x.shape)
    guarded = compiled(softmax(HERE, size, guarded=True))(x, shape=x.shape)
    assert error(plain[2:], want) < 3e-7
    assert np.isnan(plain[1]).all()
    assert not plain[0, size // 2 + (size == 1) :][1:].any()
    assert not guarded[1].any()
    assert np.array_equal(plain[2:], guarded[2:])


def test_norms(rng: np.random.Generator, compiled: Callable) -> None:
    x = (3 + rng.standard_normal((5, 40))).astype(np.float32)
    scale, shift = rng.standard_normal((2, 40)).astype(np.float32)
    wide = x.astype(np.float64)
    rms = wide / np.sqrt((wide**2).mean(1, keepdims=True) + 1e-5) * scale
    centered = wide - wide.mean(1, keepdims=True)
    layer = centered / np.sqrt((centered**2).mean(1, keepdims=True) + 1e-5) * scale + shift
    assert error(compiled(rms_norm(HERE, 40, 1e-5))(x, scale, shape=x.shape), rms) < 3e-7
    assert error(compiled(layer_norm(HERE, 40, 1e-5))(x, scale, shift, shape=x.shape), layer) < 5e-7


@pytest.mark.parametrize("state", [16, 5])
def test_selective_scan(state: int, rng: np.random.Generator, compiled: Callable) -> None:
    u, delta = rng.standard_normal((2, 2, 19, 6)).astype(np.float32)
    b, c = rng.standard_normal((2, 2, 19, state)).astype(np.float32)
    a, d = -np.exp(rng.standard_normal((6, state))).astype(np.float32), rng.standard_normal(6).astype(np.float32)
    inputs = (u, np.log1p(np.exp(delta)), a, b, c, d)
    want = torch_scan(*(torch.tensor(v, dtype=torch.float64) for v in inputs)).numpy()
    assert error(compiled(selective_scan(HERE, 6, state))(*inputs, shape=u.shape), want) < ROUNDING


@pytest.mark.parametrize("state", [16, 5])
def test_state_space_duality(state: int, rng: np.random.Generator, compiled: Callable) -> None:
    x, delta = rng.standard_normal((2, 11, 4, 3)).astype(np.float32), rng.random((2, 11, 4)).astype(np.float32)
    b, c = rng.standard_normal((2, 2, 11, 2, state)).astype(np.float32)
    inputs = (x, delta, -rng.random(4).astype(np.float32), b, c, rng.standard_normal(4).astype(np.float32))
    want = torch_duality(*(torch.tensor(v, dtype=torch.float64) for v in inputs)).numpy()
    have = compiled(state_space_duality(HERE, 4, 3, 2, state))(*inputs, shape=x.shape)
    assert error(have, want) < ROUNDING


@pytest.mark.parametrize(
    "make", [lambda lanes: selective_scan(lanes, 6, 16), lambda lanes: state_space_duality(lanes, 2, 4, 1, 16)]
)
def test_scans_keep_their_state_in_registers_on_a_gpu(make: Callable) -> None:
    where = machine(None, "cuda")
    module = IRModule({"main": make(where.lanes).with_attr("global_symbol", "main")})
    (source,) = (part.inspect_source() for part in tirx.build(module, target=where.target).imports)
    assert re.search(r"float \w+\[16\];", source)
