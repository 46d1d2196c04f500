"""Distributions as their incomplete moments, from which every error of a quantizer follows in closed form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from qcompile.errors import InputError

__all__ = ["Distribution", "as_distribution", "sphere_coordinate"]

Array = NDArray[np.float64]
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(8)
_TABLE = 1 << 15


@dataclass(frozen=True, eq=False)
class Distribution:
    """A density on the line with its moments ``M_k(t) = ∫_{-∞}^t x^k f(x) dx`` for k = 0, 1, 2.

    The moments are tabulated by Gauss-Legendre quadrature on panels and read by cubic Hermite interpolation, whose
    error with these panels is about 1e-13 for a smooth density; a kink at zero or at the ends falls on a node.

    Args:
        pdf: the density, vectorized.
        low, high: the support, or where the second moment outside is negligible.
    """

    pdf: Callable[[Array], Array]
    low: float
    high: float
    _table: tuple[Array, Array, Array] = field(init=False, repr=False)  # nodes, moments and density there
    _total: float = field(init=False, repr=False)

    def __post_init__(self) -> None:
        nodes = self._nodes()
        half = np.diff(nodes)[:, None] / 2
        x = (nodes[:-1] + nodes[1:])[:, None] / 2 + half * _NODES
        mass = self.pdf(x) * half * _WEIGHTS
        tables = [np.concatenate([[0.0], np.cumsum((mass * x**k).sum(1))]) for k in range(3)]
        total = tables[0][-1]
        object.__setattr__(self, "_table", (nodes, np.stack(tables) / total, self.pdf(nodes) / total))
        object.__setattr__(self, "_total", total)

    def _nodes(self) -> Array:
        """Panels that are finest around zero and grow geometrically, with zero among their ends if inside."""
        if not self.low < 0 < self.high:
            return np.linspace(self.low, self.high, _TABLE)
        grid = np.sinh(np.linspace(0, 8, _TABLE)) / np.sinh(8)
        core = min(1.0, 12 / max(self.high, -self.low))  # how much of the range deserves even spacing
        blend = core * np.linspace(0, 1, _TABLE) + (1 - core) * grid
        return np.concatenate([self.low * blend[:0:-1], self.high * blend])

    @property
    def variance(self) -> float:
        """The second moment about zero."""
        return float(self._table[1][2, -1])

    def density(self, x: Array) -> Array:
        """The density, zero outside the support."""
        inside = (x >= self.low) & (x <= self.high)
        return np.where(inside, self.pdf(np.clip(x, self.low, self.high)), 0.0) / self._total

    def moments(self, t: Array) -> Array:
        """``M_0, M_1, M_2`` at each ``t``, stacked first: ``[3, *t.shape]``."""
        nodes, table, density = self._table
        t = np.clip(t, self.low, self.high)
        i = np.clip(np.searchsorted(nodes, t) - 1, 0, len(nodes) - 2)
        left, width = nodes[i], nodes[i + 1] - nodes[i]
        u = (t - left) / width
        h00, h01 = (1 + 2 * u) * (1 - u) ** 2, u * u * (3 - 2 * u)
        h10, h11 = u * (1 - u) ** 2 * width, u * u * (u - 1) * width
        f0, f1 = density[i], density[i + 1]
        return np.stack([
            h00 * table[k, i] + h01 * table[k, i + 1] + h10 * left**k * f0 + h11 * nodes[i + 1] ** k * f1
            for k in range(3)
        ])  # fmt: skip

    def quantile(self, probability: Array) -> Array:
        """Where the cumulative probability reaches each value, to 1e-8 or so: linear between the table's nodes."""
        nodes, table, _ = self._table
        return np.interp(probability, table[0], nodes)


@runtime_checkable
class Frozen(Protocol):
    """The methods of a frozen distribution of scipy that are used."""

    def pdf(self, x: Array) -> Array:
        """The density."""

    def ppf(self, q: float) -> float:
        """The quantile of a probability."""

    def isf(self, q: float) -> float:
        """The quantile of what is left to one."""


def as_distribution(source: str | Distribution | Frozen | Callable[[Array], Array]) -> Distribution:
    """A distribution from a name (any of ``scipy.stats``), a frozen scipy distribution or a density.

    Raises:
        InputError: for a name that scipy does not have.
    """
    if isinstance(source, Distribution):
        return source
    if isinstance(source, str):
        return _named(source)
    if isinstance(source, Frozen):
        low, high = (float(source.ppf(q)) for q in (0.0, 1.0))
        tail = 1e-18
        low = low if np.isfinite(low) else float(source.ppf(tail))
        high = high if np.isfinite(high) else float(source.isf(tail))
        return Distribution(source.pdf, low, high)
    return Distribution(source, -40.0, 40.0)


@lru_cache
def _named(name: str) -> Distribution:
    import scipy.stats

    family = getattr(scipy.stats, {"normal": "norm"}.get(name, name), None)
    if family is None or not hasattr(family, "pdf"):
        raise InputError(f"there is no distribution {name!r} in scipy.stats")
    return as_distribution(family())


@lru_cache
def sphere_coordinate(d: int) -> Distribution:
    """One coordinate of a point that is uniform on the unit sphere in ``d`` dimensions: (1 - x²)^((d - 3)/2)."""
    edge = min(1.0, 12.0 / np.sqrt(d))  # beyond twelve standard deviations nothing is left
    return Distribution(lambda x: np.maximum(1 - x * x, 0.0) ** ((d - 3) / 2), -edge, edge)
