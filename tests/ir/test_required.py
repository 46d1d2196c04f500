"""Parts that are there are given as they are; where one is missing, the error names what lacks it."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from qcompile.errors import InternalError, QCompileError
from qcompile.ir import required

GRAPH = """g (float[n,32] x) => (float[n,16] y) <float[32,16] w> {
    h = MatMul(x, w)
    y = Clip(h, , h) }"""


def test_what_is_there_is_given(parse):
    model = parse(GRAPH)
    product, clip = model.graph
    x, weight = required.operands(product)
    assert (x, weight) == (required.operand(product, 0), required.optional(product, 1))
    assert required.constant(weight) is weight.const_value
    assert required.sizes_of(weight) == (32, 16)
    assert (required.rank_of(x), required.shape_of(x)) == (2, x.shape)
    assert required.dtype_of(x) == ir.DataType.FLOAT
    assert required.name_of(x) == "x"
    assert required.producer_of(clip.inputs[0]) is product
    assert required.graph_of(clip) is model.graph


def test_an_input_that_is_left_out_or_beyond_the_last_is_none(parse):
    clip = parse(GRAPH).graph[1]
    assert required.optional(clip, 1) is None
    assert required.optional(clip, 3) is None


@pytest.mark.parametrize("take, said", [
    (lambda model: required.operand(model.graph[1], 1), "Clip 'last' has no input 1"),
    (lambda model: required.operand(model.graph[1], 3), "Clip 'last' has no input 3"),
    (lambda model: required.operands(model.graph[1]), "Clip 'last' has no input 1"),
    (lambda model: required.constant(model.graph.inputs[0]), "'x' is not constant"),
    (lambda model: required.producer_of(model.graph.inputs[0]), "no node makes 'x'"),
    (lambda model: required.sizes_of(model.graph.inputs[0]), "'x' has shape .*, which is not static"),
    (lambda model: required.shape_of(ir.Value(name="v")), "the rank of 'v' is not known"),
    (lambda model: required.dtype_of(ir.Value(name="v")), "the type of 'v' is not known"),
    (lambda model: required.name_of(ir.Value()), "has no name"),
    (lambda model: required.graph_of(ir.Node("", "Relu", [], name="r")), "Relu 'r' stands in no graph"),
])  # fmt: skip
def test_what_is_missing_is_named(parse, take, said):
    model = parse(GRAPH)
    model.graph[1].name = "last"
    with pytest.raises(InternalError, match=said):
        take(model)
    assert not issubclass(InternalError, QCompileError)  # the command line lets it through, as every bug
