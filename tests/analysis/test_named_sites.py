"""Patterns over names of sites, and kinds of them."""

from __future__ import annotations

import pytest

from qcompile.analysis.analyze import analyze
from qcompile.analysis.named_sites import SITE_KINDS, sites_of
from qcompile.errors import InputError

GRAPH = """g (int64[n,3] i, float[2,4,8,8] p) => (float[n,3,16] y, float[2,6,8,8] q)
    <float[9,32] t, float[32,32] a, float[32,16] b, float[6,4,1,1] k, float[6,6,1,1] l> {
    x = Gather(t, i)
    h = MatMul(x, a)
    s = Sigmoid(h)
    y = MatMul(s, b)
    c = Conv(p, k)
    r = Relu(c)
    q = Conv(r, l) }"""

STACK = """g (float[3,n,32] x) => (float[3,n,16] y) <float[3,32,32] w, float[3,32,16] v> {
    h = MatMul(x, w)
    s = Sigmoid(h)
    o = MatMul(s, v)
    y = Sigmoid(o) }"""


def weights(parse, text: str, kind: str) -> str:
    return " ".join(site.weight.name for site in sites_of(f"kind:{kind}", analyze(parse(text)).sites, "--exclude"))


def test_kinds(parse) -> None:
    assert weights(parse, GRAPH, "table") == "t"
    assert weights(parse, GRAPH, "linear") == "a b"
    assert weights(parse, GRAPH, "convolution") == "k l"
    assert weights(parse, GRAPH, "edge") == "t b l"
    assert weights(parse, GRAPH, "stack") == ""
    assert weights(parse, STACK, "stack") == "w v"
    assert weights(parse, STACK, "linear") == ""


def test_an_unknown_kind_is_refused(parse) -> None:
    with pytest.raises(InputError, match=f"unknown kind of site 'tables'; there are {', '.join(SITE_KINDS)}"):
        weights(parse, GRAPH, "tables")
