"""Where an operator reads something that is not known, its rule claims nothing, and goes on."""

from __future__ import annotations

import onnx_ir as ir

from qcompile.analysis.analyze import analyze
from qcompile.analysis.spaces import Analysis
from qcompile.transforms.freedom import Freedom


def freedoms(analysis: Analysis, value: ir.Value) -> list[Freedom]:
    return [analysis.free(ref) for ref in analysis.refs(value)]


def test_a_factor_that_is_made_of_nothing_is_no_lookup(parse):
    model = parse("""g (float[4,n] x) => (float[4,n] y) {
        r = RandomNormal<shape=[4,4]>()
        y = MatMul(r, x) }""")
    assert analyze(model).sites == []


def test_indices_of_unknown_rank_may_differ_for_each_element(parse):
    model = parse("""g (float[8,4] x, int64[1] k) => (float[8,4] y) <int64[2] s = {8, 4}> {
        h = Relu(x)
        i = Expand(k, s)
        y = GatherElements<axis=1>(h, i) }""")
    model.graph.inputs[1].shape = None
    analysis = analyze(model)
    assert freedoms(analysis, model.graph[0].outputs[0])[0] == Freedom.NONE


def test_what_a_fused_convolution_cannot_follow_has_no_axes(parse):
    model = parse("""g (float[1,c,8,8] x) => (y) <float[8,2,3,3] w> {
        y = com.microsoft.FusedConv<group=2, activation="Relu">(x, w) }""")
    model.graph.outputs[0].shape = None
    analysis = analyze(model)
    assert analysis.refs_or_none(model.graph.outputs[0]) is None
    assert set(freedoms(analysis, model.graph.inputs[0])) == {Freedom.NONE}


def test_positions_that_are_left_out_are_those_of_the_cache(parse):
    text = """g (float[1,2,3,8] x) => (float[1,2,3,8] y) <float[1,3,4] c, float[1,3,4] s> {{
        h = Neg(x)
        y = RotaryEmbedding(h, c, s{}) }}"""
    found = []
    for rest in ("", ", "):
        model = parse(text.format(rest))
        model.graph[1].resize_inputs(4 if rest else 3)
        found.append(freedoms(analyze(model), model.graph[0].outputs[0]))
    assert found[0] == found[1]
