"""Functions of the domain ``qcompile``: operators of ours whose body is standard ONNX."""

from __future__ import annotations

import onnx_ir as ir

__all__ = ["ALLOWZERO", "DOMAIN", "add_function", "ensure_function", "opset", "state_one_version"]

#: The domain of our own operators. Each is a function whose body is standard ONNX.
DOMAIN = "qcompile"

#: The version from which on a 0 in the shape for a Reshape may be a size, not an axis to keep.
ALLOWZERO = 14


def opset(model: ir.Model) -> int:
    """The version of the standard operators that the graph uses."""
    return model.opset_imports.get("", 18)


def ensure_function(model: ir.Model, name: str, text: str) -> str:
    """Register a function of our domain, written in ONNX's textual syntax, once.

    Args:
        model: the graph that will call it.
        name: its operator type.
        text: signature and body, without the domain and opset header, e.g.
            ``"(x, scale) => (y) { y = Mul(x, scale) }"``.
    """
    import onnx.parser

    if (DOMAIN, name, "") not in model.functions:
        header = f'<domain: "{DOMAIN}", opset_import: ["" : {opset(model)}]>'
        proto = onnx.parser.parse_function(f"{header} {name} {text}")
        add_function(model, ir.serde.deserialize_function(proto))
    return name


def add_function(model: ir.Model, function: ir.Function) -> None:
    """Register a function and import its domain."""
    model.functions[function.identifier()] = function
    model.opset_imports.setdefault(function.domain, 1)
    model.graph.opset_imports.setdefault(function.domain, 1)


def state_one_version(model: ir.Model) -> bool:
    """Let functions state the version of the graph, as which onnxruntime reads them; whether one stated another."""
    version = model.opset_imports.get("")
    if version is None:
        return False
    apart = [f.opset_imports for f in model.functions.values() if f.opset_imports.get("", version) != version]
    for imports in apart:
        imports[""] = version
    return bool(apart)
