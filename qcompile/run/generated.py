"""The source of a graph as a function of torch, whole or in sections, with hooks at some of its values."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import onnx_ir as ir
import torch
import torch.nn.functional as F
from torch import Tensor

from qcompile.errors import InternalError, TargetError
from qcompile.ir.functions import DOMAIN
from qcompile.ir.graph import node_name
from qcompile.operators import plain
from qcompile.operators.library import attention, operators
from qcompile.operators.names import Names
from qcompile.operators.precision import Precision
from qcompile.operators.statements import Statement, finish, needed, with_releases
from qcompile.operators.table import STANDARD, Table
from qcompile.operators.writer import Program
from qcompile.run.foreign import Part

__all__ = ["FUNCTIONS", "Generated", "Section", "compiled"]

_CONSTANT = re.compile(r"\bself\.(\w+)")
#: Functions that one call of torch computes, instead of the graph in their bodies.
FUNCTIONS: Table = {
    (DOMAIN, "SelectiveScan"): "plain.scan({0!t}, {1!t}, {2!t}, {3!t}, {4!t}, {5!t})",
    (DOMAIN, "StateSpaceDuality"): "plain.duality({0!t}, {1!t}, {2!t}, {3!t}, {4!t}, {5!t})",
    (DOMAIN, "SelectiveScanWithState"): "plain.scan_with_state({0!t}, {1!t}, {2!t}, {3!t}, {4!t}, {5!t}, {6!t})",
    (DOMAIN, "StateSpaceDualityWithState"): (
        "plain.duality_with_state({0!t}, {1!t}, {2!t}, {3!t}, {4!t}, {5!t}, {6!t})"
    ),
}

_HOOK = re.compile(r"\bself\.hook\((\d+),")
_OWN = ("device", "dtype", "hook", "apart")


@dataclass(frozen=True)
class Section:
    """Consecutive operators as a function of the variables that are read from before.

    Args:
        begins: the name of its first operator, if it was asked to begin there.
        reads: variables that it needs.
        writes: variables that it makes and later sections need, or the caller.
        constants: attributes of the constants that it reads.
        hooked: values that it offers to hooks.
        run: its function of the engine's frame and what it reads; it returns what it writes.
    """

    begins: str | None
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    constants: tuple[str, ...]
    hooked: tuple[str, ...]
    run: Callable[..., tuple[Any, ...]]


class Generated(Program):
    """The generated function of a graph, with hooks, and with the nodes that onnxruntime runs."""

    def __init__(self, model: ir.Model, hooked: Collection[str], precision: Precision) -> None:
        self.foreign: list[tuple[ir.Node, Part, str]] = []
        self.hooks: list[str] = []
        self._hooked, self._top, self._marks = frozenset(hooked), model.graph, dict[str, int]()
        names = Names()
        for name in ("hook", "apart", "itertools", "plain"):
            names.reserve(name)
        super().__init__(model, names, {**STANDARD, **FUNCTIONS}, precision, "torch")

    def _declare(self, value: ir.Value) -> str:
        name = super()._declare(value)
        self._offer(value, name)
        return name

    def _emit_node(self, node: ir.Node) -> None:
        before = len(self.statements)
        if node.graph is self._top:
            self._marks[node_name(node)] = before
        try:
            super()._emit_node(node)
        except TargetError as error:
            lost = {name for statement in self.statements[before:] for name in statement.writes}
            self._made = {key: name for key, name in self._made.items() if name not in lost}
            del self.statements[before:]
            self._emit_foreign(node, str(error))
        for value in node.outputs:
            if value in self._variables:
                self._offer(value, self._variables[value])

    def _emit_foreign(self, node: ir.Node, reason: str) -> None:
        part = Part()
        part.add(node)
        given = [self.own(value) for value in part.given]
        stated = [(value, value.dtype) for value in node.outputs]
        targets = self.bind(node, not self.precision.mixed)
        for value, dtype in stated:
            value.type = None if dtype is None else ir.TensorType(dtype)  # what is not stated, onnxruntime decides
        targets = tuple(target for target, value in zip(targets, node.outputs, strict=False) if value.name)
        call = ", ".join([str(len(self.foreign)), *given])
        self.foreign.append((node, part, reason))
        self.emit(f"{', '.join(targets)}, *_ = self.apart({call})", targets)

    def _offer(self, value: ir.Value, variable: str) -> None:
        if value.name in self._hooked and value.name not in self.hooks:
            self.hooks.append(value.name)
            text = f"        {variable} = self.hook({len(self.hooks) - 1}, {variable})"
            self.statements.append(Statement((variable,), text, kept=True))

    def kernel(self, name: str) -> str:
        return f"plain.{name}"

    @cached_property
    def _words(self) -> list[str]:
        """Variables that the results are."""
        return [word for text in self.results for word in text.replace(".", " ").split()]

    def source(self) -> str:
        """Source of ``forward``; ``self`` is the engine's frame."""
        body = "\n".join(finish(self.statements, self._words))
        arguments = ", ".join(["self", *self.inputs])
        return f"def forward({arguments}):\n{body}\n        return ({', '.join([*self.results, ''])})\n"

    def variable_of(self, name: str) -> str:
        """The variable that holds a value of the graph itself."""
        found = next((text for value, text in self._variables.items() if value.name == name), None)
        if found is None:
            raise InternalError(f"the engine has no variable for '{name}'")
        return found

    def results_of(self, variables: Mapping[str, Any], weight: Callable[[str], Tensor]) -> Iterator[Tensor]:
        """The results, some of which may be constants."""
        return (variables[text] if text in variables else weight(text.removeprefix("self.")) for text in self.results)

    def sections(self, begins: Collection[str]) -> list[Section]:
        """The statements in sections; ``begins`` are names of operators of the graph itself."""
        prelude, *statements = self.statements
        kept = set(map(id, needed(statements, set(self._words))))
        starts = {self._marks[name]: name for name in begins if name in self._marks}
        parts: list[tuple[str | None, list[Statement]]] = [(None, [])]
        for index, statement in enumerate(statements, start=1):
            if index in starts:
                parts.append((starts[index], []))
            if id(statement) in kept:
                parts[-1][1].append(statement)
        made, later, lives = {*self.inputs}, set(self._words), []
        for _, part in reversed(parts):
            lives.append(set(later))
            later |= {name for statement in part for name in statement.reads}
        found = []
        for (begins_at, part), live in zip(parts, lives[::-1], strict=True):
            own = {name for statement in part for name in statement.writes}
            reads = {name for statement in part for name in statement.reads} & made
            made |= own
            found.append(self._section(begins_at, [prelude, *part], sorted(reads), sorted(own & live)))
        return found

    def _section(
        self, begins: str | None, statements: Sequence[Statement], reads: Sequence[str], writes: Sequence[str]
    ) -> Section:  # fmt: skip
        body = "\n".join(with_releases(statements, set(writes)))
        source = f"def forward({', '.join(['self', *reads])}):\n{body}\n        return ({', '.join([*writes, ''])})\n"
        text = "\n".join(statement.text for statement in statements)
        constants = dict.fromkeys(name for name in _CONSTANT.findall(text) if name not in _OWN)
        hooked = tuple(self.hooks[int(number)] for number in _HOOK.findall(text))
        return Section(begins, tuple(reads), tuple(writes), tuple(constants), hooked, compiled(source))


def compiled(source: str) -> Callable[..., tuple[Tensor, ...]]:
    """The function of a source."""
    namespace: dict[str, Any] = {
        "torch": torch, "F": F, "math": math, "itertools": itertools, "operators": operators, "attention": attention,
        "plain": plain,
    }  # fmt: skip
    exec(compile(source, "<graph>", "exec"), namespace)
    return namespace["forward"]
