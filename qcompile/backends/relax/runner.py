"""Runs an artifact in TVM.

Plain TVM does the same in five lines:

    about = json.load(open("tvm.json"))
    machine = tvm.relax.VirtualMachine(tvm.runtime.load_module("tvm.so"), tvm.cpu())
    parameters = tvm.runtime.load_param_dict_from_file("tvm.params")
    arguments = [tvm.runtime.tensor(inputs[entry["name"]]) for entry in about["inputs"]]
    outputs = machine["main"](*arguments, *(parameters[name] for name in about["parameters"]))
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qcompile.errors import InputError
from qcompile.run.input_names import check_names

__all__ = ["load", "rehearse"]

ABOUT, PARAMETERS = "tvm.json", "tvm.params"


def load(folder: Path, *, threads: int = 0) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
    """The artifact as a function of named inputs.

    Args:
        threads: 0 lets TVM choose.

    Raises:
        InputError: if the folder has no library for this machine, or (from the function) the inputs.
    """
    import tvm

    path = Path(folder)
    if not (path / ABOUT).is_file():
        raise InputError(f"{folder} holds no {ABOUT}: it is no artifact for TVM")
    about = json.loads((path / ABOUT).read_text())
    reason = _foreign(about)
    if reason:
        raise InputError(f"'{folder}' was compiled for another machine: {reason}")
    if threads:
        tvm.get_global_func("runtime.config_threadpool")(1, threads)
    machine = tvm.relax.VirtualMachine(tvm.runtime.load_module(str(path / about["library"])), tvm.cpu())
    stored = tvm.runtime.load_param_dict_from_file(str(path / PARAMETERS))
    parameters = [stored[name] for name in about["parameters"]]
    return lambda inputs: _run(machine["main"], parameters, about, inputs)


def rehearse(folder: Path) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]] | None:
    """As ``load``; ``None`` where the artifact was compiled for another machine."""
    return None if _foreign(json.loads((Path(folder) / ABOUT).read_text())) else load(folder)


def _foreign(about: Mapping[str, Any]) -> str:
    """Why this machine cannot run an artifact, or nothing."""
    import tvm

    target = about["target"]
    if not about["library"].endswith(".so") or target["kind"] != "llvm":
        return " ".join(str(target[key]) for key in ("kind", "mtriple", "arch") if target.get(key))
    has = tvm.target.codegen.llvm_cpu_has_features
    here = tvm.target.Target({"kind": "llvm", "mcpu": tvm.target.codegen.llvm_get_system_cpu()})
    missing = [name for name in about["features"] if not has(name, here)]
    return f"its processor has {', '.join(missing)}" if missing else ""


def _check_sizes(about: Mapping[str, Any], inputs: Mapping[str, np.ndarray]) -> None:
    """Raises an InputError where a size that the graph gives one name is not the same everywhere."""
    seen: dict[str, tuple[str, int]] = {}
    for entry in about["inputs"]:
        for name, size in zip(entry["shape"], inputs[entry["name"]].shape, strict=False):
            first, other = seen.setdefault(name, (entry["name"], size)) if isinstance(name, str) else ("", size)
            if other != size:
                raise InputError(
                    f"inputs '{first}' and '{entry['name']}' have sizes {other} and {size} where the graph says "
                    f"'{name}' of both: give the two axes names of their own"
                )


def _run(
    main: Any, parameters: list[Any], about: Mapping[str, Any], inputs: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    import tvm

    check_names(inputs, [entry["name"] for entry in about["inputs"]])
    arguments = []
    for entry in about["inputs"]:
        array = np.asarray(inputs[entry["name"]], order="C")  # also without dimensions
        if str(array.dtype) != entry["dtype"]:
            raise InputError(f"input '{entry['name']}' has type {array.dtype}, but the artifact takes {entry['dtype']}")
        arguments.append(tvm.runtime.tensor(array))
    _check_sizes(about, inputs)
    try:
        values = main(*arguments, *parameters)
    except Exception as error:  # TVM's errors have many types
        raise InputError(f"TVM cannot run the artifact: {str(error).strip().splitlines()[-1][:300]}") from error
    return {name: value.numpy() for name, value in zip(about["outputs"], values, strict=True)}
