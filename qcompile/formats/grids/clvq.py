"""Optimal grids of n points in two dimensions for N(0, I): what HIGGS rounds pairs of weights to.

Competitive learning vector quantization as a search for the best of many local optima: Lloyd's iteration on a
quadrature of the plane, from many starts at once, with noise that dies out; then the best ones are shaken and descend
again; the winner is polished on a fine quadrature. ``python -m qcompile.formats.grids.clvq`` writes the grids that ship
in ``data/higgs.json`` (a few minutes on a GPU; the search is seeded).

Pagès and Printems, "Optimal quadratic quantization for numerics: the Gaussian case", 2003; HIGGS, arXiv:2411.17525.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["grid_error", "lloyd", "plane_quadrature", "search_grid"]

_RADIUS = 6.0
_CHUNK = 1 << 26  # distances held at once


def plane_quadrature(points: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Nodes ``[m, 2]`` and weights ``[m]`` of the midpoint rule for N(0, I₂), ``points`` to a side, in float64."""
    step = 2 * _RADIUS / points
    line = (torch.arange(points, dtype=torch.float64, device=device) + 0.5) * step - _RADIUS
    nodes = torch.cartesian_prod(line, line)
    nodes = nodes[nodes.square().sum(1) < _RADIUS**2]
    weights = torch.exp(-nodes.square().sum(1) / 2)
    return nodes, weights / weights.sum()


def _assign(grids: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor]:
    """Index of the nearest point and squared distance to it, ``[batch, m]``."""
    half = grids.square().sum(-1) / 2
    score = torch.baddbmm(half.unsqueeze(1), nodes.expand(len(grids), -1, -1), grids.transpose(1, 2), alpha=-1)
    best, index = score.min(-1)
    return index, best.mul_(2).add_(nodes.square().sum(1)).clamp_(min=0)


def _sweep(grids: Tensor, nodes: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """One Lloyd step for a batch of grids ``[batch, n, 2]``: the centroids and the errors before it."""
    batch, count, _ = grids.shape
    sums = grids.new_zeros(batch * count, 3)
    error = grids.new_zeros(batch)
    offset = torch.arange(batch, device=grids.device).unsqueeze(1) * count
    step = max(1, _CHUNK // (batch * count))
    for part, weight in zip(nodes.split(step), weights.split(step), strict=True):
        index, distance = _assign(grids, part)
        error += (distance * weight).sum(1)
        mass = torch.cat([part * weight.unsqueeze(1), weight.unsqueeze(1)], 1)
        sums.index_add_(0, (index + offset).flatten(), mass.repeat(batch, 1))
    sums = sums.view(batch, count, 3)
    filled = sums[..., 2:] > 0
    return torch.where(filled, sums[..., :2] / sums[..., 2:].clamp(min=1e-300), grids), error / 2


def lloyd(grids: Tensor, nodes: Tensor, weights: Tensor, steps: int, noise: float = 0.0, seed: int = 0) -> Tensor:
    """``steps`` Lloyd steps for a batch of grids; ``noise`` in units of the typical cell, falling to zero."""
    generator = torch.Generator(grids.device).manual_seed(seed)
    size = math.sqrt(4 * math.pi / grids.shape[1])  # side of a cell at density f^(1/2), within a small factor
    for step in range(steps):
        grids, _ = _sweep(grids, nodes, weights)
        level = noise * size * max(0.0, 1 - 1.5 * step / steps) ** 2
        if level:
            spread = torch.exp(grids.square().sum(-1, keepdim=True) / 8)  # cells grow outwards
            grids = grids + level * spread * torch.randn(grids.shape, generator=generator, device=grids.device)
    return grids


def grid_error(grid: Tensor, points: int = 3000) -> float:
    """Mean squared error per dimension of rounding N(0, I₂) to ``grid [n, 2]``."""
    nodes, weights = plane_quadrature(points, str(grid.device))
    return float(_sweep(grid.double().unsqueeze(0), nodes, weights)[1])


def search_grid(
    n: int, starts: int = 64, rounds: int = 4, steps: int = 400, seed: int = 0, device: str = "cpu", points: int = 0
) -> Tensor:
    """The best grid of ``n`` points found, ``[n, 2]`` float64.

    Args:
        starts: random starts, annealed side by side; after each round the best eighth is copied and shaken.
        points: nodes to a side of the search's quadrature; 0 chooses about twelve a cell.
    """
    generator = torch.Generator(device).manual_seed(seed)
    points = points or int(max(128, 40 * math.sqrt(n / 4)))
    nodes, weights = (t.float() for t in plane_quadrature(points, device))
    grids = torch.randn(starts, n, 2, generator=generator, device=device) * math.sqrt(2)
    for turn in range(rounds):
        grids = lloyd(grids, nodes, weights, steps, noise=0.35 / (1 + turn), seed=seed + turn)
        error = _sweep(grids, nodes, weights)[1]
        keep = error.argsort()[: max(1, starts // 8)]
        if turn < rounds - 1:
            grids = torch.cat([grids[keep], grids[keep].repeat(8, 1, 1)])[:starts]
    return _polish(grids[keep[0]].double(), max(1000, 2 * points))


def _polish(grid: Tensor, points: int) -> Tensor:
    nodes, weights = plane_quadrature(points, str(grid.device))
    for _ in range(30):
        before, grid = grid, lloyd(grid.unsqueeze(0), nodes, weights, 10)[0]
        if (grid - before).abs().max() < 1e-6:
            break
    return grid


def main() -> None:
    """Search the grids that ship, and write them."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shipped: dict[str, object] = {"_source": "python -m qcompile.formats.grids.clvq (seed 0); error is per dimension"}
    for n, starts, rounds, steps in ((16, 128, 3, 300), (64, 256, 6, 600), (256, 128, 10, 800)):
        grid = search_grid(n, starts, rounds, steps, device=device)
        points = sorted(grid.tolist(), key=lambda p: p[0] ** 2 + p[1] ** 2)
        shipped[f"p2_n{n}"] = {"error": grid_error(grid), "points": [[round(c, 9) for c in p] for p in points]}
        print(n, shipped[f"p2_n{n}"]["error"])  # type: ignore[index]
    path = Path(__file__).parent / "data" / "higgs.json"
    path.write_text(json.dumps(shipped).replace(', "p2', ',\n"p2') + "\n")


if __name__ == "__main__":
    main()
