"""The moments that transforms are fitted to: of inputs and of weights, along an axis or a part of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from qcompile.analysis.axes import Axes, AxisNode, Mode, Ref, Structure
from qcompile.analysis.folding import axis_transform
from qcompile.analysis.forms import weight_matrix
from qcompile.statistics.second_moment import shrinkage
from qcompile.transforms.fitted import diagonal_blocks

if TYPE_CHECKING:
    from qcompile.analysis.siblings import Siblings
    from qcompile.statistics.calibration import Statistics
    from qcompile.transforms import Transform

__all__ = ["Fit", "fit_of_group", "fit_of_space", "seen_as"]


@dataclass(frozen=True, eq=False)
class Fit:
    """Second moments along an axis.

    Args:
        moment: of the inputs, float64 ``[n, n]``.
        gram: of the rows of the weights that read them, float64 ``[n, n]``.
        effective: the independent rows that ``moment`` is worth; see ``SecondMoment``.
    """

    moment: torch.Tensor
    gram: torch.Tensor
    effective: float

    def blocks(self, size: int | None = None) -> torch.Tensor:
        """Diagonal blocks of the inputs' moment ``[count, size, size]``, shrunk as far as so few rows demand."""
        blocks = diagonal_blocks(self.moment, size)
        rho, means = shrinkage(blocks, self.effective), blocks.diagonal(dim1=-2, dim2=-1).mean(-1)
        blocks = (1 - rho) * blocks
        blocks.diagonal(dim1=-2, dim2=-1).add_(rho * means[:, None])
        return blocks

    def turned(self, transform: Transform | None) -> Fit:
        """The moments in the basis of a transform."""
        if transform is None:
            return self
        dual = transform.dual()
        moment = transform.apply(transform.apply(self.moment, 0), 1)
        return Fit(moment, dual.apply(dual.apply(self.gram, 0), 1), self.effective)


def fit_of_group(group: Siblings, own: Statistics) -> Fit:
    """The moments of the value that siblings read; of no rows the moment is the identity."""
    weights = [weight_matrix(site) for site in group.sites]
    gram = sum((weight.T @ weight for weight in weights), torch.zeros(group.width, group.width)).double()
    return Fit(torch.from_numpy(own.second_moment), gram / sum(map(len, weights)), own.effective)


def fit_of_space(
    axes: Axes, node: AxisNode, readers: Sequence[Siblings], fits: Mapping[Siblings, Fit],
    chosen: Mapping[AxisNode, Transform],
) -> Fit | None:  # fmt: skip
    """The moments along a space as its readers see it, of all alike, in the basis of the other spaces that changed.

    ``None`` if nothing was measured.
    """
    known = [group for group in readers if group in fits]
    if not known:
        return None
    moments: list[torch.Tensor] = []
    grams: list[torch.Tensor] = []
    for group in known:
        fit = fits[group].turned(axis_transform(axes, group.ref, {n: t for n, t in chosen.items() if n is not node}))
        for matrix, found in ((fit.moment, moments), (fit.gram, grams)):
            part = _along(axes, group.ref, node, matrix)
            found.append(part / part.trace().clamp_min(torch.finfo(torch.float64).tiny) * len(part))
    return Fit(_mean(moments), _mean(grams), sum(fits[group].effective for group in known))


def seen_as(axes: Axes, node: AxisNode, readers: Sequence[Siblings]) -> Mode | None:
    """How readers see the basis of a space: as it is, or its dual; ``None`` where they differ."""
    modes = {leaf.mode for group in readers for leaf in axes.leaves(group.ref) if leaf.node is node}
    return modes.pop() if len(modes) == 1 else None


def _mean(matrices: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(matrices)).mean(0)


def _along(axes: Axes, ref: Ref, node: AxisNode, matrix: torch.Tensor) -> torch.Tensor:
    """The moment along a leaf of an axis: summed over the other factors, and over segments that have it."""
    root = axes.find(ref)
    size = node.size or 1
    if root.node.structure is Structure.LEAF:
        return matrix if root.node is node else torch.zeros(size, size, dtype=matrix.dtype)
    children = axes.children(root)
    sizes = [axes.size(child) or 1 for child in children]
    total = torch.zeros(size, size, dtype=matrix.dtype)
    start, before, after = 0, 1, len(matrix)
    for child, own in zip(children, sizes, strict=True):
        after //= own if root.node.structure is Structure.PRODUCT else 1
        if any(leaf.node is node for leaf in axes.leaves(child)):
            if root.node.structure is Structure.SUM:
                part = matrix[start : start + own, start : start + own]
            else:
                part = torch.einsum("aibajb->ij", matrix.reshape(before, own, after, before, own, after))
            total = total + _along(axes, child, node, part)
        start, before = start + own, before * own
    return total
