"""The house stands: imports go down, no circles, no runtime named in the core, short files that say what they hold."""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "qcompile"
PASSES, BACKENDS = PACKAGE / "passes", PACKAGE / "backends"

#: The floor of each room; ``docs/architecture.md`` has the drawing. A module imports from its own room, and from rooms
#: on lower floors: annotations' imports and those within functions count as well.
FLOORS = {
    "cli": 12,
    "driver": 11,
    "artifact": 10,
    "checks": 9,
    "passes": 8, "backends": 8, "recipes": 8,
    "choice": 7,
    "rounding": 6, "learning": 6,
    "statistics": 5, "prices": 5,
    "targets": 4,
    "analysis": 3, "run": 3,
    "operators": 2,
    "shapes": 1, "formats": 1, "huggingface": 1, "work": 1,
    "transforms": 0, "ir": 0, "effort": 0, "group": 0, "words": 0,
    "errors": -1, "threads": -1, "notes": -1,
}  # fmt: skip

#: Modules beside the rooms: the driver is the pipeline in order, the command line's entry stands beside it.
ROOMS = {"__main__": "cli"} | dict.fromkeys(
    ("api", "comparison", "compiler", "inspection", "measuring", "members", "opt", "parts", "preparation",
     "profiling", "quantizing", "splitting", "stages", "sweep", "teaching"),
    "driver",
)  # fmt: skip

#: Imports that go up or across, each with the reason. To become none.
EXCEPTIONS: dict[tuple[str, str], str] = {}

#: Modules that know each other: rules register themselves where the analysis looks them up.
CIRCLES: list[set[str]] = []

#: Files above the limit, each with the reason why it is one file.
LONG = {
    "qcompile/analysis/axes.py": "one data structure: every operation keeps the same invariants of the forest",
    "qcompile/analysis/rules/shaping.py": "one rule for each of ONNX's operators that move axes",
    "qcompile/analysis/spaces.py": "the types that rules, passes and reports share, with their analysis",
}
LIMIT = 300

#: Copied into artifacts as it stands: its modules import each other relatively, and nothing of this project.
SHIPPED = (BACKENDS / "gpu" / "kernels", BACKENDS / "gpu" / "runtime", PACKAGE / "operators" / "library")

#: What this project depends on: no module may take such a name.
DEPENDENCIES = {"compressed_tensors", "filelock", "gguf", "jinja2", "ml_dtypes", "networkx", "numpy", "onnx", "onnx_ir",
                "onnxruntime", "onnxscript", "platformdirs", "rich", "safetensors", "scipy", "torch", "transformers",
                "triton", "tvm", "typer"}  # fmt: skip


#: Names that several modules have, by the reason. Whatever is the same thing may be called the same.
SHARED_NAMES = {
    "every backend has them": "lowering manifest runner weights",
    "families of operators, in the rules and in the tables of backends": (
        "attention elementwise indexing normalization reductions shaping state_space"
    ),
    "one computation, as it is defined and as kernels of a backend": (
        "linear matmul norms packing quantize rotary rotate rounding rows scales scan transform"
    ),
    "a node as the row of a table sees it": "call",
    "other things under one name: to get names of their own": ("fused registry sequences sites state tables"),
}

#: A docstring names what it describes, or says what to do; it does not begin with a clause about it.
FIRST_WORDS = re.compile(r"(What|That|Those|Of)\b")


@cache
def modules() -> dict[str, Path]:
    """Every module of the package by its name below it."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports anywhere, annotations' imports included, as an absolute name."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 or SHIPPED[0] in path.parents, f"{name_of(path)} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def own_imports(module: str) -> frozenset[str]:
    """The modules of this package that a module imports."""
    found = set()
    for name in imports(modules()[module]):
        if under(name, "qcompile"):
            inner = name.removeprefix("qcompile").removeprefix(".")
            found.add(inner if inner in modules() else inner.rpartition(".")[0])
    return frozenset(found - {module})


def under(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def room(module: str) -> str:
    top = module.partition(".")[0]
    return ROOMS.get(top, top)


def apartment(module: str) -> str:
    """What must not know its neighbours: a room, but on the floor of passes and backends each backend."""
    return ".".join(module.split(".")[:2]) if room(module) == "backends" else room(module)


def test_imports_go_down() -> None:
    known = [module for module in modules() if module]
    assert [module for module in known if room(module) not in FLOORS] == [], "give it a floor"
    wrong = []
    for module in known:
        for other in own_imports(module) - {""}:
            same = apartment(other) in (apartment(module), "backends")
            if not same and FLOORS[room(other)] >= FLOORS[room(module)] and (module, other) not in EXCEPTIONS:
                wrong.append(f"{module} imports {other}, which does not lie below it")
    assert wrong == []


def test_no_module_knows_a_module_that_knows_it() -> None:
    graph = nx.DiGraph((module, other) for module in modules() for other in own_imports(module) if other and module)
    circles = [found for found in nx.strongly_connected_components(graph) if len(found) > 1]
    assert [found for found in circles if found not in CIRCLES] == []


def test_no_exception_is_out_of_date() -> None:
    assert [pair for pair in EXCEPTIONS if pair[1] not in own_imports(pair[0])] == []
    assert [name for name in LONG if not (ROOT / name).is_file()] == []
    assert [name for name in FLOORS if name not in map(room, modules())] == []


def test_the_core_names_no_runtime() -> None:
    """What a runtime is called is the business of its backend's manifest."""
    core = [path for name, path in modules().items() if room(name) not in ("backends", "")]
    found = {name_of(path): re.findall(r'"(ort|tvm|triton|relax|gpu)"', path.read_text()) for path in core}
    assert {path: names for path, names in found.items() if names} == {}


def test_passes_do_not_import_each_other() -> None:
    from qcompile.passes.index import all_passes

    own = {step.__module__.removeprefix("qcompile."): name for name, step in all_passes().items()}
    for module in own:
        others = own_imports(module) & (own.keys() - {module})
        assert not others, f"{module} imports {others}"


@pytest.mark.parametrize("folder", [PASSES, BACKENDS], ids=name_of)
def test_the_links_stand(folder: Path) -> None:
    """``tests/test_packaging.py`` holds that all works where a link became a text file or a copy."""
    link = ROOT / folder.name
    if not link.is_symlink():
        pytest.skip("this checkout has no symbolic links")
    assert link.resolve() == folder


def test_what_artifacts_carry_needs_only_torch_and_triton() -> None:
    allowed = {"torch", "triton", *sys.stdlib_module_names}
    for path in (file for folder in SHIPPED for file in folder.rglob("*.py")):
        nodes = list(ast.walk(tree_of(path)))
        outside = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 0]
        outside += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        wrong = [module for module in outside if module.partition(".")[0] not in allowed]
        assert not wrong, f"{name_of(path)} imports {wrong}"


def test_nothing_imports_under_the_bare_names() -> None:
    for path in modules().values():
        bare = [m for m in imports(path) if under(m, "passes") or under(m, "backends")]
        assert not bare, f"{name_of(path)} imports {bare}"


def test_every_module_says_what_it_is_for() -> None:
    said = {name_of(path): (ast.get_docstring(tree_of(path)) or "").partition("\n")[0] for path in modules().values()}
    assert [path for path, line in said.items() if not line.strip()] == [], "these have no docstring"


def stumbling(path: Path) -> list[str]:
    """Docstrings of a module, its public classes and functions that begin with one of the words."""
    tree = tree_of(path)
    kinds = (ast.ClassDef, ast.FunctionDef)
    public = (node for node in ast.walk(tree) if isinstance(node, kinds) and not node.name.startswith("_"))
    documented = [ast.get_docstring(node) or "" for node in (tree, *public)]
    return [text.partition("\n")[0] for text in documented if FIRST_WORDS.match(text)]


def test_docstrings_begin_with_what_they_describe() -> None:
    found = {name_of(path): stumbling(path) for path in modules().values()}
    assert {path: lines for path, lines in found.items() if lines} == {}


def test_modules_have_names_of_their_own() -> None:
    count = Counter(path.stem for path in modules().values() if path.stem != "__init__")
    shared = {name for name, times in count.items() if times > 1}
    listed = {name for names in SHARED_NAMES.values() for name in names.split()}
    assert shared - listed == set(), "two modules have one name: rename one, or say why not"
    assert listed - shared == set(), "take them off the list"


def test_files_stay_short() -> None:
    lines = {name_of(path): len(path.read_text().splitlines()) for path in modules().values()}
    long = {path: count for path, count in lines.items() if count > LIMIT and not LONG.get(path)}
    assert long == {}, "split it, or say why not"


def test_no_module_is_named_after_a_dependency() -> None:
    taken = [p for p in modules().values() if p.stem in DEPENDENCIES or p.parent.name in DEPENDENCIES]
    assert taken == []


def test_every_pass_is_named_after_its_file() -> None:
    from qcompile.passes.index import all_passes

    for name, step in all_passes().items():
        assert step.__module__.rpartition(".")[2] == name.replace("-", "_")


def test_tests_are_no_packages() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))
