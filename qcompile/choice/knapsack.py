"""Solvers of the multiple-choice knapsack: take one item of every class, at the least loss, within all limits.

Two exact ones, by dynamic programming (one limit) and by an integer program (any number), and the greedy
heuristic that they are compared with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from qcompile.errors import InputError

__all__ = ["Problem", "TooManyStates", "dynamic_program", "greedy", "integer_program"]

_SLACK = 1e-12  # relative: a limit equal to a sum of costs is met in spite of rounding
_MAX_STATES = 4_000_000


class TooManyStates(Exception):
    """The Pareto frontier outgrew memory: the integer program is the better method."""


@dataclass(frozen=True)
class Problem:
    """Classes of items as arrays.

    Args:
        losses: per class ``[items]``.
        costs: per class ``[items, limits]``.
        limits: ``[limits]``; every one can be met on its own.
    """

    losses: list[np.ndarray]
    costs: list[np.ndarray]
    limits: np.ndarray

    @property
    def allowed(self) -> np.ndarray:
        """The limits with room for the rounding of sums."""
        return self.limits + _SLACK * np.abs(self.limits)

    def loss(self, chosen: list[int]) -> float:
        return math.fsum(loss[i] for loss, i in zip(self.losses, chosen, strict=True))

    def spent(self, chosen: list[int]) -> np.ndarray:
        taken = [cost[i] for cost, i in zip(self.costs, chosen, strict=True)]
        columns = zip(*taken, strict=True) if taken else [()] * len(self.limits)
        return np.array([math.fsum(column) for column in columns])

    def fits(self, chosen: list[int]) -> bool:
        return bool((self.spent(chosen) <= self.allowed).all())


# -- dynamic programming -----------------------------------------------------------------------------------------


def dynamic_program(problem: Problem) -> list[int]:
    """The optimum under at most one limit.

    States are (cost, loss) pairs. Dominated states are dropped, and those whose Lagrangian bound exceeds the
    loss of a known solution, so that real-valued costs need no rounding to a grid.

    Raises:
        TooManyStates: if the frontier grows beyond memory.
    """
    cheapest_best = _priced(problem, 0.0)
    if problem.fits(cheapest_best):
        return cheapest_best
    limit = float(problem.allowed[0])
    price, incumbent = _bound(problem)
    costs = [cost[:, 0] for cost in problem.costs]
    after = _suffix_sums([(loss + price * cost).min() for loss, cost in zip(problem.losses, costs, strict=True)])
    least = _suffix_sums([cost.min() for cost in costs])
    cost, loss, history = np.zeros(1), np.zeros(1), []
    for k in range(len(costs)):
        cost, loss, parent, item = _extend(cost, loss, costs[k], problem.losses[k])
        possible = (cost + least[k + 1] <= limit) & (loss + price * (cost - limit) + after[k + 1] <= incumbent)
        keep = _frontier(cost, loss, possible)
        cost, loss = cost[keep], loss[keep]
        history.append((parent[keep], item[keep]))
    return _backtrack(history, int(loss.argmin()))


def _suffix_sums(values: list[float]) -> np.ndarray:
    return np.concatenate([np.cumsum(values[::-1])[::-1], [0.0]])


def _extend(cost: np.ndarray, loss: np.ndarray, dc: np.ndarray, dl: np.ndarray) -> tuple[np.ndarray, ...]:
    """All states times all items of a class: costs, losses, parent states, items."""
    if len(cost) * len(dc) > _MAX_STATES:
        raise TooManyStates
    parent, item = np.divmod(np.arange(len(cost) * len(dc)), len(dc))
    return (cost[:, None] + dc).ravel(), (loss[:, None] + dl).ravel(), parent, item


def _frontier(cost: np.ndarray, loss: np.ndarray, possible: np.ndarray) -> np.ndarray:
    """Indices of the possible states for which no other is both no dearer and no lossier."""
    index = np.flatnonzero(possible)
    index = index[np.lexsort((loss[index], cost[index]))]
    best = np.minimum.accumulate(loss[index])
    return index[np.concatenate([[True], best[1:] < best[:-1]])]


def _backtrack(history: list[tuple[np.ndarray, np.ndarray]], state: int) -> list[int]:
    chosen = []
    for parent, item in reversed(history):
        chosen.append(int(item[state]))
        state = int(parent[state])
    return chosen[::-1]


def _priced(problem: Problem, price: float) -> list[int]:
    """The best items when the first limit's cost has a price; the cheaper of equally good ones."""
    if not len(problem.limits):
        return [int(loss.argmin()) for loss in problem.losses]
    return [
        int(np.lexsort((c[:, 0], loss + price * c[:, 0]))[0])
        for loss, c in zip(problem.losses, problem.costs, strict=True)
    ]


def _bound(problem: Problem) -> tuple[float, float]:
    """The least price at which the priced choice fits, and the loss of a good solution plus room for rounding."""
    low, high = 0.0, 1e-12
    while not problem.fits(_priced(problem, high)) and high < 1e200:
        low, high = high, high * 16
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if problem.fits(_priced(problem, middle)) else (middle, high)
    starts = [chosen for chosen in (_priced(problem, high), _cheapest(problem)) if problem.fits(chosen)]
    loss = min(problem.loss(_improved(problem, chosen)) for chosen in starts)
    return high, loss + 1e-10 * math.fsum(np.abs(loss).max() for loss in problem.losses)


# -- greedy ------------------------------------------------------------------------------------------------------


def greedy(problem: Problem) -> list[int]:
    """From the cheapest items, again and again the exchange that saves most loss per cost and still fits.

    Raises:
        InputError: if the cheapest items do not fit together, which says nothing of others under several limits.
    """
    start = _cheapest(problem)
    if not problem.fits(start):
        raise InputError("the greedy method found no choice within all budgets; use the integer program")
    return _improved(problem, start)


def _cheapest(problem: Problem) -> list[int]:
    scale = _scale(problem)
    return [
        int(np.lexsort((loss, (c / scale).sum(1)))[0]) for loss, c in zip(problem.losses, problem.costs, strict=True)
    ]


def _scale(problem: Problem) -> np.ndarray:
    """A unit that makes costs of different budgets comparable: the budget, or its dearest item where that is more."""
    dearest = np.array([np.abs(cost).max(0) for cost in problem.costs]).max(0, initial=np.finfo(float).tiny)
    return np.maximum(problem.limits, dearest)


def _improved(problem: Problem, chosen: list[int]) -> list[int]:
    """``chosen`` after greedy exchanges, each of which lowers the loss and keeps within the limits."""
    sizes = [len(loss) for loss in problem.losses]
    group = np.repeat(np.arange(len(sizes)), sizes)
    start = np.concatenate([[0], np.cumsum(sizes)])[:-1]
    loss, cost = np.concatenate(problem.losses), np.concatenate(problem.costs)
    scale = _scale(problem)
    current = start + np.array(chosen)
    while True:
        saved = loss[current][group] - loss
        extra = cost - cost[current][group]
        fits = (cost[current].sum(0) + extra <= problem.allowed).all(1)
        if not (useful := fits & (saved > 0)).any():
            return [int(i) for i in current - start]
        price = np.maximum((extra / scale).sum(1), 1e-15)
        best = int(np.where(useful, saved / price, -np.inf).argmax())
        current[group[best]] = best


# -- integer program ---------------------------------------------------------------------------------------------


def integer_program(problem: Problem) -> tuple[list[int], float]:
    """The optimum under any number of limits, by HiGHS, and the relative gap that it reports.

    A solution that is within the solver's tolerance but not within the limits is cut off and the program solved
    again, so that what is returned does fit.

    Raises:
        InputError: if the limits cannot all be met at once, or the solver gives up.
    """
    from scipy.optimize import LinearConstraint

    sizes = [len(loss) for loss in problem.losses]
    if not sizes:
        return [], 0.0
    stop = np.cumsum(sizes)
    rows = np.zeros((len(sizes), stop[-1]))
    for row, end, size in zip(rows, stop, sizes, strict=True):
        row[end - size : end] = 1
    excess = _excess(problem)
    upper = (excess <= 1 + 1e-9).all(1).astype(float)
    constraints = [LinearConstraint(rows, 1, 1)]
    if len(problem.limits):
        constraints.append(LinearConstraint(np.where(upper[:, None] > 0, excess, 0.0).T, -np.inf, 1))
    while True:
        x, gap = _solve(_objective(problem), upper, constraints)
        chosen = [int(x[end - size : end].argmax()) for end, size in zip(stop, sizes, strict=True)]
        if problem.fits(chosen):
            return chosen, gap
        picked = np.zeros(len(x))
        picked[[end - size + i for end, size, i in zip(stop, sizes, chosen, strict=True)]] = 1
        constraints.append(LinearConstraint(picked[None], -np.inf, len(sizes) - 1))


def _excess(problem: Problem) -> np.ndarray:
    """Costs above their class's least, ``[items, limits]``, in units of the room that the least costs leave.

    An item above 1 cannot be afforded; what remains lies between 0 and 1 whatever the scale of the budget.
    """
    least = np.array([cost.min(0) for cost in problem.costs])
    room = problem.allowed - np.array([math.fsum(column) for column in least.T])
    room = np.maximum(room, np.maximum(_SLACK * np.abs(problem.limits), np.finfo(float).tiny))
    with np.errstate(over="ignore"):
        return np.concatenate([cost - low for cost, low in zip(problem.costs, least, strict=True)]) / room


def _objective(problem: Problem) -> np.ndarray:
    """Losses above their class's least, scaled against HiGHS's absolute gap of 1e-6, which cannot be set.

    The unit is what a known solution loses; an item that loses more on its own cannot be part of the optimum, so
    its loss is cut there, which keeps the range of the coefficients small.
    """
    loss = np.concatenate([losses - losses.min() for losses in problem.losses])
    start = _cheapest(problem)
    known = loss.sum()
    if problem.fits(start):
        steps = zip(problem.losses, _improved(problem, start), strict=True)
        known = math.fsum(losses[i] - losses.min() for losses, i in steps)
    unit = known or min(loss[loss > 0], default=1.0)  # at 0 the known solution is optimal, anything else is not
    with np.errstate(over="ignore"):
        return np.minimum(loss / unit, 2.0) * 1e4


def _solve(objective: np.ndarray, upper: np.ndarray, constraints: list[Any]) -> tuple[np.ndarray, float]:
    from scipy.optimize import Bounds, milp

    result = milp(objective, integrality=np.ones_like(objective), bounds=Bounds(0, upper), constraints=constraints,
                  options={"mip_rel_gap": 0.0})  # fmt: skip
    if result.status == 2:
        raise InputError("the budgets cannot be met together, although each of them can be met alone")
    if result.x is None:
        raise InputError(f"the integer program was not solved: {result.message}")
    return result.x, float(result.mip_gap or 0.0)
