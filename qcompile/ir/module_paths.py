"""The module that an operator came from: exporters leave its path in metadata, in names of operators, or of weights."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["SCOPES", "innermost", "module_of_parameter", "module_path"]

#: The modules around an operator, outermost first, and its own name in the program: torch's exporter writes them.
SCOPES = "pkg.torch.onnx.name_scopes"

#: What torch's exporter writes where no module is known.
_NOWHERE = "_empty_nn_module_stack_from_metadata_hook"

#: The attribute in which a wrapper of ours keeps a module; it is no part of anybody's paths.
WRAPPED = "qcompile_module"

#: The name of a parameter, as torch has it.
_PARAMETER = re.compile(r"[A-Za-z_]\w*(\.\w+)+")


def module_path(node: ir.Node, weight: str | None = None) -> str | None:
    """The path of the module that an operator came from, such as ``model.layers.3.mlp.down_proj``.

    The metadata of torch's exporter says it; else a name such as ``/model/layers.3/mlp/down_proj/MatMul``, as the older
    exporter and TensorFlow's write it; else the name of the weight, whose last part is its own.

    Args:
        weight: the name of the operator's weight.

    Returns:
        ``None`` where nothing says it.
    """
    return _of_scopes(node.metadata_props.get(SCOPES)) or _of_name(node.name or "") or module_of_parameter(weight or "")


def _of_scopes(text: str | None) -> str | None:
    try:
        scopes = ast.literal_eval(text) if text else []
    except (SyntaxError, ValueError):  # of another writer
        return None
    around = scopes[:-1] if isinstance(scopes, list | tuple) else []
    return next((scope for scope in reversed(around) if isinstance(scope, str) and scope and scope != _NOWHERE), None)


def innermost(text: str) -> str:
    """Scopes that say the same path in fewer words."""
    path = _of_scopes(text)
    return text if path is None else str([path, ""])


def _of_name(name: str) -> str | None:
    return ".".join(filter(None, name.split("/")[:-1])) or None


def module_of_parameter(name: str) -> str | None:
    """The module of a parameter by its own name; ``None`` for names of other kinds."""
    return name.rpartition(".")[0] if _PARAMETER.fullmatch(name) else None
