"""Writes the pages of docs/reference that list what is registered: targets, formats, transforms, commands.

PYTHONPATH=. python docs/list_reference.py
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import typer

import qcompile.transforms
from qcompile.choice.kinds import NAMED
from qcompile.cli.commands import app
from qcompile.formats.catalogue import EXTENDED_FORMATS, FORMATS
from qcompile.formats.format import Format
from qcompile.targets.registry import targets
from qcompile.transforms.transform import Transform

FOLDER = Path(__file__).parent / "reference"
MADE = "Made by `python docs/list_reference.py` from what is registered.\n"


def pages() -> dict[str, str]:
    """The text of each page, by the name of its file."""
    made = {"targets": _targets(), "formats": _formats(), "transforms": _transforms(), "commands": _commands()}
    return {f"{name}.md": "\n".join(lines) + "\n" for name, lines in made.items()}


def _table(heads: str, rows: Iterable[Iterable[str]]) -> list[str]:
    titles = heads.split(" | ")
    lines = [f"| {heads} |", f"|{'---|' * len(titles)}"]
    return [*lines, *(f"| {' | '.join(cell.replace('|', '¦') for cell in row)} |" for row in rows), ""]


def _code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


# -- targets ---------------------------------------------------------------------------------------------------------


def _targets() -> list[str]:
    found = targets()
    known = {name: target for name, target in found.items() if name == target.name}  # an alias is no row of its own
    said = (
        "`qcompile targets` prints the same. Behind a stroke is the format of a layer's input; layers at the edges of a"
    )
    lines = ["# Targets", "", MADE, said, "model take the format in the fourth column.", ""]
    lines += _table(
        "target | what it is | default | at the edges | other names",
        ([f"`{t.name}`", t.summary, f"`{t.default}`", f"`{t.edge}`", _code(t.aliases)] for t in known.values()),
    )
    for target in known.values():
        every = "Every [registered format](formats.md)." if "*" in target.schemes else f"{_code(target.schemes)}."
        lines += [f"## {target.name}", "", every, ""]
    return lines[:-1]


# -- formats ---------------------------------------------------------------------------------------------------------


def _formats() -> list[str]:
    count = len(FORMATS) + len(EXTENDED_FORMATS)
    said = (
        f"There are {count}; [formats](../formats.md) defines them to the bit. A row stands for all groups and types of"
    )
    more = "scales: `-g32` is one scale for 32 codes, `-channel` one for each output."
    lines = ["# Registered formats", "", MADE, said, more, "", "## Blocks of scalars", ""]
    lines += _table("format | bits of a code | scale of | type of the scale | from", _scalar_rows(FORMATS))
    lines += ["## With a structure of their own", "", _code(sorted(EXTENDED_FORMATS)) + "."]
    return lines


def _scalar_rows(formats: Mapping[str, Format]) -> Iterable[list[str]]:
    families: dict[str, list[Format]] = {}
    for name, fmt in formats.items():
        families.setdefault(re.sub(r"-(channel|tensor|g\d+)(-(fp32|fp16|bf16))?$", "", name), []).append(fmt)
    for family, members in families.items():
        groups = dict.fromkeys("an output" if fmt.group is None else str(fmt.group) for fmt in members)
        scales = dict.fromkeys(fmt.scale.name.lower() for fmt in members)
        yield [f"`{family}`", f"{members[0].bits}", ", ".join(groups), ", ".join(scales), members[0].source]


# -- transforms ------------------------------------------------------------------------------------------------------


def _transforms() -> list[str]:
    lines = ["# Registered transforms", "", MADE, "[Transforms](../transforms.md) has their algebra.", "",
             "## By name", "", "`--transforms` and `--transform-for` take these.", ""]  # fmt: skip
    rows = (
        [f"`{name}`", kind.summary, kind.freedom.label, "yes" if kind.online else "no", "yes" if kind.fitted else "no"]
        for name, kind in NAMED.items()
    )
    lines += _table("name | what it is | least freedom offline | before sites | fitted to data", rows)
    lines += ["## Matrices", "", "The kinds that manifests and artifacts have.", ""]
    for module in pkgutil.iter_modules(qcompile.transforms.__path__):  # a module that is imported registers its kinds
        importlib.import_module(f"qcompile.transforms.{module.name}")
    matrices = ([f"`{kind}`", _first(made.__doc__)] for kind, made in sorted(Transform.kinds.items()))
    return [*lines, *_table("kind | what it is", matrices)][:-1]


def _first(text: str | None) -> str:
    return (text or "").strip().split("\n\n")[0].replace("\n", " ").replace("``", "`").replace("    ", "")


# -- commands --------------------------------------------------------------------------------------------------------


def _commands() -> list[str]:
    lines = ["# Commands", "", MADE, "Exit status: 0 done, 2 a mistake of the user, 1 a bug of qcompile.", ""]
    group = typer.main.get_command(app)
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        lines += [f"## qcompile {name}", "", _first(command.help), ""]
        rows = [
            [_spelled(p), (getattr(p, "help", None) or "").replace("\n", " ")]
            for p in command.params
            if p.name not in ("help", "verbose", "log_file", "quiet")
        ]
        lines += _table("argument | meaning", rows)
    return lines[:-1]


def _spelled(parameter: object) -> str:
    names = [*parameter.opts, *parameter.secondary_opts]  # type: ignore[attr-defined]
    return _code(names if names[0].startswith("-") else [names[0].upper()])


if __name__ == "__main__":
    for name, text in pages().items():
        (FOLDER / name).write_text(text)
