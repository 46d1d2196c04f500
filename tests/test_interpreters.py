"""Every Python that pyproject.toml names reads the source, and imports what needs no package but the standard library.

Interpreters are looked for on the path and in pyenv; one that is not there is skipped, and pytest says so (``-rs``).
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CLASSIFIERS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
VERSIONS = [text.rpartition(" ")[2] for text in CLASSIFIERS if re.search(r"Python :: 3\.\d", text)]

#: Modules of the standard library of 3.11 that a later version lacks, as "What's New" lists them; 3.14 removed none.
REMOVED = {
    "3.12": {"asynchat", "asyncore", "distutils", "imp", "smtpd"},
    "3.13": {
        "aifc", "audioop", "cgi", "cgitb", "chunk", "crypt", "imghdr", "lib2to3", "mailcap", "msilib", "nis", "nntplib",
        "ossaudiodev", "pipes", "sndhdr", "spwd", "sunau", "telnetlib", "uu", "xdrlib",
    },
}  # fmt: skip

#: Compiles the files that it reads the names of, with every warning an error, then imports modules.
SCRIPT = """
import importlib, sys, warnings
warnings.simplefilter("error")
for name in sys.stdin.read().splitlines():
    with open(name, encoding="utf-8") as file:
        compile(file.read(), name, "exec")
for name in sys.argv[1:]:
    importlib.import_module(name)
"""

#: What imports nothing but the standard library when it is imported.
PURE = ("qcompile", "qcompile.errors", "qcompile.words", "qcompile.notes", "qcompile.threads", "qcompile.effort")


def interpreter(version: str) -> str | None:
    """A Python of that version which starts: a shim of pyenv need not."""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    named = [shutil.which(f"python{version}"), *(str(path) for path in root.glob(f"{version}.*/bin/python"))]
    for path in filter(None, named):
        asked = subprocess.run([path, "-c", "import sys; print(*sys.version_info[:2], sep='.')"], capture_output=True)
        if asked.returncode == 0 and asked.stdout.decode().strip() == version:
            return path
    return None


def sources() -> list[Path]:
    """All Python of the package, and what its users run beside it."""
    return [path for folder in ("qcompile", "examples", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]


@pytest.mark.parametrize("version", VERSIONS)
def test_it_compiles_without_a_warning_and_imports(version: str, tmp_path: Path) -> None:
    found = interpreter(version)
    if found is None:
        pytest.skip(f"there is no Python {version}")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYENV"))}
    run = subprocess.run(
        [found, "-S", "-c", SCRIPT, *PURE], input="\n".join(map(str, sources())), capture_output=True, text=True,
        cwd=tmp_path, env=environment | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr


def test_nothing_is_imported_that_a_later_version_lacks() -> None:
    gone = set().union(*REMOVED.values())
    found = []
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            found += [(path.name, name) for name in names if name.partition(".")[0] in gone]
    assert found == []
