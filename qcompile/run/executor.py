"""The engine: a graph, or a part of it, as a function of torch, on any device, differentiable, in one dtype.

It is written as source from the same table of operators as programs that ship (``qcompile.operators``). What has no row
there runs in onnxruntime, node by node, stops gradients, and is listed. It runs whole, or in sections (``stream``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from qcompile.errors import InputError, first_line
from qcompile.ir.graph import node_name
from qcompile.ir.required import constant, name_of
from qcompile.ir.tensors import initializers, on_device, origin, release
from qcompile.operators.precision import MIXED, ONE
from qcompile.run.flat_copy import flat_copy
from qcompile.run.foreign import Foreign, Part
from qcompile.run.generated import Generated, Section, compiled
from qcompile.run.input_names import check_names

if TYPE_CHECKING:
    from qcompile.notes import Decline

__all__ = ["Executor", "Hook", "Section", "dtype_for"]

#: Sees a value; what it returns, if anything, takes the place of the value.
Hook = Callable[[Tensor], Tensor | None]


class Executor:
    """A graph as a function of named tensors.

    Weights are read when they are first used, and kept on the device; ``weights`` has them by the names of constants: a
    tensor put there beforehand is taken instead, and may require gradients. ``sources`` may have functions that make
    some of them on the device.

    Args:
        model: the graph; it stays as it is.
        inputs: names of values that are given, by default the inputs of the graph.
        outputs: names of values to return, by default the outputs of the graph.
        hooked: names of values that hooks may be given for.
        dtype: of floats: float32, float64, or bfloat16, in which what it would spoil stays float32.
        device: where it computes.

    Raises:
        InputError: if there is no value of a name, or a value is needed that follows from none of those given.
    """

    def __init__(
        self, model: ir.Model, *, inputs: Sequence[str] | None = None, outputs: Sequence[str] | None = None,
        hooked: Collection[str] = (), dtype: torch.dtype = torch.float32, device: str = "cpu",
    ) -> None:  # fmt: skip
        self.device, self.dtype = torch.device(device), dtype
        self.weights: dict[str, Tensor] = {}
        self.sources: dict[str, Callable[[torch.device], Tensor]] = {}
        own = flat_copy(model, inputs, outputs)
        precision = MIXED if dtype.itemsize < 4 else ONE
        program = Generated(own, hooked, precision)
        inner = [value for value in own.graph.inputs if not value.is_initializer()]
        self.inputs = [name_of(value) for value in inner]
        self._kinds = [dtype if value.dtype in precision.narrow else torch.float32 for value in inner]
        self.outputs = [name_of(value) for value in own.graph.outputs]
        self.foreign = {node_name(node): reason for node, _, reason in program.foreign}
        self.hooked = frozenset(program.hooks)
        self.source = program.source()
        self._program, self._graph = program, own.graph
        self._foreign = [Foreign(own, node, part) for node, part, _ in program.foreign]
        self._constants = program.weights
        self._wide: dict[str, Tensor] = {}
        self._forward = compiled(self.source)

    def __call__(self, given: Mapping[str, Any], hooks: Mapping[str, Hook] | None = None) -> dict[str, Tensor]:
        """Outputs by name.

        Args:
            given: tensors or arrays; floats are brought to ``dtype``.
            hooks: by name of values, all of them among ``hooked``.

        Raises:
            InputError: if inputs are missing or unknown, a hook is for a value that the graph does not compute so, or
                torch refuses an operator.
        """
        tensors = self.arguments(given).values()
        with _computing():
            values = self._forward(self._frame(hooks or {}, {}), *tensors)
        return dict(zip(self.outputs, values, strict=True))

    def _frame(self, hooks: Mapping[str, Hook], weights: Mapping[str, Tensor]) -> _Frame:
        lost = sorted(set(hooks) - self.hooked)
        if lost:
            raise InputError(f"the engine has no hook at {', '.join(lost)}")
        return _Frame(self, {self._program.hooks.index(name): hook for name, hook in hooks.items()}, weights)

    # -- in sections ---------------------------------------------------------------------------------------------------

    def arguments(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The variables of the inputs, which the first section reads."""
        check_names(given, self.inputs)
        pairs = zip(self._program.inputs, self.inputs, self._kinds, strict=True)
        return {variable: self._tensor(given[name], kind) for variable, name, kind in pairs}

    def variable(self, name: str) -> str:
        """The variable that holds a value, among what sections read and write, after its hook."""
        return self._program.variable_of(name)

    def sections(self, begins: Collection[str] = ()) -> list[Section]:
        """The graph in sections, of which one begins at each of these operators, by name."""
        return self._program.sections(begins)

    def step(
        self, section: Section, variables: Mapping[str, Any], hooks: Mapping[str, Hook] | None = None,
        weights: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """The variables that later sections read.

        Args:
            variables: what the sections before have left.
            hooks: as for the whole.
            weights: constants by name, in the place of the graph's for this once.

        Raises:
            InputError: as for the whole.
        """
        frame = self._frame(hooks or {}, weights or {})
        with _computing():
            return dict(zip(section.writes, section.run(frame, *(variables[n] for n in section.reads)), strict=True))

    def results(self, variables: Mapping[str, Any]) -> dict[str, Tensor]:
        """Outputs by name, of what the last section has left."""
        return dict(zip(self.outputs, self._program.results_of(variables, self.weight), strict=True))

    def constants_of(self, section: Section) -> list[str]:
        """Names of the constants that a section reads."""
        return [self._constants[attribute][0].name or attribute for attribute in section.constants]

    def forget(self, section: Section, later: Section | None = None) -> None:
        """Let go of the constants of a section, but for those that another one reads."""
        kept = set() if later is None else {*self.constants_of(later)}
        for attribute, name in zip(section.constants, self.constants_of(section), strict=True):
            if name not in kept:
                self.weights.pop(name, None)
                self._wide.pop(name, None)
                release(constant(self._constants[attribute][0]))

    @property
    def result_variables(self) -> list[str]:
        """Variables that the outputs are, but for constants."""
        return [text for text in self._program.results if not text.startswith("self.")]

    @property
    def weight_bytes(self) -> int:
        """Bytes of all constants, as the engine holds them."""
        return sum(self._bytes_of(value) for value in {value for value, _ in self._constants.values()})

    def cuts(self, most: int) -> list[str]:
        """Names of operators at which sections begin that read so many bytes of constants at most, or a single one."""
        found, seen, size = [], set[ir.Value](), 0
        for node in self._graph:
            own = Part()
            own.add(node)
            read_ = {value for value in own.reads if value.const_value is not None} - seen
            more = sum(map(self._bytes_of, read_))
            if size and size + more > most:
                found.append(node_name(node))
                seen, size = set(), 0
            seen |= read_
            size += more
        return found

    def _bytes_of(self, value: ir.Value) -> int:
        tensor = constant(value)
        return int(tensor.size * (self.dtype.itemsize if tensor.dtype.is_floating_point() else 8))

    def _tensor(self, value: Any, dtype: torch.dtype) -> Any:
        if isinstance(value, list):  # a sequence
            return [self._tensor(element, dtype) for element in value]
        tensor = value if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
        return tensor.to(self.device, dtype if tensor.dtype.is_floating_point else None)

    def weight(self, attribute: str, instead: Mapping[str, Tensor] | None = None) -> Tensor:
        """A constant of the graph on the device, by the name that it has in the source.

        Args:
            instead: constants by their own names, in the place of the graph's.
        """
        value, mode = self._constants[attribute]
        name = value.name or attribute
        if instead and name in instead:
            return instead[name].to(torch.float32 if mode == "wide" else self.dtype)
        if mode == "wide":
            if name in self.weights:
                return self.weights[name].float()
            if name not in self._wide:
                self._wide[name] = self._read(name, value, torch.float32)
            return self._wide[name]
        if name not in self.weights:
            self.weights[name] = self._read(name, value, self.dtype)
        return self.weights[name]

    def _read(self, name: str, value: ir.Value, dtype: torch.dtype) -> Tensor:
        found = self.sources[name](self.device) if name in self.sources else on_device(constant(value), self.device)
        return found.to(self.device, dtype if found.is_floating_point() else None)

    def tell(self, decline: Decline) -> None:
        """Tell which operators onnxruntime runs, and why."""
        for name, reason in self.foreign.items():
            decline(name, "computing it in torch", f"{reason}; onnxruntime computes it, without gradients")

    def foreign_node(self, number: int) -> Foreign:
        """A node that onnxruntime runs."""
        return self._foreign[number]


@contextmanager
def _computing() -> Iterator[None]:
    """Let float32 be float32, as convolutions of GPUs are not by default, and say in a sentence what torch refuses."""
    try:
        with torch.backends.cudnn.flags(allow_tf32=False):
            yield
    except (RuntimeError, IndexError, ValueError) as error:  # what torch raises for shapes, and without memory
        raise InputError(f"the engine cannot run the graph: {first_line(error)}") from error


class _Frame:
    """The ``self`` of generated source: constants are its attributes."""

    def __init__(self, executor: Executor, hooks: Mapping[int, Hook], weights: Mapping[str, Tensor]) -> None:
        self.device, self.dtype = executor.device, executor.dtype
        self._executor, self._hooks, self._weights = executor, hooks, weights

    def __getattr__(self, name: str) -> Tensor:
        return self._executor.weight(name, self._weights)

    def hook(self, number: int, value: Tensor) -> Tensor:
        """A value after its hook, if it has one now."""
        found = self._hooks.get(number)
        replaced = None if found is None else found(value)
        return value if replaced is None else replaced

    def apart(self, number: int, *values: Tensor) -> tuple[Tensor, ...]:
        """The outputs of a node that onnxruntime runs."""
        wide = torch.promote_types(self.dtype, torch.float32)
        return self._executor.foreign_node(number)(values, self.device, wide)


def dtype_for(model: ir.Model, device: str) -> torch.dtype:
    """The dtype that a graph is computed in: float32, as float64 is where the graph has it.

    On a GPU, graphs whose weights came in bfloat16 are computed so: their activations were never more precise.
    """
    sizes: Counter[ir.DataType] = Counter()
    for _, value in initializers(model):
        tensor = origin(constant(value))
        sizes[tensor.dtype] += tensor.size
    kind = max((kind for kind in sizes if kind.is_floating_point()), key=sizes.__getitem__, default=ir.DataType.FLOAT)
    if kind is ir.DataType.DOUBLE:
        return torch.float64
    return torch.bfloat16 if kind is ir.DataType.BFLOAT16 and device != "cpu" else torch.float32
