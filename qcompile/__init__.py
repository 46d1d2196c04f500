"""qcompile: finds the basis changes that a network's graph allows, and quantizes it for a target with them.

    import qcompile as qc

    artifact = qc.export("model.onnx", target="cpu-int4")
    outputs = artifact.run({"input_ids": tokens})

Every name is imported when it is first used, so that ``import qcompile`` costs nothing.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qcompile.api import export, rotate
    from qcompile.artifact import Artifact
    from qcompile.capture import Source, capture
    from qcompile.errors import (
        GraphError,
        InputError,
        MissingExtraError,
        QCompileError,
        TargetError,
        VerificationError,
    )
    from qcompile.inspection import inspect
    from qcompile.passes_index import load_pass
    from qcompile.pipeline import Pass, Pipeline, State
    from qcompile.state_space import selective_scan, state_space_duality
    from qcompile.targets import Target, get_target
    from qcompile.verify import verify

__version__ = "0.1.0"

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
    "Artifact": "artifact",
    "GraphError": "errors",
    "InputError": "errors",
    "MissingExtraError": "errors",
    "Pass": "pipeline",
    "Pipeline": "pipeline",
    "QCompileError": "errors",
    "Source": "capture",
    "State": "pipeline",
    "Target": "targets",
    "TargetError": "errors",
    "VerificationError": "errors",
    "capture": "capture",
    "export": "api",
    "get_target": "targets",
    "inspect": "inspection",
    "load_pass": "passes_index",
    "rotate": "api",
    "selective_scan": "state_space",
    "state_space_duality": "state_space",
    "verify": "verify",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Keeps ``capture`` and ``verify`` the functions, although modules of those names are imported as well.

    Importing a submodule sets it as an attribute of its package, over whatever has its name.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
