"""Graphs in onnxruntime, in float32 or, for checks, in float64.

Every stage of the pipeline is an ordinary ONNX graph, so one executor serves them all: the source, the rotated
model, the artifact.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from qcompile.errors import InputError, first_line, runtime_message
from qcompile.ir.graph import name_sizes
from qcompile.ir.required import constant, name_of
from qcompile.ir.tensors import Turned, read
from qcompile.ir.widen import to_double
from qcompile.run.input_names import check_names
from qcompile.threads import threads

if TYPE_CHECKING:
    import onnxruntime as ort

__all__ = ["Interpreter", "Run", "Session", "double_session", "evaluate", "evaluate_double", "evaluate_in_double"]

#: A graph as a function of named inputs.
Run = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]

#: The domain of onnxruntime's own operators.
CONTRIB = "com.microsoft"

#: Graphs with fewer bytes of constants are handed over in memory.
INLINE_BYTES = 1 << 26

#: Constants below this many bytes stay in the graph in any case.
_LIGHT_BYTES = 1 << 10


#: Optimizers of onnxruntime 1.31 that end the process on some graphs: products of what was transposed and cast.
CRASHING = ["MatmulTransposeFusion"]


class Session:
    """A graph that is loaded when it is first used.

    Args:
        model: a graph, or the path of a file.
        taps: names of further values of a graph to return.
        optimize: whether onnxruntime may rewrite the graph and repack weights; without, loading is quick and small.
        threads: 0 lets onnxruntime choose.
        fold: whether what follows from constants alone is computed while the graph is loaded (onnxruntime lets no
            other thread of Python work meanwhile); without, at every run.
        traced: how the name of a file begins into which onnxruntime writes what it ran, with weights as they lie and
            rewrites that are the same on all machines; ``end_trace`` closes it.
    """

    def __init__(
        self, model: ir.Model | str | Path, taps: Sequence[str] = (), *, optimize: bool = True, threads: int = 0,
        fold: bool = True, traced: Path | None = None,
    ) -> None:  # fmt: skip
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = 4  # what fails is raised, and said in one sentence
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # other steps want the cores
        if not optimize:  # a second copy of every weight; onnxruntime's MatMulNBits is wrong without, so not always
            options.add_session_config_entry("session.disable_prepacking", "1")
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
            options.enable_cpu_mem_arena = False  # which is not given back when the session goes
        if traced is not None:
            options.add_session_config_entry("session.disable_prepacking", "1")
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
            options.enable_profiling, options.profile_file_prefix = True, str(traced)
        self._disabled = CRASHING if fold else [*CRASHING, "ConstantFolding"]
        self._weights: dict[str, ir.TensorProtocol] = {}  # that are inputs; computed at the first run
        content: bytes | str | Path
        if isinstance(model, ir.Model):
            model = _with_taps(model, taps) if taps else model.clone()
            name_sizes(model.graph)
            content = self._hand_over(model, options, optimize)
        else:
            content = model
        self._given: tuple[bytes | str | Path, ort.SessionOptions] | None = (content, options)

    @cached_property
    def _session(self) -> ort.InferenceSession:
        import onnxruntime as ort

        assert self._given is not None  # it is let go of once there is a session
        content, options = self._given
        try:
            session = ort.InferenceSession(
                content, options, providers=["CPUExecutionProvider"], disabled_optimizers=self._disabled
            )
        except Exception as error:  # onnxruntime raises classes of its own without a common base
            raise InputError(f"onnxruntime cannot load the graph: {runtime_message(error)}") from error
        self._given = None
        return session

    @cached_property
    def inputs(self) -> list[str]:
        """Names of the arguments of ``run``."""
        return [value.name for value in self._session.get_inputs() if value.name not in self._weights]

    @cached_property
    def outputs(self) -> list[str]:
        """Names of the results of ``run``, taps included."""
        return [value.name for value in self._session.get_outputs()]

    def end_trace(self) -> str:
        """End what ``traced`` began; the file that it is in."""
        return str(self._session.end_profiling())

    def _hand_over(self, model: ir.Model, options: ort.SessionOptions, optimize: bool) -> bytes | str:
        """Make a graph of it that onnxruntime takes: with its weights, or, if they are large, beside them.

        A graph that is not to be optimized gets large weights as inputs, which are not copied. One whose weights are
        computed when they are read goes through a temporary file, so that one is in memory at a time.
        """
        heavy = [v for v in model.graph.initializers.values() if v.const_value is not None and _is_heavy(v.const_value)]
        tensors = {name_of(value): constant(value) for value in heavy}
        if sum(tensor.nbytes for tensor in tensors.values()) < INLINE_BYTES:
            return ir.to_proto(ir.external_data.load_to_model(model)).SerializeToString()
        if any(map(_is_computed, tensors.values())):
            return self._write(model)
        for name in tensors:
            del model.graph.initializers[name]
        ir.external_data.load_to_model(model)
        if optimize:
            arrays = {name: _laid_out(tensor) for name, tensor in tensors.items()}
            self._kept = _give_initializers(model, options, heavy, arrays)  # onnxruntime reads some in place
        else:
            self._weights = tensors
            model.graph.inputs.extend(heavy)
            for value in heavy:  # the clone is garbage in a cycle, which may outlive the session
                value.const_value = None
        return ir.to_proto(model).SerializeToString()

    def _write(self, model: ir.Model) -> str:
        self._folder = tempfile.TemporaryDirectory(prefix="qcompile-")
        path = Path(self._folder.name) / "model.onnx"
        ir.save(model, path, external_data="model.onnx.data")
        return str(path)

    def _read_weights(self) -> dict[str, np.ndarray]:
        if not self._weights:
            return {}
        with threads(os.cpu_count() or 1) as beside:
            return dict(zip(self._weights, beside.map(_laid_out, self._weights.values()), strict=True))

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs and taps by name.

        Raises:
            InputError: if inputs are missing, unknown, or refused by an operator.
        """
        check_names(inputs, self.inputs)
        try:
            values = self._session.run(None, {**inputs, **self._read_weights()})
        except Exception as error:  # as above
            raise InputError(f"onnxruntime cannot run the graph: {runtime_message(error)}") from error
        return dict(zip(self.outputs, values, strict=True))


def _is_computed(tensor: ir.TensorProtocol) -> bool:
    """Whether a tensor is computed at every read; another order of the axes of one that is not costs nothing."""
    while isinstance(tensor, Turned):
        tensor = tensor.source
    return isinstance(tensor, ir.LazyTensor) and not tensor.cache


def _laid_out(tensor: ir.TensorProtocol) -> np.ndarray:
    return np.ascontiguousarray(read(tensor))


def _is_heavy(tensor: ir.TensorProtocol) -> bool:
    """Whether it has many bytes, of a type that NumPy has itself."""
    return tensor.nbytes > _LIGHT_BYTES and tensor.dtype.numpy().type.__module__ == "numpy"


def _give_initializers(
    model: ir.Model, options: ort.SessionOptions, heavy: Sequence[ir.Value], arrays: Mapping[str, np.ndarray]
) -> list[ort.OrtValue]:
    """Hand over constants beside the graph, which names a file for them that is never opened.

    What is returned must live as long as the session.
    """
    import onnxruntime as ort

    for value in heavy:
        tensor, shape = constant(value), ir.Shape(constant(value).shape.numpy())
        value.const_value = ir.ExternalTensor(
            "handed over", 0, tensor.nbytes, tensor.dtype, shape=shape, name=name_of(value)
        )
        model.graph.register_initializer(value)
    values = [ort.OrtValue.ortvalue_from_numpy(array) for array in arrays.values()]
    options.add_external_initializers([*arrays], values)
    return values


def _with_taps(model: ir.Model, taps: Sequence[str]) -> ir.Model:
    model = model.clone()
    values = ir.convenience.create_value_mapping(model.graph)
    present = {value.name for value in model.graph.outputs}
    model.graph.outputs.extend(values[name] for name in taps if name not in present)
    return model


def evaluate(model: ir.Model | str | Path, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run a graph once."""
    return Session(model).run(inputs)


def evaluate_double(model: ir.Model, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run a graph once in float64: by onnxruntime, or by ONNX's reference evaluator for what that lacks.

    Operators of onnxruntime's own compute in float32, where neither has any for float64.

    Raises:
        InputError: if neither can run it.
    """
    try:
        return evaluate_in_double(model, inputs)
    except InputError:
        if not any(node.domain == CONTRIB for node in model.graph.all_nodes()):
            raise
        return Session(to_double(model, single=CONTRIB)).run({name: _widened(v) for name, v in inputs.items()})


def evaluate_in_double(model: ir.Model, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same with no operator in float32.

    Raises:
        InputError: if neither can run it.
    """
    wide, feeds = to_double(model), {name: _widened(value) for name, value in inputs.items()}
    try:
        return Session(wide).run(feeds)
    except InputError:
        return Interpreter(wide).run(feeds)


def _widened(value: Any) -> Any:
    """A tensor, or each of a sequence, in float64 if it holds floating-point numbers."""
    if isinstance(value, list):
        return [_widened(element) for element in value]
    return value.astype(np.float64) if np.issubdtype(value.dtype, np.floating) else value


def double_session(
    model: ir.Model, taps: Sequence[str] = (), *, optimize: bool = True, threads: int = 0
) -> Session | Interpreter:
    """A graph in float64, ready to run, by onnxruntime if that has all of its operators for float64."""
    session = Session(model, taps, optimize=optimize, threads=threads)
    try:
        _ = session.inputs
    except InputError:
        return Interpreter(model, taps)
    return session


class Interpreter:
    """ONNX's reference evaluator with the interface of ``Session``: slow, but it has every operator for every type."""

    def __init__(self, model: ir.Model, taps: Sequence[str] = ()) -> None:
        self.inputs = [str(value.name) for value in model.graph.inputs if value.name not in model.graph.initializers]
        self._model = _with_taps(model, taps) if taps else model
        self.outputs = [str(value.name) for value in self._model.graph.outputs]

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs and taps by name.

        Raises:
            InputError: if inputs are missing or unknown, or the evaluator refuses the graph.
        """
        from onnx.reference import ReferenceEvaluator

        from qcompile.run.reference_operators import OPERATORS

        check_names(inputs, self.inputs)
        try:
            evaluator = ReferenceEvaluator(ir.to_proto(self._model), new_ops=OPERATORS)
            values: Any = evaluator.run(self.outputs, dict(inputs))
        except Exception as error:  # operators are Python functions that raise whatever comes up
            raise InputError(f"neither onnxruntime nor ONNX's evaluator runs the graph: {first_line(error)}") from error
        return dict(zip(self.outputs, values, strict=True))
