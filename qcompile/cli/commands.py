"""The command line. Everything heavy is imported inside the commands, so that ``--help`` is quick.

Exit status: 0 done, 2 the user's mistake (one sentence on the standard error), 1 a bug (a traceback).
"""

from __future__ import annotations

import atexit
import gc
import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from qcompile.cli import options
from qcompile.cli.comparing import compare
from qcompile.cli.console import CommandGroup, Progress, budgets, names, pairs, say, tell, whole
from qcompile.cli.listing import inputs, passes, recipes, targets
from qcompile.cli.profiling_command import profile as profile_command
from qcompile.cli.rotating import rotate
from qcompile.cli.sweeping import sweep
from qcompile.errors import VerificationError

__all__ = ["app", "main"]

app = typer.Typer(
    cls=CommandGroup, no_args_is_help=True, pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Finds the basis changes that a network's graph allows, and quantizes it for a target with them.",
)  # fmt: skip


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", "-V", help="Print the version and exit.")] = False) -> None:
    """Finds the basis changes that a network's graph allows, and quantizes it for a target with them."""
    if version:
        from qcompile import __version__

        say(f"qcompile {__version__}")
        raise typer.Exit


@app.command()
def export(
    model: options.Model,
    target: options.Target,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The new folder; else NAME.TARGET.")] = None,
    recipe: options.Recipe = None,
    budget: options.Budget = None,
    calibration: options.Calibration = None,
    evaluation: options.Evaluation = None,
    tokenizer: options.Tokenizer = None,
    window: options.Window = None,
    preprocessing: options.Preprocessing = None,
    formats: options.Formats = None,
    transforms: Annotated[
        options.Transforms | None, typer.Option(help="Choose by predicted error, which is the default, or force one.")
    ] = None,
    method: options.Method = None,
    split: options.Split = None,
    sensitivity: options.Sensitivity = None,
    cache_format: options.CacheFormat = "float",
    form: options.Form = "plain",
    learn: options.Learn = None,
    exclude: options.Exclude = None,
    keep: options.Keep = None,
    format_for: options.FormatFor = None,
    transform_for: options.TransformFor = None,
    seed: options.Seed = 0,
    device: Annotated[options.Device, typer.Option(help="Where torch computes.")] = options.Device.cpu,
    devices: options.Devices = 1,
    memory: options.Memory = None,
    tvm_target: options.TvmTarget = None,
    shape: options.Shape = None,
    profile: options.Profile = "shipped",
    cache: options.Cache = None,
    part: options.Part = None,
    latency: Annotated[bool, typer.Option(help="Time the artifact beside its source, unless --quiet.")] = True,
    effort: options.Effort = False,
    config: options.Config = None,
    work: options.Work = None,
    overwrite: options.Overwrite = False,
    json: options.Json = None,
    verbose: options.Verbose = False,
    log_file: options.LogFile = None,
    quiet: options.Quiet = False,
) -> None:
    """Quantize a model for a target and write the artifact.

    Patterns are a shell's, over the names of sites and the paths of their modules, both of which `qcompile inspect`
    lists; --exclude and --keep come before --format-for and --transform-for. Options
    replace what a recipe says.
    """
    limits = budgets(budget)
    formats_for, transforms_for = pairs(format_for, "FORMAT"), pairs(transform_for, "TRANSFORM")
    bytes_at, sizes = pairs(memory, "BYTES", of="PLACE"), whole(pairs(shape, "SIZE", of="DIMENSION"))
    from qcompile.api import default_folder
    from qcompile.api import export as compile_for

    where = output or default_folder(model, target)
    with Progress(quiet) as progress:
        artifact = compile_for(
            model, target, where, recipe=recipe, budget=limits or None, calibration=calibration,
            evaluation=evaluation, formats=names(formats) or None, transforms=transforms and transforms.value,
            method=method, split=split, sensitivity=sensitivity, learn=learn, seed=seed, device=device.value,
            devices=devices,
            tvm_target=tvm_target, latency=latency and not quiet, effort=effort, exclude=exclude or (), keep=keep or (),
            format_for=formats_for, transform_for=transforms_for, tokenizer=tokenizer, window=window,
            preprocessing=preprocessing, memory=bytes_at, work=work, overwrite=overwrite, progress=progress,
            cache=cache, part=part, cache_format=cache_format, form=form, profile=profile, shape=sizes,
        )  # fmt: skip
    from qcompile.cli.summaries import artifact_summary
    from qcompile.cli.tables import artifact_tables

    tell(json, artifact_summary(artifact), *artifact_tables(artifact), quiet=quiet)


app.command()(rotate)


@app.command()
def opt(
    model: options.Model,
    passes: Annotated[str, typer.Option(help="In order, as canonicalize,fold-scales{smallest=0.01}.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The new .onnx file.")],
    print_after: Annotated[list[str] | None, typer.Option(help="Print the graph after these passes.")] = None,
    time_passes: Annotated[bool, typer.Option("--time-passes", help="Show how long each pass takes.")] = False,
    verify_each: Annotated[bool, typer.Option("--verify-each", help="Run the graph after each pass.")] = False,
    calibration: Annotated[Path | None, typer.Option(help="Data to verify on; random inputs without.")] = None,
    tokenizer: options.Tokenizer = None,
    window: options.Window = None,
    preprocessing: options.Preprocessing = None,
    seed: options.Seed = 0,
    json: options.Json = None,
    verbose: options.Verbose = False,
    log_file: options.LogFile = None,
    quiet: options.Quiet = False,
) -> None:
    """Run any list of passes on a model; `qcompile passes` lists them."""
    from qcompile.cli.summaries import optimization_summary
    from qcompile.cli.tables import optimization_tables, times_table
    from qcompile.ir.files import refuse_existing, save_model
    from qcompile.opt import optimize, wanted
    from qcompile.passes.hooks import Printing, Telling, Timing
    from qcompile.run.reading import Reading

    refuse_existing(output)
    pipeline = wanted(passes, names(print_after))
    timing = Timing()
    with Progress(quiet) as progress:
        hooks = [timing, Printing(names(print_after)), Telling(progress)]
        reading = Reading(tokenizer, window, preprocessing)
        done = optimize(
            model, pipeline, hooks, verify=verify_each, calibration=calibration, reading=reading, seed=seed
        )  # fmt: skip
        save_model(done.state.model, output)
    tell(json, optimization_summary(done, output), *optimization_tables(done, output), quiet=quiet)
    if time_passes:
        say(times_table(timing.rows))


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(metavar="MODEL|ARTIFACT", help="A model, or the folder of an artifact.")],
    html: Annotated[Path | None, typer.Option(help="Draw the graph, or source and artifact, into this file.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write spaces, sites and reasons as JSON; - prints it.")] = None,
    verbose: options.Verbose = False,
    log_file: options.LogFile = None,
    quiet: options.Quiet = False,
) -> None:
    """Show the spaces, the freedoms and the sites of a graph, and why each was left alone."""
    from qcompile.cli.tables import inspection_tables
    from qcompile.inspection import inspect_files

    with Progress(quiet or json == Path("-")) as progress:
        found = inspect_files(model, html, json, progress)
    say(*inspection_tables(found), quiet=quiet or json == Path("-"))


app.command()(inputs)
app.command()(sweep)


@app.command()
def run(
    artifact: options.Folder,
    inputs: Annotated[Path, typer.Option(help="An .npz file with arrays named as the model's inputs.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The .npz file for the outputs.")],
    runtime: Annotated[str | None, typer.Option(help="ort, tvm or triton; by default what it was made for.")] = None,
    provider: options.Provider = None,
    json: options.Json = None,
    verbose: options.Verbose = False,
    log_file: options.LogFile = None,
    quiet: options.Quiet = False,
) -> None:
    """Run an artifact once on named inputs."""
    from qcompile.artifact.artifact import Artifact
    from qcompile.cli.summaries import arrays_summary
    from qcompile.cli.tables import arrays_table
    from qcompile.ir.files import read_arrays, save_arrays
    from qcompile.run.sequences import tensors

    opened = Artifact.open(artifact)
    outputs = tensors(opened.run(read_arrays(inputs), runtime, provider))
    save_arrays(outputs, output)
    tell(json, arrays_summary(outputs, output), arrays_table(outputs, output), quiet=quiet)


@app.command()
def verify(
    artifact: options.Folder,
    against: Annotated[str | None, typer.Option(metavar="MODEL", help="The source; by default where it was.")] = None,
    evaluation: Annotated[Path | None, typer.Option(help="Data to measure on; random inputs without.")] = None,
    tokenizer: options.Tokenizer = None,
    window: options.Window = None,
    preprocessing: options.Preprocessing = None,
    json: options.Json = None,
    verbose: options.Verbose = False,
    log_file: options.LogFile = None,
    quiet: options.Quiet = False,
) -> None:
    """Measure an artifact against the model that it was made from.

    Where that is not found, the artifact is checked by itself: its files against the digests in the manifest, and
    whether it runs here. This imports no torch.
    """
    from qcompile.artifact.artifact import Artifact
    from qcompile.cli.summaries import alone_summary, measured_summary
    from qcompile.cli.tables import alone_table, measured_table

    opened = Artifact.open(artifact)
    if against is not None or opened.sources():
        from qcompile.inspection import verify as check

        measured = check(
            artifact, against, evaluation, tokenizer=tokenizer, window=window, preprocessing=preprocessing
        )  # fmt: skip
        tell(json, measured_summary(measured, opened), measured_table(measured, opened.manifest), quiet=quiet)
        return
    from qcompile.artifact.alone import check_alone
    from qcompile.ir.files import read_arrays

    found = check_alone(opened, None if evaluation is None else read_arrays(evaluation))
    tell(json, alone_summary(found, opened), alone_table(found, opened.manifest), quiet=quiet)
    if found.faults:
        raise VerificationError("; ".join(found.faults))


app.command()(compare)
app.command("profile")(profile_command)
app.command()(targets)
app.command()(passes)
app.command()(recipes)


def main() -> None:
    """Run the command line, and exit.

    The process ends without tearing the interpreter down, which takes torch most of a second. Garbage is collected in
    larger portions than usual: a graph consists of very many small objects, and few of them are garbage.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # torch's threads spin between their tasks: thrice the work
    gc.set_threshold(100_000, 20, 100)
    logging.getLogger("onnx_ir.serde").setLevel(logging.ERROR)  # it tells which values have no type: runtimes infer it
    status = 0
    try:
        app(prog_name="qcompile")  # by whatever name it was called: completion goes by it
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
