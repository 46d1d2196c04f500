"""The two commands as functions: the same options as on the command line, for Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qcompile.choice.selection import Options
from qcompile.compiler import export as _export
from qcompile.compiler import rotate

if TYPE_CHECKING:
    from qcompile.artifact.artifact import Artifact
    from qcompile.statistics.calibration import Progress

__all__ = ["default_folder", "export", "rotate"]


def default_folder(model: Any, target: str) -> Path:
    """Where an artifact goes by default: ``NAME.TARGET`` in the current folder, after the file or the class."""
    if isinstance(model, str | Path):
        name = Path(model).stem
    else:
        name = Path(getattr(model, "path", None) or type(model).__name__).stem
    return Path(f"{name}.{target}")


def export(
    model: Any,
    target: str,
    folder: str | Path | None = None,
    *,
    budget: Mapping[str, float] | None = None,
    calibration: str | Path | None = None,
    evaluation: str | Path | None = None,
    formats: Sequence[str] = (),
    transforms: str = "auto",
    method: str = "gptq",
    seed: int = 0,
    device: str = "cpu",
    tvm_target: str | None = None,
    progress: Progress | None = None,
    **capture_options: Any,
) -> Artifact:
    """Compile a model for a target.

    Args:
        model: what ``capture`` takes or returns: a path, a module with ``example_inputs=``, an exported program.
        target: a name that ``qcompile targets`` lists.
        folder: where the artifact goes; it must not exist. By default ``default_folder``.
        budget: upper bounds, such as ``{"bits": 4.5}``, ``{"bytes": 80e6}`` or ``{"latency": 2}`` (ms).
        calibration: an ``.npz`` file, or a folder of them, with arrays named as the inputs; random inputs without.
        evaluation: an ``.npz`` file to measure the loss on.
        formats: the formats to choose among; the target's default without.
        transforms: ``auto``, ``none``, ``hadamard``, ``block`` or ``wush``.
        method: ``gptq``, ``search`` or ``rtn``.
        seed: of everything random.
        device: where torch computes, ``cpu`` or ``cuda``.
        tvm_target: another machine to compile for, such as ``"llvm -mtriple=aarch64-linux-gnu"``.
        progress: called with a step, how much of it is done, and how much there is.
        capture_options: those of ``capture``: ``example_inputs``, ``dynamic_shapes``, ``input_names``.

    Raises:
        QCompileError: if it cannot be done; nothing is written then.
    """
    options = Options(
        target=target, budget=dict(budget or {}), calibration=calibration, evaluation=evaluation,
        formats=tuple(formats), transforms=transforms, method=method, seed=seed, device=device,
        tvm_target=tvm_target,
    )  # fmt: skip
    where = default_folder(model, target) if folder is None else folder
    return _export(model, options, where, progress=progress, **capture_options)
