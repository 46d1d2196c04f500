"""Operators against onnxruntime, each graph at several sizes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tvm", reason="TVM is not installed: it is the extra 'tvm'")

from qcompile.backends.relax import lowering
from qcompile.backends.relax.runner import load
from qcompile.errors import TargetError
from qcompile.run.compare import compare
from qcompile.run.session import Session
from qcompile.targets.registry import get_target

ROUNDING = 2e-6  # relative L2 of two float32 evaluations

#: By what is tested: (signature, body, opset). ``N`` is dynamic wherever it stands.
GRAPHS = {
    "attention with a cache": (
        """g (float[2, 4, N, 8] q, float[2, 2, N, 8] k, float[2, 2, N, 8] v, float[2, 2, P, 8] pk, float[2, 2, P, 8] pv)
        => (float[2, 4, N, 8] y, float[2, 2, M, 8] nk, float[2, 2, M, 8] nv)""",
        "y, nk, nv = Attention <is_causal = 1> (q, k, v, , pk, pv)", 23,
    ),
    "a norm whose scale has more axes": (
        "g (float[N, 4, 6] x) => (float[N, 4, 6] y) <float[4, 6] scale>", "y = RMSNormalization(x, scale)", 23,
    ),
    "padding to a multiple": (
        """g (float[2, N] x) => (float[2, M] y) <int64 eight = {8}, int64 minus = {-1}, int64[1] zero = {0},
        int64[1] one = {1}, int64[2] two = {0, 0}>""",
        """s = Shape <start = 1, end = 2> (x) n = Squeeze(s, zero) r = Mod(n, eight) d = Mul(minus, r)
        e = Add(eight, d) p = Mod(e, eight) q = Unsqueeze(p, zero) w = Concat <axis = 0> (two, zero, q)
        y = Pad(x, w)""", 18,
    ),
    "nearest": ("g (float[2, 3, N, 5] x) => (float[2, 3, M, 10] y) <float[4] f = {1, 1, 2, 2}>",
                """y = Resize <mode = "nearest", nearest_mode = "floor", coordinate_transformation_mode = "asymmetric">
                (x, , f)""", 18),
    "nearest, rounded": ("g (float[1, 1, 7, 5] x) => (float[1, 1, 4, 9] y) <int64[4] s = {1, 1, 4, 9}>",
                         'y = Resize <mode = "nearest"> (x, , , s)', 18),
    "linear": ("g (float[2, 3, N, 5] x) => (float[2, 3, 9, 3] y) <int64[4] s = {2, 3, 9, 3}>",
               'y = Resize <mode = "linear"> (x, , , s)', 18),
    "linear between corners": ("g (float[2, 3, 4, 5] x) => (float[2, 3, 8, 10] y) <float[4] f = {1, 1, 2, 2}>",
                               """y = Resize <mode = "linear", coordinate_transformation_mode = "align_corners">
                               (x, , f)""", 18),
    "cubic": ("g (float[1, 2, 6, N] x) => (float[1, 2, 9, 4] y) <int64[4] s = {1, 2, 9, 4}>",
              'y = Resize <mode = "cubic"> (x, , , s)', 18),
    "spectrum": ("g (float[2, N, 6, 1] x) => (float[2, N, 6, 2] z) <int64 a = {2}, int64 b = {1}>",
                 "y = DFT(x, , a) z = DFT(y, , b)", 20),
    "spectrum and back": ("g (float[2, N, 2] x) => (float[2, N, 2] z) <int64 a = {1}>",
                          "y = DFT(x, , a) z = DFT <inverse = 1> (y, , a)", 20),
    "convolution": ("g (float[B, 3, N, 7] x) => (float[B, 5, M, 4] y) <float[5, 3, 3, 2] w, float[5] b>",
                    "y = Conv <strides = [2, 2], pads = [1, 0, 2, 1], dilations = [1, 1]> (x, w, b)", 18),
    "dilated": ("g (float[B, 3, N] x) => (float[B, 5, M] y) <float[5, 3, 3] w>",
                "y = Conv <pads = [2, 2], dilations = [2]> (x, w)", 18),
    "depthwise": ("g (float[B, 4, N] x) => (float[B, 4, M] y) <float[4, 1, 3] w>",
                  "y = Conv <pads = [2, 0], group = 4> (x, w)", 18),
    "two outputs a channel": ("g (float[B, 4, N, 5] x) => (float[B, 8, M, 3] y) <float[8, 1, 3, 3] w>",
                              "y = Conv <pads = [1, 1, 1, 1], strides = [1, 2], group = 4> (x, w)", 18),
    "in groups": ("g (float[B, 4, N] x) => (float[B, 6, M] y) <float[6, 2, 3] w>",
                  "y = Conv <pads = [1, 1], group = 2> (x, w)", 18),
    "a window larger than the input": (
        "g (float[B, 2, 3, 2] x) => (float[B, 2, 1, 1] y)", "y = AveragePool <kernel_shape = [9, 9], ceil_mode = 1, "
        "strides = [9, 9]> (x)", 18,
    ),
    "rows that are set": (
        """g (float[N, 4, B] x, float[2, B] u) => (float[N, 4, B] y, float[N, 4, B] z)
        <int64[2, 2] at = {0, 3, -1, 1}>""",
        'y = ScatterND(x, at, u) z = ScatterND <reduction = "add"> (x, at, u)', 18,
    ),
    "points": ("g (float[B, 4, N] x) => (float[B, 6, N] y) <float[6, 4, 1] w>", "y = Conv(x, w)", 18),
    "repeats that are known": (
        """g (float[N, 3] x) => (float[M, 3] y) <int64[1] at = {0}, int64 two = {2}, int64[1] one = {1},
        int64[1] minus = {-1}>""",
        """s = Shape <start = 1, end = 2> (x) v = Concat <axis = 0> (one, s) h = OneHot(at, two, v)
        f = Reshape(h, minus) y = Tile(x, f)""", 18,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GRAPHS)
def test_operators(name: str, parse: Callable, tmp_path: Path, rng: np.random.Generator) -> None:
    signature, body, opset = GRAPHS[name]
    model = parse(f"{signature} {{ {body} }}", opset)
    session = Session(model.clone(), optimize=False)
    inputs = [(v.name, [d if isinstance(d, int) else d.value for d in v.shape]) for v in model.graph.inputs]
    lowering.lower(model, get_target("tvm-cpu"), tmp_path)
    run = load(tmp_path)
    for sizes in ({"N": 8, "B": 1, "P": 3}, {"N": 11, "B": 2, "P": 1}):
        given = {n: rng.standard_normal([sizes.get(d, d) for d in shape]).astype(np.float32) for n, shape in inputs}
        want, have = session.run(given), run(given)
        assert {n: v.shape for n, v in want.items()} == {n: v.shape for n, v in have.items()}
        assert compare(want, have)[0] < ROUNDING


REFUSED = {
    "Resize": ("g (float[1, 1, N, 4] x) => (float[1, 1, M, 4] y) <float[4] f = {1, 1, 1.5, 1}>",
               "y = Resize(x, , f)", "a dynamic size can be scaled by whole numbers only"),
    "DFT": ("g (float[2, N, 2] x) => (float[2, M, 2] y) <int64 a = {1}>", "y = DFT <onesided = 1> (x, , a)",
            "a length of its own or one side alone is not supported"),
    "Dropout": ("g (float[N, 4] x) => (float[N, 4] y) <float half = {0.5}, bool trains = {1}>",
                "y = Dropout(x, half, trains)", "it is random: its result would differ at every run"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_said(name: str, parse: Callable, tmp_path: Path) -> None:
    signature, body, reason = REFUSED[name]
    model = parse(f"{signature} {{ {body} }}", 20)
    model.graph.node(0).name = "here"
    with pytest.raises(TargetError) as caught:
        lowering.lower(model, get_target("tvm-cpu"), tmp_path)
    assert str(caught.value) == f"TVM: operator {name} of node 'here' cannot be lowered: {reason}"
    assert not list(tmp_path.iterdir())
