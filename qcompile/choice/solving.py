"""Solves joint decisions: one labelling of shared spaces after the other, as a minimum cut, or as an integer program.

Once the spaces that several units share are fixed, each unit decides for itself but for budgets and ties. Where few
labellings are possible, all are solved so, and the best is taken. Two labels without a budget are a minimum cut.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from qcompile.choice.assignment import Assignment, Option, assign
from qcompile.choice.cuts import minimum_cut
from qcompile.choice.joint import Decision, Joint
from qcompile.choice.joint_program import integer_program
from qcompile.errors import InputError

__all__ = ["decide"]

#: Labellings of shared spaces that are solved one after the other; more become one integer program, as do all under
#: several budgets, where each would be one.
LABELLINGS = 16


def decide(problem: Joint, labellings: int = LABELLINGS) -> Decision:
    """The labels and options of least total loss within the budgets.

    Args:
        problem: what is to be decided.
        labellings: up to how many labellings are solved one after the other, within one budget or none.

    Raises:
        InputError: if the budgets cannot be met.
    """
    shared, local = _shared(problem)
    counts = [len(problem.labels[space]) for space in shared]
    most = labellings if len(problem.budgets) < 2 else min(labellings, 1)
    if math.prod(counts) <= most:
        return _enumerated(problem, shared, local, itertools.product(*map(range, counts)))
    if (cut := _cut(problem, shared, local)) is not None:
        return _enumerated(problem, shared, local, [cut])
    return Decision(*integer_program(problem))


def _cut(problem: Joint, shared: Sequence[int], local: Mapping[int, Sequence[int]]) -> tuple[int, ...] | None:
    """The labels of shared spaces as a minimum cut, where each has two and nothing but walls joins them."""
    alike = all((1, 1) in wall.alike or None in (wall.before, wall.after) for wall in problem.walls)
    reads = [[space for space in unit.spaces if space in shared] for unit in problem.units]
    two = all(len(problem.labels[space]) == 2 for space in shared)
    if not (two and alike) or problem.budgets or problem.ties or any(len(spaces) > 1 for spaces in reads):
        return None
    costs = {space: list(problem.labels[space]) for space in shared}
    for number, spaces in enumerate(reads):
        for space in spaces:
            for label in (0, 1):
                options = _under(problem, number, {space: label}, local.get(number, ()))
                costs[space][label] += min(option.loss for option, _ in options)
    edges = [(wall.before, wall.after, wall.cost) for wall in problem.walls]
    changed = minimum_cut({space: (plain, other) for space, (plain, other) in costs.items()}, edges)
    return tuple(int(space in changed) for space in shared)


def _shared(problem: Joint) -> tuple[list[int], dict[int, list[int]]]:
    """The spaces that more than one unit or a wall knows, and those of each unit alone."""
    seen: dict[int, list[int]] = defaultdict(list)
    for number, unit in enumerate(problem.units):
        for space in unit.spaces:
            seen[space].append(number)
    walls = {space for wall in problem.walls for space in (wall.before, wall.after) if space is not None}
    shared = [s for s in range(len(problem.labels)) if s in walls or len(seen[s]) != 1]
    local: dict[int, list[int]] = defaultdict(list)
    for space, units in seen.items():
        if len(units) == 1 and space not in walls:
            local[units[0]].append(space)
    return shared, local


def _enumerated(
    problem: Joint, shared: Sequence[int], local: Mapping[int, Sequence[int]], labellings: Iterable[tuple[int, ...]]
) -> Decision:  # fmt: skip
    """The best of some labellings of shared spaces, each solved exactly."""
    best: tuple[float, Assignment, tuple[int, ...], list[list[tuple[Option, tuple[int, ...]]]]] | None = None
    refused: InputError | None = None
    for chosen in labellings:
        labels = dict(zip(shared, chosen, strict=True))
        units = [_under(problem, number, labels, local.get(number, ())) for number in range(len(problem.units))]
        try:
            found = assign([[option for option, _ in unit] for unit in units], problem.budgets, problem.ties)
        except InputError as error:
            refused = error
            continue
        whole = [labels.get(space, 0) for space in range(len(problem.labels))]
        total = found.loss + problem.fixed(whole) - math.fsum(problem.labels[s][0] for s in _alone(local))
        if best is None or total < best[0]:
            best = total, found, tuple(whole), units
    if best is None:
        raise refused or InputError("there is nothing to decide")
    total, found, whole_labels, units = best
    labelled, options = list(whole_labels), []
    for number, (unit, index) in enumerate(zip(units, found.choice, strict=True)):
        option, own = unit[index]
        options.append(option)
        for space, label in zip(problem.units[number].spaces, own, strict=True):
            labelled[space] = label
    assignment = Assignment(found.choice, total, found.cost, found.method, found.gap)
    return Decision(tuple(labelled), tuple(options), assignment)


def _alone(local: Mapping[int, Sequence[int]]) -> list[int]:
    return [space for spaces in local.values() for space in spaces]


def _under(
    problem: Joint, number: int, labels: Mapping[int, int], local: Sequence[int]
) -> list[tuple[Option, tuple[int, ...]]]:
    """A unit's options under labels of shared spaces, each with the best labels of its own spaces."""
    unit = problem.units[number]
    found: dict[str, tuple[Option, tuple[int, ...]]] = {}
    for own, options in unit.options.items():
        if any(labels.get(space, label) != label for space, label in zip(unit.spaces, own, strict=True)):
            continue
        at = dict(zip(unit.spaces, own, strict=True))
        extra = math.fsum(problem.labels[space][at[space]] for space in local)
        for option in options:
            whole = Option(option.name, option.loss + extra, option.cost)
            if option.name not in found or whole.loss < found[option.name][0].loss:
                found[option.name] = whole, own
    return list(found.values())
