"""Functions that quantize activations against ``qcompile.formats``, bit for bit."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

from qcompile.backends.ort.activations import quantize_function, static_function
from qcompile.backends.ort.manifest import TARGETS
from qcompile.formats import FORMATS, Format, fake_quantize, get_format, quantize
from qcompile.formats.static import STATIC_FORMATS, Range
from qcompile.ir.functions import DOMAIN
from qcompile.targets.scheme import Scheme

_ACTIVATIONS = [s.activation for t in TARGETS if t.schemes != ("*",) for s in map(Scheme.parse, t.schemes)]
#: Those that a function rounds row by row; those of whole tensors have tests of their own.
OF_TARGETS = sorted({fmt.name for fmt in _ACTIVATIONS if fmt is not None and not (fmt.static or fmt.whole)})
OTHERS = [
    "int4-g32", "int4-g128-fp16", "int2-g16", "uint4-g32", "uint8-channel", "int4-signedmax-g32", "nf4-g64",
    "bnb-fp4-g32", "e3m0-g32", "e2m3-g16", "e1m2-g16", "fp8-e5m2-channel", "mxfp6-e2m3-even", "mxfp6-e3m2-ceil",
    "mxfp8-e5m2-rceil", "mxfp8-e4m3-nearest", "mxint8", "mxint4-even", "e2m1-4over6-g32", "int4-e4m3", "e2m1-ue5m3",
    "q8_0",
]  # fmt: skip
WIDTH = 256


def emulate(fmt: Format, x: np.ndarray, opset: int = 18, scale: float | None = None) -> np.ndarray:
    """Run the function alone; that of a static format with its scale."""
    groups = [0, x.shape[-1] // (fmt.group or x.shape[-1]), fmt.group or x.shape[-1]]
    function = quantize_function(fmt, opset) if scale is None else static_function(fmt, opset)
    value = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["rows", x.shape[-1]]))
    attributes = ir.convenience.convert_attributes({"groups": groups, "shape": [0, x.shape[-1]]})
    given = [] if scale is None else [ir.Value(name="s", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([]))]
    node = ir.Node(DOMAIN, function.name, [value, *given], attributes)
    node.outputs[0].name, node.outputs[0].type = "y", value.type
    graph = ir.Graph([value, *given], node.outputs, nodes=[node], opset_imports={"": opset, DOMAIN: 1}, name="g")
    model = ir.Model(graph, ir_version=9, functions=[function])
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, ["CPUExecutionProvider"])
    return session.run(None, {"x": x} | ({} if scale is None else {"s": np.array(scale, np.float32)}))[0]


def oracle(fmt: Format, x: np.ndarray) -> np.ndarray:
    """Each row on its own."""
    return torch.stack([fake_quantize(row[None], fmt)[0] for row in torch.from_numpy(x)]).numpy()


def samples(fmt: Format) -> np.ndarray:
    """Rows ``[n, WIDTH]``: random at many scales, ties, zeros, subnormals, huge values, outliers."""
    rng = np.random.default_rng(3)
    rows = [
        rng.standard_normal((64, WIDTH)),
        rng.laplace(size=(32, WIDTH)) * 1e3,
        rng.standard_normal((16, WIDTH)) * 1e-6,
    ]
    rows.append(rng.standard_normal((8, WIDTH)) * 1e-39)  # subnormal
    rows.append(rng.standard_normal((8, WIDTH)) * 1e30)
    rows.append(rng.standard_normal((16, WIDTH)) * np.exp(rng.normal(size=(16, WIDTH)) * 4))
    rows.append(rng.standard_normal((8, WIDTH)) * (rng.random((8, WIDTH)) < 0.05))  # most groups are zero
    rows.append(np.zeros((1, WIDTH)))
    rows.append(np.exp2(rng.integers(-20, 20, (8, WIDTH))) * rng.choice([-1, 1], (8, WIDTH)))
    rows.append(_ties(fmt, rng))
    return np.concatenate(rows).astype(np.float32)


def _ties(fmt: Format, rng: np.random.Generator) -> np.ndarray:
    """Midpoints between levels, in groups whose largest level makes the scale a power of two."""
    levels = np.array(fmt.element.levels)
    middles = (levels[:-1] + levels[1:]) / 2
    rows = rng.choice(middles, (32, WIDTH)) * np.exp2(rng.integers(-8, 8, (32, 1)))
    rows[:, :: fmt.group or WIDTH] = (
        np.sign(rng.standard_normal((32, 1))) * levels[-1] * np.exp2(rng.integers(-8, 8, (32, 1)))
    )
    return rows


def mismatches(fmt: Format, x: np.ndarray, have: np.ndarray) -> np.ndarray:
    """Rows and groups that differ from the oracle, apart from groups where two targets err alike.

    Which of two targets has less error is decided by float32 sums, in an order that even the oracle's machine
    chooses. Errors are alike if a rounding of the decoded values by one unit in the last place explains the rest.
    """
    want = oracle(fmt, x)
    group = fmt.group or WIDTH
    blocks = [a.reshape(len(x), -1, group).astype(np.float64) for a in (x, have, want)]
    errors = [((b - blocks[0]) ** 2).sum(-1) for b in blocks[1:]]
    differ = (blocks[1] != blocks[2]).any(-1)
    slack = 1e-6 * errors[0] + 2.0**-22 * np.sqrt(errors[0] * (blocks[0] ** 2).sum(-1))
    tied = (np.abs(errors[0] - errors[1]) <= slack) & (len(fmt.targets) > 1)
    return np.argwhere(differ & ~tied)


@pytest.mark.parametrize("name", sorted({*OF_TARGETS, *OTHERS}))
def test_equals_the_oracle_to_the_bit(name: str) -> None:
    fmt = get_format(name)
    x = samples(fmt)
    assert len(mismatches(fmt, x, emulate(fmt, x))) == 0


@pytest.mark.parametrize("amax", [1e-3, 1.0, 500.0])
def test_groups_in_a_static_range_equal_the_oracle_to_the_bit(amax: float) -> None:
    fmt = STATIC_FORMATS["nvfp4-static"]
    within, x = Range.spanning(fmt, -amax, amax), samples(fmt)
    np.testing.assert_array_equal(emulate(fmt, x, scale=within.scale), within.round(torch.from_numpy(x)).numpy())


@pytest.mark.parametrize("opset", [13, 17, 21, 23])
def test_every_opset(opset: int) -> None:
    fmt = get_format("nvfp4")
    x = samples(fmt)
    assert len(mismatches(fmt, x, emulate(fmt, x, opset))) == 0


def test_a_wrong_rounding_would_be_seen() -> None:
    fmt = get_format("mxfp4")
    x = samples(fmt)
    assert len(mismatches(fmt, x, emulate(get_format("mxfp4-even"), x))) > 0


def test_ties_of_four_over_six_are_few() -> None:
    """The exception above must not hide errors: groups that differ are rarer than one in a thousand."""
    fmt = get_format("nvfp4-4over6")
    x = np.random.default_rng(0).standard_normal((512, WIDTH)).astype(np.float32)
    assert (emulate(fmt, x) != oracle(fmt, x)).mean() < 1e-3


def test_every_registered_format_has_a_function() -> None:
    for fmt in FORMATS.values():
        if fmt.rows == 1:
            assert quantize_function(fmt, 18).inputs[0].name == "x"


@pytest.mark.parametrize("name", OF_TARGETS)
def test_rows_do_not_depend_on_each_other(name: str) -> None:
    fmt = get_format(name)
    x = np.random.default_rng(1).standard_normal((9, WIDTH)).astype(np.float32) * np.exp2(np.arange(9))[:, None]
    x = x.astype(np.float32)
    assert np.array_equal(emulate(fmt, x)[3:4], emulate(fmt, x[3:4]))


@pytest.mark.parametrize("name", OF_TARGETS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_not_hidden(name: str, bad: float) -> None:
    fmt = get_format(name)
    x = np.random.default_rng(2).standard_normal((2, WIDTH)).astype(np.float32)
    x[0, 5] = bad
    have = emulate(fmt, x)
    assert np.isnan(have[0, 5])
    assert np.array_equal(have[1], oracle(fmt, x)[1])


def test_idempotent_where_scales_are_powers_of_two() -> None:
    fmt = get_format("mxfp4")
    x = samples(fmt)[:64]
    once = emulate(fmt, x)
    assert np.array_equal(quantize(torch.from_numpy(once), fmt).dequantize().numpy(), emulate(fmt, once))
