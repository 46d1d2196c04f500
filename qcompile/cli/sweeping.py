"""The command that shows what budgets would lose."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qcompile.cli import options
from qcompile.cli.console import Progress, names, pairs, ranges, tell

if TYPE_CHECKING:
    from rich.table import Table

    from qcompile.choice.front import Point

__all__ = ["sweep"]


def sweep(
    model: options.Model,
    target: options.Target,
    budget: Annotated[
        list[str], typer.Option(help="bits=3.5..8, bytes=60M..90M; two of them go together; bytes=80M stays.")
    ],
    points: Annotated[int, typer.Option(min=1, max=200, help="Budgets for each range, evenly spread.")] = 10,
    calibration: options.Calibration = None,
    tokenizer: options.Tokenizer = None,
    window: options.Window = None,
    preprocessing: options.Preprocessing = None,
    formats: options.Formats = None,
    transforms: Annotated[options.Transforms, typer.Option(help="auto, wush or none.")] = options.Transforms.auto,
    method: options.Method = None,
    sensitivity: options.Sensitivity = None,
    exclude: options.Exclude = None,
    keep: options.Keep = None,
    format_for: options.FormatFor = None,
    transform_for: options.TransformFor = None,
    seed: options.Seed = 0,
    device: Annotated[options.Device, typer.Option(help="Where torch computes.")] = options.Device.cpu,
    devices: options.Devices = 1,
    work: options.Work = None,
    html: Annotated[Path | None, typer.Option(help="Draw the front into this file.")] = None,
    json: options.Json = None,
    verbose: options.Verbose = False,
    log_file: options.LogFile = None,
    quiet: options.Quiet = False,
) -> None:
    """Show what budgets would lose, from one calibration: the Pareto front. Nothing is written but page and JSON."""
    wanted = ranges(budget)
    formats_for, transforms_for = pairs(format_for, "FORMAT"), pairs(transform_for, "TRANSFORM")
    from qcompile.choice.export_options import Options
    from qcompile.run.reading import Reading
    from qcompile.sweep import sweep as choices

    asked = Options(
        target=target, calibration=calibration, formats=names(formats), transforms=transforms.value,
        method=method or "gptq", sensitivity=sensitivity or "errors", seed=seed, device=device.value,
        exclude=exclude or (), keep=keep or (), format_for=formats_for, transform_for=transforms_for,
        reading=Reading(tokenizer, window, preprocessing), work=work,
    )  # fmt: skip
    with Progress(quiet) as progress:
        found = choices(model, asked, wanted, points=points, devices=devices, progress=progress)
    points_found = [_entry(point) for point in found]
    if html is not None:
        from qcompile.artifact.pages import render_front
        from qcompile.ir.files import write_text

        said = {"model": model, "target": target, "calibration": calibration and str(calibration)}
        write_text(html, render_front(said, points_found))
    tell(json, {"points": points_found}, _table(found), quiet=quiet)


def _entry(point: Point) -> dict[str, Any]:
    if point.missed is not None:
        return {"budget": dict(point.bounds), "missed": point.missed}
    return {
        "budget": dict(point.bounds), "spent": dict(point.spent), "predicted_loss_delta": point.loss,
        "gap": point.gap, "formats": dict(point.formats), "offline_transforms": point.offline,
        "online_transforms": point.online,
    }  # fmt: skip


def _table(points: Sequence[Point]) -> Table:
    from qcompile.artifact.phrases import human_bytes, scientific
    from qcompile.cli.frames import table

    made = table("budgets", "at most", "bits", "bytes", "predicted loss", "sites by format", "offline", "online")
    for point in points:
        bounds = ", ".join(f"{unit}={bound:.4g}" for unit, bound in point.bounds.items())
        if point.missed is not None:
            made.add_row(bounds, "–", "–", "–", point.missed, "–", "–")
            continue
        formats = ", ".join(f"{count} x {name}" for name, count in sorted(point.formats.items()))
        made.add_row(bounds, f"{point.spent['bits']:.3f}", human_bytes(int(point.spent["bytes"])),
                     scientific(point.loss), formats, str(point.offline), str(point.online))  # fmt: skip
    return made
