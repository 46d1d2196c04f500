"""The page of formats names every format and element, and its drawings are those of the registry."""

import re
import runpy
from pathlib import Path

import pytest

from qcompile.formats import ELEMENTS, EXTENDED_FORMATS, FORMATS
from qcompile.formats.format import Kind, ScaleRule, ScaleType

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "formats.md").read_text()
NAMES = re.findall(r"`([^`\n]+)`", TEXT)


def named(text):
    """Whether some name in code on the page is that one, ``*`` standing for anything."""
    return any(re.fullmatch(re.escape(name).replace(r"\*", ".*"), text) for name in NAMES)


def family(name):
    """Without group, storage of scales and width."""
    stem = re.sub(r"-(g\d+|channel)(-(bf|fp)\d+)?$", "", name)
    return re.sub(r"^(u?int)\d", r"\1", stem)


@pytest.mark.parametrize("stem", sorted({family(name) for name in FORMATS | EXTENDED_FORMATS}))
def test_every_family_is_on_the_page(stem):
    members = [name for name in FORMATS | EXTENDED_FORMATS if family(name) == stem]
    mx = re.match(r"(mx\w+(?:-e\dm\d)?)(-\w+)?$", stem)
    if mx:
        assert named(mx[1])
        assert mx[2] is None or named(mx[2])
    else:
        assert any(named(name) for name in members), f"docs/formats.md names none of {members}"


@pytest.mark.parametrize("name", ELEMENTS)
def test_every_element_has_a_row(name):
    row = re.sub(r"\d", "*b*", name, count=1) if re.match(r"(u|mx)?int", name) else name
    assert re.search(rf"^\|[^|]*\b{re.escape(name)}\b[^|]*\||^\| {re.escape(row)} \|", TEXT, re.M), name


def test_rules_and_storages_are_named():
    words = {"absmax", "signed-max", "min-max", "floor", "-ceil", "-rceil", "-even", "-nearest", "-mrgptq"}
    assert len(words) == len(ScaleRule)
    assert all(f"| {word}" in TEXT or f"| `{word}`" in TEXT for word in words)
    assert all(storage.name in TEXT for storage in ScaleType if storage is not ScaleType.NONE)


@pytest.mark.parametrize("name", FORMATS | EXTENDED_FORMATS)
def test_every_format_has_a_source(name):
    assert (FORMATS | EXTENDED_FORMATS)[name].source


def test_the_drawings_are_those_of_the_registry():
    """``python docs/draw_formats.py`` brings them up to date."""
    draw = runpy.run_path(str(DOCS / "draw_formats.py"))
    assert {name for name, element in ELEMENTS.items() if element.kind is not Kind.INTEGER} <= set(draw["_SCALAR"])
    for name, make in draw["DRAWINGS"].items():
        assert (DOCS / name).read_text() == make(), name
