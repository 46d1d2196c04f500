"""The top of an artifact of several graphs: each is an artifact in a folder of its own, under the name of its part."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qcompile.artifact.artifact import Artifact, write_manifest
from qcompile.artifact.asked import options_entry

if TYPE_CHECKING:
    from qcompile.choice.export_options import Options

__all__ = ["write_top"]

GRAPH = "model.onnx"


def write_top(
    folder: Path, parts: Mapping[str, Artifact], source: Path, options: Options, along: Iterable[Path]
) -> dict[str, Any]:  # fmt: skip
    """Write the manifest above the parts of an artifact, and beside it their ONNX files under the names of optimum.

    Args:
        folder: holds the parts; gets ``PART_model.onnx`` of those that have an ONNX file.
        parts: by name.
        source: what they were made from.
        options: as the user gave them.
        along: files that go along with the model.
    """
    from qcompile import __version__

    graphs = {name: _beside(folder, name) for name, part in parts.items() if (part.folder / GRAPH).is_file()}
    along = tuple(along)
    manifest = {
        "qcompile": __version__,
        "source": {"path": str(source)},
        "target": options.target,
        "seed": options.seed,
        "options": options_entry(options),
        "parts": {name: {"onnx": graphs.get(name)} for name in parts},
        "files": sorted([*parts, *graphs.values()]),
        "along": [file.name for file in along],
    }
    write_manifest(folder, manifest, along)
    return manifest


def _beside(folder: Path, part: str) -> str:
    """The name of a part's ONNX file at the top; weights that stand beside the graph are read where they are."""
    import onnx_ir as ir

    from qcompile.ir.tensors import initializers

    own, name = folder / part / GRAPH, f"{part}_model.onnx"
    model = ir.load(own)
    outside = [v for _, v in initializers(model) if isinstance(v.const_value, ir.ExternalTensor)]
    if not outside:
        _linked(own, folder / name)
        return name
    for value in outside:
        tensor = value.const_value
        assert isinstance(tensor, ir.ExternalTensor)
        value.const_value = ir.ExternalTensor(
            Path(part) / tensor.location, tensor.offset, tensor.length, tensor.dtype, shape=tensor.shape,
            name=str(tensor.name), base_dir=folder,
        )  # fmt: skip
    ir.save(model, folder / name)
    return name


def _linked(file: Path, name: Path) -> None:
    """Give a file another name; where the file system has one name for each, a copy has it."""
    try:
        os.link(file, name)
    except OSError:
        shutil.copyfile(file, name)
