"""The command line. Everything heavy is imported inside the commands, so that ``--help`` is quick.

Exit status: 0 done, 2 the user's mistake (one sentence on the standard error), 1 a bug (a traceback).
"""

from __future__ import annotations

import atexit
import gc
import logging
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from qcompile.cli.console import CommandGroup, Progress, budgets, names, say
from qcompile.errors import VerificationError

__all__ = ["app", "main"]

app = typer.Typer(
    cls=CommandGroup, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Finds the basis changes that a network's graph allows, and quantizes it for a target with them.",
)  # fmt: skip


class Transforms(StrEnum):
    """Ways to choose transforms; the words of ``qcompile.choice.transforms.KINDS``."""

    auto = "auto"
    none = "none"
    hadamard = "hadamard"
    block = "block"
    wush = "wush"


class Method(StrEnum):
    """Ways to round weights; the words of the pass ``quantize``."""

    gptq = "gptq"
    search = "search"
    rtn = "rtn"


class Device(StrEnum):
    """Devices on which torch computes."""

    cpu = "cpu"
    cuda = "cuda"


Model = Annotated[str, typer.Argument(metavar="MODEL", help="An .onnx file (external data beside it) or a .pt2 file.")]
Folder = Annotated[str, typer.Argument(metavar="ARTIFACT", help="The folder that an export wrote.")]
Seed = Annotated[int, typer.Option(min=0, help="Of everything random.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars, and no tables.")]


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    """Finds the basis changes that a network's graph allows, and quantizes it for a target with them."""
    if version:
        from qcompile import __version__

        say(f"qcompile {__version__}")
        raise typer.Exit


@app.command()
def export(
    model: Model,
    target: Annotated[str, typer.Option(help="A name that `qcompile targets` lists.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The new folder; else NAME.TARGET.")] = None,
    budget: Annotated[
        list[str] | None, typer.Option(help="bits=4.25 (per weight, without scales), bytes=80e6, latency=2 (ms).")
    ] = None,
    calibration: Annotated[Path | None, typer.Option(help="An .npz file, or a folder of them.")] = None,
    evaluation: Annotated[Path | None, typer.Option(help="An .npz file to measure the loss on.")] = None,
    formats: Annotated[list[str] | None, typer.Option(help="Formats to choose among: a,b.")] = None,
    transforms: Annotated[Transforms, typer.Option(help="Choose by predicted error, or force one.")] = Transforms.auto,
    method: Annotated[Method, typer.Option(help="How weights are rounded.")] = Method.gptq,
    seed: Seed = 0,
    device: Annotated[Device, typer.Option(help="Where torch computes.")] = Device.cpu,
    tvm_target: Annotated[
        str | None, typer.Option(help="Another machine to compile for: 'llvm -mtriple=aarch64-linux-gnu'.")
    ] = None,
    latency: Annotated[bool, typer.Option(help="Time the artifact beside its source, unless --quiet.")] = True,
    quiet: Quiet = False,
) -> None:
    """Quantize a model for a target and write the artifact."""
    limits = budgets(budget)
    from qcompile.api import default_folder
    from qcompile.api import export as compile_for

    where = output or default_folder(model, target)
    with Progress(quiet) as progress:
        artifact = compile_for(
            model, target, where, budget=limits, calibration=calibration, evaluation=evaluation,
            formats=names(formats), transforms=transforms.value, method=method.value, seed=seed, device=device.value,
            tvm_target=tvm_target, latency=latency and not quiet, progress=progress,
        )  # fmt: skip
    if not quiet:
        from qcompile.cli.tables import artifact_tables

        say(*artifact_tables(artifact))


@app.command()
def rotate(
    model: Model,
    output: Annotated[Path, typer.Option("-o", "--output", help="The new .onnx file.")],
    transforms: Annotated[Transforms, typer.Option(help="Which transforms.")] = Transforms.hadamard,
    calibration: Annotated[Path | None, typer.Option(help="An .npz file to check on; random inputs without.")] = None,
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Fold rotations into a model and stop while it still computes the same."""
    from qcompile.ir.files import refuse_existing, save_model

    refuse_existing(output)
    from qcompile.api import rotate as turn
    from qcompile.cli.tables import rotation_table

    with Progress(quiet) as progress:
        rotated = turn(model, transforms=transforms.value, calibration=calibration, seed=seed, progress=progress)
        save_model(rotated.model, output)
    say(rotation_table(rotated, output), quiet=quiet)


@app.command()
def opt(
    model: Model,
    passes: Annotated[str, typer.Option(help="In order, as canonicalize,fold-scales{smallest=0.01}.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The new .onnx file.")],
    print_after: Annotated[list[str] | None, typer.Option(help="Print the graph after these passes.")] = None,
    time_passes: Annotated[bool, typer.Option("--time-passes", help="Show how long each pass takes.")] = False,
    verify_each: Annotated[bool, typer.Option("--verify-each", help="Run the graph after each pass.")] = False,
    calibration: Annotated[Path | None, typer.Option(help="An .npz file to verify on; random inputs without.")] = None,
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Run any list of passes on a model; `qcompile passes` lists them."""
    from qcompile.cli.tables import optimization_tables, times_table
    from qcompile.ir.files import refuse_existing, save_model
    from qcompile.opt import optimize, wanted
    from qcompile.passes.hooks import Printing, Telling, Timing

    refuse_existing(output)
    pipeline = wanted(passes, names(print_after))
    timing = Timing()
    with Progress(quiet) as progress:
        hooks = [timing, Printing(names(print_after)), Telling(progress)]
        done = optimize(model, pipeline, hooks, verify=verify_each, calibration=calibration, seed=seed)
        save_model(done.state.model, output)
    say(*optimization_tables(done, output), quiet=quiet)
    if time_passes:
        say(times_table(timing.rows))


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(metavar="MODEL|ARTIFACT", help="A model, or the folder of an artifact.")],
    html: Annotated[Path | None, typer.Option(help="Draw the graph with its spaces into this file.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write spaces, sites and reasons as JSON; - prints it.")] = None,
    quiet: Quiet = False,
) -> None:
    """Show the spaces, the freedoms and the sites of a graph, and why each was left alone."""
    from qcompile.cli.tables import inspection_tables
    from qcompile.inspection import inspect_files

    with Progress(quiet or json == Path("-")) as progress:
        found = inspect_files(model, html, json, progress)
    say(*inspection_tables(found), quiet=quiet or json == Path("-"))


@app.command()
def inputs(
    model: Model,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write random arrays to start from.")] = None,
    seed: Seed = 0,
) -> None:
    """Show the arrays that a model takes: names, types, shapes, and the dimensions that are the same."""
    from qcompile.cli.tables import inputs_table
    from qcompile.ir.capture import capture
    from qcompile.ir.files import refuse_existing, save_arrays
    from qcompile.run.data import example_inputs

    graph = capture(model).model
    if output is not None:
        refuse_existing(output)
        save_arrays(example_inputs(graph, seed=seed), output)
    say(inputs_table(graph))


@app.command()
def run(
    artifact: Folder,
    inputs: Annotated[Path, typer.Option(help="An .npz file with arrays named as the model's inputs.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The .npz file for the outputs.")],
    runtime: Annotated[str | None, typer.Option(help="ort, tvm or triton; by default what it was made for.")] = None,
    quiet: Quiet = False,
) -> None:
    """Run an artifact once on named inputs."""
    from qcompile.artifact.artifact import Artifact
    from qcompile.cli.tables import arrays_table
    from qcompile.ir.files import read_arrays, save_arrays

    opened = Artifact.open(artifact)
    outputs = opened.run(read_arrays(inputs), runtime)
    save_arrays(outputs, output)
    say(arrays_table(outputs, output), quiet=quiet)


@app.command()
def verify(
    artifact: Folder,
    against: Annotated[str | None, typer.Option(metavar="MODEL", help="The source; by default where it was.")] = None,
    evaluation: Annotated[Path | None, typer.Option(help="An .npz file to measure on; random inputs without.")] = None,
    quiet: Quiet = False,
) -> None:
    """Measure an artifact against the model that it was made from.

    Where that is not found, the artifact is checked by itself: its files against the digests in the manifest, and
    whether it runs here. This imports no torch.
    """
    from qcompile.artifact.artifact import Artifact
    from qcompile.cli.tables import alone_table, measured_table

    opened = Artifact.open(artifact)
    if against is not None or opened.sources():
        from qcompile.inspection import verify as check

        say(measured_table(check(artifact, against, evaluation), opened.manifest), quiet=quiet)
        return
    from qcompile.artifact.alone import check_alone
    from qcompile.ir.files import read_arrays

    found = check_alone(opened, None if evaluation is None else read_arrays(evaluation))
    say(alone_table(found, opened.manifest), quiet=quiet)
    if found.faults:
        raise VerificationError("; ".join(found.faults))


@app.command()
def targets() -> None:
    """List the targets and the formats that they run."""
    from qcompile.cli.tables import targets_table
    from qcompile.targets.registry import targets as known

    say(targets_table({target.name: target for target in known().values()}.values()))


@app.command()
def passes() -> None:
    """List the passes and their options, and the pipelines."""
    from qcompile.cli.tables import passes_tables
    from qcompile.passes.index import PIPELINES, all_passes

    say(*passes_tables(all_passes(), PIPELINES))


def main() -> None:
    """Run the command line, and exit.

    The process ends without tearing the interpreter down, which takes torch most of a second. Garbage is collected in
    larger portions than usual: a graph consists of very many small objects, and few of them are garbage.
    """
    gc.set_threshold(100_000, 20, 100)
    logging.getLogger("onnx_ir.serde").setLevel(logging.ERROR)  # it tells which values have no type: runtimes infer it
    status = 0
    try:
        app()
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
