"""The grids that vector formats round to."""

from __future__ import annotations

import json
from functools import lru_cache
from importlib import resources
from typing import TYPE_CHECKING

from qcompile.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["grid_tensor", "higgs_grid"]


@lru_cache
def higgs_grid(dimension: int, points: int) -> tuple[tuple[float, ...], ...]:
    """The grid of least error for N(0, I): Lloyd-Max in one dimension, CLVQ in two.

    In two dimensions 16, 64 and 256 points ship with the package; others are searched for (seconds to minutes).

    Raises:
        InputError: for more than two dimensions.
    """
    if dimension == 1:
        from qcompile.formats.grids.lloyd_max import lloyd_max

        return tuple((level,) for level in lloyd_max(points).levels)
    if dimension != 2:
        raise InputError(f"grids are made in one and two dimensions, not {dimension}")
    shipped = json.loads(resources.files(__package__).joinpath("data/higgs.json").read_text())
    if f"p2_n{points}" in shipped:
        return tuple(tuple(point) for point in shipped[f"p2_n{points}"]["points"])
    from qcompile.formats.grids.clvq import search_grid

    return tuple(tuple(point) for point in search_grid(points, starts=16, rounds=3, steps=100).tolist())


@lru_cache
def grid_tensor(dimension: int, points: int, device: torch.device) -> Tensor:
    """The same as float32 ``[points, dimension]``."""
    import torch

    return torch.tensor(higgs_grid(dimension, points), dtype=torch.float32, device=device)
