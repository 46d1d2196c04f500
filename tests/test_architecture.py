"""The layout holds: who may import whom, how large files are, and that each says what it is for."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORE, PASSES, BACKENDS = ROOT / "qcompile", ROOT / "passes", ROOT / "backends"

#: Files above the limit, each with the reason why it is one file.
LONG = {
    "qcompile/axes.py": "one data structure: every operation keeps the same invariants of the forest",
    "qcompile/rules/shaping.py": "one rule for each of ONNX's operators that move axes",
    "qcompile/spaces.py": "the types that rules, passes and reports share, with their analysis",
}
LIMIT = 300

#: Copied into artifacts as it stands: its modules import each other relatively, and nothing of this project.
SHIPPED = BACKENDS / "gpu" / "kernels"

#: Passes that use another pass's helper.
SHARED_HELPERS: dict[tuple[str, str], str] = {}

#: What this project depends on: no module may take such a name.
DEPENDENCIES = {"jinja2", "ml_dtypes", "networkx", "numpy", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "rich",
                "safetensors", "scipy", "torch", "triton", "tvm", "typer"}  # fmt: skip


def core_files() -> list[Path]:
    """The files of the core, without those behind the two links."""
    return sorted(p for p in CORE.rglob("*.py") if p.relative_to(CORE).parts[0] not in ("passes", "backends"))


def all_files() -> list[Path]:
    return [*core_files(), *sorted(PASSES.rglob("*.py")), *sorted(BACKENDS.rglob("*.py"))]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports anywhere, annotations' imports included, as an absolute name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 or SHIPPED in path.parents, f"{name_of(path)} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def under(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def parts_below(path: Path, folder: Path) -> str:
    """The pass or backend that a file belongs to."""
    return path.relative_to(folder).parts[0].removesuffix(".py")


def test_the_links_stand() -> None:
    assert (CORE / "passes").resolve() == PASSES
    assert (CORE / "backends").resolve() == BACKENDS


@pytest.mark.parametrize("path", core_files(), ids=name_of)
def test_the_core_imports_no_pass_and_no_backend(path: Path) -> None:
    forbidden = [m for m in imports(path) if under(m, "qcompile.passes") or under(m, "qcompile.backends")]
    assert not forbidden, f"{name_of(path)} imports {forbidden}: find them by name instead"


@pytest.mark.parametrize("path", sorted(PASSES.rglob("*.py")), ids=name_of)
def test_passes_import_no_backend_and_not_each_other(path: Path) -> None:
    found = list(imports(path))
    assert not [m for m in found if under(m, "qcompile.backends")]
    own = parts_below(path, PASSES)
    others = {m.split(".")[2] for m in found if under(m, "qcompile.passes")} - {own}
    assert not [other for other in others if (own, other) not in SHARED_HELPERS]


@pytest.mark.parametrize("path", sorted(BACKENDS.rglob("*.py")), ids=name_of)
def test_backends_import_no_pass_and_no_other_backend(path: Path) -> None:
    found = list(imports(path))
    assert not [m for m in found if under(m, "qcompile.passes")]
    own = parts_below(path, BACKENDS)
    assert not [m for m in found if under(m, "qcompile.backends") and m.split(".")[2] != own]


@pytest.mark.parametrize("path", sorted(SHIPPED.rglob("*.py")), ids=name_of)
def test_what_artifacts_carry_needs_only_torch_and_triton(path: Path) -> None:
    outside = [node.module or "" for node in ast.walk(ast.parse(path.read_text()))
               if isinstance(node, ast.ImportFrom) and node.level == 0]  # fmt: skip
    outside += [a.name for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Import) for a in n.names]
    allowed = {"torch", "triton", *sys.stdlib_module_names}
    assert not [module for module in outside if module.partition(".")[0] not in allowed]


def test_no_exception_is_out_of_date() -> None:
    for importer, imported in SHARED_HELPERS:
        assert any(under(m, f"qcompile.passes.{imported}") for m in imports(PASSES / f"{importer}.py"))
    for name in LONG:
        assert (ROOT / name).is_file()


def test_nothing_imports_under_the_bare_names() -> None:
    for path in all_files():
        bare = [m for m in imports(path) if under(m, "passes") or under(m, "backends")]
        assert not bare, f"{name_of(path)} imports {bare}"


@pytest.mark.parametrize("package", ["passes", "backends"])
def test_the_folders_refuse_their_bare_names(package: str) -> None:
    run = subprocess.run([sys.executable, "-c", f"import {package}"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 1
    assert f"ImportError: import this package as qcompile.{package}" in run.stderr


@pytest.mark.parametrize("path", all_files(), ids=name_of)
def test_every_module_says_what_it_is_for(path: Path) -> None:
    documented = ast.get_docstring(ast.parse(path.read_text()))
    assert documented, f"{name_of(path)} has no docstring"
    assert documented.splitlines()[0].strip()


@pytest.mark.parametrize("path", all_files(), ids=name_of)
def test_files_stay_short(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= LIMIT or LONG.get(name_of(path)), f"{name_of(path)} has {lines} lines: split it, or say why not"


@pytest.mark.parametrize("path", all_files(), ids=name_of)
def test_no_module_is_named_after_a_dependency(path: Path) -> None:
    assert path.stem not in DEPENDENCIES
    assert path.parent.name not in DEPENDENCIES


def test_every_pass_is_named_after_its_file() -> None:
    from qcompile.passes_index import all_passes

    files = {path.stem.replace("_", "-") for path in PASSES.glob("*.py")} - {"--init--"}
    assert set(all_passes()) == files


def test_tests_are_no_packages() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))
