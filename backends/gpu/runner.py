"""Runs an artifact's Triton program."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from qcompile.backends.gpu.version import check_triton
from qcompile.errors import InputError, TargetError
from qcompile.evaluate import check_names

__all__ = ["import_program", "load"]

FILE = "model.py"
_PARTS = ("model", "kernels", "runtime")


def load(
    folder: Path, *, device: str | None = None, dtype: str = "float32"
) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
    """The artifact as a function of named inputs, on the GPU, or on the CPU under ``TRITON_INTERPRET=1``.

    Args:
        folder: of the artifact.
        device: a torch device other than the first GPU.
        dtype: of floats inside: ``float32``, or ``bfloat16`` for speed.

    Raises:
        InputError: if the folder has no program, or (from the function) the inputs do not fit.
        TargetError: without a GPU and without the interpreter, or with a triton that is too old.
    """
    import torch

    if not (Path(folder) / FILE).is_file():
        raise InputError(f"{folder} holds no {FILE}: it is no artifact of this target")
    check_triton()
    if device is None and not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        raise TargetError(
            "the triton runtime finds no GPU here; set TRITON_INTERPRET=1 to run under Triton's interpreter, slowly"
        )
    program = import_program(Path(folder)).load(folder, device, getattr(torch, dtype))
    return lambda inputs: _run(program, inputs)


def import_program(folder: Path) -> ModuleType:
    """The module ``model.py`` of an artifact; those of other artifacts, of the same name, stay as they are."""
    mine = [name for name in sys.modules if name.partition(".")[0] in _PARTS]
    others = {name: sys.modules.pop(name) for name in mine}
    sys.path.insert(0, str(folder.resolve()))
    try:
        importlib.invalidate_caches()
        return importlib.import_module("model")
    finally:
        sys.path.pop(0)
        for name in [name for name in sys.modules if name.partition(".")[0] in _PARTS]:
            del sys.modules[name]
        sys.modules.update(others)


def _run(program: Any, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    check_names(inputs, list(program.INPUTS))
    try:
        return program({name: np.asarray(value) for name, value in inputs.items()})
    except (RuntimeError, IndexError, ValueError) as error:  # what torch and triton raise for shapes that do not fit
        raise InputError(f"the program cannot run on these inputs: {str(error).partition(chr(10))[0][:300]}") from error
