"""Graphs as text: what is printed can be read again, large constants are not, and refusals show the nodes around."""

from __future__ import annotations

import onnx.parser
import onnx_ir as ir
import pytest

from qcompile.errors import GraphError, TargetError
from qcompile.ir.capture import capture
from qcompile.ir.tensors import Derived
from qcompile.ir.text import graph_text, refusal, text_around

GRAPH = """g (float[2,3] x, bool b) => (float[2,3] y) <float[3] c = {1, 2.5, 3}, float[3,3] w> {
    [first] h = MatMul(x, w)
    [constant] k = Constant<value = float[7] {1, 2, 3, 4, 5, 6, 7}>()
    [choice] i = If(b) <
        then_branch = t () => (float[2,3] p) <float[8] d = {1, 2, 3, 4, 5, 6, 7, 8}> { p = Add(h, c) },
        else_branch = e () => (float[2,3] q) { q = Neg(h) }>
    y = Mul(i, c) }"""


def test_large_constants_are_declared_alone(parse):
    text = graph_text(parse(GRAPH))
    assert "float[3] c = {1,2.5,3}" in text
    assert "float[3,3] w" in text
    assert "float[3,3] w =" not in text
    assert "float[7] {}" in text
    assert "float[8] d" in text
    assert "{1,2,3,4" not in text


def test_text_can_be_read_again(parse):
    model = parse(GRAPH)
    again = onnx.parser.parse_model(graph_text(model))
    assert [node.op_type for node in again.graph.node] == [node.op_type for node in model.graph]
    assert graph_text(model) == graph_text(parse(GRAPH))  # which is left as it was


def test_lists_of_declarations_are_broken(parse):
    many = ", ".join(f"float[2,3] constant_number_{i}" for i in range(30))
    text = graph_text(parse(f"g (float[2,3] x) => (float[2,3] y) <{many}> {{ y = Sum(x, constant_number_3) }}"))
    assert max(map(len, text.splitlines())) <= 120
    assert all(f"float[2,3] constant_number_{i}" in text for i in range(30))  # none is broken within


def test_constants_that_are_not_shown_are_not_computed(parse):
    model = parse(GRAPH)
    value = model.graph.initializers["w"]
    value.const_value = Derived(value.const_value, lambda _: pytest.fail("read"), value.shape, name="w")
    assert "float[3,3] w" in graph_text(model)


def test_a_node_is_shown_between_its_neighbours(parse):
    model = parse(GRAPH)
    lines = text_around(model.graph[2]).splitlines()
    assert lines[0].startswith("-> [choice] i = If (b)")  # what its branches read is within them
    assert lines[-1] == "   y = Mul (i, c)"
    assert text_around(model.graph[3]).splitlines()[-1] == "-> y = Mul (i, c)"


def test_a_refusal_names_operator_and_node_and_shows_it(parse):
    node = parse("g (float[2] x) => (float[2] y) { [here] y = com.microsoft.Gelu(x) }").graph[0]
    error = refusal(TargetError, "lathe: {op} '{name}' is too {how}", node, how="{round}")
    assert isinstance(error, TargetError)
    assert str(error) == "lathe: com.microsoft::Gelu 'here' is too {round}"
    assert error.__notes__ == ["-> [here] y = com.microsoft.Gelu (x)"]
    node.name = None
    assert str(refusal(TargetError, "{op} '{name}'", node)) == "com.microsoft::Gelu 'y'"


def test_a_value_that_nothing_makes_is_shown_where_it_is_read():
    x, lost = (ir.Value(name=n, shape=ir.Shape([2]), type=ir.TensorType(ir.DataType.FLOAT)) for n in ("x", "lost"))
    node = ir.Node("", "Add", [x, lost], name="sum")
    node.outputs[0].name = "y"
    model = ir.Model(ir.Graph([x], node.outputs, nodes=[node], opset_imports={"": 21}), ir_version=10)
    with pytest.raises(GraphError, match="has no value 'lost', which Add 'sum' reads") as caught:
        capture(model)
    assert caught.value.__notes__ == ["-> [sum] y = Add (x, lost)"]
