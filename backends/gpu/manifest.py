"""The targets that the generated Triton programs run on."""

from __future__ import annotations

from qcompile.targets import Target

__all__ = ["EXTRA", "TARGETS"]

EXTRA = "triton"

TARGETS: tuple[Target, ...] = ()
