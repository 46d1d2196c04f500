"""Compiles an artifact's kernels for GPUs that are not there, in a process of its own.

Kernels that were imported for Triton's interpreter cannot be compiled, so this never shares a process with a run::

    python -m qcompile.backends.gpu.ahead FOLDER sm_90 …
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from qcompile.errors import TargetError

__all__ = ["FOLDER", "compile_ahead"]

FOLDER = "cubins"


def compile_ahead(folder: Path, arches: Sequence[str]) -> None:
    """Fill ``folder/cubins`` for every architecture, from ``folder/layout.json``.

    Raises:
        TargetError: if the compiler fails.
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_DISABLE_LINE_INFO"] = "1"  # line numbers would put this machine's paths into the binaries
    command = [sys.executable, "-m", __name__, str(folder), *arches]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["no message"]
        raise TargetError(f"triton: compilation for {', '.join(arches)} failed: {said[-1][:300]}")


def main(folder: str, *arches: str) -> None:
    """Compile every kernel configuration of the packed weights once."""
    from qcompile.backends.gpu.aot import Config, linear_configs, write

    layout = json.loads((Path(folder) / "layout.json").read_text())
    for arch in arches:
        distinct: dict[str, Config] = {}
        for entry in layout["packed"].values():
            for config in linear_configs(entry, arch) if entry["kind"] == "linear" else []:
                content = (config.kernel, config.signature, config.constants, config.aligned, config.warps)
                distinct.setdefault(repr(content), config)
        write(distinct.values(), arch, Path(folder) / FOLDER / arch)


if __name__ == "__main__":
    main(*sys.argv[1:])
