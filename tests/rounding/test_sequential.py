"""A walk sees at every site what the artifact will see there, and what the float graph sees."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir
import pytest
import torch

from qcompile.analysis.matrices import weight_matrix
from qcompile.analysis.siblings import siblings_of
from qcompile.analysis.spaces import Site
from qcompile.compiler import prepare
from qcompile.formats import fake_quantize_rows, get_format, quantize
from qcompile.rounding.sequential import Walk
from qcompile.run.data import example_inputs
from qcompile.statistics.calibration import HELD_OUT_ROWS
from qcompile.statistics.collected import spread
from qcompile.targets.eligible import quantizable
from qcompile.targets.plans import Plan, give_plan
from qcompile.targets.registry import get_target, lowered_to
from qcompile.targets.scheme import Scheme

GRAPHS = {
    "products": """g (int64[n,3] i, float[n,3,32] e) => (float[n,3,16] y)
        <float[9,32] t, float[32,64] a, float[32,64] b, float[64,32] c, float[32,16] d> {
        h = Gather(t, i)
        x = Add(h, e)
        g = MatMul(x, a)
        u = MatMul(x, b)
        s = Sigmoid(g)
        m = Mul(s, u)
        o = MatMul(m, c)
        r = Add(x, o)
        y = MatMul(r, d) }""",
    "one weight, two sites": """g (float[n,32] e) => (float[n,32] y) <float[32,32] a> {
        p = MatMul(e, a)
        q = Sigmoid(p)
        y = MatMul(q, a) }""",
    "channels second": """g (float[n,32,5] e) => (float[n,16,5] y) <float[32,32,1] a, float[16,32,1] b> {
        p = Conv(e, a)
        q = Sigmoid(p)
        y = Conv(q, b) }""",
    "experts that are looked up": """g (int64[n,2] i, float[n,32] e) => (float[n,2,16] y)
        <float[32,32] a, float[3,32,16] w> {
        p = MatMul(e, a)
        q = Sigmoid(p)
        k = Gather<axis=0>(w, i)
        y = Einsum<equation="nd,nkdf->nkf">(q, k) }""",
    "a body": """g (float[n,32] e, bool c) => (float[n,32] y) <float[32,32] a, float[32,32] b> {
        p = MatMul(e, a)
        y = If (c) <then_branch = t () => (float[n,32] z) { z = MatMul(p, b) },
                    else_branch = f () => (float[n,32] w) { w = Identity(p) }> }""",
}
SCHEME = Scheme(get_format("int4-g32"), get_format("int8-g32"))


def plan_nearest(site: Site, scheme: Scheme) -> None:
    """Plan a site with its weight rounded to nearest."""
    give_plan(site.node, Plan(scheme, quantize(weight_matrix(site), scheme.weight)))


def observed(model: ir.Model, batches: list[dict], names: Iterable[str]) -> list[dict]:
    """What the reference gives for values of a graph, as it is planned."""
    values = {value.name: value for node in model.graph for value in node.outputs}
    model.graph.outputs.extend(values[name] for name in names if name in values)
    with lowered_to(get_target("reference"), model) as run:
        return [batch | run(batch) for batch in batches]


def rows(array: np.ndarray, axis: int) -> torch.Tensor:
    moved = np.ascontiguousarray(np.moveaxis(array, axis, -1))
    return torch.from_numpy(moved).reshape(-1, moved.shape[-1])


@pytest.mark.parametrize("name", GRAPHS)
def test_what_sites_see(parse, name):
    prepared = prepare(parse(GRAPHS[name]))
    model, sites = prepared.model, quantizable(prepared.analysis, get_target("reference"))[0]
    groups, tables = siblings_of(sites), [site for site in sites if site.input is None]
    batches = [example_inputs(model, seed=seed, sizes={"n": 24}) for seed in (0, 1, 2)]
    unplanned = model.clone()
    for site in tables:
        plan_nearest(site, Scheme(SCHEME.weight))
    walk = Walk(model, groups, tables, batches[:2], batches[2:])
    moments = {}
    for group in walk:
        moments[group] = walk.moments(SCHEME.activation)
        for site in group.sites:
            plan_nearest(site, SCHEME)
    assert list(moments) == [group for group in groups if not any(site.nested for site in group.sites)]
    names = {group: group.value.name for group in moments}
    exact, seen = (observed(graph, batches, names.values()) for graph in (unplanned, model.clone()))
    for group, own in moments.items():
        x = [rows(values[names[group]], group.axis) for values in exact]
        y = [fake_quantize_rows(rows(values[names[group]], group.axis), SCHEME.activation) for values in seen]
        for found, wanted in ((own.exact, x), (own.seen, y)):
            torch.testing.assert_close(found, spread(wanted[2], HELD_OUT_ROWS), rtol=1e-5, atol=1e-5)
        assert own.lengths == [len(own.exact)]
        x, y = (torch.cat(parts[:2]).double() for parts in (x, y))
        torch.testing.assert_close(own.moment, y.T @ y / len(y), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(own.cross, x.T @ y / len(y), rtol=1e-4, atol=1e-5)
        assert 0 < own.effective <= len(y)
