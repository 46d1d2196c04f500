"""The wheel holds the package alone, whatever became of the links; the pinned versions fit what is declared."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qcompile.passes.index import all_passes
from qcompile.recipes.recipe import all_recipes
from qcompile.targets.registry import targets

ROOT = Path(__file__).parent.parent
NEEDED = ("pyproject.toml", "README.md", "LICENSE")
SKIPPED = {"__pycache__", ".ruff_cache", ".mypy_cache"}
BESIDES = ("tests", "examples", "benchmarks", "docs")

#: The links at the root, for the reader, and the folders that they show.
LINKS = {"passes": "qcompile/passes", "backends": "qcompile/backends"}

#: A link arrives as a link, as a text file that names its folder (git with ``core.symlinks=false``, a zip that was
#: opened on Windows), or as a copy of its folder (a zip that was made by following links).
TREES = ("links", "text", "copies")

LISTING = """
import json, qcompile.passes, qcompile.backends.ort.manifest
from qcompile.passes.index import all_passes
from qcompile.targets.registry import targets
print(json.dumps([qcompile.__file__, sorted(all_passes()), sorted(targets())]))
"""


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def checkout(folder: Path, kind: str) -> Path:
    """A checkout of the files that matter, and of folders that must not get in, whose links arrived in that way."""
    folder.mkdir()
    for name in NEEDED:
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / "qcompile", folder / "qcompile", ignore=shutil.ignore_patterns(*SKIPPED))
    for name in BESIDES:
        (folder / name).mkdir()
        (folder / name / "stray.py").write_text("")
    for name, target in LINKS.items():
        if kind == "links":
            try:
                (folder / name).symlink_to(target, target_is_directory=True)
            except OSError:
                pytest.skip("this system makes no symbolic links")
        elif kind == "text":
            (folder / name).write_text(target)
        else:
            shutil.copytree(folder / target, folder / name)
    return folder


def build(source: Path, output: Path, *kinds: str) -> dict[str, bytes]:
    """Build a wheel; its files by name."""
    command = [sys.executable, "-m", "build", *kinds, "--no-isolation", "--outdir", str(output), str(source)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    (wheel,) = output.glob("*.whl")
    with zipfile.ZipFile(wheel) as content:
        return {name: content.read(name) for name in content.namelist()}


def python(*arguments: str, package: Path | None, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run Python on the package in a folder, and on no other copy of it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    given = {} if package is None else {"PYTHONPATH": str(package)}
    run = [sys.executable, *arguments]
    return subprocess.run(run, cwd=cwd, env=environment | given, capture_output=True, text=True)


@pytest.fixture(scope="module", params=TREES)
def tree(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout whose links arrived in one of the ways."""
    return checkout(tmp_path_factory.mktemp("tree") / request.param, request.param)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The wheel that is built from a source distribution of a checkout without links."""
    folder = tmp_path_factory.mktemp("build")
    return build(checkout(folder / "source", "text"), folder)


@pytest.fixture(scope="module")
def installed(wheel: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the wheel is unpacked to."""
    folder = tmp_path_factory.mktemp("installed")
    for name, content in wheel.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_the_wheel_holds_nothing_else_at_the_top(wheel: dict[str, bytes]) -> None:
    assert {name.split("/")[0] for name in wheel if ".dist-info/" not in name} == {"qcompile"}


def test_the_wheel_holds_every_module_and_template(wheel: dict[str, bytes]) -> None:
    parts = [p for p in (ROOT / "qcompile").rglob("*") if p.is_file() and not SKIPPED.intersection(p.parts)]
    wanted = {p.relative_to(ROOT).as_posix(): p.read_bytes() for p in parts}
    assert {name: content for name, content in wheel.items() if ".dist-info/" not in name} == wanted


@pytest.mark.parametrize("kinds", [("--wheel",), ()], ids=["directly", "from_sdist"])
def test_every_checkout_gives_the_same_wheel(
    tree: Path, wheel: dict[str, bytes], tmp_path: Path, kinds: tuple[str, ...]
) -> None:
    made = build(tree, tmp_path, *kinds)
    assert made.keys() == wheel.keys()
    assert [name for name in made if made[name] != wheel[name]] == []


def test_every_checkout_finds_its_passes_and_targets(tree: Path, tmp_path: Path) -> None:
    run = python("-c", LISTING, package=tree, cwd=tmp_path)
    where = str(tree / "qcompile" / "__init__.py")
    assert json.loads(run.stdout) == [where, sorted(all_passes()), sorted(targets())], run.stderr


@pytest.mark.parametrize("name", LINKS)
def test_the_folders_refuse_their_bare_names(tree: Path, name: str) -> None:
    run = python("-c", f"import {name}", package=None, cwd=tree)
    assert run.returncode == 1
    if (tree / name).is_dir():
        assert f"ImportError: import this package as qcompile.{name}" in run.stderr
    else:
        assert f"ModuleNotFoundError: No module named '{name}'" in run.stderr


@pytest.mark.parametrize("command, known", [("targets", targets), ("passes", all_passes), ("recipes", all_recipes)])
def test_the_wheel_lists_all(installed: Path, tmp_path: Path, command: str, known: Callable[[], dict]) -> None:
    run = python("-m", "qcompile", command, package=installed, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert [name for name in known() if not re.search(rf"(?<![\w-]){name}(?![\w-])", run.stdout)] == []


def first_command() -> list[list[str]]:
    """What the README's first command runs once it has installed the package, as arguments of ``qcompile``."""
    (line,) = (line for line in (ROOT / "README.md").read_text().splitlines() if "&& qcompile export" in line)
    return [shlex.split(part)[1:] for part in line.split(" && ") if part.startswith("qcompile ")]


#: Less of it: nothing to choose, no kernels to compile ahead, and few rows.
SMALLER = shlex.split(
    "--target reference --method rtn --transforms hadamard --formats nvfp4/nvfp4 --evaluation few.npz"
)


@pytest.mark.parametrize("smaller", [SMALLER, pytest.param([], marks=pytest.mark.slow)], ids=["smaller", "whole"])
def test_the_wheel_runs_the_first_command(installed: Path, tmp_path: Path, smaller: list[str]) -> None:
    zoo = tmp_path / "examples" / "zoo"
    zoo.mkdir(parents=True)
    for path in (ROOT / "examples" / "zoo").glob("language_model*"):
        shutil.copy(path, zoo)
    with np.load(zoo / "language_model_evaluation.npz") as rows:
        np.savez(tmp_path / "few.npz", **{name: array[:2] for name, array in rows.items()})
    export, run = first_command()
    for arguments in ([*export, *smaller], [*run, "--inputs", "few.npz"]):
        done = python("-m", "qcompile", *arguments, package=installed, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "out" / "language-model" / "manifest.json").read_text())
    loss = manifest["quantization"]["loss"]
    assert loss["float"] < loss["quantized"] < loss["float"] + 0.1
    assert np.isfinite(np.load(tmp_path / "out" / "logits.npz")["logits"]).all()


def test_extras(project: dict) -> None:
    extras = {"tvm", "triton", "hf", "gguf", "text", "images", "docs", "genai", "qonnx", "dev"}
    assert set(project["project"]["optional-dependencies"]) == extras


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
    declared = {canonical(re.split(r"[<>=\[ ]", text)[0]) for text in project["project"]["dependencies"]}
    extras = {
        "tvm",
        "tvm_ffi",
        "triton",
        "transformers",
        "compressed_tensors",
        "gguf",
        "tokenizers",
        "PIL",
    }  # tvm_ffi comes with apache-tvm, PIL is pillow
    imported = set()
    for path in (ROOT / "qcompile").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add((node.module or "").split(".")[0])
    foreign = imported - set(sys.stdlib_module_names) - {"qcompile", "google"} - extras
    assert {canonical(name) for name in foreign} <= declared


def test_metadata_names_one_version_and_the_pythons_that_are_meant(project: dict) -> None:
    from qcompile import __version__

    named = [
        text.rpartition(" ")[2] for text in project["project"]["classifiers"] if re.search(r"Python :: 3\.\d", text)
    ]
    assert named == ["3.11", "3.12", "3.13", "3.14"]
    assert project["project"]["requires-python"] == f">={named[0]}"
    cited = dict(line.split(": ", 1) for line in (ROOT / "CITATION.cff").read_text().splitlines() if ": " in line)
    assert cited["version"] == __version__
    assert cited["license"] == project["project"]["license"]
    first = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert first is not None
    assert first[1] == __version__


#: Where else an address of the project may stand, with what it would look like there.
ADDRESSES = {"CITATION.cff": r"^(?:repository-code|url): (\S+)", "mkdocs.yml": r"^(?:repo_url|site_url): (\S+)"}


def test_addresses_stand_in_one_place(project: dict) -> None:
    """The project has no public address yet; other files may repeat those of ``[project.urls]``, and add none."""
    named = set(project["project"].get("urls", {}).values())
    found = {name: re.findall(line, (ROOT / name).read_text(), re.MULTILINE) for name, line in ADDRESSES.items()}
    assert {name: urls for name, urls in found.items() if not named.issuperset(url.strip('"') for url in urls)} == {}


def test_an_address_that_a_publisher_sets_reaches_the_wheel(project: dict, tmp_path: Path) -> None:
    """As CONTRIBUTING.md has it."""
    (lines,) = re.findall(r"```toml\n(\[project\.urls\]\n.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    source = checkout(tmp_path / "source", "text")
    settings = (source / "pyproject.toml").read_text()
    if "urls" not in project["project"]:
        settings += "\n" + lines
        (source / "pyproject.toml").write_text(settings)
    (metadata,) = (c for name, c in build(source, tmp_path / "wheel", "--wheel").items() if name.endswith("/METADATA"))
    wanted = [f"{name}, {url}" for name, url in tomllib.loads(settings)["project"]["urls"].items()]
    assert re.findall(r"^Project-URL: (.+)$", metadata.decode(), re.MULTILINE) == wanted
