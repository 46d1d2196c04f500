"""An assignment tried out diverges as the artifact made of it does."""

from __future__ import annotations

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest
import torch

from qcompile.analysis.analyze import analyze
from qcompile.analysis.siblings import siblings_of
from qcompile.choice.trial import Trial
from qcompile.formats import fake_quantize, fake_quantize_rows, get_format
from qcompile.run.data import Data
from qcompile.targets.scheme import FLOAT, Scheme
from qcompile.transforms import Diagonal, Hadamard

RNG = np.random.default_rng(0)
WEIGHTS = {name: RNG.standard_normal(shape).astype(np.float32)
           for name, shape in (("t", (20, 32)), ("a", (32, 16)), ("b", (32, 32)), ("c", (16, 20)))}  # fmt: skip
BODY = "[table] e = Gather(t, x) [one] h = MatMul(e, a) [two] g = MatMul(e, b) s = Add(g, e) m = ReduceMean(s, ax) "
BODY += "u = Mul(h, m) v = Tanh(u) [three] y = MatMul(v, c)"


def trial() -> Trial:
    text = f'<ir_version: 9, opset_import: ["": 21]> g (int64[N,L] x) => (float[N,L,20] y) {{ {BODY} }}'
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(w, name) for name, w in WEIGHTS.items())
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array([-1]), "ax"))
    analysis = analyze(ir.from_proto(onnx.shape_inference.infer_shapes(proto)))
    tables = [site for site in analysis.sites if site.input is None]
    batches = tuple({"x": RNG.integers(0, 20, (3, 5))} for _ in range(2))
    made = Trial(analysis.model, siblings_of(analysis.sites), tables, Data(batches, random=False), {"y"})
    made.batches = batches
    return made


def logits(x: np.ndarray, schemes: dict[str, Scheme], turned: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
    """The graph by hand, each site computed in its own basis."""
    w = {name: torch.from_numpy(array) for name, array in WEIGHTS.items()}

    def site(name: str, value: torch.Tensor, weight: torch.Tensor, basis: torch.Tensor | None) -> torch.Tensor:
        scheme, rows = schemes.get(name, FLOAT), value.reshape(-1, value.shape[-1])
        basis = torch.eye(rows.shape[1]) if basis is None else basis.float()
        rows, matrix = rows @ basis.T, torch.linalg.solve(basis.T, weight).T
        matrix = matrix if scheme.weight is None else fake_quantize(matrix, scheme.weight)
        rows = rows if scheme.activation is None else fake_quantize_rows(rows, scheme.activation)
        return (rows @ matrix.T).reshape(*value.shape[:-1], -1)

    turned = turned or {}
    table = w["t"] if "table" not in schemes else fake_quantize(w["t"], schemes["table"].weight)
    e = table[torch.from_numpy(x)]
    h, g = site("one", e, w["a"], turned.get("e")), site("two", e, w["b"], turned.get("e"))
    return site("three", torch.tanh(h * (g + e).mean(-1, keepdim=True)), w["c"], turned.get("v"))


def diverges(x: np.ndarray, schemes: dict[str, Scheme], turned: dict[str, torch.Tensor] | None = None) -> float:
    p, q = (logits(x, s, turned).log_softmax(-1) for s in ({}, schemes))
    return float((p.exp() * (p - q)).sum(-1).mean())


def test_no_scheme_changes_nothing() -> None:
    assert (trial().divergences({}, {"e": Hadamard(32, 0)}) < 1e-9).all()


@pytest.mark.parametrize("name", ["int4-g32", "int4-g32/int4-g32", "mxfp4/mxfp4", "int8-channel/int8-channel"])
def test_sites_round_as_formats_say(name: str) -> None:
    made = trial()
    one = dict.fromkeys(("one", "two", "three"), Scheme.parse(name))
    some = {"table": Scheme(get_format("int4-g32")), "three": Scheme.parse(name)}
    apart = {**one, "two": Scheme.parse("mxfp8-e4m3/mxfp8-e4m3")}  # siblings that round what they read to two formats
    for schemes in (one, some, apart, {"three": one["three"]}, one):  # what was tried before leaves nothing behind
        want = [diverges(batch["x"], schemes) for batch in made.batches]
        np.testing.assert_allclose(made.divergences(schemes, {}), want, rtol=1e-3)


@pytest.mark.parametrize("scale", [False, True])
def test_in_the_basis_of_a_transform(scale: bool) -> None:
    made, schemes = trial(), dict.fromkeys(("one", "two", "three"), Scheme.parse("int4-g32/int4-g32"))
    diagonal = Diagonal(np.linspace(0.5, 2, 32))
    transforms = {"e": diagonal if scale else Hadamard(32, 1), "v": Hadamard(16, 2)}
    turned = {name: transform.matrix() for name, transform in transforms.items()}
    want = [diverges(batch["x"], schemes, turned) for batch in made.batches]
    np.testing.assert_allclose(made.divergences(schemes, transforms), want, rtol=1e-2)
