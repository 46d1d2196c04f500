"""qcompile finds the basis changes that a network's graph allows, and uses them to quantize it for a target.

    import qcompile as qc

    artifact = qc.export("model.onnx", target="cpu-int4")
    outputs = artifact.run({"input_ids": tokens})

Every name is imported when it is first used, so that ``import qcompile`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qcompile.api import export, rotate
    from qcompile.artifact.artifact import Artifact
    from qcompile.comparison import compare
    from qcompile.errors import (
        GraphError,
        InputError,
        MissingExtraError,
        QCompileError,
        TargetError,
        VerificationError,
    )
    from qcompile.inspection import inspect, verify
    from qcompile.ir.capture import Source, capture
    from qcompile.ir.state_space import selective_scan, state_space_duality
    from qcompile.passes.index import load_pass
    from qcompile.passes.pipeline import Pass, Pipeline
    from qcompile.passes.state import State
    from qcompile.targets.registry import get_target
    from qcompile.targets.target import Target

__version__ = "0.2.0"

__all__ = [
    "Artifact",
    "GraphError",
    "InputError",
    "MissingExtraError",
    "Pass",
    "Pipeline",
    "QCompileError",
    "Source",
    "State",
    "Target",
    "TargetError",
    "VerificationError",
    "__version__",
    "capture",
    "compare",
    "export",
    "get_target",
    "inspect",
    "load_pass",
    "rotate",
    "selective_scan",
    "state_space_duality",
    "verify",
]

#: The module of each public name.
_HOMES = {
    "Artifact": "artifact.artifact",
    "GraphError": "errors",
    "InputError": "errors",
    "MissingExtraError": "errors",
    "Pass": "passes.pipeline",
    "Pipeline": "passes.pipeline",
    "QCompileError": "errors",
    "Source": "ir.capture",
    "State": "passes.state",
    "Target": "targets.target",
    "TargetError": "errors",
    "VerificationError": "errors",
    "capture": "ir.capture",
    "compare": "comparison",
    "export": "api",
    "get_target": "targets.registry",
    "inspect": "inspection",
    "load_pass": "passes.index",
    "rotate": "api",
    "selective_scan": "ir.state_space",
    "state_space_duality": "ir.state_space",
    "verify": "inspection",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
