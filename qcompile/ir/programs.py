"""Exported programs as ONNX graphs."""

from __future__ import annotations

import logging
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from qcompile.errors import InputError, first_line
from qcompile.ir.graph import append_node, name_outputs, node_name
from qcompile.ir.module_paths import WRAPPED

if TYPE_CHECKING:
    import torch

__all__ = ["load_program", "to_onnx"]

#: The opset that torch programs are exported to.
TORCH_OPSET = 23


def load_program(path: Path) -> torch.export.ExportedProgram:
    """Read a ``.pt2`` file.

    Raises:
        InputError: if torch cannot read it.
    """
    import torch

    import qcompile.ir.state_space  # noqa: F401  (registers operators that the program may call)

    try:
        return torch.export.load(path)
    except (RuntimeError, ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise InputError(f"'{path}' is not a readable exported program: {first_line(error)}") from error


def to_onnx(
    program: torch.export.ExportedProgram, input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None, symbols: Mapping[str, str] | None = None,
) -> ir.Model:  # fmt: skip
    """Translate a program.

    Args:
        program: exported by torch.
        input_names: names of the graph's inputs; torch's without.
        output_names: names of its outputs; torch's without.
        symbols: other names for the symbols in its shapes.

    Raises:
        InputError: if an operator has no translation, or there are other numbers of names.
    """
    import torch

    from qcompile.ir.state_space_export import add_bodies, translations

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it tells which optional libraries are not installed
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)  # of torch, about itself
            exported = torch.onnx.export(
                program, dynamo=True, opset_version=TORCH_OPSET, input_names=input_names, verbose=False,
                custom_translation_table=translations(),
            )  # fmt: skip
    except torch.onnx.OnnxExporterError as error:
        raise InputError(f"torch cannot translate the program to ONNX: {_cause(error)}") from error
    assert exported is not None  # as it is for the older exporter alone
    model = exported.model
    add_bodies(model)
    _give_angles_the_batch(model)
    if output_names is not None:
        if len(output_names) != len(model.graph.outputs):
            raise InputError(f"there are {len(output_names)} output names for {len(model.graph.outputs)} outputs")
        name_outputs(model, list(output_names))
    _rename_symbols(model, symbols or {})
    _unwrap_names(model)
    return model


def _cause(error: BaseException) -> str:
    """The sentence of an error of the exporter that says what it lacks; its message is a report of many lines."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]


def _give_angles_the_batch(model: ir.Model) -> None:
    """Expand angles that all sequences share: a fusion of the exporter leaves them a batch of one, and the operator
    takes as many angles as sequences."""
    for node in [node for node in model.graph.all_nodes() if node.op_type == "RotaryEmbedding" and node.domain == ""]:
        x, angles, name = node.inputs[0], node.inputs[1:3], node_name(node)
        if len(node.inputs) > 3 or x is None:
            continue
        batch = append_node(node, "Shape", [x], {"start": 0, "end": 1}, name=f"{name}_batch").outputs[0]
        for what, (place, value) in zip(("cosines", "sines"), enumerate(angles, 1), strict=True):
            rest = append_node(node, "Shape", [value], {"start": 1}, name=f"{name}_{what}_rest").outputs[0]
            shape = append_node(node, "Concat", [batch, rest], {"axis": 0}, name=f"{name}_{what}_shape").outputs[0]
            wide = append_node(node, "Expand", [value, shape], name=f"{name}_{what}").outputs[0]
            node.replace_input_with(place, wide)


def _rename_symbols(model: ir.Model, names: Mapping[str, str]) -> None:
    """Give symbols in the shapes of all values other names, in sums and products of symbols too; the exporter leaves
    some numbers as symbols."""
    for value in (*model.graph.inputs, *(value for node in model.graph.all_nodes() for value in node.outputs)):
        if value.shape is not None and any(isinstance(dim, ir.SymbolicDim) for dim in value.shape):
            value.shape = ir.Shape([_renamed(dim, names) for dim in value.shape])


def _renamed(dim: int | ir.SymbolicDim, names: Mapping[str, str]) -> int | str | None:
    if isinstance(dim, int) or dim.value is None:
        return dim if isinstance(dim, int) else None
    renamed = re.sub(r"\w+", lambda word: names.get(word[0], word[0]), dim.value)
    return int(renamed) if renamed.isdigit() else renamed


def _unwrap_names(model: ir.Model) -> None:
    """Take wrappers out of the names of weights and of the scopes of operators."""
    wrapped = re.compile(rf"\b(?:{WRAPPED}\.?)+")
    others = {value.name for value in model.graph.inputs} | {v.name for n in model.graph.all_nodes() for v in n.outputs}
    for name, value in list(model.graph.initializers.items()):
        own = wrapped.sub("", name)
        value.name = f"{own}_weight" if own in others else own
    for node in model.graph.all_nodes():
        found = {key: text for key, text in node.metadata_props.items() if WRAPPED in text}
        node.metadata_props.update({key: wrapped.sub("", text) for key, text in found.items()})
