"""The targets and backends that are there, found by looking into the folder ``backends``.

A backend is a package ``qcompile.backends.NAME`` with three modules: ``manifest`` (``TARGETS``, a tuple of
``Target``; ``RUNTIME``, the name of the program that runs its artifacts; ``EXTRA``, the optional dependency that it
needs, or ``None``), ``lowering`` (``lower``), and ``runner`` (``load``). The core imports none by name.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from qcompile.errors import InputError, MissingExtraError, TargetError, unknown
from qcompile.targets.target import Target

if TYPE_CHECKING:
    import onnx_ir as ir

    from qcompile.run.session import Run
    from qcompile.targets.plans import Plan

__all__ = [
    "REFERENCE",
    "Backend",
    "Lowered",
    "backend",
    "get_target",
    "lowered_to",
    "runtime_of",
    "runtimes",
    "targets",
]

#: The target that runs every format on any machine: the definition that the others are compared with.
REFERENCE = "reference"


@dataclass(frozen=True)
class Lowered:
    """The result of lowering a graph.

    Args:
        files: names of the files in the artifact's folder.
        sites: by site, the choices of the backend, for example ``{"accuracy_level": 4}``. ``rounds_input_to`` names the
            format to which its kernel rounds the site's input by itself, though the scheme keeps activations;
            ``stored_bytes`` is the size of its weight, where that is more than the format needs.
        notes: further entries of the manifest.
    """

    files: tuple[str, ...]
    sites: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)


class Backend(Protocol):
    """The functions that a backend provides, gathered from its modules."""

    def lower(self, model: ir.Model, target: Target, folder: Path) -> Lowered:
        """Write the artifact's files for a graph whose sites are planned into ``folder``; may edit ``model``.

        The sites are those of ``plans.planned``, and ``Lowered.sites`` has them by ``ir.graph.name_of``.
        """

    def rounds_input_to(self, node: ir.Node, plan: Plan, target: Target) -> str | None:
        """The format to which the kernel of a planned site will round its input, though the scheme keeps it.

        ``None`` where it does not, and of every site if a backend has nothing else.
        """

    def load(self, folder: Path, *, threads: int = 0) -> Run:
        """The artifact as a function of named inputs.

        Args:
            threads: of programs for a CPU, which choose themselves if it is 0; programs for GPUs take no such argument.
        """

    def load_untransformed(self, folder: Path, *, threads: int = 0) -> tuple[Run, int] | None:
        """The artifact without its online transforms, and the bytes that these take, to learn what they cost.

        It computes other numbers, in the time of an artifact that has none. ``None`` where there are none, or where
        the runtime's files do not let them be taken out.
        """

    def rehearse(self, folder: Path) -> Run | None:
        """The same for a few inputs, on any machine; ``load`` itself if a runner has nothing else.

        ``None`` for an artifact that was compiled for another machine.
        """


@cache
def targets() -> dict[str, Target]:
    """All targets by name and alias."""
    found: dict[str, Target] = {}
    for name in _backends():
        for target in _manifest(name).TARGETS:
            found |= dict.fromkeys((target.name, *target.aliases), target)
    return found


def get_target(name: str) -> Target:
    """The target of that name.

    Raises:
        TargetError: if there is none.
    """
    known = targets()
    if name not in known:
        raise TargetError(unknown("target", name, sorted(known)))
    return known[name]


def runtime_of(name: str) -> str:
    """The runtime that a backend lowers to."""
    return _manifest(name).RUNTIME


def runtimes() -> dict[str, str]:
    """The backend of each runtime, by the name of the runtime."""
    return {runtime_of(name): name for name in _backends()}


def _backends() -> list[str]:
    package = importlib.import_module("qcompile.backends")
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))


def _manifest(name: str) -> Any:
    return importlib.import_module(f"qcompile.backends.{name}.manifest")


@dataclass(frozen=True)
class _Modules:
    """The modules of a backend, imported when they are called: artifacts run where nothing else is installed."""

    name: str

    def _module(self, name: str) -> Any:
        return importlib.import_module(f"qcompile.backends.{self.name}.{name}")

    @property
    def lower(self) -> Callable[..., Lowered]:
        return self._module("lowering").lower

    @property
    def rounds_input_to(self) -> Callable[..., str | None]:
        return getattr(self._module("lowering"), "rounds_input_to", _as_planned)

    @property
    def load(self) -> Callable[..., Callable[..., Any]]:
        return self._module("runner").load

    @property
    def rehearse(self) -> Callable[..., Callable[..., Any]]:
        runner = self._module("runner")
        return getattr(runner, "rehearse", runner.load)

    @property
    def load_untransformed(self) -> Callable[..., tuple[Run, int] | None]:
        return getattr(self._module("runner"), "load_untransformed", _compiled_in)


def _compiled_in(_: Path, *, threads: int = 0) -> None:
    """Leave online transforms in: the runner does not say how they are taken out."""


def _as_planned(*_: object) -> None:
    """Leave inputs as their schemes have them: the lowering says nothing else."""


def backend(name: str) -> Backend:
    """The backend of that folder.

    Raises:
        MissingExtraError: if it needs an optional dependency that is not installed.
    """
    if not name.isidentifier():
        raise InputError(f"'{name}' is not the name of a backend")
    extra = _manifest(name).EXTRA
    if extra is not None and importlib.util.find_spec(extra) is None:
        raise MissingExtraError(f"the {runtime_of(name)} runtime", extra)
    return _Modules(name)


@contextmanager
def lowered_to(target: Target, model: ir.Model) -> Iterator[Run]:
    """A planned graph as a function of its inputs, lowered in a temporary folder; it may be edited."""
    from qcompile.targets.cache_plans import caches_planned, with_float_caches

    lowering, caches = backend(target.backends[0]), [plan for _, plan in caches_planned(model)]
    with tempfile.TemporaryDirectory(prefix="qcompile-") as folder:
        lowering.lower(model, target, Path(folder))
        yield with_float_caches(lowering.load(Path(folder)), caches)
