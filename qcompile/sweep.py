"""Sweeps over budgets: the choice of an export under many budgets, from one calibration, with nothing written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from qcompile.choice.branches import scheme_of
from qcompile.choice.export_options import Options, check_options
from qcompile.choice.front import Point, bounds_of, front
from qcompile.choice.kinds import FREE
from qcompile.compiler import choice_of
from qcompile.errors import InputError, InternalError
from qcompile.members import on_devices
from qcompile.targets.registry import get_target
from qcompile.targets.scheme import Scheme

if TYPE_CHECKING:
    from qcompile.notes import Progress
    from qcompile.targets.target import Target

__all__ = ["sweep"]


def sweep(
    model: Any, options: Options, ranges: Mapping[str, tuple[float, float]], *, points: int = 10,
    devices: int = 1, progress: Progress | None = None, **capture_options: Any,
) -> list[Point]:  # fmt: skip
    """The choices that an export would make under budgets spread over ranges, the tightest first.

    Args:
        model: as for ``capture``.
        options: as for an export; its budget is not read. Without formats, one of the target's for each width of codes.
        ranges: by unit, the tightest budget and the loosest, one and the same for one that stays.
        points: for each range.
        devices: how many processes of this machine share the work; under ``torchrun``, those that it started.
        progress: called with a step, the part of it that is done, and the whole.

    Raises:
        QCompileError: if anything about the request cannot be done.
    """
    if options.transforms not in (*FREE, "none"):
        word = options.transforms
        raise InputError(f"a sweep chooses transforms with formats: --transforms takes auto, wush or none, not {word}")
    if not ranges or points < 1:
        raise InputError("a sweep takes a budget such as bits=3.5..8, and at least one point")
    for unit, (low, high) in ranges.items():
        if not 0 < low <= high:
            raise InputError(f"budget {unit}={low:g}..{high:g} does not go from a positive number to a larger one")
    target = get_target(options.target)
    formats = tuple(options.formats) or _one_of_each_width(target)
    if len(formats) < 2:
        raise InputError(f"there is one format to choose, {formats[0]}: a sweep takes several, --formats a,b")
    loosest = replace(options, formats=formats, budget={unit: high for unit, (_, high) in ranges.items()})
    check_options(loosest, target, [scheme_of(target, name) for name in formats])
    run = partial(_points, model, list(bounds_of(ranges, points)), **capture_options)
    return on_devices(run, replace(loosest, budget={}), devices, progress)


def _points(
    model: Any, bounds: Sequence[Mapping[str, float]], options: Options, progress: Progress | None,
    **capture_options: Any,
) -> list[Point]:  # fmt: skip
    choice = choice_of(model, options, progress, **capture_options)
    if choice.posed is None:
        raise InternalError("a choice between formats was not posed")
    return front(choice.posed, bounds)


def _one_of_each_width(target: Target) -> tuple[str, ...]:
    """The target's own scheme, and of its others one with each other width of codes, of the same group if it can be."""
    if "*" in target.schemes:
        raise InputError(f"target '{target.name}' runs every format: say which compete, --formats a,b")
    own = target.scheme(target.default)
    found = {own.bits: own.name}
    for scheme in sorted(map(Scheme.parse, target.schemes), key=lambda scheme: scheme.group != own.group):
        found.setdefault(scheme.bits, scheme.name)
    return tuple(found.values())
