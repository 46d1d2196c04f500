"""Runs an artifact's Triton program."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from qcompile.backends.gpu.ahead import FOLDER as CUBINS
from qcompile.backends.gpu.version import check_triton
from qcompile.errors import InputError, TargetError
from qcompile.run.input_names import check_names

__all__ = ["import_program", "load", "rehearse"]

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
    interpreted = os.environ.get("TRITON_INTERPRET") == "1" or not torch.cuda.is_available()
    foreign = None if interpreted else _foreign(Path(folder))
    where = "" if foreign is None else f" on this GPU, {foreign}, for which it was not compiled"
    return lambda inputs: _run(program, inputs, where)


def rehearse(folder: Path) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
    """As ``load``, for small inputs on any machine: without a GPU of its kind, another process runs the interpreter."""
    import torch

    own_gpu = torch.cuda.is_available() and _foreign(Path(folder)) is None
    if own_gpu or os.environ.get("TRITON_INTERPRET") == "1":
        return load(folder)
    return lambda inputs: _elsewhere(folder, inputs)


def _foreign(folder: Path) -> str | None:
    """What this machine's GPU is, if the program was compiled for others alone."""
    import torch

    if torch.version.hip is not None:
        arch = torch.cuda.get_device_properties().gcnArchName.partition(":")[0]
    else:
        arch = "sm_{}{}".format(*torch.cuda.get_device_capability())
    compiled = folder / CUBINS
    return arch if compiled.is_dir() and not (compiled / arch).is_dir() else None


def _elsewhere(folder: Path, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    with tempfile.TemporaryDirectory(prefix="qcompile-") as scratch:
        given, made = Path(scratch) / "inputs.npz", Path(scratch) / "outputs.npz"
        arrays: dict[str, Any] = dict(inputs)  # else one of them might be savez's own argument
        np.savez(given, **arrays)
        command = [sys.executable, "-m", __name__, str(folder), str(given), str(made)]
        done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
        if done.returncode:
            said = done.stderr.strip().splitlines() or ["no message"]
            raise TargetError(f"the program fails under Triton's interpreter: {said[-1][:300]}")
        with np.load(made) as outputs:
            return {name: outputs[name] for name in outputs.files}


def import_program(folder: Path) -> ModuleType:
    """The module ``model.py`` of an artifact; those of other artifacts, of the same name, stay as they are."""
    mine = [name for name in sys.modules if name.partition(".")[0] in _PARTS]
    others = {name: sys.modules.pop(name) for name in mine}
    sys.path.insert(0, str(folder.resolve()))
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # the artifact stays as it is
    try:
        importlib.invalidate_caches()
        return importlib.import_module("model")
    finally:
        sys.path.pop(0)
        sys.dont_write_bytecode = writes
        for name in [name for name in sys.modules if name.partition(".")[0] in _PARTS]:
            del sys.modules[name]
        sys.modules.update(others)


def _run(program: Any, inputs: Mapping[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
    check_names(inputs, list(program.INPUTS))
    try:
        return program({name: np.asarray(value) for name, value in inputs.items()})
    except (RuntimeError, IndexError, ValueError) as error:  # what torch and triton raise for shapes that do not fit
        said = str(error).partition("\n")[0][:300]
        raise InputError(f"the program cannot run on these inputs{where}: {said}") from error


if __name__ == "__main__":
    with np.load(sys.argv[2]) as arrays:
        results: dict[str, Any] = load(Path(sys.argv[1]))({name: arrays[name] for name in arrays.files})
        np.savez(sys.argv[3], **results)
