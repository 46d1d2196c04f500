"""The program under translation as rows of the lowering table see it: source of values in, statements out."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from qcompile.operators.names import Names
from qcompile.operators.statements import Statement
from qcompile.operators.symbols import Symbol

__all__ = ["Program"]


class Program(Protocol):
    """The part of ``writer.Program`` that calls, rows and precision use: they stand below it.

    Attributes:
        runtime: what computes, for messages.
        opset: version of the standard operators.
        names: gives identifiers.
        exact: whether numbers are written out in full; else as people read them.
        notes: facts about the whole program, such as whether it can be captured as a CUDA graph.
        hosts: values that the host computes, as arrays of numbers and symbols.
    """

    runtime: str
    opset: int
    names: Names
    exact: bool
    notes: dict[str, Any]
    hosts: dict[ir.Value, np.ndarray]

    # ---- what is known -------------------------------------------------------------------------------------------

    def kind(self, value: ir.Value) -> ir.DataType | None:
        """Type of the elements of a value."""

    def is_narrow(self, value: ir.Value) -> bool:
        """Whether a value is in the program's dtype."""

    def size(self, value: ir.Value, axis: int) -> int | Symbol:
        """A size of a value."""

    # ---- source of values ----------------------------------------------------------------------------------------

    def tensor(self, value: ir.Value, narrow: bool) -> str:
        """A value on the device, its floats in the program's dtype or in float32."""

    def own(self, value: ir.Value) -> str:
        """A value on the device, in the type that it has."""

    def cast(self, value: ir.Value, kind: ir.DataType) -> str:
        """A value in another type."""

    def fetch(self, value: ir.Value, how: str) -> str:
        """A value of the GPU as numbers of the host."""

    def dtype(self, kind: ir.DataType, narrow: bool) -> str:
        """A torch dtype."""

    def helper(self, name: str) -> str:
        """A function that ships with the program."""

    def kernel(self, name: str) -> str:
        """A function of the kernels."""

    # ---- statements ----------------------------------------------------------------------------------------------

    def let(self, value: ir.Value, name: str, narrow: bool) -> None:
        """Let a variable hold a value."""

    def bind(self, node: ir.Node, narrow: bool) -> tuple[str, ...]:
        """Make new variables for the outputs of a node."""

    def emit_block(self, text: str, writes: tuple[str, ...]) -> None:
        """Add several lines, indented already, as one statement."""

    def emit_nodes(self, graph: ir.Graph) -> None:
        """Add statements for every node of a graph, in order."""

    def nested(self) -> AbstractContextManager[list[Statement]]:
        """The statements of an inner graph, while it is translated."""
