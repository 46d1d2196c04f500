"""Pages name files and modules that are there; the drawing of the house is the one that imports are held to."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

#: Records of decisions keep the names of their time, tutorials name files that their readers make.
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += [
    page for folder in ("explanation", "how-to", "reference") for page in sorted((ROOT / "docs" / folder).glob("*.md"))
]

#: A file in a folder, or a folder in another. Words in capitals stand for any name.
FILE = re.compile(r"(?<![\w/.:-])((?:[\w-]+/)+[\w-]+\.(?:html|js|py|toml))\b")
FOLDER = re.compile(r"`((?:[\w-]+/){2,})`")
MODULE = re.compile(r"\bqcompile(?:\.[a-z_]+)+")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def exists(path: str, page: Path) -> bool:
    """Whether a path leads somewhere from the root, the package, its rooms, the page or the shipped models."""
    places = (ROOT, ROOT / "qcompile", page.parent, ROOT / "examples" / "zoo")
    return any((place / path).exists() for place in places)


def known(module: str) -> bool:
    """Whether a dotted name is a module, or a name within one."""
    import qcompile

    above, _, last = module.rpartition(".")
    if above == "qcompile" and last in qcompile.__all__:
        return True
    path = ROOT.joinpath(*module.split("."))
    if path.is_dir() or path.with_suffix(".py").is_file():
        return True
    file = ROOT.joinpath(*above.split(".")).with_suffix(".py")
    file = file if file.is_file() else file.with_suffix("") / "__init__.py"
    return file.is_file() and re.search(rf"\b{last}\b", file.read_text()) is not None


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_pages_name_what_is_there(page: Path) -> None:
    text = page.read_text()
    paths = [path for path in FILE.findall(text) + FOLDER.findall(text) if not re.search("[A-Z]{4}", path)]
    assert [path for path in paths if not exists(path, page)] == []
    assert [module for module in MODULE.findall(text) if not known(module)] == []


def test_the_drawing_is_the_plan_that_imports_are_held_to() -> None:
    spec = importlib.util.spec_from_file_location("architecture", ROOT / "tests" / "test_architecture.py")
    plan = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plan)
    text = (ROOT / "docs" / "architecture.md").read_text()
    drawn = re.findall(r"^ +(-?\d+)  (\w+) ", text, re.MULTILINE)
    assert {room: int(floor) for floor, room in drawn} == plan.FLOORS
    assert [int(floor) for floor, _ in drawn] == sorted(map(int, (floor for floor, _ in drawn)), reverse=True)
