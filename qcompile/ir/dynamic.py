"""Axes of a module's inputs whose size is open: those that a user names, or those that the module turns out to take.

Found ones are traced as open wherever torch can, and then tried out: an axis is open if the module runs with another
size of it, and the traced program gives the same there. Axes that can only change together get one name.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from qcompile.errors import InputError
from qcompile.ir.modules import FlatCall, exported, works

__all__ = ["Traced", "trace"]

#: Largest relative difference of the traced program from the module at another size; a wrong trace is far beyond it.
TOLERANCE = 1e-2


@dataclass(frozen=True)
class Traced:
    """A traced module.

    Args:
        program: its inputs and outputs are tensors.
        symbols: the name of each symbol in its shapes.
    """

    program: torch.export.ExportedProgram
    symbols: Mapping[str, str]


def trace(call: FlatCall, dynamic_shapes: Any = None, axes: Mapping[str, Mapping[int, str]] | None = None) -> Traced:
    """Trace a module with open axes.

    Args:
        call: the module and its example.
        dynamic_shapes: a tuple by argument or a mapping by name, each ``{axis: Dim or name}``, ``None`` for a fixed
            shape; nothing at all to find open axes.
        axes: names for axes that are found; of inputs that stand there, no other axes are tried.

    Raises:
        InputError: if torch cannot export it, or an axis is named that no input has.
    """
    if dynamic_shapes is not None:
        dims = _given(call, dynamic_shapes)
        names = {name: {i: _dim_name(d) for i, d in dims[name].items()} for name in call.inputs}
        program = exported(call, [dict(dims[name]) for name in call.inputs])
        return Traced(program, _names(call, program, names, {}))
    auto = torch.export.Dim.AUTO
    axes = axes or {}
    tried = {name: axes.get(name, range(tensor.ndim)) for name, tensor in call.inputs.items()}
    wanted = {name: dict.fromkeys(found, auto) for name, found in tried.items()}
    program = exported(call, list(wanted.values()))
    fixed, tied = _tried(call, program)
    if fixed:
        for name, shape in zip(call.inputs, _shapes(program), strict=True):
            for axis, size in enumerate(shape):
                if _symbols(size) & fixed:
                    wanted[name].pop(axis, None)
        program = exported(call, list(wanted.values()))
        fixed, tied = _tried(call, program)
    return Traced(program, _names(call, program, axes, tied))


# -- axes that are given -----------------------------------------------------------------------------------------------


def _given(call: FlatCall, dynamic_shapes: Any) -> dict[str, dict[int, Any]]:
    """The dimensions of each input, as the user states them; a name stands for a dimension of that name."""
    found: dict[str, dict[int, Any]] = {name: {} for name in call.inputs}
    named: dict[str, Any] = {}
    arguments = list(dict.fromkeys(name.partition(".")[0] for name in call.inputs))
    if not isinstance(dynamic_shapes, Mapping):
        dynamic_shapes = dict(zip(arguments, dynamic_shapes, strict=False))
    for path, axis, dim in _stated(dynamic_shapes, ""):
        names = [path] if path in found else []
        if not names:
            raise InputError(f"dynamic_shapes names '{path}', but the inputs are {', '.join(found)}")
        if not -call.inputs[path].ndim <= axis < call.inputs[path].ndim:
            raise InputError(f"dynamic_shapes names axis {axis} of '{path}', which has {call.inputs[path].ndim} axes")
        if isinstance(dim, str):
            dim = named.setdefault(dim, torch.export.Dim(dim))
        found[path][axis % call.inputs[path].ndim] = dim
    return found


def _stated(spec: Any, path: str) -> Iterator[tuple[str, int, Any]]:
    """Each dimension of a nested statement, with the path of its input and its axis."""
    if isinstance(spec, Mapping) and all(isinstance(key, int) for key in spec):
        yield from ((path, axis, dim) for axis, dim in spec.items() if dim is not None)
    elif isinstance(spec, Mapping):
        for key, part in spec.items():
            yield from _stated(part, f"{path}.{key}" if path else key)
    elif isinstance(spec, Sequence) and not isinstance(spec, str):
        if any(isinstance(part, Mapping | Sequence) and not isinstance(part, str) for part in spec):
            for i, part in enumerate(spec):
                yield from _stated(part, f"{path}.{i}")
        else:
            yield from ((path, axis, dim) for axis, dim in enumerate(spec) if dim is not None)


def _dim_name(dim: Any) -> str:
    name = getattr(dim, "__name__", "")
    return name if re.fullmatch(r"[A-Za-z_]\w*", name) else ""


# -- axes that are found -----------------------------------------------------------------------------------------------


def _shapes(program: torch.export.ExportedProgram) -> list[tuple[Any, ...]]:
    """The shape of each input: numbers, and what torch knows of the others."""
    inputs = set(program.graph_signature.user_inputs)
    return [
        tuple(node.meta["val"].shape)
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in inputs
    ]


def _symbols(size: Any) -> set[str]:
    return set() if isinstance(size, int) else {str(symbol) for symbol in size.node.expr.free_symbols}


def _tried(call: FlatCall, program: torch.export.ExportedProgram) -> tuple[set[str], dict[str, str]]:
    """Symbols of axes that have to be fixed, and symbols that change together, by the first of them."""
    shapes = _shapes(program)
    sizes: dict[str, int] = {}
    first: dict[str, int] = {}  # the axis on which a symbol stands first
    for shape in shapes:
        for axis, size in enumerate(shape):
            if len(_symbols(size)) == 1 and str(size) in _symbols(size):
                sizes.setdefault(str(size), int(size.node.hint))
                first.setdefault(str(size), axis)
    run, fixed, tied = program.module(check_guards=False), set[str](), dict[str, str]()
    for symbol in sizes:
        if symbol in tied:
            continue
        together = [other for other in sizes if first[other] == first[symbol] and sizes[other] == sizes[symbol]]
        if _takes(call, run, shapes, sizes, [symbol]):
            continue
        if len(together) > 1 and _takes(call, run, shapes, sizes, together):
            tied |= dict.fromkeys(together, together[0])
            continue
        fixed.add(symbol)
    return fixed, tied


def _takes(call: FlatCall, run: Any, shapes: Sequence[Any], sizes: Mapping[str, int], symbols: Sequence[str]) -> bool:
    """Whether a module, and its program with it, takes another size for some symbols."""
    size = sizes[symbols[0]]
    for other in (2 * size, size // 2):  # one more would not do: it may be cut off by a stride
        if other < 2:
            continue
        changed = {**sizes, **dict.fromkeys(symbols, other)}
        tensors = tuple(
            _resized(tensor, [_evaluated(dim, changed) for dim in shape])
            for tensor, shape in zip(call.tensors, shapes, strict=True)
        )
        wanted = works(call.flat, tensors)
        if wanted is not None and (found := works(run, tensors)) is not None and _equal(found, wanted):
            return True
    return False


def _evaluated(dim: Any, sizes: Mapping[str, int]) -> int:
    if isinstance(dim, int):
        return dim
    expression = dim.node.expr
    known = {symbol: sizes[str(symbol)] for symbol in expression.free_symbols if str(symbol) in sizes}
    return int(expression.subs(known))


def _resized(tensor: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """A tensor of another shape, out of values that it has."""
    for axis, size in enumerate(shape):
        if size != tensor.shape[axis]:
            tensor = tensor.index_select(axis, torch.arange(size) % tensor.shape[axis])
    return tensor


def _equal(found: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> bool:
    """Whether two results are one up to rounding."""
    for one, other in zip(found, wanted, strict=True):
        if one.shape != other.shape:
            return False
        if one.numel() and (one.double() - other.double()).norm() > TOLERANCE * other.double().norm():
            return False
    return True


# -- names -------------------------------------------------------------------------------------------------------------


def _names(
    call: FlatCall, program: torch.export.ExportedProgram, axes: Mapping[str, Mapping[int, str]],
    tied: Mapping[str, str],
) -> dict[str, str]:  # fmt: skip
    """A name for every symbol: the given one, or one after the input and axis on which it stands first."""
    names: dict[str, str] = {}
    for (name, tensor), shape in zip(call.inputs.items(), _shapes(program), strict=True):
        for axis, size in enumerate(shape):
            if str(size) in _symbols(size) and str(size) not in names:
                own = axes.get(name, {}).get(axis) or names.get(tied.get(str(size), ""))
                names[str(size)] = own or _plain_name(name, tensor, axis, names.values())
    return names


def _plain_name(name: str, tensor: torch.Tensor, axis: int, taken: Collection[str]) -> str:
    """``batch``, ``length`` for the second axis of a table of numbers such as tokens, or the input and the axis."""
    usual = {0: "batch", 1: "length" if tensor.ndim == 2 and not tensor.is_floating_point() else None}.get(axis)
    return usual if usual is not None and usual not in taken else f"{re.sub(r'[^0-9A-Za-z]', '_', name)}_{axis}"
