"""Torch modules as exported programs: a call of any form becomes one from named tensors to named tensors."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from qcompile.errors import InputError, first_line, reason_of
from qcompile.ir.module_paths import WRAPPED
from qcompile.ir.trees import leaves, mapped

if TYPE_CHECKING:
    from qcompile.ir.blueprint import Blueprint
    from qcompile.notes import Declined

__all__ = [
    "Adapted", "Call", "Flat", "FlatCall", "Wrapper", "adapted", "call_of", "exported", "flat_call", "named_inputs",
    "works",
]  # fmt: skip

#: Libraries some of whose modules need help to be captured, and the module that gives it; it is imported when a module
#: of the library is captured. Its ``adapt(module, call, cache)`` is a context manager that yields an ``Adapted``.
LIBRARIES = {"transformers": "qcompile.huggingface.adaptation"}


@dataclass(frozen=True)
class Call:
    """The arguments of a call of a module."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Adapted:
    """A module as it is captured.

    Args:
        module: called with ``call`` when it is traced.
        call: the example.
        declined: what was left out of it, and why.
        axes: names of axes by input and axis, where they are known.
        inputs: other names for arguments, in front of the parts of those that have parts, or for single parts.
        outputs: the same for keys and attributes of the result.
        blueprint: the configuration and the parameters of the module, where the library has such.
    """

    module: torch.nn.Module
    call: Call
    declined: tuple[Declined, ...] = ()
    axes: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)
    blueprint: Blueprint | None = None


def call_of(module: torch.nn.Module, example_inputs: Any) -> Call:
    """The call that example inputs describe: a tuple of arguments, a mapping of keywords, or one tensor.

    Raises:
        InputError: if there are none.
    """
    if isinstance(example_inputs, torch.Tensor):
        example_inputs = (example_inputs,)
    if not example_inputs:
        names = [name for name, p in inspect.signature(module.forward).parameters.items() if p.default is p.empty]
        raise InputError(
            f"capturing a torch module needs example_inputs: a tuple, or a mapping from the names of the arguments of "
            f"{type(module).__name__}.forward to tensors" + (f", such as {', '.join(names)}" if names else "")
        )
    if isinstance(example_inputs, Mapping):
        return Call((), dict(example_inputs))
    return Call(tuple(example_inputs))


@contextmanager
def adapted(module: torch.nn.Module, call: Call, cache: bool) -> Iterator[Adapted]:
    """A module as the library that it comes from wants it to be captured.

    Raises:
        InputError: if a cache is asked for, and no library knows how the module takes one.
    """
    with _of_library(module, call, cache) as found:
        yield found


def _of_library(module: torch.nn.Module, call: Call, cache: bool) -> AbstractContextManager[Adapted]:
    classes = {base for part in module.modules() for base in type(part).__mro__}
    packages = {base.__module__.partition(".")[0] for base in classes}
    for library, helper in LIBRARIES.items():
        if library in packages:
            return importlib.import_module(helper).adapt(module, call, cache)
    if cache:
        known = ", ".join(LIBRARIES)
        raise InputError(
            f"cache=True needs a module of {known}, and {type(module).__name__} is none: take the cache as an argument "
            "of forward, return it, and give it in example_inputs"
        )
    return nullcontext(Adapted(module, call))


class Wrapper(torch.nn.Module):
    """A module around another one, whose weights and operators keep their names in the graph."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        setattr(self, WRAPPED, module)

    @property
    def module(self) -> torch.nn.Module:
        """The module inside."""
        return getattr(self, WRAPPED)


class Flat(Wrapper):
    """A module as a function of the tensors of its call, which returns the tensors of its result.

    Args:
        module: called in evaluation mode.
        call: the arguments; tensors in them are replaced, all else is constant.
    """

    def __init__(self, module: torch.nn.Module, call: Call) -> None:
        super().__init__(module)
        self._call = call

    def outputs(self, *tensors: torch.Tensor) -> dict[str, torch.Tensor]:
        """The tensors of the result, by name."""
        given = iter(tensors)
        args, kwargs = mapped((self._call.args, self._call.kwargs), lambda _: next(given))
        named = dict(leaves(self.module(*args, **kwargs)))
        return {_output_name(path): tensor for path, tensor in named.items()}

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The tensors of the result."""
        return tuple(self.outputs(*tensors).values())


@dataclass(frozen=True)
class FlatCall:
    """A module with one example of its inputs, all of them tensors with names.

    Args:
        flat: the module.
        inputs: by name.
        outputs: names of what it returns.
    """

    flat: Flat
    inputs: Mapping[str, torch.Tensor]
    outputs: Sequence[str]

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """The inputs in order."""
        return tuple(self.inputs.values())


def flat_call(found: Adapted) -> FlatCall:
    """A module as a function of named tensors, run once on its example.

    A batch of one is taken twice where the module allows that: torch takes a size of one for a constant.

    Raises:
        InputError: if the module does not take its example, or returns no tensor.
    """
    module, call = found.module, found.call
    named = named_inputs(found)
    if not named:
        raise InputError(f"the example inputs of {type(module).__name__} hold no tensor")
    flat = Flat(module, call).eval()
    outputs = _run(flat, tuple(named.values()))
    if not outputs:
        raise InputError(f"{type(module).__name__} returns no tensor")
    result = FlatCall(flat, named, [_renamed(name, found.outputs) for name in outputs])
    sizes = {tensor.shape[0] for tensor in named.values() if tensor.ndim}
    if sizes == {1}:
        twice = {name: torch.cat([t, t]) if t.ndim else t for name, t in named.items()}
        if works(flat, tuple(twice.values())) is not None:
            return replace(result, inputs=twice)
    return result


def named_inputs(found: Adapted) -> dict[str, torch.Tensor]:
    """The tensors of a module's example, by the names of the graph's inputs."""
    parts = leaves(_named(found.module, found.call))  # copied: torch takes it for a property of an input to be a view
    return {_renamed(name, found.inputs): tensor.detach().clone().contiguous() for name, tensor in parts}


def _renamed(path: str, names: Mapping[str, str]) -> str:
    first, dot, rest = path.partition(".")
    return names.get(path) or names.get(first, first) + dot + rest


def _output_name(path: str) -> str:
    return "output" if not path else f"output_{path}" if path[0].isdigit() else path


def _run(flat: Flat, tensors: tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor]:
    name = type(flat.module).__name__
    try:
        with torch.no_grad():
            return flat.outputs(*tensors)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{name} does not take these example inputs: {reason_of(error)}") from error


def works(call: Callable[..., Any], tensors: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
    """The outputs of a call of other sizes; ``None`` if they are not among those that it takes."""
    try:
        with torch.no_grad():
            return call(*tensors)
    except Exception:  # whatever a module raises says that it does not take the sizes: this is the question
        return None


def _named(module: torch.nn.Module, call: Call) -> dict[str, Any]:
    """The arguments by name, in the order in which ``Flat`` puts them together."""
    parameters = list(inspect.signature(module.forward).parameters.values())
    if len(call.args) > len(parameters) and not any(p.kind is p.VAR_POSITIONAL for p in parameters):
        raise InputError(f"{type(module).__name__}.forward takes {len(parameters)} arguments, not {len(call.args)}")
    named: dict[str, Any] = {}
    for place, argument in enumerate(call.args):
        parameter = parameters[min(place, len(parameters) - 1)]
        rest = parameter.kind is parameter.VAR_POSITIONAL
        named[f"{parameter.name}.{place - len(parameters) + 1}" if rest else parameter.name] = argument
    return named | dict(call.kwargs)


def exported(call: FlatCall, dims: Sequence[Any]) -> torch.export.ExportedProgram:
    """The program of a module; ``dims`` has the dynamic axes of each input as ``torch.export`` takes them.

    Raises:
        InputError: if torch cannot trace it.
    """
    try:
        with torch.no_grad():
            return torch.export.export(call.flat, call.tensors, dynamic_shapes=(tuple(dims),), strict=False)
    except Exception as error:
        name = type(call.flat.module).__name__
        raise InputError(f"torch cannot export {name}: {first_line(error)}") from error
