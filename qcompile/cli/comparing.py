"""The command that puts two models or artifacts beside each other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qcompile.cli import options
from qcompile.cli.console import Progress, tell

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["compare"]

#: Prompts that a table has.
SHOWN = 8

_SIDE = "A model, or the folder of an artifact."


def compare(
    reference: Annotated[str, typer.Argument(metavar="FLOAT", help=_SIDE + " The other is compared with it.")],
    other: Annotated[str, typer.Argument(metavar="ARTIFACT", help=_SIDE)],
    inputs: Annotated[
        Path | None, typer.Option(help="Data in the forms that --calibration takes; random inputs without.")
    ] = None,
    scores: Annotated[
        str | None, typer.Option(metavar="OUTPUT", help="The output that holds scores; else one that scores tokens.")
    ] = None,
    generate: Annotated[
        int, typer.Option(min=0, help="Tokens that both generate behind each prompt, the end of its row.")
    ] = 32,
    tokenizer: options.Tokenizer = None,
    window: options.Window = None,
    preprocessing: options.Preprocessing = None,
    seed: options.Seed = 0,
    html: Annotated[Path | None, typer.Option(help="Write a page with positions and worst prompts.")] = None,
    json: options.Json = None,
    verbose: options.Verbose = False,
    log_file: options.LogFile = None,
    quiet: options.Quiet = False,
) -> None:
    """Show what changed for a user between two models: divergence by position, flips, texts, worst prompts."""
    from qcompile.comparison import compare_files

    with Progress(quiet) as progress:
        found = compare_files(
            reference, other, inputs, html, scores=scores, generate=generate, tokenizer=tokenizer, window=window,
            preprocessing=preprocessing, seed=seed, progress=progress,
        )  # fmt: skip
    tell(json, found, *_tables(found), quiet=quiet)


def _tables(found: Mapping[str, Any]) -> list[Table]:
    from qcompile.cli.frames import facts

    return [facts(f"{found['other']} beside {found['reference']}", _rows(found)), _positions(found), _worst(found)]


def _rows(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    from qcompile.artifact.phrases import scientific

    d, flips, loss, made = (found[key] for key in ("divergence", "flips", "loss", "generation"))
    unit = "nats" if found["scores"] else "half the relative squared error"
    error = "" if d["standard_error"] is None else f" ± {scientific(d['standard_error'])}"
    rows = [
        ("output", f"{found['output']}, {found['prompts']} prompts, {found['positions']} positions"),
        ("divergence", f"{scientific(d['mean'])}{error} ({unit}); median {scientific(d['median'])}, "
                       f"99 % below {scientific(d['p99'])}, at most {scientific(d['max'])}"),
    ]  # fmt: skip
    if flips is not None:
        confident = f"{flips['confident']} of {flips['confident_positions']} positions where the reference is confident"
        rows.append(("top-1 flips", f"{flips['count']} ({flips['share']:.2%}); {confident}"))
    if loss is not None:
        error = "" if loss["standard_error"] is None else f" ± {scientific(loss['standard_error'])}"
        rows.append(("loss above reference", f"{loss['difference']:+.4f}{error} nats"))
    if made is not None:
        first = "none differs" if made["earliest"] is None else f"the first differs behind {made['earliest']} tokens"
        rows.append(("texts that differ", f"{made['diverged']} of {made['prompts']} within {made['tokens']} tokens; "
                     f"{made['mean_agreeing']:.3g} alike in the mean; {first}"))  # fmt: skip
    return rows


def _positions(found: Mapping[str, Any]) -> Table:
    from qcompile.artifact.phrases import scientific
    from qcompile.cli.frames import table

    made = table("by position", "positions", "divergence", *(["flips"] if found["scores"] else []))
    for part in found["by_position"]:
        flips = [f"{part['flips']:.2%}"] if found["scores"] else []
        made.add_row(f"{part['from']}–{part['to']}", scientific(part["divergence"]), *flips)
    return made


def _worst(found: Mapping[str, Any]) -> Table:
    from qcompile.artifact.phrases import scientific
    from qcompile.cli.frames import table

    made = table("worst prompts", "prompt", "divergence", "at most, at position", "flips", "loss", "first other token")
    for entry in found["worst"][:SHOWN]:
        flips, loss = entry["flips"], entry["loss_difference"]
        at = entry.get("first_divergence")
        made.add_row(
            str(entry["prompt"]), scientific(entry["divergence"]),
            f"{scientific(entry['worst_divergence'])}, {entry['worst_position']}", "–" if flips is None else str(flips),
            "–" if loss is None else f"{loss:+.4f}", "–" if at is None else str(at),
        )  # fmt: skip
    return made
