"""Shipped models in forms that do not ship: with what was before as inputs and outputs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

__all__ = ["ZOO", "shipped"]

ZOO = Path(__file__).parents[2] / "examples" / "zoo"

#: Models by the shipped one whose weights they have.
_WEIGHTS = {"language_model_cached": "language_model", "mamba_stateful": "mamba"}


def shipped(name: str, folder: Path) -> Path:
    """Write the graph of that name as the zoo's own script does."""
    command = [sys.executable, ZOO / "export.py", name, "--weights", ZOO / f"{_WEIGHTS[name]}.onnx", "--folder", folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / f"{name}.onnx"
