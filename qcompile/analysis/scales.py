"""Norms that could scale their output at no cost, where nothing but sites reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qcompile.ir.required import constant, sizes_of

if TYPE_CHECKING:
    from qcompile.analysis.siblings import Siblings
    from qcompile.analysis.spaces import Analysis, Norm

__all__ = ["norm_before"]


def norm_before(analysis: Analysis, group: Siblings) -> Norm | None:
    """The norm whose scale would be that of the input of siblings; ``None`` if there is none, or others read it too."""
    node = group.value.producer()
    norm = next((norm for norm in analysis.norms if norm.node is node), None)
    if norm is None or norm.scale is None or group.nested or group.value is not norm.node.outputs[0]:
        return None
    parameters = [value for value in (norm.scale, norm.shift) if value is not None]
    if any(value.const_value is None or sizes_of(value) != (group.width,) for value in parameters):
        return None
    if norm.shift is not None and not norm.centered and constant(norm.shift).numpy().any():
        return None
    readers = {site.node for site in group.sites}
    alone = all(reader in readers or reader.op_type == "Shape" for reader, _ in group.value.uses())
    whole = all(site.ref_in is group.ref for site in group.sites)
    return norm if alone and whole and not group.value.is_graph_output() else None
