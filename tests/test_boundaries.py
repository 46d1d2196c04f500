"""Spaces that an output or a tap would freeze: separated where that pays, decided as a minimum cut."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile import offline
from qcompile.axes import Node
from qcompile.boundaries import Boundary, minimum_cut
from qcompile.capture import example_inputs
from qcompile.compiler import rotate
from qcompile.evaluate import compare, evaluate_double, to_double
from qcompile.freedom import Freedom
from qcompile.placement import Placement
from qcompile.transforms import Hadamard

BLOCK = """ n{i} = RMSNormalization(h{i}, one)\n a{i} = MatMul(n{i}, w)\n r{i} = Relu(a{i})
            b{i} = MatMul(r{i}, v)\n h{j} = Add(h{i}, b{i})\n"""

PARAMETERS = "<float[16,8] e, float[8] one = {1,1,1,1,1,1,1,1}, float[8] g, float[8,12] w, float[12,8] v, float[8,5] u>"


def stream(
    blocks: int, outputs: str, tail: str, inputs: str = "float[2,3,16] x", head: str = "h0 = MatMul(x, e)\n"
) -> str:
    body = head + "".join(BLOCK.format(i=i, j=i + 1) for i in range(blocks))
    return f"g ({inputs}) => ({outputs}) {PARAMETERS} {{ {body} {tail} }}"


HEAD = "n = RMSNormalization({}, one)\n y = MatMul(n, u)"

#: A graph, and how many online transforms its boundaries become when every space is to be rotated.
GRAPHS = {
    "the stream is an output": (stream(3, "float[2,3,8] y", "y = Identity(h3)"), 1),
    "a norm with its scale writes the output": (stream(3, "float[2,3,8] y", "y = RMSNormalization(h3, g)"), 1),
    "the stream comes from outside": (
        stream(3, "float[2,3,5] y", HEAD.format("h3"), "float[2,3,8] h0", ""), 1,
    ),
    "a tap in the middle": (
        stream(3, "float[2,3,5] y, float[2,3,8] t", "t = Softmax(h2)\n" + HEAD.format("h3")), 1,
    ),
    "an operator on the way": (
        stream(2, "float[2,3,5] y", "c = Softmax(h2)\n s = Add(c, h2)\n" + HEAD.format("s")), 2,
    ),
    "as many outputs as readers": (
        stream(2, "float[2,3,8] h1, float[2,3,8] h2, float[2,3,8] p", "p = Identity(h0)"), 0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GRAPHS)
def test_boundaries_become_online_transforms(parse, name):
    text, expected = GRAPHS[name]
    wide = to_double(parse(text, opset=23))
    inputs = example_inputs(wide)
    want = evaluate_double(wide, inputs)
    rotated = rotate(wide, transforms="hadamard")
    got = evaluate_double(rotated.prepared.model, inputs)
    assert compare(want, dict(zip(want, got.values(), strict=True)))[0] < 1e-12
    assert [value.name for value in rotated.prepared.model.graph.outputs] == [*want]
    assert len(rotated.placement.boundaries) == expected
    assert not any(node.op_type == "Boundary" for node in rotated.prepared.model.graph)


def test_without_transforms_no_boundary_stays(parse):
    model = parse(GRAPHS["the stream is an output"][0], opset=23)
    rotated = rotate(model, transforms="none").prepared.model
    assert not [node.op_type for node in rotated.graph if node.domain == "qcompile"]


def test_spaces_in_a_row_share_a_transform_that_all_of_them_allow(monkeypatch):
    """Boundaries a|b, c|b and d|c where a, b and c change: one transform for the three, its inverse before d."""
    a, b, c, d = (Node(4) for _ in range(4))
    c.freedom = Freedom.ORTHOGONAL_ONES
    pairs = {"ab": (a, b), "cb": (c, b), "cd": (c, d)}
    walls = [Boundary(SimpleNamespace(name=name), *sides) for name, sides in pairs.items()]
    monkeypatch.setattr(offline, "boundaries", lambda _: walls)
    own = {node: Hadamard(4, seed) for seed, node in enumerate((a, b))} | {c: Hadamard(4, 2, "regular")}
    placement = Placement(dict(own), {})
    readers = {node: [SimpleNamespace(flops=100)] * 2 for node in (a, b, c)}
    offline._cut(None, readers, dict.fromkeys((a, b, c), (10.0, 1.0)), "auto", 1.0, placement)
    assert all(placement.offline[node] is own[c] for node in (a, b, c))
    assert {name: transform for name, (transform, _) in placement.boundaries.items()} == {"cd": own[c].inverse()}


COST = st.integers(0, 9).map(float)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(COST, COST), min_size=1, max_size=5), st.data())
def test_cut_is_the_best_of_all_labellings(pairs, data):
    nodes = [Node(4) for _ in range(len(pairs) + 1)]  # the last has no costs: it stays plain
    costs = dict(zip(nodes, pairs, strict=False))
    ends = st.tuples(st.sampled_from(nodes), st.sampled_from(nodes), COST)
    edges = data.draw(st.lists(ends, max_size=8))

    def total(changed: set[Node]) -> float:
        own = sum(pair[node in changed] for node, pair in costs.items())
        return own + sum(cost for a, b, cost in edges if (a in changed) != (b in changed))

    subsets = itertools.chain.from_iterable(itertools.combinations(costs, n) for n in range(len(costs) + 1))
    assert total(minimum_cut(costs, edges)) == min(total(set(subset)) for subset in subsets)
