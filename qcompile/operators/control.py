"""Branches and loops, as branches and loops of Python."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from qcompile.ir.required import name_of
from qcompile.operators.call import Call
from qcompile.operators.statements import finish
from qcompile.operators.symbols import Symbol, texts_of

__all__ = ["ROWS"]

_INDENT = "    "
_BODY = 2 * _INDENT  # where statements of the function stand


def _inner(c: Call, graph: ir.Graph, narrow: bool) -> tuple[list[str], list[str]]:
    """Statements of an inner graph, one level deeper, and the source of its outputs."""
    with c.program.nested() as statements:
        c.program.emit_nodes(graph)
        results = [c.program.tensor(value, narrow) for value in graph.outputs]
        lines = finish(statements, [word for text in results for word in text.replace(".", " ").split()])
    return [textwrap.indent(line, _INDENT) for line in lines], results


def _if(c: Call) -> None:
    condition = c.host(0)
    item = None if condition is None else condition.reshape(-1)[0]
    branches = [c.node.attributes[name].as_graph() for name in ("then_branch", "else_branch")]
    if item is not None and not isinstance(item, Symbol):
        taken = branches[0 if item else 1]
        c.program.emit_nodes(taken)
        for value, inner in zip(c.node.outputs, taken.outputs):
            c.program.let(value, c.program.own(inner), c.program.is_narrow(inner))
        return
    test = c.program.fetch(c.value(0), "item") if condition is None else texts_of(condition)[0]
    texts = [_inner(c, graph, True) for graph in branches]
    targets = c.program.bind(c.node, True)
    endings = [[*lines, _INDENT + _BODY + _assigned(targets, results)] for lines, results in texts]
    c.program.emit_block("\n".join([f"{_BODY}if {test}:", *endings[0], f"{_BODY}else:", *endings[1]]), targets)


def _assigned(targets: Sequence[str], texts: Sequence[str]) -> str:
    return f"{', '.join(targets)} = {', '.join(texts)}"


def _carry(c: Call, values: Sequence[ir.Value], sources: Sequence[str]) -> list[str]:
    """Lines that give the inputs of a body their values of this round."""
    lines = []
    for value, source in zip(values, sources):
        name = c.program.names.make(name_of(value))
        c.program.let(value, name, c.narrow)
        lines.append(f"{_INDENT}{_BODY}{name} = {source}")
    return lines


def _collected(targets: Sequence[str], results: Sequence[str]) -> list[str]:
    return [f"{_INDENT}{_BODY}{name}.append({text})" for name, text in zip(targets, results, strict=True)]


def _scan(c: Call) -> None:
    body, count = c.node.attributes["body"].as_graph(), c.need_int("num_scan_inputs")
    states = len(c) - count
    if any(c.ints("scan_input_directions", [])) or any(c.ints("scan_output_directions", [])):
        raise c.refuse("it runs backwards")
    axes = c.ints("scan_input_axes", [0] * count)
    stacked = c.ints("scan_output_axes", [0] * (len(c.node.outputs) - states))
    targets, step = c.program.bind(c.node, c.narrow), c.program.names.make("step")
    lines = [f"{_BODY}{name} = {c[i]}" for i, name in enumerate(targets[:states])]
    lines += [f"{_BODY}{name} = []" for name in targets[states:]]
    lines.append(f"{_BODY}for {step} in range({c[states]}.shape[{axes[0]}]):")
    parts = [f"{c[states + i]}.select({axis}, {step})" for i, axis in enumerate(axes)]
    lines += _carry(c, body.inputs, [*targets[:states], *parts])
    inner, results = _inner(c, body, c.narrow)
    lines += inner
    if states:
        lines.append(_INDENT + _BODY + _assigned(targets[:states], results[:states]))
    lines += _collected(targets[states:], results[states:])
    lines += _stacked(c, targets[states:], body.outputs[states:], stacked)
    c.program.emit_block("\n".join(lines), targets)


def _loop(c: Call) -> None:
    body, program, states = c.node.attributes["body"].as_graph(), c.program, len(c) - 2
    targets, step, going = program.bind(c.node, c.narrow), program.names.make("step"), program.names.make("going")
    lines = [f"{_BODY}{name} = {c[i + 2]}" for i, name in enumerate(targets[:states])]
    lines += [f"{_BODY}{name} = []" for name in targets[states:]]
    lines.append(f"{_BODY}{going} = {c.scalar(1) if c.has(1) else True}")
    lines.append(f"{_BODY}for {step} in {f'range({c.scalar(0)})' if c.has(0) else 'itertools.count()'}:")
    lines += [f"{_INDENT}{_BODY}if not {going}:", f"{2 * _INDENT}{_BODY}break"]
    program.hosts |= {body.inputs[0]: _scalar(Symbol(step, natural=True)), body.inputs[1]: _scalar(True)}
    lines += _carry(c, body.inputs[2:], targets[:states])
    inner, results = _inner(c, body, c.narrow)
    proceed = program.hosts.get(body.outputs[0])
    lines += inner
    lines.append(f"{_INDENT}{_BODY}{going} = {_proceeding(c, results[0]) if proceed is None else texts_of(proceed)[0]}")
    if states:
        lines.append(_INDENT + _BODY + _assigned(targets[:states], results[1 : 1 + states]))
    lines += _collected(targets[states:], results[1 + states :])
    lines += _stacked(c, targets[states:], body.outputs[1 + states :], [0] * (len(targets) - states))
    program.emit_block("\n".join(lines), targets)


def _stacked(c: Call, targets: Sequence[str], values: Sequence[ir.Value], axes: Sequence[int]) -> list[str]:
    """Lines that make one tensor of what each round has given; of no round, one without elements."""
    lines = []
    for name, value, axis in zip(targets, values, axes, strict=True):
        sizes = [dim if isinstance(dim, int) else 0 for dim in value.shape or ()]
        sizes.insert(axis, 0)
        dtype = c.dtype(c.program.kind(value) or ir.DataType.FLOAT)
        empty = f"torch.zeros({tuple(sizes)}, dtype={dtype}, device=device)"
        lines.append(f"{_BODY}{name} = torch.stack({name}, {axis}) if {name} else {empty}")
    return lines


def _proceeding(c: Call, condition: str) -> str:
    """A condition that the GPU computes: the program waits for it at every round."""
    c.program.notes["captures"] = False
    return f"{condition}.item()"


def _scalar(item: object) -> np.ndarray:
    array = np.empty((), object)
    array[()] = item
    return array


ROWS = {"If": _if, "Loop": _loop, "Scan": _scan}
