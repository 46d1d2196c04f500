"""Runs an artifact in onnxruntime."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from qcompile.errors import InputError, runtime_message
from qcompile.run.input_names import check_names
from qcompile.run.sequences import gathered

__all__ = ["load", "load_untransformed", "rehearse"]

FILE = "model.onnx"

#: The file of ``g (uint8[4, 64] a, int8[64, 16] b) => (int32[4, 16] c) { c = MatMulInteger(a, b) }``, opset 13: written
#: out, because an artifact is run without the package that writes such files.
PRODUCT = bytes.fromhex(
    "08083a5e0a1a0a01610a0162120163220d4d61744d756c496e74656765723a001201675a130a0161120e0a0c080212080a02"
    "08040a0208405a130a0162120e0a0c080312080a0208400a02081062130a0163120e0a0c080612080a0208040a0208104204"
    "0a00100d"
)


def load(
    folder: Path, *, keep_packed: bool = False, threads: int = 0, provider: str | None = None
) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
    """The artifact as a function of named inputs.

    Args:
        folder: of the artifact.
        keep_packed: decode emulated weights at every run instead of once, while loading: memory stays as small as
            the file, runs take longer.
        threads: 0 lets onnxruntime choose.
        provider: where it computes, ``cuda`` for ``CUDAExecutionProvider``; operators that it lacks run on the CPU.

    Raises:
        InputError: if the folder has no graph, there is no such provider here, or onnxruntime refuses the graph, or
            (from the function) the inputs.
    """
    import onnxruntime as ort

    providers = _providers(provider or "cpu")
    path = Path(folder) / FILE
    if not path.is_file():
        raise InputError(f"{folder} holds no {FILE}: it is no artifact of this target")
    options = ort.SessionOptions()
    options.log_severity_level = 4  # as in qcompile.run.session
    options.intra_op_num_threads = threads
    if _saturates():
        options.add_session_config_entry("session.x64quantprecision", "1")
    disabled = ["ConstantFolding"] if keep_packed else None
    try:
        session = ort.InferenceSession(path, options, providers, disabled_optimizers=disabled)
    except Exception as error:  # onnxruntime's exceptions have no common base of their own
        raise InputError(f"onnxruntime cannot load {path}: {runtime_message(error)}") from error
    if session.get_providers()[0] != providers[0]:  # it goes on without one that does not start
        raise InputError(f"provider '{provider}' does not start: its libraries or its device are missing here")
    return lambda inputs: _run(session, inputs)


def rehearse(folder: Path) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
    """The artifact for a few inputs: emulated weights stay packed, as to decode them all would take longer."""
    return load(folder, keep_packed=True)


def load_untransformed(
    folder: Path, *, threads: int = 0
) -> tuple[Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]], int] | None:
    """The artifact without its online transforms, and their bytes; ``None`` if it has none. Its numbers mean nothing.

    Args: as for ``load``.
    """
    from qcompile.backends.ort.untransformed import take_out  # which needs more than artifacts do to run

    with tempfile.TemporaryDirectory(prefix="qcompile-") as scratch:
        taken = take_out(Path(folder) / FILE, Path(scratch) / FILE)
        return None if taken is None else (load(Path(scratch), threads=threads), taken)


def _providers(name: str) -> list[str]:
    """The provider of a name such as ``cuda``, and the processor for whatever that leaves.

    Raises:
        InputError: listing what this installation of onnxruntime has.
    """
    import onnxruntime as ort

    known = {full.removesuffix("ExecutionProvider").lower(): full for full in ort.get_available_providers()}
    found = known.get(name.removesuffix("ExecutionProvider").lower())
    if found is None:
        raise InputError(f"onnxruntime has no provider '{name}' here; available are {', '.join(sorted(known))}")
    return list(dict.fromkeys((found, "CPUExecutionProvider")))


@cache
def _saturates() -> bool:
    """Whether MatMulInteger overflows here: x86 without VNNI adds two products of bytes in 16 bits.

    onnxruntime then has an exact mode, which costs half the speed; so the machine is asked, by one small product.
    """
    import onnxruntime as ort

    session = ort.InferenceSession(PRODUCT, providers=["CPUExecutionProvider"])
    (product,) = session.run(None, {"a": np.full((4, 64), 255, np.uint8), "b": np.full((64, 16), 127, np.int8)})
    return bool((product != 64 * 255 * 127).any())


def _run(session: Any, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    inputs = gathered(inputs, [value.name for value in session.get_inputs() if value.type.startswith("seq(")])
    check_names(inputs, [value.name for value in session.get_inputs()])
    try:
        values = session.run(None, dict(inputs))
    except Exception as error:  # as above
        raise InputError(f"onnxruntime cannot run the artifact: {runtime_message(error)}") from error
    return dict(zip((value.name for value in session.get_outputs()), values, strict=True))
