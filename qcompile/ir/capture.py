"""Captures a model: an ONNX file, an exported program, or a torch module, as one ``onnx_ir.Model``.

Weights of ONNX files stay where they are, memory-mapped, until a pass needs them.
"""

from __future__ import annotations

import hashlib
import importlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from qcompile.errors import InputError, first_line
from qcompile.ir.functions import state_one_version
from qcompile.ir.graph import check_graph, name_standard_domain, open_dimensions
from qcompile.ir.required import constant
from qcompile.ir.tensors import check_weights, initializers, weights_of
from qcompile.ir.widen import computes_in_bfloat16, to_single
from qcompile.notes import Declined

if TYPE_CHECKING:
    import torch

__all__ = ["Source", "begin_capture", "capture"]

#: The module that knows folders; it stands above this one, and is imported when a folder is captured.
FOLDERS = "qcompile.huggingface.saved"


@dataclass(frozen=True)
class Source:
    """A captured model.

    Args:
        model: the graph; passes work on a clone, so that it stays what was captured.
        path: the file that it came from, or the module's class name.
        digest: gives the SHA-256 over the file and its external data, which is computed beside what follows.
        bytes: size of the file and its external data, or of the weights of a module.
        widened: whether the file computes in bfloat16 and the graph in float32: onnxruntime lacks the former on a CPU.
        check: says whether no weight holds infinity, or raises InputError where one holds NaN; beside, too.
        declined: what of a module was left out, and why.
        cache: whether a decoder was captured with its cache; ``None`` where that was not a question.
        part: which graph of an encoder-decoder it is; ``None`` where it is the whole.
        along: files that an artifact has to take along.
    """

    model: ir.Model
    path: str
    digest: Callable[[], str]
    bytes: int
    check: Callable[[], bool]
    widened: bool
    declined: tuple[Declined, ...] = ()
    cache: bool | None = None
    part: str | None = None
    along: tuple[Path, ...] = ()

    @property
    def sha256(self) -> str:
        """Hexadecimal, over the file and its external data."""
        return self.digest()

    @property
    def finite(self) -> bool:
        """Whether no weight holds infinity.

        Raises:
            InputError: if one holds NaN.
        """
        return self.check()


def capture(
    model: Source | ir.Model | str | Path | torch.nn.Module | torch.export.ExportedProgram,
    example_inputs: Any = (),
    *,
    dynamic_shapes: Any = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    cache: bool | None = None,
    part: str | None = None,
) -> Source:
    """Capture a model and check that it can be worked with.

    Args:
        model: an ``.onnx`` file (external data beside it), a ``.pt2`` file, a folder of Hugging Face, an exported
            program, or a module.
        example_inputs: for a module, its arguments: a tuple, or a mapping by name. Tensors in tuples, mappings,
            dataclasses and caches become inputs, all else is constant.
        dynamic_shapes: as in ``torch.export.export``, for a module, with names allowed as dimensions; without it, open
            axes are found. ``{}`` fixes all shapes.
        input_names: names of the graph's inputs, for torch programs; those of the arguments without.
        output_names: names of its outputs; the keys and attributes of the result without.
        cache: whether a decoder takes its cache, ``past_key_values.N.key``, and returns it, ``present.N.key``; by
            default those of folders do.
        part: of a folder with an encoder-decoder, one graph: ``encoder``, ``decoder`` or ``decoder_with_past``.

    Raises:
        InputError: if the file is missing, truncated, of an unknown kind, lacks external data, or holds NaN, or if a
            module does not take its example inputs or cannot be traced.
    """
    source = begin_capture(
        model, example_inputs, dynamic_shapes=dynamic_shapes, input_names=input_names, output_names=output_names,
        cache=cache, part=part,
    )  # fmt: skip
    source.check()
    return source


def begin_capture(
    model: Any, example_inputs: Any = (), *, dynamic_shapes: Any = None, input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None, cache: bool | None = None, part: str | None = None,
) -> Source:  # fmt: skip
    """``capture`` whose weights may still be looked at when it returns: ``Source.check`` waits for that."""
    if part is not None and not (isinstance(model, str | Path) and Path(model).is_dir()):
        raise InputError(f"part '{part}' is one of a folder of Hugging Face, and the model is none")
    if isinstance(model, Source):
        return model
    if isinstance(model, ir.Model):
        return _from_model(model, "<model>")
    if isinstance(model, str | Path):
        path = Path(model)
        if path.is_dir():
            return _from_folder(path, dynamic_shapes, input_names, output_names, cache, part)
        if not path.is_file():
            raise InputError(f"there is no file '{path}'")
        if path.suffix == ".pt2":
            from qcompile.ir.programs import load_program

            return _from_program(load_program(path), str(path), input_names, output_names)
        return _from_onnx(path)
    import torch

    name = type(model).__name__
    if isinstance(model, torch.export.ExportedProgram):
        return _from_program(model, name, input_names, output_names)
    if not isinstance(model, torch.nn.Module):
        raise InputError(f"cannot capture a {name}: give an ONNX file, a .pt2 file or a torch module")
    return _from_module(model, example_inputs, dynamic_shapes, input_names, output_names, cache)


# -- ONNX files --------------------------------------------------------------------------------------------------


def _from_onnx(path: Path) -> Source:
    from google.protobuf.message import DecodeError

    try:
        model = ir.load(path)
    except ir.serde.SerdeError as error:
        if "Map types" in (cause := _root_cause(error)):
            raise InputError(f"'{path}' has values that are maps: cut off what makes them, such as ZipMap") from error
        raise InputError(f"'{path}' is not a valid ONNX graph: {cause}") from error
    except (DecodeError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"'{path}' is not a readable ONNX model: it is truncated or of another kind") from error
    if not (len(model.graph) or model.graph.outputs) or not model.opset_imports:
        raise InputError(f"'{path}' is not a readable ONNX model: it has no graph, so it is truncated or empty")
    name_standard_domain(model)
    state_one_version(model)
    files = [path, *_external_files(model, path)]
    check_graph(model, str(path))
    beside = ThreadPoolExecutor(1)
    check = beside.submit(check_weights, weights_of(model), str(path))
    digest = beside.submit(_digest, files)
    beside.shutdown(wait=False)
    size = sum(file.stat().st_size for file in files)
    _sort(model, str(path))
    open_dimensions(model)
    return Source(model, str(path), digest.result, size, check.result, _widen(model))


def _widen(model: ir.Model) -> bool:
    if found := computes_in_bfloat16(model):
        to_single(model)
    return found


def _sort(model: ir.Model, path: str) -> None:
    """Put the nodes in an order in which they can run: some exporters do not."""
    from onnx_ir.passes.common import TopologicalSortPass

    try:
        TopologicalSortPass()(model)
    except ValueError as error:
        raise InputError(f"'{path}' is not a valid ONNX graph: {_root_cause(error)}") from error


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)


def _external_files(model: ir.Model, path: Path) -> list[Path]:
    """The files beside the model that hold its weights; tensors are made to name them as they really are.

    A model may name files of its own folder alone. Links are the user's own, and followed: downloads are kept so.
    """
    files: dict[Path, None] = {}
    for name, value in initializers(model):
        tensor = value.const_value
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        location = Path(os.path.normpath(tensor.location))
        file = path.parent / location
        if location.is_absolute() or location.parts[0] == "..":
            raise InputError(f"'{path}' keeps weight '{name}' in '{file}', outside of its own folder")
        if not file.is_file():
            raise InputError(f"'{path}' keeps weight '{name}' in '{file}', which is missing")
        if (tensor.offset or 0) + tensor.nbytes > file.stat().st_size:
            raise InputError(f"'{file}' is too short for weight '{name}' of '{path}': it is truncated")
        files[file] = None
        value.const_value = ir.ExternalTensor(
            file.resolve(), tensor.offset, tensor.length, tensor.dtype, shape=tensor.shape, name=name, base_dir=""
        )
    return list(files)


def _digest(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with open(file, "rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


# -- torch ---------------------------------------------------------------------------------------------------------


def _from_folder(
    folder: Path, dynamic_shapes: Any, input_names: Sequence[str] | None, output_names: Sequence[str] | None,
    cache: bool | None, part: str | None,
) -> Source:  # fmt: skip
    loaded = importlib.import_module(FOLDERS).load_folder(folder, cache, part)
    names = dynamic_shapes, input_names, output_names
    source = _from_module(loaded.module, loaded.example_inputs, *names, loaded.cache)
    return replace(source, path=str(folder), part=part, along=loaded.along)


def _from_module(
    module: torch.nn.Module, example_inputs: Any, dynamic_shapes: Any, input_names: Sequence[str] | None,
    output_names: Sequence[str] | None, cache: bool | None,
) -> Source:  # fmt: skip
    from qcompile.ir.blueprint import give_blueprint
    from qcompile.ir.dynamic import trace
    from qcompile.ir.modules import adapted, call_of, flat_call
    from qcompile.ir.programs import to_onnx

    module.eval()
    with adapted(module, call_of(module, example_inputs), bool(cache)) as found:
        call = flat_call(found)
        traced = trace(call, dynamic_shapes, found.axes)
        inputs = _replaced(list(call.inputs), input_names, "input")
        own = [f"{name}_out" if name in inputs else name for name in call.outputs]  # a name stands for one value
        outputs = _replaced(own, output_names, "output")
        model = to_onnx(traced.program, inputs, outputs, traced.symbols)
    give_blueprint(model, found.blueprint)
    source = _from_model(model, type(module).__name__)
    return replace(source, declined=found.declined, cache=bool(cache))


def _from_program(
    program: torch.export.ExportedProgram, path: str, input_names: Sequence[str] | None,
    output_names: Sequence[str] | None,
) -> Source:  # fmt: skip
    from qcompile.ir.programs import to_onnx

    return _from_model(to_onnx(program, input_names, output_names), path)


def _replaced(names: Sequence[str], given: Sequence[str] | None, what: str) -> Sequence[str]:
    """Names that were given, if there are as many as there must be."""
    if given is None:
        return names
    if len(given) != len(names):
        raise InputError(f"there are {len(given)} {what} names for {len(names)} {what}s: {', '.join(names)}")
    return given


def _from_model(model: ir.Model, path: str) -> Source:
    name_standard_domain(model)
    state_one_version(model)
    check_graph(model, path)
    finite = check_weights(weights_of(model), path)
    digest, size = hashlib.sha256(), 0
    for name, value in initializers(model):
        digest.update(name.encode())
        digest.update(constant(value).tobytes())
        size += constant(value).nbytes
    for node in model.graph:
        digest.update(repr((node.op_type, [v.name if v else "" for v in node.inputs])).encode())
    return Source(model, path, digest.hexdigest, size, lambda: finite, _widen(model))
