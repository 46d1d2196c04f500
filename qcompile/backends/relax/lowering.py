"""Writes a planned graph as a library that TVM runs, with its parameters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qcompile.errors import TargetError
from qcompile.targets.registry import Lowered
from qcompile.targets.split_stacks import unroll
from qcompile.targets.target import Target

if TYPE_CHECKING:
    import onnx_ir as ir

    from qcompile.backends.relax.compilation import Machine
    from qcompile.backends.relax.translation import Translated

__all__ = ["OLDEST", "lower"]

LIBRARY, OBJECTS, PARAMETERS, ABOUT = "tvm.so", "tvm.tar", "tvm.params", "tvm.json"

#: The names of TVM's interfaces changed in this version.
OLDEST = (0, 27)


def check_version() -> None:
    """Raises a TargetError if the installed TVM is too old."""
    import tvm

    if tuple(int(part) for part in tvm.__version__.split(".")[:2]) < OLDEST:
        raise TargetError(f"TVM {tvm.__version__} is installed; {'.'.join(map(str, OLDEST))} or newer is needed")


def lower(model: ir.Model, target: Target, folder: Path) -> Lowered:
    """Compile a graph.

    Args:
        model: the graph; it is edited.
        target: ``options["kind"]`` is ``cpu`` (without it too) or ``cuda``; ``options["machine"]`` describes another
            machine.
        folder: exists; gets a library (objects for another machine), parameters, and a description of both.

    Raises:
        TargetError: if an operator or format cannot be lowered, or TVM does not fit.
    """
    check_version()
    from qcompile.backends.relax.compilation import build, machine
    from qcompile.backends.relax.translation import translate

    where = machine(target.options.get("machine"), target.options.get("kind", "cpu"))
    unrolled = unroll(model, routed=False)  # TVM has no sizes that depend on data
    translated = translate(model, where.lanes)
    executable = build(translated.module, where)
    files, notes = _write(executable, translated, where, folder)
    sites = unrolled.joined({site: {"kernel": how} for site, how in translated.sites.items()})
    return Lowered(tuple(files), sites, notes)


def _write(executable: Any, translated: Translated, where: Machine, folder: Path) -> tuple[list[str], dict[str, Any]]:
    """The artifact's files, and notes for the manifest."""
    import tvm

    from qcompile.backends.relax.compilation import extensions
    from qcompile.backends.relax.cuda import write_cuda

    library = LIBRARY if where.native else OBJECTS
    executable.export_library(str(folder / library))
    arrays = {name: tvm.runtime.tensor(array) for name, array in translated.parameters.items()}
    tvm.runtime.save_param_dict_to_file(arrays, str(folder / PARAMETERS))
    made_for = {"target": json.loads(str(where.target)), "tvm": tvm.__version__}
    about = {
        "library": library, **made_for, "features": extensions(where.target), "inputs": translated.inputs,
        "outputs": translated.outputs, "parameters": list(translated.parameters),
    }  # fmt: skip
    (folder / ABOUT).write_text(json.dumps(about, indent=1) + "\n")
    files = [library, PARAMETERS, ABOUT]
    if where.lanes.threads:
        more, made_for["cuda"] = write_cuda(executable, folder, made_for["target"]["arch"])
        files += more
    return files, made_for
