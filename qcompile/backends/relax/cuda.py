"""The CUDA source of an executable, and what nvcc makes of it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qcompile.errors import TargetError

__all__ = ["write_cuda"]

SOURCE, BINARY = "tvm.cu", "tvm.cubin"


def write_cuda(executable: Any, folder: Path, arch: str) -> tuple[list[str], str]:
    """Write the kernels' source and, where nvcc is installed, the binary for ``arch``.

    Returns:
        the files, and a sentence on how far they were checked.

    Raises:
        TargetError: if nvcc refuses the source.
    """
    sources = [module.inspect_source() for module in _modules(executable.mod) if module.kind == "cuda"]
    (folder / SOURCE).write_text("\n".join(sources))
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return [SOURCE], "not compiled: nvcc is not installed; not run: this needs a GPU and a TVM built with CUDA"
    command = [nvcc, "-w", f"-arch={arch}", "-cubin", "-o", str(folder / BINARY), str(folder / SOURCE)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        wrong = [line for line in result.stderr.splitlines() if "error" in line] or ["no reason given"]
        raise TargetError(f"nvcc refuses the CUDA source for {arch}: {wrong[0]}")
    return [SOURCE, BINARY], f"compiled by nvcc for {arch}; not run: this needs a GPU and a TVM built with CUDA"


def _modules(module: Any) -> Iterator[Any]:
    yield module
    for child in module.imports:
        yield from _modules(child)
