"""The largest error of vector formats, in units of a group's root mean square; rigorous, and therefore not small.

A group ``u`` of ``g`` values with root mean square one lies in a ball of radius ``√g``. So a single value may be as
large as ``√g`` (all energy in one place), far outside of a grid made for normal values: that is what the bound counts.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

__all__ = ["e8p_reach", "grid_reach", "rotated_bound"]

_ANGLES = 1 << 13


@lru_cache
def grid_reach(grid: tuple[tuple[float, ...], ...], radius: float) -> float:
    """The largest distance to the nearest point of ``grid`` (one or two dimensions) within ``radius`` of zero."""
    points = np.array(grid)
    if points.shape[1] == 1:
        levels = points[:, 0]
        return max(float(np.diff(levels).max()) / 2, radius - float(levels[-1]), radius + float(levels[0]))
    from scipy.spatial import Voronoi

    # The distance is largest at a corner of a Voronoi cell or on the border of the disk.
    corners = Voronoi(points).vertices
    corners = corners[np.hypot(*corners.T) <= radius]
    angles = np.arange(_ANGLES) * (2 * math.pi / _ANGLES)
    border = radius * np.stack([np.cos(angles), np.sin(angles)], 1)
    between = radius * math.pi / _ANGLES  # the distance changes no faster than its argument moves
    return max(_farthest(corners, points), _farthest(border, points) + between)


def _farthest(where: np.ndarray, points: np.ndarray) -> float:
    distance = np.hypot(*(where[:, None] - points[None]).transpose(2, 0, 1))
    return float(distance.min(1).max(initial=0))


def e8p_reach(radius: float) -> float:
    """The same for E8P: the covering radius of E8 is one, and it holds the whole lattice within √10 - √(8/16)."""
    full = math.sqrt(10) - math.sqrt(0.5) - 1
    return 1 + max(0.0, radius - full)


def rotated_bound(levels: tuple[float, ...], group: int, unbiased: bool) -> float:
    """Length of the error of a rotated group, which bounds each of its values after the inverse rotation.

    Per coordinate it is half the widest gap ``h``, or what sticks out; together at most ``√g · sqrt(h² + (1 - top /
    √g)²)``. The scale of least error only shortens it. The unbiased scale makes it ``√g · tan θ``, ``θ`` the angle
    between the group and its codes, whose cosine is at least ``least / (√g (1 + h))``, as the signs agree.
    """
    ordered = np.array(levels)
    root, least = math.sqrt(group), float(abs(ordered).min())
    half = max(float(np.diff(ordered).max()) / 2, least)
    squared_sine = half**2 + max(0.0, 1 - float(ordered[-1]) / root) ** 2
    if not unbiased:
        return root * math.sqrt(squared_sine)
    squared_cosine = max(1 - squared_sine, (least / (root * (1 + half))) ** 2)
    return root * math.sqrt(1 / squared_cosine - 1)
