"""Spaces that an output or a tap would freeze: separated where that pays, decided as a minimum cut."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.analysis.axes import AxisNode
from qcompile.analysis.boundaries import boundaries
from qcompile.analysis.siblings import Siblings, siblings_of
from qcompile.analysis.spaces import Analysis
from qcompile.api import rotate
from qcompile.choice.candidates import LEAST_GAIN, orthogonal_candidates
from qcompile.choice.cuts import minimum_cut
from qcompile.choice.exchange import Share
from qcompile.choice.labels import Labels, _Maker, labels_of
from qcompile.choice.online import Online
from qcompile.choice.placement import Placement
from qcompile.choice.scoring import Probes, probes_of
from qcompile.choice.transforms import place
from qcompile.compiler import prepare
from qcompile.ir.widen import to_double
from qcompile.run.compare import compare
from qcompile.run.data import example_inputs
from qcompile.run.session import evaluate_double
from qcompile.targets.scheme import Scheme
from qcompile.transforms import Compose, Transform
from qcompile.transforms.freedom import Freedom

BLOCK = """ n{i} = RMSNormalization(h{i}, one)\n a{i} = MatMul(n{i}, w)\n r{i} = Relu(a{i})
            b{i} = MatMul(r{i}, v)\n h{j} = Add(h{i}, b{i})\n"""

PARAMETERS = "<float[16,8] e, float[8] one = {1,1,1,1,1,1,1,1}, float[8] g, float[8,12] w, float[12,8] v, float[8,5] u>"


def stream(
    blocks: int, outputs: str, tail: str, inputs: str = "float[2,3,16] x", head: str = "h0 = MatMul(x, e)\n"
) -> str:
    body = head + "".join(BLOCK.format(i=i, j=i + 1) for i in range(blocks))
    return f"g ({inputs}) => ({outputs}) {PARAMETERS} {{ {body} {tail} }}"


HEAD = "n = RMSNormalization({}, one)\n y = MatMul(n, u)"
TWO_HEADS = HEAD + "\n m = Neg(n)\n z = MatMul(m, u)"

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
        stream(2, "float[2,3,5] y, float[2,3,5] z", "c = Softmax(h2)\n s = Add(c, h2)\n" + TWO_HEADS.format("s")), 2,
    ),
    "an operator on the way, one reader behind it": (
        stream(2, "float[2,3,5] y", "c = Softmax(h2)\n s = Add(c, h2)\n" + HEAD.format("s")), 1,
    ),
    "channels that begin behind an activation": (
        stream(3, "float[2,3,5] y", HEAD.format("h3"), "float[2,16,3] x",
               "x0 = Transpose<perm=[0,2,1]>(x)\n c0 = MatMul(x0, e)\n c = Transpose<perm=[0,2,1]>(c0)\n r = Relu(c)\n"
               "h0 = Transpose<perm=[0,2,1]>(r)\n"), 1,
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


def test_a_boundary_parts_features_alone(parse):
    analysis = prepare(parse(GRAPHS["the stream is an output"][0], opset=23)).analysis
    (wall,) = boundaries(analysis)
    before, after = (analysis.refs(value) for value in (wall.node.inputs[0], wall.node.outputs[0]))
    assert [analysis.axes.same(*pair) for pair in zip(before, after, strict=True)] == [True, True, False]


def test_without_transforms_no_boundary_stays(parse):
    model = parse(GRAPHS["the stream is an output"][0], opset=23)
    rotated = rotate(model, transforms="none").prepared.model
    assert not [node.op_type for node in rotated.graph if node.domain == "qcompile"]


def test_spaces_that_a_boundary_parts_are_offered_one_transform_that_both_allow():
    """Where one keeps rotations and the other constants as well, both may take the same regular Hadamard matrix."""
    free, narrow = AxisNode(16), AxisNode(16, freedom=Freedom.ORTHOGONAL_ONES)
    scheme = Scheme.parse("int4-g16")
    made = [
        _Maker(node, "auto", [scheme], 3, (Freedom.ORTHOGONAL_ONES, node.freedom), True).make(None)
        for node in (free, narrow)
    ]
    shared = made[0].keys() & made[1].keys()
    assert shared == {"regular-hadamard"}
    assert made[0]["regular-hadamard"] is made[1]["regular-hadamard"]
    assert made[0].keys() > shared


COST = st.integers(0, 9).map(float)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(COST, COST), min_size=1, max_size=5), st.data())
def test_cut_is_the_best_of_all_labellings(pairs, data):
    nodes = [AxisNode(4) for _ in range(len(pairs) + 1)]  # the last has no costs: it stays plain
    costs = dict(zip(nodes, pairs, strict=False))
    ends = st.tuples(st.sampled_from(nodes), st.sampled_from(nodes), COST)
    edges = data.draw(st.lists(ends, max_size=8))

    def total(changed: set[AxisNode]) -> float:
        own = sum(pair[node in changed] for node, pair in costs.items())
        return own + sum(cost for a, b, cost in edges if (a in changed) != (b in changed))

    subsets = itertools.chain.from_iterable(itertools.combinations(costs, n) for n in range(len(costs) + 1))
    assert total(minimum_cut(costs, edges)) == min(total(set(subset)) for subset in subsets)


@pytest.mark.parametrize("price", [0.0, 0.3, 3.0])
@pytest.mark.parametrize("name", [name for name, (_, online) in GRAPHS.items() if online])
def test_placement_is_the_best_of_all_labellings_and_online_transforms(parse, name, price):
    """The cost of a reader is the least that it has under a label: as it is, or behind an online transform."""
    scheme, differ = Scheme.parse("int4-channel"), set()
    for seed in range(4):
        spiky = {key: spikes(shape, seed) for key, shape in SHAPES.items()}
        analysis = prepare(parse(GRAPHS[name][0], opset=23, **spiky)).analysis
        probes = {group: probes_of(group) for group in siblings_of(analysis.sites)}
        placement = place(analysis, probes, lambda _: scheme, price=price)
        online = Online(analysis, probes, "auto", {}, Share(price), 0, set())
        competing = {group: [[scheme] * len(group.sites)] for group in probes}
        found = labels_of(analysis, list(probes), online, competing, Placement({}, {}))
        costs = Costs(analysis, probes, found, scheme, price)
        every = itertools.product(*(labels.transforms.values() for labels in found.values()))
        best = min(costs.least(dict(zip(found, taken, strict=True))) for taken in every)
        assert costs.of(placement) == pytest.approx(best)
        differ.add((len(placement.offline), len(placement.online), len(placement.boundaries)))
    assert price or len(differ) > 1


SHAPES = {"e": (16, 8), "w": (8, 12), "v": (12, 8), "u": (8, 5)}


def spikes(shape: tuple[int, int], seed: int) -> np.ndarray:
    """Weights of which some, in some graphs, have a few large rows, so that a rotation helps or harms."""
    rng = np.random.default_rng([seed, *shape])
    weight = rng.standard_normal(shape)
    weight[rng.integers(0, shape[0], 2)] *= rng.choice([1.0, 8.0])
    return np.where(rng.random(shape) < rng.choice([0.0, 0.8]), 0, weight).astype(np.float32)


@dataclass
class Costs:
    """What labels and online transforms cost, reckoned anew."""

    analysis: Analysis
    groups: Mapping[Siblings, Probes]
    found: Mapping[AxisNode, Labels]
    scheme: Scheme
    price: float

    def error(self, group: Siblings, *transforms: Transform | None) -> float:
        done = [transform for transform in transforms if transform is not None]
        return self.groups[group].error(self.scheme, Compose(tuple(done)) if done else None)

    def reader(
        self, group: Siblings, labels: Mapping[AxisNode, Transform | None], transform: Transform | None
    ) -> float:  # fmt: skip
        own = labels.get(self.analysis.axes.find(group.ref).node)
        if transform is None:
            return self.error(group, own)
        paid = 1 + self.price * transform.flops / group.flops
        return self.error(group, own, transform) * paid + LEAST_GAIN * self.error(group, own)

    def walls(self, labels: Mapping[AxisNode, Transform | None]) -> float:
        total = 0.0
        for wall in boundaries(self.analysis):
            sides = [side.node for side in (wall.before, wall.after)]
            both = [self.found[node] for node in sides if node in self.found]
            if labels.get(sides[0]) is not labels.get(sides[1]):
                work = sum(group.flops for item in both for group in item.readers)
                flops = (t.flops for item in both for t in item.transforms.values() if t is not None)
                total += (self.price * max(flops) / work + LEAST_GAIN) * sum(item.error for item in both)
        return total

    def of(self, placement: Placement) -> float:
        chosen = [(group, placement.online.get(group.value.name)) for group in self.groups]
        offline = placement.offline
        return self.walls(offline) + sum(self.reader(group, offline, transform) for group, transform in chosen)

    def least(self, labels: Mapping[AxisNode, Transform | None]) -> float:
        total = self.walls(labels)
        for group in self.groups:
            plain = labels.get(self.analysis.axes.find(group.ref).node) is None
            options = orthogonal_candidates(group.width, self.scheme, "auto", 0).values() if plain else ()
            total += min(self.reader(group, labels, transform) for transform in [None, *options])
        return total
