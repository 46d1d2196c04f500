"""Optimal scalar quantizers: Lloyd-Max grids for any density, and what follows from them for HIGGS and TurboQuant."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.linalg import solve_banded
from scipy.optimize import minimize_scalar

from qcompile.errors import InputError
from qcompile.formats.grids.distributions import Array, Distribution, as_distribution, sphere_coordinate

__all__ = ["Grid", "eden_errors", "grid_moments", "lloyd_max", "turboquant_grid", "uniform_grid"]


@dataclass(frozen=True)
class Grid:
    """A scalar quantizer that rounds to the nearest level.

    Args:
        levels: in increasing order.
        error: mean squared error (not divided by the variance).
        entropy: bits per value of an ideal entropy coder behind it.
    """

    levels: tuple[float, ...]
    error: float
    entropy: float


def grid_moments(levels: Array, source: Distribution) -> tuple[Array, Array, Array, Array]:
    """Cell edges inside, and each cell's mass, first and second moment."""
    edges = (levels[1:] + levels[:-1]) / 2
    moments = source.moments(np.concatenate([[source.low], edges, [source.high]]))
    mass, first, second = np.diff(moments, axis=1)
    return edges, mass, first, second


def _grid(levels: Array, source: Distribution) -> Grid:
    _, mass, first, second = grid_moments(levels, source)
    error = float((second - 2 * levels * first + levels**2 * mass).sum())
    used = mass[mass > 0]
    return Grid(tuple(levels.tolist()), error, float(-(used * np.log2(used)).sum()))


def lloyd_max(n: int, source: str | Distribution | Callable[[Array], Array] | Any = "normal") -> Grid:
    """The ``n`` levels with the least mean squared error for a density (Lloyd 1957, Max 1960).

    Starts from Panter and Dite's companding density f^(1/3), then damped Newton steps on the tridiagonal system
    "every level is the centroid of its cell". For log-concave densities the optimum is the only solution.

    Args:
        source: a name in ``scipy.stats``, a frozen scipy distribution, a density or a :class:`Distribution`.

    Raises:
        InputError: for ``n`` below one.
    """
    if n < 1:
        raise InputError(f"a grid needs at least one level, not {n}")
    source = as_distribution(source)
    levels = _companding(n, source)
    for _ in range(30):
        levels = _lloyd_step(levels, source)
    for _ in range(100):
        levels, moved = _newton_step(levels, source)
        if moved < 1e-15 * (abs(levels).max() + 1e-300):
            break
    return _grid(levels, source)


def _companding(n: int, source: Distribution) -> Array:
    x = np.linspace(source.low, source.high, 200_001)
    cumulative = np.cumsum(np.cbrt(source.density(x)))
    return np.interp((np.arange(n) + 0.5) / n, cumulative / cumulative[-1], x)


def _lloyd_step(levels: Array, source: Distribution) -> Array:
    _, mass, first, _ = grid_moments(levels, source)
    return np.where(mass > 0, first / np.maximum(mass, 1e-300), levels)


def _newton_step(levels: Array, source: Distribution) -> tuple[Array, float]:
    edges, mass, first, _ = grid_moments(levels, source)
    residual = levels * mass - first
    pull = (levels[:-1] - edges) * source.density(edges) / 2  # half of what an edge does to the cell on its left
    bands = np.zeros((3, len(levels)))
    bands[0, 1:] = pull
    bands[1] = mass
    bands[1, :-1] += pull
    bands[1, 1:] += pull
    bands[2, :-1] = pull
    step = solve_banded((1, 1), bands, residual)
    proposal = levels - step
    if np.any(np.diff(proposal) <= 0) or not np.all(np.isfinite(proposal)):
        proposal = _lloyd_step(levels, source)
    return proposal, float(abs(proposal - levels).max())


def uniform_grid(n: int, source: str | Distribution | Any = "normal") -> tuple[Grid, float]:
    """The best ``n`` evenly spaced levels around zero, and their step."""
    source = as_distribution(source)
    unit = np.arange(n) - (n - 1) / 2
    deviation = math.sqrt(source.variance)
    found = minimize_scalar(
        lambda step: _grid(unit * step, source).error,
        bounds=(0.1 * deviation / n, 8 * deviation / max(n - 1, 1)),
        method="bounded",
        options={"xatol": 1e-10 * deviation},
    )
    return _grid(unit * found.x, source), float(found.x)


@lru_cache
def turboquant_grid(d: int, bits: int) -> Grid:
    """TurboQuant's codebook: Lloyd-Max for a coordinate of a random unit vector in ``d`` dimensions.

    ``error`` is that of the whole vector of unit norm: d times one coordinate's. arXiv:2504.19874.
    """
    grid = lloyd_max(2**bits, sphere_coordinate(d))
    return Grid(grid.levels, d * grid.error, grid.entropy)


def eden_errors(bits: int) -> dict[str, float]:
    """Normalized errors of DRIVE/EDEN and TurboQuant for many dimensions, at ``bits`` a coordinate.

    ``biased`` D is Lloyd-Max on the normal distribution; the scale that removes the bias raises it to D / (1 - D)
    (arXiv:2108.08842). TurboQuant's inner-product variant spends one bit on the residual's sign: π/2 · D(bits - 1).
    """
    biased = lloyd_max(2**bits).error
    previous = lloyd_max(2 ** (bits - 1)).error if bits > 1 else 1.0
    return {
        "biased": biased,
        "unbiased": biased / (1 - biased),
        "product": math.pi / 2 * previous,
        "upper_bound": math.sqrt(3) * math.pi / 2 / 4**bits,
        "shannon_lower": 1 / 4**bits,
    }
