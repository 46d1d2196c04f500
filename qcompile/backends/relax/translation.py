"""A planned graph as a Relax module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
import tvm
from tvm import relax

from qcompile.backends.relax import known
from qcompile.backends.relax.builder import Builder
from qcompile.backends.relax.folds import fold
from qcompile.backends.relax.kernels.lanes import Lanes
from qcompile.backends.relax.operators import OPERATORS
from qcompile.backends.relax.operators.registry import refuse
from qcompile.backends.relax.sites import check_plan, lower_site
from qcompile.errors import QCompileError, TargetError
from qcompile.ir import required
from qcompile.ir.functions import opset
from qcompile.ir.graph import drop_unused, is_random, node_name
from qcompile.targets.plans import plan_of

__all__ = ["Translated", "translate"]


@dataclass(frozen=True)
class Translated:
    """A module and what it needs to run.

    Args:
        module: with the function ``main``, of the graph's inputs and then the parameters.
        inputs: name, type and shape (integers and names of sizes) of each.
        parameters: by name, in order.
        sites: by site, how it is computed.
    """

    module: tvm.IRModule
    inputs: list[dict[str, Any]]
    outputs: list[str]
    parameters: Mapping[str, np.ndarray]
    sites: Mapping[str, str]


def translate(model: ir.Model, lanes: Lanes) -> Translated:
    """The module for a graph; functions that no operator is registered for are inlined.

    Raises:
        TargetError: for an operator or format without a lowering; the node is named.
    """
    common.InlinePass(lambda function: (function.domain, function.name) not in OPERATORS)(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    drop_unused(model)
    _check(model)
    g = Builder(lanes, opset(model))
    inputs = [value for value in model.graph.inputs if value.name not in model.graph.initializers]
    variables = [_input(g, value) for value in inputs]
    sites: dict[str, str] = {}
    with g.block.function("main"):
        with g.block.dataflow():
            for node in model.graph:
                _lower(g, node, sites)
            outputs = [g.block.emit_output(g.tensor(g.get(value))) for value in model.graph.outputs]
        g.block.emit_func_output(relax.Tuple(outputs), [*variables, *g.arguments])
    described = [_describe(value, variable) for value, variable in zip(inputs, variables, strict=True)]
    return Translated(g.block.get(), described, [required.name_of(v) for v in model.graph.outputs], g.parameters, sites)


def _check(model: ir.Model) -> None:
    """Refuse what can be refused without the sizes, before any work: operators with bodies as well."""
    for node in model.graph:
        if (plan := plan_of(node)) is not None:
            check_plan(node, plan)
        elif (node.domain, node.op_type) not in OPERATORS:
            raise refuse(node, "it is not supported")
        elif is_random(node):
            raise refuse(node, "it is random: its result would differ at every run")


def _input(g: Builder, value: ir.Value) -> relax.Var:
    if value.shape is None or value.dtype is None:
        raise TargetError(f"TVM: input '{value.name}' has no shape")
    sizes = [
        dim if isinstance(dim, int) else g.symbol(str(dim.value) if dim.value else f"{value.name}_{axis}")
        for axis, dim in enumerate(value.shape)
    ]
    names = {ir.DataType.FLOAT: "float32", ir.DataType.DOUBLE: "float64"}
    kind = relax.TensorType(
        [tvm.tirx.const(n, "int64") if isinstance(n, int) else n for n in sizes],
        names.get(value.dtype, value.dtype.name.lower()),
    )
    variable = relax.Var("".join(c if c.isalnum() else "_" for c in required.name_of(value)), kind)
    g.set(value, variable)
    return variable


def _describe(value: ir.Value, variable: relax.Var) -> dict[str, Any]:
    shape = [size if isinstance(size, int) else str(size) for size in map(known.simplify, variable.ty.shape)]
    return {"name": value.name, "dtype": Builder.dtype(variable), "shape": shape}


def _lower(g: Builder, node: ir.Node, sites: dict[str, str]) -> None:
    """Translate one node. TVM's own errors are raised with the node's name."""
    if (plan := plan_of(node)) is not None:
        result, sites[node_name(node)] = lower_site(g, node, plan)
        g.set(node.outputs[0], result)
        return
    inputs = [g.get(value) for value in node.inputs]
    if inputs and all(value is None or isinstance(value, np.ndarray) for value in inputs):
        result = fold(node, inputs)
        if result is not None:
            for value, array in zip(node.outputs, result, strict=True):
                g.set(value, array)
            return
    try:
        results = OPERATORS[node.domain, node.op_type](g, node, *inputs)
    except QCompileError:
        raise
    except Exception as error:  # TVM's errors have many types
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise refuse(node, reason) from error
    made = results if isinstance(results, list) else [results]
    if any(value.uses() or value.is_graph_output() for value in node.outputs[len(made) :]):
        raise refuse(node, f"only the first {len(made)} of its outputs can be read")
    for value, result in zip(node.outputs, made, strict=False):
        g.set(value, result)
