"""Every kind of transform: inverse, transpose, steps, group, folding, JSON; and compositions of all of them."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.errors import InputError
from qcompile.transforms import (
    BlockDense,
    BlockDiagonal,
    Compose,
    Dense,
    Diagonal,
    DirectSum,
    Givens,
    Hadamard,
    Householder,
    Identity,
    Kronecker,
    Permutation,
    RandomOrthogonal,
    Transform,
    from_json,
)
from qcompile.transforms.dense import classify, in_half
from qcompile.transforms.freedom import Freedom


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def well_conditioned(*shape: int, seed: int) -> torch.Tensor:
    return torch.eye(shape[-1], dtype=torch.float64) * 2 + rand(*shape, seed=seed) / shape[-1]


def leaf(draw: st.DrawFn, n: int) -> Transform:
    seed = draw(st.integers(0, 99))
    choices = [
        lambda: Identity(n),
        lambda: Diagonal(rand(n, seed=seed).abs() + 0.5),
        lambda: Diagonal(rand(n, seed=seed).sign()),
        lambda: Diagonal((rand(n, seed=seed).abs() + 0.5) * rand(n, seed=seed + 1).sign()),
        lambda: Permutation(torch.randperm(n, generator=torch.Generator().manual_seed(seed))),
        lambda: Dense(well_conditioned(n, n, seed=seed)),
        lambda: RandomOrthogonal(n, seed, transposed=bool(seed % 2)),
        lambda: Householder(rand(n, seed=seed)),
    ]
    if n > 1:
        choices.append(lambda: Givens(n, seed % n, (seed + 1) % n, seed / 7))
    if n % 4 == 0 or n <= 2:
        choices.append(lambda: Hadamard(n, draw(st.sampled_from([None, seed])), transposed=bool(seed % 2)))
    if n in (1, 4, 16):
        choices.append(lambda: Hadamard(n, draw(st.sampled_from([None, seed])), "regular", bool(seed % 2)))
    if n % 2 == 0:
        choices.append(lambda: BlockDense(well_conditioned(n // 2, 2, 2, seed=seed)))
    return draw(st.sampled_from(choices))()


@st.composite
def transforms(draw: st.DrawFn, depth: int = 2, size: int | None = None) -> Transform:
    """Any tree of transforms of a small size."""
    n = size or draw(st.sampled_from([1, 2, 3, 4, 6, 8, 12, 16]))
    node = draw(st.sampled_from(["leaf", "block", "kronecker", "sum", "compose"])) if depth else "leaf"
    if node == "compose":
        return Compose([draw(transforms(depth - 1, n)) for _ in range(draw(st.integers(1, 3)))])
    if node == "sum" and n > 1:
        cut = draw(st.integers(1, n - 1))
        return DirectSum([draw(transforms(depth - 1, cut)), draw(transforms(depth - 1, n - cut))])
    divisor = draw(st.sampled_from([d for d in range(1, n + 1) if n % d == 0]))
    if node == "block":
        return BlockDiagonal(draw(transforms(depth - 1, divisor)), n // divisor)
    if node == "kronecker":
        return Kronecker(draw(transforms(depth - 1, divisor)), draw(transforms(depth - 1, n // divisor)))
    return leaf(draw, n)


def dense_steps(t: Transform) -> torch.Tensor:
    """The matrix that ``factors`` describes, by the definition of a step."""
    result = torch.eye(t.size, dtype=torch.float64)
    for outer, inner, m in t.factors():
        eye = torch.eye(inner, dtype=torch.float64)
        if m.ndim == 1:
            step = torch.diag(m) if m.is_floating_point() else torch.eye(t.size, dtype=torch.float64)[m]
        elif m.ndim == 3:
            assert m.shape[0] == outer
            step = torch.kron(torch.block_diag(*m), eye)
        else:
            step = torch.kron(torch.kron(torch.eye(outer, dtype=torch.float64), m), eye)
        result = step @ result
    return result


GROUPS = [g for name, g in Freedom.__members__.items() if not name.startswith("_")]


@settings(max_examples=400, deadline=None)
@given(transforms())
def test_every_property_of_every_transform(t: Transform) -> None:
    m, identity = t.matrix(), torch.eye(t.size, dtype=torch.float64)
    norm = max(1.0, float(m.abs().max()) ** 2)
    assert (t.inverse().matrix() @ m - identity).abs().max() < 1e-11 * norm
    assert (t.transpose().matrix() - m.T).abs().max() < 1e-12 * norm
    assert (t.dual().matrix() - torch.linalg.inv(m).T).abs().max() < 1e-10 * norm
    assert (dense_steps(t) - m).abs().max() < 1e-12 * norm
    assert classify(m[None]) in t.group or _nearly_in(m, t.group)
    assert t.flops >= 0
    if t.orthogonal:
        assert (m.T @ m - identity).abs().max() < 1e-12
        assert t.inverse() == t.transpose()


def _nearly_in(m: torch.Tensor, group: Freedom) -> bool:
    """Membership up to rounding: products of exact members may miss exact zeros by 1e-16."""
    cleaned = torch.where(m.abs() < 1e-12, 0.0, m)
    cleaned = torch.where((cleaned.abs() - 1).abs() < 1e-12, cleaned.sign(), cleaned)
    return classify(cleaned[None]) in group


@settings(max_examples=150, deadline=None)
@given(transforms())
def test_json_round_trip(t: Transform) -> None:
    data = json.loads(json.dumps(t.to_json()))
    assert data["kind"] == t.kind
    assert data["size"] == t.size
    again = from_json(data)
    assert again == t
    assert hash(again) == hash(t)
    assert torch.equal(again.matrix(), t.matrix())


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_fold_then_apply_is_apply(data: st.DataObject) -> None:
    """The convention of transform.py: W' = T_out W T_in⁻¹, b' = T_out b."""
    t_in, t_out = data.draw(transforms()), data.draw(transforms())
    weight, bias, x = rand(t_out.size, t_in.size), rand(t_out.size, seed=1), rand(5, t_in.size, seed=2)
    folded = t_in.dual().apply(t_out.apply(weight, 0), 1)
    expected = t_out.apply(x @ weight.T + bias)
    got = t_in.apply(x) @ folded.T + t_out.apply(bias)
    assert (got - expected).abs().max() < 1e-11 * max(1.0, float(expected.abs().max()), float(folded.abs().max()))


@settings(max_examples=60, deadline=None)
@given(transforms(), st.integers(0, 3))
def test_apply_on_every_axis_and_dtype(t: Transform, rows: int) -> None:
    m = t.matrix()
    for x, axis in ((rand(rows, t.size), -1), (rand(t.size, rows), 0), (rand(2, t.size, rows), 1)):
        expected = torch.tensordot(x, m, ([axis], [1])).movedim(-1, axis)
        scale = max(1.0, float(m.abs().max()))
        assert torch.allclose(t.apply(x, axis), expected, atol=1e-12 * scale)
        for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.1)):
            y = t.apply(x.to(dtype), axis)
            assert y.dtype == dtype
            assert y.shape == x.shape
            assert torch.allclose(y.double(), expected, atol=tolerance * 4 * scale, rtol=tolerance)
        assert torch.allclose(t.apply_(x.clone(), axis), expected, atol=1e-12 * scale)


def test_apply_does_not_touch_its_argument() -> None:
    for t in (Hadamard(64, 1), BlockDense(well_conditioned(4, 16, 16, seed=0)), Permutation(torch.arange(64).flip(0))):
        x = rand(3, 64)
        before = x.clone()
        t.apply(x)
        assert torch.equal(x, before)


def test_gradients_flow_through_apply() -> None:
    x = rand(3, 12).requires_grad_()
    t = Compose([Hadamard(12, 1), Diagonal(rand(12).abs() + 1), BlockDense(well_conditioned(3, 4, 4, seed=1))])
    t.apply(x).sum().backward()
    assert torch.allclose(x.grad, t.transpose().apply(torch.ones(3, 12, dtype=torch.float64)))


def test_groups() -> None:
    h, regular = Hadamard(16, 1), Hadamard(16, 1, "regular")
    assert Identity(4).group == Freedom.NONE
    assert Diagonal([1.0, 2.0]).group == Freedom.POSITIVE_DIAGONAL
    assert Diagonal([1.0, -1.0]).group == Freedom.SIGNS
    assert Diagonal([1.0, -2.0]).group == Freedom.DIAGONAL
    assert BlockDiagonal(regular, 3).group == Freedom.ORTHOGONAL_ONES
    assert Kronecker(regular, Permutation([1, 0])).group == Freedom.ORTHOGONAL_ONES
    assert Kronecker(h, Diagonal([1.0, -1.0])).group == Freedom.ORTHOGONAL
    assert Compose([regular, Diagonal([2.0] * 16)]).group == Freedom.GENERAL
    assert DirectSum([Diagonal([2.0]), Permutation([1, 0])]).group == Freedom.POSITIVE_MONOMIAL
    assert Dense(Hadamard(4, None, "regular").matrix()).group == Freedom.ORTHOGONAL_ONES
    assert Dense([[0.0, -1.0], [1.0, 0.0]]).group == Freedom.SIGNED_PERMUTATION
    assert Dense([[1.0, 1.0], [0.0, 1.0]]).group == Freedom.GENERAL
    assert Householder([1.0, -1.0]).group == Freedom.ORTHOGONAL_ONES


def test_transforms_print_themselves() -> None:
    rotation = Kronecker(Hadamard(12, 3), BlockDiagonal(Diagonal(rand(16).abs()), 2))
    right = "block(32, block=diagonal(16, values=16 values), count=2)"
    assert str(rotation) == f"kronecker(384, left=hadamard(12, seed=3), right={right})"
    assert str(Compose([Identity(4), RandomOrthogonal(4, 7)])) == (
        "compose(4, parts=[identity(4), random-orthogonal(4, seed=7)])"
    )
    assert str(Givens(4, 0, 2, 0.5)) == "givens(4, first=0, second=2, angle=0.5)"


@pytest.mark.parametrize("leaf", [Householder(rand(2048)), Givens(2048, 3, 2000, 0.4), Permutation(torch.arange(2048))])
def test_cheap_transforms_stay_cheap_inside_others(leaf: Transform, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody asks for their dense matrix, which would cost 2n²."""
    monkeypatch.setattr(Transform, "matrix", lambda self: pytest.fail("dense"))
    x = rand(3, 8192)
    blocks = BlockDiagonal(leaf, 4)
    products = Kronecker(Hadamard(4, 1), leaf), Kronecker(leaf, Diagonal(rand(4).abs() + 1))
    for t in (blocks, *products, DirectSum([leaf, BlockDiagonal(leaf, 3)]), Compose([blocks, Hadamard(8192, 1)])):
        assert (t.inverse().apply(t.apply(x)) - x).abs().max() < 1e-12
        assert torch.equal(t.apply_(x.clone()), t.apply(x))


def test_compositions_cancel() -> None:
    h, d = Hadamard(12, 3), Diagonal(rand(12).abs() + 1)
    assert Compose([h, Identity(12), h.inverse()]).simplified() == Identity(12)
    assert Compose([Compose([d, h]), h.transpose()]).simplified() == d
    assert Compose([h, d, h.inverse()]).simplified() == Compose([h, d, h.inverse()])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Diagonal([1.0, 0.0]), "no inverse"),
        (lambda: Diagonal([1.0, float("nan")]), "NaN"),
        (lambda: Permutation([0, 0]), "not a permutation"),
        (lambda: Permutation([1, 2]), "not a permutation"),
        (lambda: Householder([0.0, 0.0]), "not zero"),
        (lambda: Givens(3, 1, 1, 0.1), "plane"),
        (lambda: Givens(3, 1, 3, 0.1), "plane"),
        (lambda: Dense(torch.ones(2, 3)), "square"),
        (lambda: Dense(torch.ones(2, 2)).inverse(), "singular"),
        (lambda: BlockDense(torch.ones(2, 3)), "blocks"),
        (lambda: BlockDiagonal(Identity(2), 0), "at least one"),
        (lambda: DirectSum([]), "at least one"),
        (lambda: Compose([Identity(2), Identity(3)]), "sizes"),
        (lambda: Hadamard(8).apply(torch.ones(3, 7)), "does not fit axis"),
        (lambda: Hadamard(8).apply(torch.ones(8), 1), "axis 1"),
        (lambda: Hadamard(8).apply(torch.ones(8, dtype=torch.int32)), "floating-point"),
        (lambda: Hadamard(8).apply_(torch.ones(8, 8).T[:4]), "contiguous"),
        (lambda: from_json({"kind": "magic"}), "unknown transform kind 'magic'"),
        (lambda: from_json({"kind": "block", "count": 2}), "block transform cannot be read"),
    ],
)
def test_mistakes_are_named(build: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build()  # type: ignore[operator]


def test_what_float16_holds_is_inverted_as_it_is() -> None:
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(3, 8, 8, generator=generator, dtype=torch.float64)
    halved = in_half(BlockDense(matrices))
    assert torch.equal(halved.matrices.half().double(), halved.matrices)
    torch.testing.assert_close(halved.matrices, matrices, rtol=2**-11, atol=2**-24)
    x = torch.randn(5, 24, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(halved.inverse().apply(halved.apply(x, 1), 1), x, rtol=1e-10, atol=1e-10)
    quiet = BlockDense(torch.cat([matrices, matrices[:1] * 1e-6]))
    assert in_half(quiet) is quiet
