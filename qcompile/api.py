"""The two commands as functions: the same options as on the command line, for Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qcompile.analysis.siblings import siblings_of
from qcompile.artifact.folder import remove_left
from qcompile.checks.equivalence import equivalence, observe_source
from qcompile.choice.export_options import Options
from qcompile.choice.scoring import probes_of
from qcompile.choice.transforms import place
from qcompile.compiler import export as _export
from qcompile.compiler import prepare, turn
from qcompile.errors import InputError
from qcompile.members import on_devices
from qcompile.parts import export_parts, parts_to_export
from qcompile.recipes.recipe import read_recipe
from qcompile.run.data import load_data
from qcompile.run.memory_budget import parse_memory
from qcompile.run.reading import Reading
from qcompile.run.sources import DataLike
from qcompile.stages import Rotated
from qcompile.targets.registry import get_target
from qcompile.targets.scheme import Scheme

if TYPE_CHECKING:
    from qcompile.artifact.artifact import Artifact
    from qcompile.notes import Progress

__all__ = ["default_folder", "export", "rotate"]


def default_folder(model: Any, target: str) -> Path:
    """The folder of an artifact by default: ``NAME.TARGET`` in the current one, named after the file or the class."""
    if isinstance(model, str | Path):
        name = Path(model).resolve().name if Path(model).is_dir() else Path(model).stem
    else:
        name = Path(getattr(model, "path", None) or type(model).__name__).stem
    return Path(f"{name}.{target}")


def export(
    model: Any,
    target: str,
    folder: str | Path | None = None,
    *,
    recipe: str | Path | None = None,
    budget: Mapping[str, float] | None = None,
    calibration: DataLike | None = None,
    evaluation: DataLike | None = None,
    formats: Sequence[str] | None = None,
    transforms: str | None = None,
    method: str | None = None,
    split: Sequence[str] | None = None,
    sensitivity: str | None = None,
    cache_format: str = "float",
    form: str = "plain",
    learn: str | None = None,
    profile: str | Path = "shipped",
    shape: Mapping[str, int] | None = None,
    seed: int = 0,
    device: str = "cpu",
    devices: int = 1,
    tvm_target: str | None = None,
    latency: bool = False,
    effort: bool = False,
    exclude: Sequence[str] = (),
    keep: Sequence[str] = (),
    format_for: Mapping[str, str] | None = None,
    transform_for: Mapping[str, str] | None = None,
    tokenizer: str | Path | None = None,
    window: int | None = None,
    preprocessing: str | Path | None = None,
    memory: Mapping[str, str | int] | None = None,
    overwrite: bool = False,
    work: str | Path | None = None,
    progress: Progress | None = None,
    **capture_options: Any,
) -> Artifact:
    """Compile a model for a target.

    The folder of an encoder-decoder becomes three graphs, each an artifact of ``Artifact.parts``; ``part="encoder"``
    exports one of them alone, and ``cache=False`` the whole as one graph.

    Args:
        model: what ``capture`` takes or returns: a path, a module with ``example_inputs=``, an exported program.
        target: a name that ``qcompile targets`` lists.
        folder: the new folder of the artifact. By default ``default_folder``.
        recipe: a name that ``qcompile recipes`` lists, or a file; where budget, formats, transforms, method,
            split, sensitivity or learn are not given, they are those of the recipe.
        budget: upper bounds, such as ``{"bits": 4.5}``, ``{"bytes": 80e6}``, ``{"latency": 2}`` (ms) or
            ``{"bops": 32}`` (W4A8).
        calibration: data in a form of ``run.sources``: a file or folder of arrays, a text, a folder of images, a
            mapping from the names of inputs to arrays, an iterable of such mappings, or a function that returns one;
            random inputs without.
        evaluation: data to measure the loss on, in the same forms.
        formats: the formats to choose among; by default the target's own.
        transforms: one of ``choice.kinds.KINDS``, such as ``none`` or ``hadamard``; ``auto`` by default.
        method: ``gptq``, by default, ``comq``, ``search`` or ``rtn``; with options as in ``gptq{shift=1}``.
        split: ways to compute parts of weights apart, such as ``columns{count=64,format=int8}`` for those that read
            loud features, and ``branch{rank=32}`` for leading directions; in order.
        sensitivity: what errors cost where formats or transforms are chosen: ``errors``, by default, ``traces``,
            ``eigenvalues``, ``noise`` or ``even``; ``statistics.measures`` explains them.
        cache_format: how the caches of a decoder are stored: ``int8``, ``int4``, or with scales of a kind, such as
            ``int8-channel`` (static) and ``int4-g32`` (with each token); ``float``, by default, leaves them alone.
        form: ``plain``, or another form that the target writes: ``genai`` for onnxruntime-genai, ``qonnx`` for QONNX,
            ``tensorrt`` for TensorRT.
        learn: what is learned along gradients of the whole model: ``transforms``, ``codes`` or ``all``, with options as
            in ``transforms,codes{steps=400}``; ``minutes=5`` is ``all{minutes=5}``, by default nothing.
        profile: what computing costs, where times are predicted: ``shipped`` with the target, the same on all machines;
            of this ``machine``, once ``qcompile profile`` has measured it; ``none``; or the file of a profile.
        shape: sizes of open dimensions of the inputs by name, at which times are predicted; else those of the data.
        seed: of everything random.
        device: where torch computes, ``cpu`` or ``cuda``.
        devices: how many processes of this machine share the work, each on a GPU of its own or on its part of the
            cores; the model and the data must be such as go to other processes. Where ``torchrun`` has started several,
            these are the ones, and each calls this function. It changes no byte of the artifact.
        tvm_target: another machine to compile for, such as ``"llvm -mtriple=aarch64-linux-gnu"``.
        latency: whether the artifact is timed beside its source, in a few seconds, for ``Artifact.latency``.
        effort: whether ``Artifact.effort``, seconds by step and peaks of memory, goes into the manifest as well; it
            then differs from one export to the next.
        exclude: patterns of sites that stay float, such as ``"*.down_proj"``. Patterns are a shell's, over the names of
            sites and the paths of their modules; ``inspect`` lists both.
        keep: patterns of sites that stay float bit for bit: nothing is folded into their weights either.
        format_for: formats by pattern, such as ``{"lm_head": "int8-g32"}``; the last that fits a site decides, but
            ``exclude`` and ``keep`` come first.
        transform_for: ways to choose the transform of a site's input by pattern, likewise.
        tokenizer: the folder of the tokenizer, where data is a text (extra ``text``).
        window: tokens in each row of a text, where the model leaves that open; by default 512.
        preprocessing: the folder with ``preprocessor_config.json``, where data is a folder of images (extra
            ``images``); by default that folder.
        memory: the bytes that activations of calibration may take, ``{"device": "40GB", "host": "32GB"}``; what is more
            goes from the device to RAM, and from there to disk. By default half of what is free. It changes no result.
        overwrite: whether an artifact that is at ``folder`` is replaced once the new one is complete.
        work: a folder, made where there is none, that keeps what another export may need again: statistics of the
            data, sensitivities, rounded weights. An export that was killed goes on from there. No result depends on it.
        progress: called with a step, the part of it that is done, and the whole.
        capture_options: as for ``capture``: ``example_inputs``, ``dynamic_shapes``, ``input_names``,
            ``output_names``, ``cache``, ``part``.

    Raises:
        QCompileError: if it cannot be done. Nothing is written then.
    """
    lists = {name: _several(words) for name, words in (("formats", formats), ("split", split)) if words is not None}
    given: dict[str, Any] = {
        "budget": budget,
        "transforms": transforms,
        "method": method,
        "format_for": format_for,
        "sensitivity": sensitivity,
        "learn": learn,
    }
    given = {name: value for name, value in given.items() if value is not None} | lists
    options = Options(
        target=target, calibration=calibration, evaluation=evaluation, seed=seed, device=device, tvm_target=tvm_target,
        latency=latency, effort=effort, cache_format=cache_format, form=form, exclude=_several(exclude),
        profile=str(profile), shape=dict(shape or {}),
        keep=_several(keep),
        transform_for=dict(transform_for or {}), reading=Reading(tokenizer, window, preprocessing),
        memory=parse_memory(memory or {}),
        recipe=None if recipe is None else str(recipe),
        work=None if work is None else Path(work),
        **(given if recipe is None else read_recipe(recipe).on(get_target(target), given)),
    )  # fmt: skip
    where = default_folder(model, target) if folder is None else folder
    if options.work is not None and options.work.resolve().is_relative_to(Path(where).resolve()):
        raise InputError(
            f"the folder '{work}' of --work lies in that of the artifact, which is made anew: take another"
        )
    parts = parts_to_export(model, capture_options)
    run = partial(export_parts, model, parts) if parts else partial(_export, model)
    run = partial(run, folder=Path(where), overwrite=overwrite, **capture_options)
    try:
        return on_devices(run, options, devices, progress)
    except BaseException:
        remove_left(Path(where))  # of processes that were killed
        raise


def _several(names: str | Sequence[str]) -> tuple[str, ...]:
    """A name alone, or several."""
    return (names,) if isinstance(names, str) else tuple(names)


def rotate(
    model: Any, *, transforms: str = "hadamard", calibration: DataLike | None = None,
    tokenizer: str | Path | None = None, window: int | None = None, preprocessing: str | Path | None = None,
    seed: int = 0, progress: Progress | None = None, **capture_options: Any,
) -> Rotated:  # fmt: skip
    """Rotate a model, stop while it is still float-equivalent, and check that it is.

    Args:
        model: as for ``capture``.
        transforms: one of ``choice.kinds.KINDS``; ``auto`` chooses by predicted error at 4-bit weights.
        calibration: data to check on; random inputs without it.
        tokenizer, window, preprocessing: how such data is read, as for ``export``.
        seed: of random signs and inputs.

    Raises:
        VerificationError: if the rotated model is another function.
    """
    prepared = prepare(model, progress, ties=transforms == "none", **capture_options)  # else it costs a transform
    siblings = siblings_of(prepared.analysis.sites)
    scheme = Scheme.parse("int4-g32")
    probes = {own: probes_of(own) for own in siblings}
    placement = place(prepared.analysis, probes, lambda _: scheme, kind=transforms, seed=seed, progress=progress)
    turn(prepared, siblings, placement, progress)
    reading = Reading(tokenizer, window, preprocessing)
    data = load_data(calibration, prepared.source.model, seed=seed, batches=1, reading=reading)
    observed = observe_source(prepared.source, data, seed)
    equal = equivalence(prepared.source, prepared.model, observed, progress)
    return Rotated(replace(prepared, observed=observed), siblings, placement, equivalence=equal)
