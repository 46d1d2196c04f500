"""Moments of what sites read, and of the weights that read it: by what the model minds, where that is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import qcompile as qc
from qcompile.analysis.analyze import analyze
from qcompile.analysis.matrices import weight_matrix
from qcompile.analysis.siblings import siblings_of
from qcompile.choice.candidates import wush_candidates
from qcompile.choice.fits import Fit, fit_of_group
from qcompile.run.data import Data
from qcompile.statistics.calibration import collect
from qcompile.statistics.sensitivity import Felt
from qcompile.targets.scheme import Scheme

GRAPH = """g (float[n,5,32] x) => (float[n,5,8] y) <float[32,16] a, float[32,8] b, float[16,8] c> {
    p = MatMul(x, a)
    q = MatMul(x, b)
    r = Tanh(p)
    s = MatMul(r, c)
    y = Add(s, q) }"""


def read_by_two(parse) -> tuple:
    analysis = analyze(parse(GRAPH))
    group = next(group for group in siblings_of(analysis.sites) if len(group.sites) == 2)
    rows = np.random.default_rng(0).standard_normal((8, 5, 32)).astype(np.float32)
    found = collect(analysis.model, {group.name: group.reading}, Data(({"x": rows},), random=False))
    return group, found[group.name]


def felt(gradients: torch.Tensor) -> Felt:
    return Felt(torch.zeros(len(gradients), 32), gradients)


def test_outputs_that_count_alike_count_as_without(parse) -> None:
    group, own = read_by_two(parse)
    plain = fit_of_group(group, own)
    every = fit_of_group(group, own, felt=[felt(3 * torch.eye(16)), felt(3 * torch.eye(8))])
    torch.testing.assert_close(every.gram, plain.gram, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(every.moment, plain.moment)


def test_rows_count_by_what_errors_at_their_outputs_cost(parse) -> None:
    """``½ Wᵀ (F + diag F) W`` with the second moments ``F`` of gradients, at the energy that it has without."""
    group, own = read_by_two(parse)
    generator = torch.Generator().manual_seed(1)
    gradients = [torch.randn(40, len(weight_matrix(site)), generator=generator) for site in group.sites]
    found = fit_of_group(group, own, felt=list(map(felt, gradients))).gram
    wanted = torch.zeros(32, 32, dtype=torch.float64)
    for site, own_gradients in zip(group.sites, gradients, strict=True):
        weight, fisher = weight_matrix(site).double(), (own_gradients.T @ own_gradients).double()
        wanted += weight.T @ (fisher + fisher.diagonal().diag()) @ weight
    torch.testing.assert_close(found / found.trace(), wanted / wanted.trace(), rtol=1e-5, atol=1e-8)
    assert float(found.trace()) == pytest.approx(float(fit_of_group(group, own).gram.trace()))


def test_where_nothing_is_minded_all_count_alike(parse) -> None:
    group, own = read_by_two(parse)
    found = fit_of_group(group, own, felt=[felt(torch.zeros(1, 16)), felt(torch.zeros(1, 8))])
    assert torch.equal(found.gram, fit_of_group(group, own).gram)


@pytest.mark.parametrize(
    ("options", "known"), [({}, True), ({"sensitivity": "even"}, False), ({"transforms": "none"}, False)]
)
def test_costs_are_known_where_transforms_are_chosen_by_data(parse, tmp_path, options: dict, known: bool) -> None:
    """With one format, too: then the manifest has them, and what they predict."""
    rows = {"x": np.random.default_rng(2).standard_normal((40, 5, 32)).astype(np.float32)}
    formats = {"formats": "int4-g16/int4-g16", "method": "rtn"}
    made = qc.export(parse(GRAPH), "reference", tmp_path / "out", calibration=rows, **formats, **options).manifest
    assert all((site["alpha"] is not None) is known for site in made["sites"])
    predicted = made["quantization"]["predicted_loss_delta"]
    assert (predicted is not None) is known
    if known:
        assert predicted == pytest.approx(made["quantization"]["divergence"], rel=0.5)


def test_rows_of_the_input_count_by_what_errors_in_them_cost(parse) -> None:
    """``Σ ‖g‖² x xᵀ`` of many rows, at the energy of all; of few, a mean with the moment of all rows."""
    group, own = read_by_two(parse)
    generator = torch.Generator().manual_seed(3)
    quiet, loud = torch.ones(16, 1), torch.full((16, 1), 1e-3)
    plain = fit_of_group(group, own).moment

    def found(count: int) -> torch.Tensor:
        rows = torch.randn(count, 32, generator=generator) * torch.cat([quiet, loud]).T
        every = [Felt(rows, torch.ones(len(rows), len(weight_matrix(site)))) for site in group.sites]
        return fit_of_group(group, own, felt=every).moment

    many, few = found(20000), found(4)
    assert float(many.trace()) == pytest.approx(float(plain.trace())) == pytest.approx(float(few.trace()))
    assert float(many[16:, 16:].trace()) < 0.01 * float(many.trace())
    assert 0.1 * float(few.trace()) < float(few[16:, 16:].trace()) < 0.6 * float(few.trace())


def test_blocks_of_the_closed_form_divide_the_axis() -> None:
    """The largest is 128, or 96 where that does not divide the axis; one size is enough to tell bases apart."""
    generator = torch.Generator().manual_seed(0)
    for size, group, wanted in ((576, 32, (32, 64, 96)), (1024, 16, (16, 32, 64, 128)), (48, 16, (16,))):
        rows = torch.randn(2 * size, size, generator=generator, dtype=torch.float64)
        fit = Fit(rows.T @ rows / len(rows), torch.eye(size, dtype=torch.float64), len(rows))
        scheme = Scheme.parse(f"int4-g{group}/int4-g{group}")
        assert [*wush_candidates(fit, scheme)] == [f"wush-{block}" for block in wanted]
        assert len(wush_candidates(fit, scheme, one=True)) == 1
