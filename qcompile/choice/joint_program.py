"""The joint decision as an integer program: an indicator for each label and each option, which must agree."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from qcompile.choice.assignment import Assignment, Option
from qcompile.choice.joint import Joint, Wall
from qcompile.errors import InputError

__all__ = ["integer_program"]

#: The relative gap at which the solver may stop, if the program is large, and the seconds after which it must.
GAP, LARGE, SECONDS = 1e-4, 5000, 60.0

#: By how much of what it leaves a budget is tightened where the solver's tolerance overstepped it.
TIGHTER = (0.0, 1e-6, 1e-4)


@dataclass
class _Rows:
    """Linear constraints, gathered row by row."""

    entries: list[tuple[int, int, float]] = field(default_factory=list)
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)

    def add(self, terms: Mapping[int, float], low: float, high: float) -> None:
        self.entries += [(len(self.low), column, value) for column, value in terms.items()]
        self.low.append(low)
        self.high.append(high)


def integer_program(problem: Joint) -> tuple[tuple[int, ...], tuple[Option, ...], Assignment]:
    """Labels by space, options by unit and what they cost, by HiGHS, which proves the gap that is left.

    Raises:
        InputError: if the budgets cannot be met, or no solution was found in time.
    """
    columns = _Columns.of(problem)
    for tighter in TIGHTER:
        solution, gap = _solved(problem, columns, tighter)
        labels = tuple(int(solution[start:stop].argmax()) for start, stop in itertools.pairwise(columns.spaces))
        index = tuple(int(solution[start:stop].argmax()) for start, stop in columns.of_units)
        taken = tuple(found[i][1] for found, i in zip(columns.options, index, strict=True))
        cost = {name: math.fsum(option.cost[name] for option in taken) for name in problem.budgets}
        if all(cost[name] <= budget * (1 + 1e-12) for name, budget in problem.budgets.items()):
            break
    else:
        raise InputError(f"the solver oversteps a budget: {', '.join(f'{n}={c:.10g}' for n, c in cost.items())}")
    total = problem.fixed(labels) + math.fsum(option.loss for option in taken)
    return labels, taken, Assignment(index, total, cost, "ilp", gap)


def _solved(problem: Joint, columns: _Columns, tighter: float) -> tuple[np.ndarray, float]:
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import coo_array

    rows = _rows(problem, columns, tighter)
    row, column, value = zip(*rows.entries, strict=True)
    matrix = coo_array((value, (row, column)), shape=(len(rows.low), columns.count)).tocsr()
    scale = np.abs(columns.loss).max(initial=0.0) or 1.0
    integral = np.ones(columns.count)
    integral[columns.walls :] = 0
    gap = GAP if columns.count > LARGE else 0.0
    solved = milp(
        columns.loss / scale * 1e4, integrality=integral, bounds=Bounds(0, 1),
        constraints=LinearConstraint(matrix, rows.low, rows.high), options={"mip_rel_gap": gap, "time_limit": SECONDS},
    )  # fmt: skip
    if solved.x is None:
        met = "the budgets cannot be met together" if solved.status == 2 else solved.message
        raise InputError(f"no choice of transforms and formats was found: {met}")
    return solved.x, float(solved.mip_gap or 0.0)


@dataclass
class _Columns:
    """Where the indicators of labels, options and walls stand."""

    spaces: list[int]  # boundaries of the labels of each space
    options: list[list[tuple[tuple[int, ...], Option]]]
    of_units: list[tuple[int, int]]
    walls: int
    count: int
    loss: np.ndarray

    @classmethod
    def of(cls, problem: Joint) -> _Columns:
        spaces = [0, *itertools.accumulate(map(len, problem.labels))]
        options = [[(own, o) for own, found in unit.options.items() for o in found] for unit in problem.units]
        starts = [spaces[-1], *itertools.accumulate(map(len, options), initial=spaces[-1])][1:]
        loss = [*itertools.chain(*problem.labels), *(o.loss for found in options for _, o in found)]
        loss += [wall.cost for wall in problem.walls]
        of_units = list(itertools.pairwise(starts))
        return cls(spaces, options, of_units, starts[-1], len(loss), np.array(loss, float))


def _rows(problem: Joint, columns: _Columns, tighter: float) -> _Rows:
    rows = _Rows()
    for start, stop in itertools.pairwise(columns.spaces):
        rows.add(dict.fromkeys(range(start, stop), 1.0), 1, 1)
    for unit, found, (start, stop) in zip(problem.units, columns.options, columns.of_units, strict=True):
        rows.add(dict.fromkeys(range(start, stop), 1.0), 1, 1)
        for place, space in enumerate(unit.spaces):
            for label in range(len(problem.labels[space])):
                terms = {start + i: 1.0 for i, (own, _) in enumerate(found) if own[place] == label}
                rows.add({**terms, columns.spaces[space] + label: -1.0}, 0, 0)
    for one, other in problem.ties:
        for name in sorted({o.name for unit in (one, other) for _, o in columns.options[unit]}):
            terms = _named(columns, one, name, 1.0)
            for column, value in _named(columns, other, name, -1.0).items():
                terms[column] = terms.get(column, 0.0) + value
            rows.add(terms, 0, 0)
    for number, wall in enumerate(problem.walls):
        _add_wall(rows, problem, columns, wall, columns.walls + number)
    for name, budget in problem.budgets.items():
        _add_budget(rows, columns, name, budget, tighter)
    return rows


def _named(columns: _Columns, unit: int, name: str, value: float) -> dict[int, float]:
    start, _ = columns.of_units[unit]
    return {start + i: value for i, (_, option) in enumerate(columns.options[unit]) if option.name == name}


def _add_wall(rows: _Rows, problem: Joint, columns: _Columns, wall: Wall, column: int) -> None:
    """The wall is paid if one side has a label and the other has none that is alike."""
    alike = wall.alike | {(0, 0)}
    for one, other, pairs in (
        (wall.before, wall.after, alike), (wall.after, wall.before, {(b, a) for a, b in alike}),
    ):  # fmt: skip
        for label in range(len(problem.labels[one])) if one is not None else (0,):
            terms, high = {column: -1.0}, 0.0
            if one is not None:
                terms[columns.spaces[one] + label] = 1.0
            else:
                high -= 1.0
            for a, b in pairs:
                if a == label and other is not None:
                    terms[columns.spaces[other] + b] = terms.get(columns.spaces[other] + b, 0.0) - 1.0
                elif a == label and b == 0:
                    high += 1.0
            rows.add(terms, -math.inf, high)


def _add_budget(rows: _Rows, columns: _Columns, name: str, budget: float, tighter: float) -> None:
    least = [min(option.cost[name] for _, option in found) for found in columns.options]
    room = budget - math.fsum(least)
    if room < -1e-12 * abs(budget):
        reachable = math.fsum(least)
        raise InputError(f"budget {name}={budget:.10g} cannot be met: the least reachable {name} is {reachable:.10g}")
    room = max(room, 1e-12 * abs(budget), 1e-300)
    terms = {
        start + i: (option.cost[name] - low) / room
        for found, (start, _), low in zip(columns.options, columns.of_units, least, strict=True)
        for i, (_, option) in enumerate(found)
    }
    rows.add(terms, -math.inf, 1.0 - tighter)
