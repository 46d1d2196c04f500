"""Compiles an artifact's kernels for GPUs that are not there, in a process of its own.

Kernels that were imported for Triton's interpreter cannot be compiled, so this never shares a process with a run::

    python -m qcompile.backends.gpu.ahead FOLDER sm_90 …
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qcompile.errors import TargetError

if TYPE_CHECKING:
    from qcompile.backends.gpu.aot import Config

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
    from qcompile.backends.gpu.aot import linear_configs

    layout, work = json.loads((Path(folder) / "layout.json").read_text()), []
    for arch in arches:
        distinct: dict[str, Config] = {}
        for entry in layout["packed"].values():
            for config in linear_configs(entry, arch) if entry["kind"] == "linear" else []:
                content = (config.kernel, config.signature, config.constants, config.aligned, config.warps)
                distinct.setdefault(repr(content), config)
        work += [(config, arch, Path(folder) / FOLDER / arch) for config in distinct.values()]
    workers = min(os.cpu_count() or 1, len(work))
    if workers < 2 or "fork" not in multiprocessing.get_all_start_methods():
        for one in work:
            _compile(*one)
        return
    with multiprocessing.get_context("fork").Pool(workers) as pool:  # each has imported what this process has
        pool.starmap(_compile, work, chunksize=1)


def _compile(config: Config, arch: str, folder: Path) -> None:
    from qcompile.backends.gpu.aot import write

    write([config], arch, folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
