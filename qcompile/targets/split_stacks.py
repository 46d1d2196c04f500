"""Stacks of matrices as their matrices, for runtimes whose kernels take one matrix: ordinary sites among ordinary ops.

A batched product is split along the axis of its experts into one product each; a stack without such an axis is one wide
matrix. Looked-up experts come *routed*, where the rows that chose an expert are gathered, multiplied and put back; and,
for runtimes without sizes that depend on data, as a product of every row with every expert: each row picks its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from qcompile.analysis.forms import Form, Stack, read_site
from qcompile.analysis.stacks import Experts, experts_of
from qcompile.errors import TargetError
from qcompile.formats import Quantized
from qcompile.ir import required
from qcompile.ir.graph import add_initializer, append_node, ensure_initializer, node_name
from qcompile.ir.required import dtype_of, graph_of, operand, shape_of
from qcompile.targets.plans import Plan, give_plan, planned

__all__ = ["Unrolled", "splittable", "unroll"]

#: Operators that several stacks read, by what they stand for, and how many operators were made.
_Shared = dict[tuple[object, ...], Any]


@dataclass(frozen=True)
class Unrolled:
    """A graph without stacks.

    Args:
        parts: by name of a stack's operator, the names of the planned sites that took its place.
    """

    parts: Mapping[str, Sequence[str]]

    def joined(self, sites: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
        """The notes of a backend on its sites, with the matrices of a stack as one again."""
        owners = {part: stack for stack, parts in self.parts.items() for part in parts}
        found = {name: notes for name, notes in sites.items() if name not in owners}
        for stack, parts in self.parts.items():
            joined = {**sites[parts[0]], "products": len(parts)}
            if "stored_bytes" in joined:
                joined["stored_bytes"] = sum(sites[part]["stored_bytes"] for part in parts)
            found[stack] = joined
        return found


def unroll(model: ir.Model, *, routed: bool) -> Unrolled:
    """Rewrite the planned stacks of a graph that have the form of ``Experts``; others stay as they are.

    Args:
        model: the graph; it is edited.
        routed: whether rows may be gathered by what they chose: the runtime has sizes that depend on data.
    """
    parts: dict[str, Sequence[str]] = {}
    shared: _Shared = {}
    for node, plan in planned(model):
        if (form := splittable(read_site(node))) is not None:
            rewriter = _Rewriter(model, form, plan, shared)
            parts[rewriter.name] = rewriter.rewrite(routed)
    return Unrolled(parts)


def splittable(site: Form) -> Experts | None:
    """The form of a stack that ``unroll`` rewrites; ``None`` for other sites."""
    try:
        return experts_of(site) if isinstance(site, Stack) else None
    except TargetError:
        return None


class _Rewriter:
    """One stack on its way: new operators stand in front of its own."""

    def __init__(self, model: ir.Model, form: Experts, plan: Plan, shared: _Shared) -> None:
        self.model, self.form, self.plan, self.shared = model, form, plan, shared
        self.node, self.name, self.dtype = form.site.node, node_name(form.site.node), dtype_of(form.site.weight)
        self.width = math.prod(form.size(form.free))
        self.made: list[str] = []
        self.body: ir.Graph | None = None  # where operators go, else in front of the site

    def rewrite(self, routed: bool) -> list[str]:
        """Put the new sites into the graph, each with its matrix as its plan; returns their names."""
        form, node = self.form, self.node
        if form.indices is None:
            result, letters = self._batched()
        else:
            result, letters = self._routed() if routed else self._picked()
        order = [letters.index(letter) for letter in form.output]
        if order != sorted(order):
            result = self._op("Transpose", [result], form.size(form.output), perm=order)
        old, reader, weight = node.outputs[0], form.site.reader, form.site.weight
        name, result.shape, result.type = old.name, old.shape, old.type
        ir.convenience.replace_all_uses_with(old, result, replace_graph_outputs=True)
        graph_of(node).remove(node, safe=True)
        old.name, result.name = None, name
        if reader is not node:
            graph_of(reader).remove(reader, safe=True)
        if not weight.uses() and not weight.is_graph_output():
            del self.model.graph.initializers[required.name_of(weight)]
        return self.made

    # ---- small things ------------------------------------------------------------------------------------------------

    def _op(
        self, op: str, inputs: Sequence[ir.Value], shape: Sequence[Any], dtype: ir.DataType | None = None,
        outputs: int = 1, **attributes: Any,
    ) -> Any:  # fmt: skip
        """One operator; its outputs have one shape."""
        number = self.shared["number",] = self.shared.get(("number",), 0) + 1
        name = f"{self.name}/{op}_{number}"
        if self.body is None:
            made = append_node(self.node, op, inputs, attributes, name=name, outputs=outputs).outputs
        else:
            given = ir.convenience.convert_attributes(attributes)
            made = ir.Node("", op, inputs, given, num_outputs=outputs, name=name, graph=self.body).outputs
            made[0].name = name
        for i, value in enumerate(made):
            value.name = value.name if i == 0 else f"{made[0].name}.{i}"
            own = [f"{value.name}.{axis}" if dim is None else dim for axis, dim in enumerate(shape)]
            value.shape, value.type = ir.Shape(own), ir.TensorType(dtype or self.dtype)
        return made[0] if outputs == 1 else list(made)

    def _ints(self, *items: int) -> ir.Value:
        name = f"qcompile.ints_{'_'.join(map(str, items)).replace('-', 'm')}"
        return ensure_initializer(self.model, name, np.array(items, np.int64))

    def _shared(self, *key: Any, make: Callable[[], Any]) -> Any:
        key = (self.node.graph, *key)
        if key not in self.shared:
            self.shared[key] = make()
        return self.shared[key]

    def _x(self) -> ir.Value:
        """The input without axes along which it is broadcast."""
        form, x = self.form, self.form.site.x
        if not form.dropped:
            return x
        shape = [*form.size(form.rows), shape_of(x)[-1]]
        return self._shared(
            "x", x, form.dropped, make=lambda: self._op("Squeeze", [x, self._ints(*form.dropped)], shape)
        )

    def _product(self, x: ir.Value, q: Quantized, content: Callable[[], np.ndarray], suffix: str) -> ir.Value:
        """A new site."""
        name = f"{self.form.site.weight.name}{suffix}"
        tensor = ir.LazyTensor(lambda: ir.tensor(content()), dtype=self.dtype, shape=ir.Shape(q.shape[::-1]), name=name)
        weight = add_initializer(self.model, name, tensor)
        y = self._op("MatMul", [x, weight], [*shape_of(x)[:-1], q.shape[0]])
        give_plan(y.producer(), Plan(self.plan.scheme, q))
        self.made.append(y.producer().name)
        return y

    def _each(self, parts: Sequence[ir.Value]) -> list[ir.Value]:
        """The product of each part with its own matrix."""
        form, pieces = self.form, self.form.pieces(self.plan.weight)
        return [
            self._product(part, piece, partial(form.matrix, e), f".{e}" if len(pieces) > 1 else "")
            for e, (part, piece) in enumerate(zip(parts, pieces, strict=True))
        ]

    def _unflattened(self, y: ir.Value, letters: Sequence[str]) -> tuple[ir.Value, list[str]]:
        """The outputs of matrices, which come last, as the free letters."""
        letters, free = list(letters), list(self.form.free)
        if len(free) > 1:
            sizes = self.form.size(free)
            y = self._op("Reshape", [y, self._ints(*[0] * len(letters), *sizes)], self.form.size(letters) + sizes)
        return y, letters + free

    # ---- the three ways ----------------------------------------------------------------------------------------------

    def _batched(self) -> tuple[ir.Value, list[str]]:
        """Each expert has its own rows, or all have the same: then they are one matrix."""
        form, x, letters = self.form, self._x(), list(self.form.rows)
        if form.expert is None:
            (y,) = self._each([x])
            return self._unflattened(y, letters)
        axis, count = letters.index(form.expert), form.count
        shape = [1 if i == axis else dim for i, dim in enumerate(shape_of(x))]

        def split() -> list[ir.Value]:
            return self._op("Split", [x, self._ints(*[1] * count)], shape, outputs=count, axis=axis)

        made = self._each(self._shared("split", x, axis, make=split))
        if form.expert in form.output:
            return self._unflattened(self._op("Concat", made, [*shape_of(x)[:-1], self.width], axis=axis), letters)
        total = self._op("Sum", made, [*shape[:-1], self.width])
        del shape[axis], letters[axis]
        return self._unflattened(self._op("Squeeze", [total, self._ints(axis)], [*shape[:-1], self.width]), letters)

    def _indices(self, letters: Sequence[str]) -> ir.Value:
        """Which expert, from 0 on, with an axis for each letter, of size 1 where the indices have none."""
        form, value = self.form, operand(self.form.site.reader, 1)
        shape, own = list(shape_of(value)), list(form.chosen)
        if self.form.site.reader.op_type == "GatherND":
            shape = shape[:-1]
            value = self._op("Squeeze", [value, self._ints(len(shape))], shape, value.dtype)
        if value.dtype != ir.DataType.INT64:
            value = self._op("Cast", [value], shape, ir.DataType.INT64, to=int(ir.DataType.INT64))
        order = sorted(range(len(own)), key=lambda i: letters.index(own[i]))
        shape = [shape[i] for i in order]
        if order != sorted(order):
            value = self._op("Transpose", [value], shape, value.dtype, perm=order)
        missing = [i for i, letter in enumerate(letters) if letter not in own]
        for i in missing:
            shape.insert(i, 1)
        if missing:
            value = self._op("Unsqueeze", [value, self._ints(*missing)], shape, value.dtype)
        return self._op("Mod", [value, self._ints(form.count)], shape, value.dtype)  # negative ones count from the end

    def _routed(self) -> tuple[ir.Value, list[str]]:
        """Rows gathered by expert, multiplied, and put back.

        The products stand in a body of their own, which is left out where there is no row: onnxruntime plans the
        memory of a graph in quadratic time over buffers whose sizes depend on data, two for each expert.
        """
        form, size = self.form, self.plan.weight.shape[1]
        letters = [letter for letter in form.output if letter not in form.free]
        key = form.site.x, form.indices, tuple(letters), form.rows
        lead, places, rows, counts = self._shared("routes", *key, make=lambda: self._routes(letters, size))
        there = self._op("Greater", [self._op("Size", [places], [], ir.DataType.INT64), self._ints(0)], [1],
                         ir.DataType.BOOL)  # fmt: skip
        shape = self._op("Concat", [lead, self._ints(*form.size(form.free))], [len(form.output)], ir.DataType.INT64,
                         axis=0)  # fmt: skip
        sizes = form.size([*letters, *form.free])
        self.body = ir.Graph((), (), nodes=(), name=f"{self.name}/experts")
        parts = self._op("Split", [rows, counts], [None, size], outputs=form.count, axis=0)
        made = self._each([parts] if form.count == 1 else parts)
        joined = self._op("Concat", made, [None, self.width], axis=0)
        back = self._op("ScatterND", [joined, places, joined], [None, self.width])
        self.body.outputs.append(self._op("Reshape", [back, shape], sizes))
        products = self.body
        self.body = ir.Graph((), (), nodes=(), name=f"{self.name}/nothing")
        zero = ir.tensor(np.zeros(1, self.dtype.numpy()))
        self.body.outputs.append(self._op("ConstantOfShape", [shape], sizes, value=zero))
        nothing, self.body = self.body, None
        result = self._op("If", [there], sizes, then_branch=products, else_branch=nothing)
        return result, [*letters, *form.free]

    def _routes(self, letters: Sequence[str], size: int) -> tuple[ir.Value, ir.Value, ir.Value, ir.Value]:
        """The sizes of the letters; the places of the rows in the order of their experts; those rows; each's count."""
        form, ints = self.form, ir.DataType.INT64
        x, shape = self._x(), [form.sizes[letter] if letter in form.rows else 1 for letter in letters]
        order = [form.rows.index(letter) for letter in letters if letter in form.rows]
        if order != sorted(order):
            x = self._op("Transpose", [x], [*(shape_of(x)[i] for i in order), size], perm=[*order, len(order)])
        if missing := [i for i, letter in enumerate(letters) if letter not in form.rows]:
            x = self._op("Unsqueeze", [x, self._ints(*missing)], [*shape, size])
        among = self._indices(letters)
        lead = self._op("Shape", [among], [len(letters)], ints)
        full = self._op("Concat", [lead, self._ints(1)], [len(letters) + 1], ints, axis=0)
        x = self._op("Expand", [x, full], [*form.size(letters), size])
        full = self._op("Shape", [x], [len(letters) + 1], ints)
        lead = self._op("Slice", [full, self._ints(0), self._ints(-1)], [len(letters)], ints)
        among = self._op("Reshape", [self._op("Expand", [among, lead], form.size(letters), ints), self._ints(1, -1)],
                         [1, None], ints)  # fmt: skip
        every = ensure_initializer(self.model, f"qcompile.experts_{form.count}", np.arange(form.count)[:, None])
        mine = self._op("Equal", [every, among], [form.count, None], ir.DataType.BOOL)
        ones = self._op("Cast", [mine], [form.count, None], ints, to=int(ints))
        counts = self._op("ReduceSum", [ones, self._ints(1)], [form.count], ints, keepdims=0)
        found = self._op("NonZero", [mine], [2, None], ints)
        places = self._op("Gather", [found, ensure_initializer(self.model, "qcompile.one", np.array(1))], [None], ints)
        rows = self._op("Reshape", [x, self._ints(-1, size)], [None, size])
        rows = self._op("Gather", [rows, places], [None, size])
        places = self._op("Unsqueeze", [places, self._ints(-1)], [None, 1], ints)
        return lead, places, rows, counts

    def _picked(self) -> tuple[ir.Value, list[str]]:
        """Every row times every expert, and of the results what each row chose."""
        form, x, rows = self.form, self._x(), list(self.form.rows)
        self.form = replace(form, expert=None)
        (y,) = self._each([x])
        self.form = form
        lead = form.size(rows)
        y = self._op("Reshape", [y, self._ints(*[0] * len(rows), form.count, self.width)],
                     [*lead, form.count, self.width])  # fmt: skip
        own = [letter for letter in form.chosen if letter not in rows]
        places = self._shared("picks", form.site.x, form.indices, form.rows, make=lambda: self._picks(x, rows, own))
        y = self._op("GatherND", [y, places], [*lead, *form.size(own), self.width], batch_dims=len(rows))
        return self._unflattened(y, [*rows, *own])

    def _picks(self, x: ir.Value, rows: Sequence[str], own: Sequence[str]) -> ir.Value:
        """Which expert, for every row and letter that the indices alone have."""
        form, ints, sizes = self.form, ir.DataType.INT64, self.form.size([*rows, *own])
        among = self._indices([*rows, *own])
        if not set(rows) <= set(form.chosen):
            full = self._op("Shape", [x], [len(rows) + 1], ints)
            full = self._op("Slice", [full, self._ints(0), self._ints(-1)], [len(rows)], ints)
            if own:
                full = self._op("Concat", [full, self._ints(*[1] * len(own))], [len(sizes)], ints, axis=0)
            among = self._op("Expand", [among, full], sizes, ints)
        return self._op("Unsqueeze", [among, self._ints(-1)], [*sizes, 1], ints)
