"""Targets: what a runtime can compute, as data that each backend declares in its folder.

A backend is a package ``qcompile.backends.NAME`` with three modules: ``manifest`` (``TARGETS``, a tuple of
``Target``, and ``EXTRA``, the optional dependency that it needs or ``None``), ``lowering`` (``lower``), and
``runner`` (``load``). The core finds them by looking into the folder; it imports none.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from qcompile.errors import InputError, MissingExtraError, TargetError
from qcompile.formats import Format, get_format

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from qcompile.formats import Quantized

__all__ = [
    "Backend", "FLOAT", "Lowered", "Plan", "RUNTIMES", "Scheme", "Target", "backend", "get_target", "runtime_of",
    "targets",
]  # fmt: skip

#: Which backend runs an artifact under which name of a runtime.
RUNTIMES = {"ort": "ort", "tvm": "relax", "triton": "gpu"}


@dataclass(frozen=True)
class Scheme:
    """How one site computes: the format of its weight, and of its input, quantized as it runs.

    Args:
        weight: ``None`` keeps the weight as it is.
        activation: ``None`` keeps the input as it is.
    """

    weight: Format | None = None
    activation: Format | None = None

    @property
    def name(self) -> str:
        """``"nvfp4/nvfp4"``, ``"int4-g32"`` for weights alone, ``"float"`` for neither."""
        if self.weight is None:
            return "float"
        return self.weight.name + (f"/{self.activation.name}" if self.activation else "")

    @property
    def bits(self) -> float:
        """Bits of one weight code, without scales; 32 for ``float``."""
        return self.weight.bits if self.weight else 32

    @staticmethod
    def parse(text: str) -> Scheme:
        """The scheme of that name.

        Raises:
            InputError: if a format is unknown.
        """
        if text == "float":
            return FLOAT
        weight, _, activation = text.partition("/")
        return Scheme(get_format(weight), get_format(activation) if activation else None)


FLOAT = Scheme()


@dataclass(frozen=True)
class Target:
    """Something that a model can be exported to.

    Args:
        name: as on the command line.
        summary: one line for ``qcompile targets``.
        backends: the folders under ``backends`` that lower to it. The first makes the artifact what it is; further
            ones add their files to the same folder, and where their extra is missing, the manifest says so.
        schemes: names of the schemes that it can run; a name given without an activation format stands for the
            first scheme with that weight format. ``("*",)`` means every format.
        default: the scheme of sites when no formats are asked for.
        edge: the scheme of sites at the edges of the model: embedding tables and what writes an output.
        plain: the scheme whose rounding to nearest, without transforms, results are measured against; the default
            scheme where none is named.
        transform_price: by how much an online transform must lower the error of its sites, per fraction of their
            arithmetic that it costs: 1 where it fuses with the quantization of activations, more where it is a pass
            of its own over memory.
        aliases: other names.
        runs_here: whether an artifact runs on any machine at a useful speed; else its quality is measured on the
            reference interpreter.
        bandwidth: bytes of weights read in a second, for budgets of latency: an estimate; ``None`` without one.
        stacks: whether it computes sites whose weight is a stack of matrices, such as batched or looked-up experts:
            ``"none"``, ``"matrices"`` (those that are a product for each matrix, see ``stacks.Experts``), ``"all"``.
        bodies: whether it computes sites in the bodies of If, Loop and Scan.
        options: constants that the backend's lowering reads.
    """

    name: str
    summary: str
    backends: tuple[str, ...]
    schemes: tuple[str, ...]
    default: str
    edge: str = "float"
    plain: str | None = None
    transform_price: float = 1.0
    aliases: tuple[str, ...] = ()
    runs_here: bool = True
    bandwidth: float | None = None
    stacks: Literal["none", "matrices", "all"] = "none"
    bodies: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def scheme(self, text: str) -> Scheme:
        """The scheme that a name means on this target.

        Raises:
            TargetError: if the target cannot run it.
            InputError: if there is no such format.
        """
        asked = Scheme.parse(text)
        if text == "float" or "*" in self.schemes or asked.name in self.schemes:
            return asked
        for name in self.schemes:
            if name.partition("/")[0] == text:
                return Scheme.parse(name)
        raise TargetError(f"target '{self.name}' cannot run format '{text}'; it runs {', '.join(self.schemes)}")

    def on_machine(self, description: str) -> Target:
        """The target for another machine, which its backend reads from ``options["machine"]``.

        Raises:
            TargetError: if the backend compiles for no machine in particular.
        """
        if "machine" not in self.options:
            raise TargetError(f"target '{self.name}' is not compiled by TVM: --tvm-target means nothing for it")
        return replace(self, runs_here=False, options={**self.options, "machine": description})


@dataclass(frozen=True)
class Plan:
    """One site, ready to be lowered.

    Args:
        site: the name of its operator in the graph.
        scheme: how it computes.
        weight: the quantized weight as ``[out, in]`` with groups along ``in``; for an embedding table
            ``[rows, features]`` with groups along the features. ``None`` where the weight stays as it is.
    """

    site: str
    scheme: Scheme
    weight: Quantized | None


@dataclass(frozen=True)
class Lowered:
    """What a backend made of a graph.

    Args:
        files: names of the files in the artifact's folder.
        sites: by site, what the backend chose: for example ``{"accuracy_level": 4}``. ``rounds_input_to`` names the
            format to which its kernel rounds the site's input by itself, though the scheme keeps activations;
            ``stored_bytes`` is what its weight takes, where that is more than the format needs.
        notes: further entries of the manifest.
    """

    files: tuple[str, ...]
    sites: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)


class Backend(Protocol):
    """The functions that a backend provides, gathered from its modules."""

    def lower(self, model: ir.Model, plans: Sequence[Plan], target: Target, folder: Path) -> Lowered:
        """Write the artifact's files for a graph whose sites are planned into ``folder``; may edit ``model``."""

    def load(self, folder: Path) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
        """The artifact as a function of named inputs."""

    def rehearse(self, folder: Path) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]] | None:
        """As ``load``, for one small input, on any machine; ``load`` itself where a runner has nothing else.

        ``None`` for an artifact that was compiled for another machine.
        """


@cache
def targets() -> dict[str, Target]:
    """All targets by name and alias."""
    found: dict[str, Target] = {}
    package = importlib.import_module("qcompile.backends")
    for module in sorted(pkgutil.iter_modules(package.__path__), key=lambda m: m.name):
        manifest = importlib.import_module(f"qcompile.backends.{module.name}.manifest")
        for target in manifest.TARGETS:
            found |= dict.fromkeys((target.name, *target.aliases), target)
    return found


def get_target(name: str) -> Target:
    """The target of that name.

    Raises:
        TargetError: if there is none.
    """
    known = targets()
    if name not in known:
        raise TargetError(f"unknown target '{name}'; there are {', '.join(sorted(known))}")
    return known[name]


def runtime_of(name: str) -> str:
    """The runtime that a backend lowers to; its own name where no runtime is registered for it."""
    return next((runtime for runtime, backend in RUNTIMES.items() if backend == name), name)


@dataclass(frozen=True)
class _Modules:
    lower: Callable[..., Lowered]
    load: Callable[..., Callable]
    rehearse: Callable[..., Callable]


def backend(name: str) -> Backend:
    """The backend of that folder.

    Raises:
        MissingExtraError: if it needs an optional dependency that is not installed.
    """
    if not name.isidentifier():
        raise InputError(f"'{name}' is not the name of a backend")
    extra = importlib.import_module(f"qcompile.backends.{name}.manifest").EXTRA
    if extra is not None and importlib.util.find_spec(extra) is None:
        raise MissingExtraError(f"the {runtime_of(name)} runtime", extra)
    lowering = importlib.import_module(f"qcompile.backends.{name}.lowering")
    runner = importlib.import_module(f"qcompile.backends.{name}.runner")
    return _Modules(lowering.lower, runner.load, getattr(runner, "rehearse", runner.load))
