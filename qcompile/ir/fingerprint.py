"""A digest of a graph's form, which together with that of its source's weights says what it computes."""

from __future__ import annotations

import hashlib

import onnx_ir as ir

__all__ = ["fingerprint"]


def fingerprint(model: ir.Model) -> str:
    """SHA-256 over operators with their attributes, bodies and functions; of constants, names, types and shapes.

    Metadata does not count: it says where operators came from.
    """
    graph, digest = model.graph, hashlib.sha256(repr(sorted(model.opset_imports.items())).encode())
    for values in (graph.inputs, graph.initializers.values(), graph.outputs):
        digest.update(repr([(value.name, str(value.type), str(value.shape)) for value in values]).encode())
    for part in (*graph, *model.functions.values()):
        proto = ir.to_proto(part)
        del proto.metadata_props[:]
        digest.update(proto.SerializeToString(deterministic=True))
    return digest.hexdigest()
