"""What nothing reads goes, with all that it held."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from qcompile.ir.graph import drop_unused, name_sizes


def test_a_dropped_branch_holds_nothing(parse: Callable[..., ir.Model]) -> None:
    """The bodies of an If read ``table`` rows and ``scale``; of a Loop, through an If of its own, as well."""
    model = parse("""
        g (float[n, 4] x, int64[n] rows, bool flag, int64 times) => (float[n, 4] y)
        <float[9, 4] table, float[4] scale, float[4] shift> {
            looked_up = Gather(table, rows)
            unread = If (flag) <
                then_branch = then () => (a) { a = Mul(looked_up, scale) },
                else_branch = otherwise () => (b) { b = Identity(looked_up) }
            >
            still = Loop (times, "", x) <
                body = again (int64 i, bool go, float[n, 4] s) => (bool goes, float[n, 4] t) {
                    goes = Identity(go)
                    t = If (go) <
                        then_branch = deep () => (c) { c = Add(s, looked_up) },
                        else_branch = flat () => (d) { d = Identity(s) }
                    >
                }
            >
            y = Add(x, shift)
        }
    """)
    drop_unused(model)
    assert [node.op_type for node in model.graph] == ["Add"]
    assert [*model.graph.initializers] == ["shift"]
    model.graph.inputs[:] = model.graph.inputs[:1]
    assert len(model.clone().graph) == 1  # nothing refers to an input that is gone


def test_a_branch_that_is_read_stays(parse: Callable[..., ir.Model]) -> None:
    model = parse("""
        g (float[n, 4] x, bool flag) => (float[n, 4] y) <float[4] scale> {
            h = Relu(x)
            y = If (flag) <
                then_branch = then () => (a) { a = Mul(h, scale) },
                else_branch = otherwise () => (b) { b = Identity(h) }
            >
        }
    """)
    drop_unused(model)
    assert [node.op_type for node in model.graph] == ["Relu", "If"]
    assert [*model.graph.initializers] == ["scale"]


def test_sizes_of_inputs_get_names(parse: Callable[..., ir.Model]) -> None:
    model = parse("g (float[n,3] x) => (float[n,3] y) { y = Relu(x) }")
    model.graph.inputs[0].shape = ir.Shape([None, 3, "m", None])
    name_sizes(model.graph)
    assert model.graph.inputs[0].shape == ir.Shape(["x.0", 3, "m", "x.3"])
