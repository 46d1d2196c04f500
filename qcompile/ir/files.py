"""Files that appear whole or not at all: ONNX models and arrays."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qcompile.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

__all__ = ["read_arrays", "refuse_existing", "save_arrays", "save_model", "write_json", "write_text"]

#: Stands for the standard output where a file is named.
STDOUT = Path("-")

#: Protobuf messages end at 2 GiB; above this many bytes of weights, they are written beside the graph.
INLINE_BYTES = 1_500_000_000


def refuse_existing(path: Path) -> None:
    """Never write over a file of the user.

    Raises:
        InputError: if the file, or the file for its weights, exists.
    """
    for file in (path, data_file(path)):
        if file.exists():
            raise InputError(f"'{file}' exists already: remove it or choose another file with -o")


def data_file(path: Path) -> Path:
    """Where the weights of a large model go."""
    return path.with_name(path.name + ".data")


def save_model(model: ir.Model, path: Path) -> None:
    """Write a graph as ONNX, its weights beside it where they are too large for one file.

    Raises:
        InputError: if the file exists.
    """
    import onnx_ir as ir

    refuse_existing(path)
    model = _stored_once(model)
    constants = [value.const_value for graph in model.graphs() for value in graph.initializers.values()]
    large = sum(tensor.nbytes for tensor in constants if tensor is not None) > INLINE_BYTES
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        if large:
            ir.save(model, folder / path.name, external_data=data_file(path).name)
        else:
            (folder / path.name).write_bytes(_inline(model))
        for file in sorted(folder.iterdir(), reverse=True):  # the weights first: the graph names them
            os.replace(file, path.parent / file.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _stored_once(model: ir.Model) -> ir.Model:
    """A graph in which no two constants hold one tensor, as it is or turned: a head may share an embedding table."""
    import onnx_ir as ir

    from qcompile.ir.tensors import Turned

    model = model.clone()
    constants = model.graph.initializers
    first: dict[int, ir.Value] = {}
    for name, value in list(constants.items()):
        known = first.setdefault(id(value.const_value), value)
        if known is not value and not value.is_graph_output():
            ir.convenience.replace_all_uses_with(value, known)
            del constants[name]
    for name, value in list(constants.items()):
        held = value.const_value
        if isinstance(held, Turned) and id(held.source) in first and not value.is_graph_output():
            del constants[name]
            order = ir.convenience.convert_attributes({"perm": held.order})
            node = ir.Node("", "Transpose", [first[id(held.source)]], order, outputs=[value], name=f"{name}_turned")
            value.const_value = None
            model.graph.insert_before(model.graph[0], node)
    return model


def _inline(model: ir.Model) -> bytes:
    import onnx_ir as ir

    proto = ir.to_proto(ir.external_data.load_to_model(model))
    return proto.SerializeToString(deterministic=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file at once."""
    _replace(path, text.encode())


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON, the same for the same content; ``-`` prints it."""
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    if path == STDOUT:
        sys.stdout.write(text)
    else:
        write_text(path, text)


def save_arrays(arrays: Mapping[str, np.ndarray], path: Path) -> None:
    """Write arrays as an ``.npz`` file of exactly that name, at once."""
    import io

    import numpy as np

    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]  # any of the names might be that of its option
    _replace(path, buffer.getvalue())


def _replace(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(prefix=f".{path.name}.", dir=path.parent, delete=False) as file:
        try:
            file.write(content)
            file.close()
            os.chmod(file.name, 0o644)
            os.replace(file.name, path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz`` file.

    Raises:
        InputError: if there is none, or it is not readable.
    """
    import numpy as np

    if not path.is_file():
        raise InputError(f"there is no file '{path}'")
    try:
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.ndarray):
            raise InputError(f"'{path}' holds one array without a name: write it with numpy.savez")
        with content:
            return {name: content[name] for name in content.files}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise InputError(f"'{path}' is not a readable .npz file") from error
