"""One option for every site, with the least total loss, under budgets: a multiple-choice knapsack, solved exactly.

Options are plain data, so that the same solver serves formats, transforms and both at once. Sites that must
agree (siblings that read one value, joins of a residual stream) are tied: they take options of one name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from qcompile.choice.knapsack import Problem, TooManyStates, dynamic_program, greedy, integer_program
from qcompile.errors import InputError

__all__ = ["Assignment", "Option", "assign"]

Method = Literal["auto", "dp", "ilp", "greedy"]

_SLACK = 1e-12  # relative: a budget equal to a sum of costs is met in spite of rounding


@dataclass(frozen=True)
class Option:
    """A choice for a site.

    Args:
        name: of the choice, unique per site; tied sites are matched by it.
        loss: predicted increase of the loss.
        cost: what it takes of each budget, in the budget's unit.
    """

    name: str
    loss: float
    cost: Mapping[str, float]


@dataclass(frozen=True)
class Assignment:
    """A chosen option for every site.

    Args:
        choice: the index into each site's options.
        loss: the sum of their losses.
        cost: the sum of their costs, for every budget.
        method: ``"dp"``, ``"ilp"`` (both exact) or ``"greedy"``.
        gap: relative gap that the solver leaves: 0 if proven optimal, NaN for greedy.
    """

    choice: tuple[int, ...]
    loss: float
    cost: dict[str, float]
    method: str
    gap: float


@dataclass(frozen=True)
class _Group:
    """Tied sites as one: ``members[i, k]`` is the option index of site ``sites[k]`` behind joint option ``i``."""

    sites: tuple[int, ...]
    members: np.ndarray  # [options, sites]
    loss: np.ndarray  # [options]
    cost: np.ndarray  # [options, budgets]


def assign(
    options: Sequence[Sequence[Option]],
    budgets: Mapping[str, float],
    ties: Sequence[Sequence[int]] = (),
    method: Method = "auto",
) -> Assignment:
    """The options of least total loss within all budgets.

    Args:
        options: the options of each site.
        budgets: the most that may be spent of each cost; a cost without a budget is ignored.
        ties: groups of sites that take options of the same name; groups that overlap are joined.
        method: ``"dp"``, dynamic programming over the Pareto frontier, exact for one budget; ``"ilp"``, HiGHS,
            exact for any number; ``"greedy"``, the usual heuristic, for comparison; ``"auto"``, the fitting exact
            one.

    Raises:
        InputError: if a budget cannot be met (the message names the least reachable cost), tied sites share no
            option, or the data are malformed.
    """
    if method not in ("auto", "dp", "ilp", "greedy"):
        raise InputError(f"unknown assignment method {method!r}; use auto, dp, ilp or greedy")
    if method == "dp" and len(budgets) > 1:
        raise InputError(f"dynamic programming takes one budget, not {len(budgets)}; use the integer program")
    groups = _groups(options, list(budgets), ties)
    _check_reachable(groups, budgets)
    limits = np.array([float(budget) for budget in budgets.values()])
    problem = Problem([g.loss for g in groups], [g.cost for g in groups], limits)
    chosen, gap, used = _solved(problem, method)
    return _result(options, list(budgets), groups, chosen, used, gap)


def _solved(problem: Problem, method: Method) -> tuple[list[int], float, str]:
    """The chosen items, the gap and the method that found them."""
    if method == "greedy":
        return greedy(problem), math.nan, "greedy"
    if method == "dp" or (method == "auto" and len(problem.limits) <= 1):
        try:
            return dynamic_program(problem), 0.0, "dp"
        except TooManyStates:
            if method == "dp":
                raise InputError("too many Pareto states for dynamic programming; use the integer program") from None
    return (*integer_program(problem), "ilp")


def _result(
    options: Sequence[Sequence[Option]],
    names: list[str],
    groups: list[_Group],
    chosen: list[int],
    method: str,
    gap: float,
) -> Assignment:
    choice = [0] * len(options)
    for group, index in zip(groups, chosen, strict=True):
        for site, member in zip(group.sites, group.members[index], strict=True):
            choice[site] = int(member)
    taken = [site[i] for site, i in zip(options, choice, strict=True)]
    cost = {name: math.fsum(option.cost[name] for option in taken) for name in names}
    return Assignment(tuple(choice), math.fsum(option.loss for option in taken), cost, method, gap)


# -- the problem as arrays --------------------------------------------------------------------------------------


def _groups(options: Sequence[Sequence[Option]], names: list[str], ties: Sequence[Sequence[int]]) -> list[_Group]:
    return [_joined(sites, options, names) for sites in _tied(len(options), ties)]


def _tied(count: int, ties: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """The connected components of the ties, in the order of their first sites."""
    owner = list(range(count))
    for tie in ties:
        if any(not 0 <= site < count for site in tie):
            raise InputError(f"tie {list(tie)} names a site outside 0 … {count - 1}")
        owners = {owner[site] for site in tie}
        owner = [min(owners) if o in owners else o for o in owner]
    return [tuple(s for s in range(count) if owner[s] == first) for first in sorted(set(owner))]


def _joined(sites: tuple[int, ...], options: Sequence[Sequence[Option]], names: list[str]) -> _Group:
    """The options that all of ``sites`` have, in the order of the first, their losses and costs added."""
    tables = [{option.name: i for i, option in enumerate(options[site])} for site in sites]
    for site, table in zip(sites, tables, strict=True):
        if len(table) != len(options[site]):
            raise InputError(f"site {site} has two options of the same name")
    common = [name for name in tables[0] if all(name in table for table in tables)]
    if not common:
        alone = f"site {sites[0]} has no option"
        raise InputError(alone if len(sites) == 1 else f"tied sites {list(sites)} have no option in common")
    members = np.array([[table[name] for table in tables] for name in common])
    rows = [[options[site][i] for site, i in zip(sites, row, strict=True)] for row in members]
    try:
        loss = np.array([math.fsum(o.loss for o in row) for row in rows])
        cost = np.array([[math.fsum(o.cost[n] for o in row) for n in names] for row in rows])
    except KeyError as missing:
        raise InputError(f"an option of site {sites[0]} or one tied to it has no cost {missing}") from None
    if not (np.isfinite(loss).all() and np.isfinite(cost).all()):
        raise InputError(f"a loss or cost of site {sites[0]} or one tied to it is not finite")
    return _Group(sites, members, loss, cost.reshape(len(common), len(names)))


def _check_reachable(groups: list[_Group], budgets: Mapping[str, float]) -> None:
    for k, (name, budget) in enumerate(budgets.items()):
        if math.isnan(budget):
            raise InputError(f"the budget {name} is not a number")
        least = math.fsum(group.cost[:, k].min() for group in groups)
        if least > budget + _SLACK * abs(budget):
            raise InputError(f"budget {name}={budget:.10g} cannot be met: the least reachable {name} is {least:.10g}")
