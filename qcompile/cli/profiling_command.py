"""The command that measures what computing costs on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qcompile.cli import options
from qcompile.cli.console import Progress, tell

if TYPE_CHECKING:
    from rich.table import Table

    from qcompile.prices.profile import Profile

__all__ = ["profile"]


def profile(
    target: Annotated[str, typer.Argument(autocompletion=options.complete_targets, help="Whose artifacts are timed.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write it here; else it is `--profile machine` from now on.")
    ] = None,
    json: options.Json = None,
    verbose: options.Verbose = False,
    log_file: options.LogFile = None,
    quiet: options.Quiet = False,
) -> None:
    """Measure products, online transforms and other operators on one thread of this machine, in half a minute."""
    from qcompile.prices.profile_files import cached_file, save_profile
    from qcompile.profiling import measure_profile
    from qcompile.targets.registry import get_target

    where = output or cached_file(get_target(target))
    with Progress(quiet) as progress:
        found = measure_profile(target, progress)
    save_profile(found, where)
    tell(json, {"file": str(where), **found.to_json()}, _table(found, where), quiet=quiet)


def _table(found: Profile, where: Path) -> Table:
    from qcompile.cli.frames import table

    machine = ", ".join(f"{name} {value}" for name, value in found.machine.items())
    made = table(f"{machine}\n{where}", "work", "nanoseconds of each", "fit within")
    rows = [*found.products.items(), ("transforms", found.transforms), *found.operators.items()]
    for kind, work in rows:
        each = ", ".join(f"{name.replace('_', ' ')} {1e9 * time:.3g}" for name, time in work.items() if time)
        made.add_row(kind, each, f"{100 * found.apart[kind]:.0f} %")
    return made
