"""Captures a model: an ONNX file, an exported program, or a torch module, as one ``onnx_ir.Model``.

Weights of ONNX files stay where they are, memory-mapped, until a pass needs them.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from qcompile.errors import InputError, first_line
from qcompile.ir.functions import state_one_version
from qcompile.ir.graph import check_graph, name_standard_domain, open_dimensions
from qcompile.ir.required import constant
from qcompile.ir.tensors import check_weights, initializers, weights_of
from qcompile.ir.widen import computes_in_bfloat16, to_single

if TYPE_CHECKING:
    import torch

__all__ = ["Source", "begin_capture", "capture"]

#: The opset that torch programs are exported to.
TORCH_OPSET = 23


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
    """

    model: ir.Model
    path: str
    digest: Callable[[], str]
    bytes: int
    check: Callable[[], bool]
    widened: bool

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
    example_inputs: Sequence[Any] = (),
    *,
    dynamic_shapes: Any = None,
    input_names: Sequence[str] | None = None,
) -> Source:
    """Capture a model and check that it can be worked with.

    Args:
        model: an ``.onnx`` file (external data beside it), a ``.pt2`` file, an exported program, or a module.
        example_inputs: positional inputs, for a module.
        dynamic_shapes: as in ``torch.export.export``, for a module; without it, shapes are those of the inputs.
        input_names: names of the graph's inputs, for torch programs.

    Raises:
        InputError: if the file is missing, truncated, of an unknown kind, lacks external data, or holds NaN.
    """
    source = begin_capture(model, example_inputs, dynamic_shapes=dynamic_shapes, input_names=input_names)
    source.check()
    return source


def begin_capture(
    model: Any, example_inputs: Sequence[Any] = (), *, dynamic_shapes: Any = None,
    input_names: Sequence[str] | None = None,
) -> Source:  # fmt: skip
    """``capture`` whose weights may still be looked at when it returns: ``Source.check`` waits for that."""
    if isinstance(model, Source):
        return model
    if isinstance(model, ir.Model):
        return _from_model(model, "<model>")
    if isinstance(model, str | Path):
        path = Path(model)
        if not path.is_file():
            raise InputError(f"there is no file '{path}'")
        if path.suffix == ".pt2":
            return _from_torch(_load_program(path), str(path), input_names)
        return _from_onnx(path)
    return _from_torch(_export_program(model, example_inputs, dynamic_shapes), type(model).__name__, input_names)


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


def _load_program(path: Path) -> torch.export.ExportedProgram:
    import torch

    import qcompile.ir.state_space  # noqa: F401  (registers operators that the program may call)

    try:
        return torch.export.load(path)
    except (RuntimeError, ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise InputError(f"'{path}' is not a readable exported program: {first_line(error)}") from error


def _export_program(model: Any, inputs: Sequence[Any], dynamic_shapes: Any) -> torch.export.ExportedProgram:
    import torch

    if isinstance(model, torch.export.ExportedProgram):
        return model
    if not isinstance(model, torch.nn.Module):
        raise InputError(f"cannot capture a {type(model).__name__}: give an ONNX file, a .pt2 file or a torch module")
    if not inputs:
        raise InputError("capturing a torch module needs example inputs")
    return torch.export.export(model.eval(), tuple(inputs), dynamic_shapes=dynamic_shapes)


def _from_torch(program: torch.export.ExportedProgram, path: str, input_names: Sequence[str] | None) -> Source:
    import torch

    from qcompile.ir.state_space import add_bodies, translations

    exported = torch.onnx.export(
        program, dynamo=True, opset_version=TORCH_OPSET, input_names=input_names, verbose=False,
        custom_translation_table=translations(),
    )  # fmt: skip
    assert exported is not None  # as it is for the older exporter alone
    add_bodies(exported.model)
    return _from_model(exported.model, path)


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
