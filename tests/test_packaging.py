"""The wheel holds the three packages and nothing else; the pinned versions fit what is declared."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NEEDED = ("pyproject.toml", "README.md", "LICENSE", "qcompile", "passes", "backends")
SKIPPED = {"__pycache__", ".ruff_cache", ".mypy_cache"}
BESIDES = ("tests", "examples", "benchmarks", "docs")


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def build(source: Path, output: Path, *kinds: str) -> None:
    command = [sys.executable, "-m", "build", *kinds, "--no-isolation", "--outdir", str(output), str(source)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The files of a wheel that is built from a source distribution, as for a release."""
    folder = tmp_path_factory.mktemp("build")
    source = folder / "source"
    source.mkdir()
    for name in NEEDED:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, source / name, symlinks=True, ignore=shutil.ignore_patterns(*SKIPPED))
        else:
            shutil.copy(path, source / name)
    for name in BESIDES:  # folders that must not get in
        (source / name).mkdir()
        (source / name / "stray.py").write_text("")
    build(source, folder)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as content:
        return content.namelist()


def test_the_wheel_holds_nothing_else_at_the_top(names: list[str]) -> None:
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"qcompile"}


def test_the_wheel_holds_every_module_and_template(names: list[str]) -> None:
    parts = [p for p in (ROOT / "qcompile").rglob("*") if p.is_file()]
    parts += [p for folder in ("passes", "backends") for p in (ROOT / folder).rglob("*") if p.is_file()]
    wanted = {p.relative_to(ROOT).as_posix() for p in parts if not SKIPPED.intersection(p.parts)}
    wanted = {name if name.startswith("qcompile/") else f"qcompile/{name}" for name in wanted}
    assert {name for name in names if ".dist-info/" not in name} == wanted


def test_passes_and_backends_are_packages_of_qcompile(names: list[str]) -> None:
    assert "qcompile/passes/__init__.py" in names
    assert "qcompile/backends/ort/manifest.py" in names


def test_extras(project: dict) -> None:
    assert set(project["project"]["optional-dependencies"]) == {"tvm", "triton", "dev"}


def pins() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    return {canonical(line.split("==")[0]): line.split("==")[1] for line in lines}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_everything_that_the_tests_install_is_pinned(project: dict) -> None:
    from packaging.requirements import Requirement

    extras = project["project"]["optional-dependencies"]
    declared = [*project["project"]["dependencies"], *(text for extra in extras.values() for text in extra)]
    for text in declared:
        requirement = Requirement(text)
        assert requirement.specifier.contains(pins()[canonical(requirement.name)]), text


def test_torch_is_pinned_first() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert next(line for line in lines if "==" in line) == "torch==2.13.0"


def test_what_is_imported_is_declared(project: dict) -> None:
    import ast

    declared = {canonical(re.split(r"[<>=\[ ]", text)[0]) for text in project["project"]["dependencies"]}
    extras = {"tvm", "tvm_ffi", "triton"}  # tvm_ffi comes with apache-tvm
    imported = set()
    for folder in ("qcompile", "passes", "backends"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    imported |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    imported.add((node.module or "").split(".")[0])
    foreign = imported - set(sys.stdlib_module_names) - {"qcompile", "google"} - extras
    assert {canonical(name) for name in foreign} <= declared
