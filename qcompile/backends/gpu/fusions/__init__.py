"""Rewrites before code generation, each small: several operators become one node that has a kernel."""

from __future__ import annotations

import onnx_ir as ir

from qcompile.backends.gpu.fusions import attention, gates, modulation, norms, rotary

__all__ = ["fuse"]


def fuse(model: ir.Model) -> None:
    """All of them, in order; sites and transforms are nodes of ours already."""
    for step in (attention, rotary, gates, modulation, norms):
        step.fuse(model)
    norms.absorb(model)
