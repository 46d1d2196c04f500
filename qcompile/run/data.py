"""Data to run a model on: given in any form that ``sources`` knows, or drawn at random where there is none."""

from __future__ import annotations

import ast
import itertools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

import numpy as np
import onnx_ir as ir

from qcompile.errors import InputError
from qcompile.ir.required import dtype_of, name_of, operand, sizes_of
from qcompile.run.reading import Reading
from qcompile.run.sequences import is_sequence, tensors
from qcompile.run.sources import DataLike, batches_of, describe_inputs, input_values

__all__ = ["Data", "Draw", "accepted", "example_inputs", "hold_out", "load_data"]

#: Elements of the largest input that is drawn: open dimensions are smaller where there are many.
DRAWN_ELEMENTS = 1 << 24

#: Elements of a sequence that is drawn.
DRAWN_SEQUENCE = 2
#: Sequences that are held out: a quarter of few, one in twelve of many. Of less than four nothing can be judged.
_LEAST, _FEW, _MOST = 4, 8, 32

#: Batches of what is learned from, at least: how much these differ says how far their mean can be trusted.
_PARTS = 8


@dataclass(frozen=True)
class Draw:
    """How random inputs are drawn: what dynamic dimensions are, in front and elsewhere, and what flags say."""

    first: int = 2
    other: int = 16
    flag: bool = True


#: How random inputs are drawn, the most usual first: with other lengths, and flags the other way round.
_LENGTHS = ((2, 16), (1, 16), (2, 64), (1, 224), (2, 8), (1, 1))
DRAWS = tuple(Draw(first, other, flag) for first, other in _LENGTHS for flag in (True, False))


@dataclass(frozen=True)
class Data:
    """Inputs to calibrate with, one batch each.

    Args:
        batches: mappings from input name to array.
        random: whether they were drawn at random because no data was given.
        option: the option of the command that gives data, for messages.
        held_out: sequences that nothing is fitted on, one each; empty where there are too few to judge by.
        sizes: sequences of each batch, where some are held out.
    """

    batches: tuple[Mapping[str, np.ndarray], ...]
    random: bool
    option: str = "--calibration"
    held_out: tuple[Mapping[str, np.ndarray], ...] = ()
    sizes: tuple[int, ...] = ()

    @property
    def about(self) -> str:
        """The data in words, for messages."""
        return "random data, drawn because no calibration data was given," if self.random else "the data"

    @property
    def too_few(self) -> str:
        """Why nothing is fitted to it, where nothing is held out."""
        if self.random:
            return "there is no calibration data"
        return f"the data has less than {_LEAST} sequences, too few to judge on others what is learned from some"

    @property
    def unlearned(self) -> Data:
        """Some of what nothing is fitted on: sequences that were held out, or the first batch where none was."""
        return replace(self, batches=self.held_out[:_FEW] or self.batches[:1], sizes=())

    def digest(self) -> str:
        """SHA-256 over all that is learned from or judged by, and how it was split."""
        found = sha256(repr((self.random, self.sizes)).encode())
        for part in (self.batches, self.held_out):
            for batch in (tensors(batch) for batch in part):
                found.update(repr([(name, a.dtype.str, a.shape) for name, a in batch.items()]).encode())
                for array in batch.values():
                    found.update(array.tobytes())
        return found.hexdigest()

    def first(self, count: int) -> Data:
        """The same with the first batches alone."""
        return replace(self, batches=self.batches[:count], sizes=self.sizes[:count])

    def thinned(self, sequences: int) -> Data:
        """The same with so many sequences to learn from, of all batches alike; all that there are for 0 or for more."""
        if not 0 < sequences < sum(self.sizes):
            return self
        most = next(n for n in itertools.count(1) if sum(min(n, size) for size in self.sizes) >= sequences)
        pairs = zip(self.batches, self.sizes, strict=True)
        picked = tuple(_picked(batch, size, range(min(most, size))) for batch, size in pairs)
        return replace(self, batches=picked, sizes=tuple(min(most, size) for size in self.sizes))

    def in_batches(self, sequences: int) -> Data:
        """The same in batches of so many sequences that are learned from, at most."""
        pairs = list(zip(self.batches, self.sizes, strict=True))
        parts = [(*pair, range(i, min(i + sequences, pair[1]))) for pair in pairs for i in range(0, pair[1], sequences)]
        return replace(self, batches=tuple(_picked(*part) for part in parts), sizes=tuple(len(p) for _, _, p in parts))


def load_data(
    source: DataLike | None, model: ir.Model, *, seed: int = 0, batches: int = 8, option: str = "--calibration",
    reading: Reading | None = None,
) -> Data:  # fmt: skip
    """Data in any of the forms of ``sources``, or random inputs.

    Every array holds rows along its first axis; they are cut into batches.

    Args:
        source: the data; ``None`` for random inputs.
        model: the graph that is to take them.
        seed: of random inputs.
        batches: how many of these.
        option: the option of the command that the data came with, or would.
        reading: how texts and images are read.

    Raises:
        InputError: if a file is missing or unreadable, or names or types are not those of the graph's inputs.
    """
    if source is None:
        return Data(_drawn(model, seed, batches), random=True, option=option)
    found = tuple(batches_of(source, model, option, reading or Reading()))
    if not found:
        raise InputError(f"the data holds nothing; the model takes {describe_inputs(model)}")
    return Data(found, random=False, option=option)


def hold_out(data: Data, model: ir.Model) -> Data:
    """The same data, of which some sequences are kept to judge what is learned from the others; not of random data.

    A sequence is an entry of the first axis, where the graph leaves that open, else a whole batch: what stands beside
    a row in a text is like it, and would praise what was fitted on that text. They are taken evenly from all.
    """
    if data.random:
        return data
    sizes = [_entries(batch, model) for batch in data.batches]
    total = sum(sizes)
    if total < _LEAST:
        return data
    count = max(2, min(total // 4, max(_FEW, total // 12), _MOST))
    chosen = np.zeros(total, bool)
    chosen[np.linspace(0, total - 1, count + 2).round().astype(int)[1:-1]] = True
    sizes_learned: list[int] = []
    held_out, learned, step = [], [], max(1, (total - count) // _PARTS)
    for batch, own in zip(data.batches, np.split(chosen, np.cumsum(sizes)[:-1]), strict=True):
        held_out += [_picked(batch, len(own), [i]) for i in np.flatnonzero(own).tolist()]
        rest = np.flatnonzero(~own).tolist()
        parts = [rest[i : i + step] for i in range(0, len(rest), step)]
        learned += [_picked(batch, len(own), part) for part in parts]
        sizes_learned += map(len, parts)
    return replace(data, batches=tuple(learned), held_out=tuple(held_out), sizes=tuple(sizes_learned))


def _entries(batch: Mapping[str, np.ndarray], model: ir.Model) -> int:
    """Entries of the first axis, if they can be taken apart."""
    first = {name_of(v): v.shape[0] for v in input_values(model) if v.shape is not None and len(v.shape)}
    if not all(isinstance(array, np.ndarray) for array in batch.values()):
        return 1  # a sequence of tensors has entries of another kind
    given = [name for name, array in batch.items() if array.ndim]
    if any(isinstance(first.get(name, 1), int) for name in given):
        return 1
    names = {str(dim.value) for name in given if not isinstance(dim := first[name], int) and dim.value is not None}
    sizes = {batch[name].shape[0] for name in given}
    return max(1, sizes.pop()) if len(sizes) == 1 and len(names) <= 1 else 1


def _picked(batch: Mapping[str, np.ndarray], of: int, entries: Sequence[int]) -> Mapping[str, np.ndarray]:
    """Some of so many entries."""
    if len(entries) == of:
        return batch
    return {name: array[entries] if array.ndim else array for name, array in batch.items()}


# -- random data -------------------------------------------------------------------------------------------------------


def _drawn(model: ir.Model, seed: int, batches: int, draw: Draw = DRAWS[0]) -> tuple[dict[str, np.ndarray], ...]:
    return tuple(example_inputs(model, seed=seed + i, draw=draw) for i in range(batches))


def accepted(
    model: ir.Model, data: Data, run: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]], seed: int = 0
) -> tuple[Data, Mapping[str, np.ndarray]]:
    """Data that a model takes, and its outputs for the first batch.

    Random inputs that it refuses, or answers with nothing but NaN, are drawn again in other ways: a mask may be all
    set or all clear, a length may have to be a multiple of something.

    Raises:
        InputError: if it takes none of them.
    """
    refusals: list[InputError] = []
    flags = any(value.dtype == ir.DataType.BOOL for value in model.graph.inputs)
    for draw in [draw for draw in DRAWS if draw.flag or flags] if data.random else DRAWS[:1]:
        if draw is not DRAWS[0]:
            data = replace(data, batches=_drawn(model, seed, len(data.batches), draw))
        try:
            outputs = run(data.batches[0])
            if all(map(_says_something, tensors(outputs).values())):
                return data, outputs
            raise InputError("the model gives nothing but NaN and infinity")
        except InputError as error:
            refusals.append(error)
    first = refusals[0]
    if not data.random:
        raise first
    reason = f"the model takes no random inputs: give it real ones with {data.option}; {first}"
    raise InputError(f"{reason}. It takes {describe_inputs(model)}") from first


def _says_something(array: np.ndarray) -> bool:
    return not np.issubdtype(array.dtype, np.floating) or array.size == 0 or bool(np.isfinite(array).any())


def example_inputs(
    model: ir.Model, *, seed: int = 0, sizes: Mapping[str, int] | None = None, draw: Draw | None = None
) -> dict[str, np.ndarray]:
    """Random inputs of a graph's declared shapes and types; ``sizes`` are of dynamic dimensions, by name.

    Integers are drawn below the smallest table that they index, so that every lookup is in range.
    """
    rng, draw = np.random.default_rng(seed), draw or Draw()
    values = input_values(model)
    shapes = _shapes(values, sizes or {}, draw)
    while draw.other > 1 and max(map(math.prod, shapes), default=0) > DRAWN_ELEMENTS:
        draw = replace(draw, other=draw.other // 2)
        shapes = _shapes(values, sizes or {}, draw)
    drawn: dict[str, Any] = {}
    for value, shape in zip(values, shapes, strict=True):
        count = DRAWN_SEQUENCE if is_sequence(value) else 1
        elements = [_random(value, shape, rng, draw.flag) for _ in range(count)]
        drawn[name_of(value)] = elements if count > 1 else elements[0]
    return drawn


def _shapes(values: Sequence[ir.Value], sizes: Mapping[str, int], draw: Draw) -> list[list[int]]:
    symbols = dict(sizes)
    return [[_dimension(dim, i, symbols, draw) for i, dim in enumerate(value.shape or ())] for value in values]


def _dimension(dim: Any, position: int, symbols: dict[str, int], draw: Draw) -> int:
    """A size for a dimension: of equal names and of sums and products of names, such as ``past + length``, too."""
    if isinstance(dim, int):
        return dim
    name = str(dim.value) if dim.value is not None else f"?{position}"
    default = draw.first if position == 0 else draw.other
    try:
        size = _computed(ast.parse(name, mode="eval").body, symbols, default)
    except (SyntaxError, KeyError, ZeroDivisionError):
        size = 0
    return size if size > 0 else symbols.setdefault(name, default)


def _computed(expression: ast.AST, symbols: dict[str, int], default: int) -> int:
    if isinstance(expression, ast.Name):
        return symbols.setdefault(expression.id, default)
    if isinstance(expression, ast.Constant) and isinstance(expression.value, int):
        return expression.value
    if not isinstance(expression, ast.BinOp):
        raise KeyError(expression)
    left, right = (_computed(side, symbols, default) for side in (expression.left, expression.right))
    return _ARITHMETIC[type(expression.op)](left, right)


_ARITHMETIC = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.floordiv,
    ast.FloorDiv: operator.floordiv,
}  # fmt: skip


def _random(value: ir.Value, shape: Sequence[int], rng: np.random.Generator, flag: bool) -> np.ndarray:
    dtype = dtype_of(value)
    if dtype == ir.DataType.BOOL:
        return np.full(shape, flag)
    if dtype.is_floating_point():
        return rng.standard_normal(shape).astype(dtype.numpy())
    return rng.integers(0, _table_rows(value), shape).astype(dtype.numpy())


def _table_rows(value: ir.Value) -> int:
    """The fewest rows of a table that an integer input indexes directly; 2 where it indexes none."""
    tables = [operand(node, 0) for node, index in value.uses() if node.op_type == "Gather" and index == 1]
    return min((sizes_of(table)[0] for table in tables if table.const_value is not None), default=2)
