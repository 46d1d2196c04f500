"""Values that integer operators hand to each other, and those that stay as they are."""

from __future__ import annotations

from qcompile.analysis.joins import all_values, joined_values
from qcompile.ir.graph import node_name


def joined(model, sites):
    nodes = [node for node in model.graph if node_name(node) in sites]
    found = joined_values(model, [node for node in nodes if node.op_type == "Conv"], nodes)
    return {value.name: like.name for value, like in found.items()}


WEIGHTS = "<float[4,4,1,1] w, float[4,4,1,1] v, float[4,4] u>"


def test_a_sum_on_its_way_to_a_site_is_joined_and_one_at_the_end_is_not(parse):
    model = parse(
        f"""g (float[n,4,2,2] x) => (float[n,4,2,2] y) {WEIGHTS}
        {{ a = Conv(x, w)\n r = Relu(a)\n s = Add(r, r)\n c = Conv(s, v)\n y = Add(c, r) }}"""
    )
    sites = {node_name(node) for node in model.graph if node.op_type == "Conv"}
    assert joined(model, sites) == {"r": "r", "s": "s", "c": "c"}


def test_what_moves_values_has_the_range_of_what_it_reads(parse):
    model = parse(
        f"""g (float[n,4,2,2] x) => (float[n,4] y) {WEIGHTS}
        {{ a = Conv(x, w)\n c = Clip(a)\n p = MaxPool<kernel_shape=[2,2]>(c)\n f = Flatten(p)\n y = MatMul(f, u) }}"""
    )
    sites = {node_name(node) for node in model.graph if node.op_type in ("Conv", "MatMul")}
    assert joined(model, sites) == {"c": "c", "p": "c", "f": "c"}


def test_a_sum_with_what_is_no_integer_is_left(parse):
    model = parse(
        f"""g (float[n,4,2,2] x) => (float[n,4,2,2] y) {WEIGHTS}
        {{ a = Conv(x, w)\n e = Exp(x)\n s = Add(a, e)\n y = Conv(s, v) }}"""
    )
    sites = {node_name(node) for node in model.graph if node.op_type == "Conv"}
    assert joined(model, sites) == {"a": "a", "y": "y"}


def test_an_activation_that_another_reads_beside_is_not_taken_over(parse):
    model = parse(
        f"""g (float[n,4,2,2] x) => (float[n,4,2,2] y, float[n,4,2,2] z) {WEIGHTS}
        {{ a = Conv(x, w)\n r = Relu(a)\n z = Exp(a)\n y = Conv(r, v) }}"""
    )
    sites = {node_name(node) for node in model.graph if node.op_type == "Conv"}
    assert joined(model, sites) == {"a": "a", "y": "y"}


def test_where_all_is_integer_sums_with_constants_and_functions_of_one_value_wait_to_be_rounded(parse):
    model = parse(
        """g (float[n,4,2,2] x) => (float[n,4,1,1] y)
        <float[4,4,1,1] w, float[4,4,1,1] v, float[4,1,1] c, float[4,1,1] p, float one = {1.0}>
        { a = Conv(x, w)\n b = Add(a, c)\n r = PRelu(b, p)\n e = Exp(r)\n f = Add(e, one)\n h = Mul(r, f)
        s = Softmax(h)\n t = Transpose(s)\n d = Conv(t, v)\n y = Conv(d, v) }"""
    )
    assert {value.name: like.name for value, like in all_values(model).items()} == {
        "r": "r", "h": "h", "s": "s", "t": "s", "d": "d",
    }  # fmt: skip
