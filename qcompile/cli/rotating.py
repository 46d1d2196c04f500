"""The command that stops while a model still computes the same."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qcompile.cli import options
from qcompile.cli.console import Progress, tell

__all__ = ["rotate"]


def rotate(
    model: options.Model,
    output: Annotated[Path, typer.Option("-o", "--output", help="The new .onnx file.")],
    transforms: Annotated[options.Transforms, typer.Option(help="Which transforms.")] = options.Transforms.hadamard,
    calibration: Annotated[Path | None, typer.Option(help="Data to check on; random inputs without.")] = None,
    tokenizer: options.Tokenizer = None,
    window: options.Window = None,
    preprocessing: options.Preprocessing = None,
    seed: options.Seed = 0,
    json: options.Json = None,
    verbose: options.Verbose = False,
    log_file: options.LogFile = None,
    quiet: options.Quiet = False,
) -> None:
    """Fold rotations into a model and stop while it still computes the same."""
    from qcompile.ir.files import refuse_existing, save_model

    refuse_existing(output)
    from qcompile.api import rotate as turn
    from qcompile.cli.summaries import rotation_summary
    from qcompile.cli.tables import rotation_table

    with Progress(quiet) as progress:
        rotated = turn(
            model, transforms=transforms.value, calibration=calibration, tokenizer=tokenizer, window=window,
            preprocessing=preprocessing, seed=seed, progress=progress,
        )  # fmt: skip
        save_model(rotated.model, output)
    tell(json, rotation_summary(rotated, output), rotation_table(rotated, output), quiet=quiet)
