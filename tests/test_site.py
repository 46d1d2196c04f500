"""The documentation builds without a network, its links lead somewhere, and what it lists is what is registered."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import qcompile

ROOT = Path(__file__).parent.parent

#: What a browser would load from elsewhere.
LOADED = re.compile(r'<(?:script|img|link)[^>]*(?:src|href)="(https?:[^"]*)"[^>]*>')


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built pages; a link that leads nowhere, or a page in no list, is an error there."""
    pytest.importorskip("material", reason="the extra 'docs' is not installed")
    folder = tmp_path_factory.mktemp("site")
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "http_proxy": "http://127.0.0.1:9",
        "NO_MKDOCS_2_WARNING": "1",
    }
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return folder


def test_every_page_is_built_and_loads_nothing_from_elsewhere(site: Path) -> None:
    sources = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")}
    built = {path.relative_to(site) for path in site.rglob("*.html")}
    assert sources - built == set()
    loaded = {path.name: LOADED.findall(path.read_text()) for path in site.rglob("*.html")}
    assert {name: found for name, found in loaded.items() if [url for url in found if "canonical" not in url]} == {}


def test_the_reference_has_docstrings(site: Path) -> None:
    page = (site / "reference" / "python.html").read_text()
    for words in ("Compile a model for a target", "An exported model", "qcompile.errors.InputError"):
        assert words in page
    assert [name for name, home in qcompile._HOMES.items() if f'id="qcompile.{home}.{name}"' not in page] == []


@pytest.mark.parametrize("name", ["targets.md", "formats.md", "transforms.md", "commands.md"])
def test_reference_pages_list_what_is_registered(name: str) -> None:
    """Run ``PYTHONPATH=. python docs/list_reference.py`` to write them anew."""
    spec = importlib.util.spec_from_file_location("list_reference", ROOT / "docs" / "list_reference.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert (ROOT / "docs" / "reference" / name).read_text() == script.pages()[name]


def test_readme_links_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / "README.md").read_text())
    assert len(links) >= 2
    assert [link for link in links if not (ROOT / link).exists()] == []
