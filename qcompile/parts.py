"""An encoder-decoder of a folder as one artifact for each of its graphs, in a folder that optimum loads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qcompile.artifact.artifact import Artifact
from qcompile.artifact.folder import folder_of_first
from qcompile.artifact.top import write_top
from qcompile.choice.branches import scheme_of
from qcompile.choice.export_options import Options, check_options
from qcompile.compiler import export
from qcompile.errors import InputError
from qcompile.run.data import load_data
from qcompile.run.sources import DataLike
from qcompile.targets.registry import get_target
from qcompile.work import Work

if TYPE_CHECKING:
    from qcompile.notes import Progress

__all__ = ["export_parts", "parts_to_export"]

#: Options that speak of the sites of one graph.
OF_ONE_GRAPH = ("exclude", "keep", "format_for", "transform_for")

#: Options of ``capture`` that speak of its inputs and outputs.
OF_ONE_CAPTURE = ("dynamic_shapes", "input_names", "output_names")


def parts_to_export(model: Any, capture_options: Mapping[str, Any]) -> tuple[str, ...]:
    """The parts in which a model is exported: those of an encoder-decoder's folder, unless one graph is asked for.

    Raises:
        QCompileError: if the folder cannot be read.
    """
    whole = capture_options.get("part") is not None or capture_options.get("cache") is False
    if whole or not isinstance(model, str | Path) or not Path(model).is_dir():
        return ()
    from qcompile.huggingface.saved import parts_of

    return parts_of(Path(model))


def export_parts(
    model: str | Path, names: tuple[str, ...], options: Options, folder: str | Path, *, overwrite: bool = False,
    progress: Progress | None = None, **capture_options: Any,
) -> Artifact:  # fmt: skip
    """Compile each part of a model for a target.

    Args:
        model: a folder of Hugging Face.
        names: its parts.
        options: what is wanted of each; data is for the inputs of the whole, and each part learns from what it is given
            when the model reads that.
        folder: the new folder, which gets a folder for each part, and what goes along with the model.
        overwrite: whether an artifact that is there is replaced.
        progress: called with a step, the part of it that is done, and the whole.
        capture_options: as for ``capture``.

    Raises:
        QCompileError: if anything about the request cannot be done. Nothing is written then.
    """
    _check(model, names, options, capture_options)
    from qcompile.huggingface.saved import along

    source, target = Path(model), Path(folder)
    with options.group.together(), folder_of_first(target, overwrite, options.group) as temporary:
        wishes = _wishes(source, names, options)
        made = {}
        for name, wish in wishes.items():
            tell = None if progress is None else partial(_tell, progress, name)
            made[name] = export(source, wish, temporary / name, progress=tell, part=name)
        manifest = options.group.by_first(lambda: write_top(temporary, made, source, options, along(source)))
    return Artifact(target, manifest, parts={name: replace(one, folder=target / name) for name, one in made.items()})


def _check(model: Any, names: tuple[str, ...], options: Options, capture_options: Mapping[str, Any]) -> None:
    """Refuse what cannot be meant for several graphs, before any work."""
    Work(options.work, options.group)
    target = get_target(options.target)
    check_options(options, target, [scheme_of(target, name) for name in options.formats or [target.default]])
    said = [f"--{name.replace('_', '-')}" for name in OF_ONE_GRAPH if getattr(options, name)]
    said += [f"--budget {unit}" for unit in options.budget if unit != "bits"]
    said += [name for name in OF_ONE_CAPTURE if capture_options.get(name) is not None]
    if said:
        raise InputError(
            f"'{model}' becomes {len(names)} graphs, and {said[0]} speaks of one: export one with --part "
            f"({', '.join(names)}), or the whole without its cache with --no-cache"
        )


def _tell(progress: Progress, name: str, step: str, done: int, whole: int) -> None:
    progress(f"{name}: {step}", done, whole)


def _wishes(folder: Path, names: tuple[str, ...], options: Options) -> dict[str, Options]:
    """The options for each part, with data as it sees it."""
    learned = _seen(folder, names, options.calibration, "--calibration", options)
    measured = _seen(folder, names, options.evaluation, "--evaluation", options)
    return {name: replace(options, calibration=learned[name], evaluation=measured[name]) for name in names}


def _seen(
    folder: Path, names: tuple[str, ...], data: DataLike | None, option: str, options: Options
) -> Mapping[str, DataLike | None]:  # fmt: skip
    """Data for the whole as each part sees it."""
    if data is None:
        return dict.fromkeys(names)
    from qcompile.huggingface.saved import part_batches

    return part_batches(folder, lambda model: load_data(data, model, option=option, reading=options.reading).batches)
