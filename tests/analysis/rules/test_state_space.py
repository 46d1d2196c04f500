"""The rules of the state-space operators: the freedom of every axis, its members kept, a larger group not."""

from __future__ import annotations

import pytest

from qcompile.analysis.analyze import analyze
from qcompile.analysis.axes import AxisNode, Mode, Ref
from qcompile.ir.state_space_export import add_bodies
from qcompile.transforms.freedom import Freedom

SCAN = """y (float[2,3,5] x) => (float[2,3,4] y)
<float[5,6] wu, float[5,6] wd, float[6,8] A, float[5,8] wb, float[5,8] wc, float[6] D, float[6,4] w2,
 float[1,1,1] tenth> {
    u = MatMul(x, wu)
    d0 = MatMul(x, wd)
    d1 = Abs(d0)
    delta = Mul(d1, tenth)
    B = MatMul(x, wb)
    C = MatMul(x, wc)
    g = qcompile.SelectiveScan(u, delta, A, B, C, D)
    y = MatMul(g, w2) }"""

DUALITY = """y (float[2,3,5] x) => (float[2,3,4] y)
<float[5,24] wu, float[5,6] wd, float[6] A, float[5,16] wb, float[5,16] wc, float[6] D, float[24,4] w2,
 float[1,1,1] tenth,
 int64[4] heads, int64[4] groups, int64[3] flat> {
    u0 = MatMul(x, wu)
    u = Reshape(u0, heads)
    d0 = MatMul(x, wd)
    d1 = Abs(d0)
    delta = Mul(d1, tenth)
    b0 = MatMul(x, wb)
    B = Reshape(b0, groups)
    c0 = MatMul(x, wc)
    C = Reshape(c0, groups)
    g = qcompile.StateSpaceDuality(u, delta, A, B, C, D)
    h = Reshape(g, flat)
    y = MatMul(h, w2) }"""


def with_state(text: str, size: int) -> str:
    """The graph from a state on that is a product, as is what it makes of the last one."""
    text = text.replace("float[2,3,5] x)", "float[2,3,5] x, float[2,5] s0)")
    text = text.replace("(float[2,3,4] y)", "(float[2,3,4] y, float[2,4] z)")
    text = text.replace("<float[5", f"<float[5,{size}] ws, float[{size},4] w3, int64[2] one, int64[N] held, float[5", 1)
    text = text.replace("g = qcompile.", "s1 = MatMul(s0, ws) s = Reshape(s1, held) g, last = qcompile.")
    text = text.replace("(u, delta", "WithState(u, delta").replace("C, D)", "C, D, s)")
    return text.replace("y = MatMul", "z0 = Reshape(last, one) z = MatMul(z0, w3) y = MatMul")


FIXED = {"heads": [0, 0, 6, 4], "groups": [0, 0, 2, 8], "flat": [0, 0, 24]}

#: graph, value, axis -> the freedom
EXPECTED = {
    ("scan", "u", -1): Freedom.MONOMIAL,
    ("scan", "B", -1): Freedom.MONOMIAL,
    ("duality", "u", -1): Freedom.GENERAL,
    ("duality", "B", -1): Freedom.GENERAL,
    ("scan with state", "u", -1): Freedom.MONOMIAL,
    ("scan with state", "B", -1): Freedom.MONOMIAL,
    ("duality with state", "u", -1): Freedom.GENERAL,
    ("duality with state", "B", -1): Freedom.GENERAL,
}


@pytest.fixture
def graph(parse):
    def make(name: str):
        model = {
            "scan": lambda: parse(SCAN),
            "duality": lambda: parse(DUALITY, **FIXED),
            "scan with state": lambda: parse(with_state(SCAN, 48).replace("[N]", "[3]"), held=[0, 6, 8], one=[0, 48]),
            "duality with state": lambda: parse(
                with_state(DUALITY, 192).replace("[N]", "[4]"), held=[0, 6, 4, 8], one=[0, 192], **FIXED
            ),
        }[name]()
        add_bodies(model)
        return model

    return make


def axis(analysis, name: str, place: int):
    return next(refs for value, refs in analysis.refs_of.items() if value.name == name)[place]


@pytest.mark.parametrize("case", EXPECTED, ids=str)
def test_freedom_is_what_the_mathematics_says(graph, case):
    analysis = analyze(graph(case[0]))
    assert analysis.free(axis(analysis, *case[1:])).label == EXPECTED[case].label


@pytest.mark.parametrize("name", ["scan", "duality", "scan with state", "duality with state"])
def test_members_of_the_freedom_keep_the_output(graph, check_sound, name):
    model = graph(name)
    for seed in range(5):
        check_sound(model, seed)


def test_a_transform_moves_every_space_at_once(graph):
    """The soundness above is not empty: each space holds a weight, and all of them change."""
    for name, count in (("scan", 2), ("duality", 4), ("scan with state", 2), ("duality with state", 4)):
        analysis = analyze(graph(name))
        free = [space for space in analysis.spaces if space.freedom != Freedom.NONE]
        assert len(free) == count
        assert all(space.writers for space in free)


@pytest.mark.parametrize("name", ["u", "B"])
def test_heads_and_groups_may_only_be_permuted_and_scaled(graph, name):
    analysis = analyze(graph("duality"))
    assert {leaf.node.freedom for leaf in analysis.axes.leaves(axis(analysis, name, 2))} == {Freedom.MONOMIAL}


@pytest.mark.parametrize("writer, reader", [("wu", "w2"), ("wb", "wc")])
def test_a_rotation_would_change_the_selective_scan(graph, change, member, writer, reader):
    """Just outside of the group: a rotation of the channels, or of the state with its dual at C."""

    def choose(analysis):
        axes_of = {value.name: refs for value, refs in analysis.refs_of.items()}
        turned = AxisNode(analysis.axes.size(axes_of[writer][1]))
        axes_of[writer][1] = Ref(turned)
        axes_of[reader][int(reader == "wc")] = Ref(turned, Mode.DUAL)
        return {turned: member(Freedom.ORTHOGONAL, turned.size, 3)}

    assert change(graph("scan"), choose) > 1e-3
