"""Sites that a target can quantize: a stack of one matrix is one."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.analysis.analyze import analyze
from qcompile.compiler import Options, plan
from qcompile.run.compare import compare
from qcompile.run.data import example_inputs
from qcompile.run.session import evaluate
from qcompile.targets.eligible import quantizable
from qcompile.targets.registry import get_target, lowered_to, targets

ONE = """g (float[n,3,32] x) => (float[n,3,32] y) <float[1,32,64] a, float[64,32] b> {
    h = MatMul(x, a)
    s = Sigmoid(h)
    y = MatMul(s, b) }"""


@pytest.mark.parametrize("name", sorted({t.name for t in targets().values() if t.stacks != "none"}))
def test_a_stack_of_one_matrix_is_quantized_wherever_stacks_are(parse, name):
    chosen, declined = quantizable(analyze(parse(ONE)), get_target(name))
    assert [site.shape for site in chosen] == [(1, 32, 64), (64, 32)]
    assert declined == []


def test_it_computes_what_the_matrix_does(parse):
    model = parse(ONE)
    matrix = model.clone()
    weight = matrix.graph.initializers["a"]
    weight.const_value = ir.tensor(weight.const_value.numpy()[0], name="a")
    weight.shape = ir.Shape([32, 64])
    inputs = example_inputs(model)
    options = Options("blackwell-mxfp4", transforms="none", method="rtn")
    results = []
    for graph in (model, matrix):
        with lowered_to(get_target("blackwell-mxfp4"), plan(graph, options)) as run:
            results.append(run(inputs))
    assert np.array_equal(results[0]["y"], results[1]["y"])
    assert 0.01 < compare(evaluate(model, inputs), results[0])[0] < 0.3  # it is quantized, and well
