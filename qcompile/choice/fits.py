"""The moments that transforms are fitted to: of inputs and of weights, along an axis or a part of one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from qcompile.analysis.axes import Axes, AxisNode, Mode, Ref, Structure
from qcompile.analysis.folding import axis_transform
from qcompile.analysis.matrices import weight_matrix
from qcompile.statistics.second_moment import moment_on, shrinkage
from qcompile.transforms.fitted import diagonal_blocks

if TYPE_CHECKING:
    from qcompile.analysis.siblings import Siblings
    from qcompile.statistics.collected import Statistics
    from qcompile.statistics.sensitivity import Felt
    from qcompile.transforms import Transform

__all__ = ["KEPT_WIDTH", "Fit", "Moments", "fit_of_group", "fit_of_space", "seen_as"]

#: Features of inputs whose moments stay in memory; those of wider ones are made anew.
KEPT_WIDTH = 2048


@dataclass(frozen=True, eq=False)
class Fit:
    """Second moments along an axis.

    Args:
        moment: of the inputs, float64 ``[n, n]``: by how much errors of each row cost, where that is known.
        gram: of the rows of the weights that read them, float64 ``[n, n]``: by how much errors cost at each row's
            output, where that is known.
        effective: the independent rows that ``moment`` is worth; see ``SecondMoment``.
    """

    moment: torch.Tensor
    gram: torch.Tensor
    effective: float

    @property
    def diagonals(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The energies of the features, as they come and as they are read: two of ``[n]``, in RAM."""
        return self.moment.diagonal().cpu(), self.gram.diagonal().cpu()

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


@dataclass
class Moments:
    """The moments of the inputs of groups, in any basis; those that are not large stay in memory.

    Args:
        statistics: by value name; a group without has no moments.
        devices: where each group's are computed.
        felt: of each group, gradients at the outputs of its sites, where all are known.
    """

    statistics: Mapping[str, Statistics]
    devices: Mapping[Siblings, str]
    felt: Mapping[Siblings, Sequence[Felt]] = field(default_factory=dict)
    _known: dict[Siblings, Fit] = field(default_factory=dict)
    _wide: tuple[Siblings, Fit] | None = None  # of wide inputs one alone, and of other bases too: they are large
    _last: tuple[Siblings, Transform, Fit] | None = None

    def of(self, group: Siblings, transform: Transform | None = None) -> Fit | None:
        """The moments in the basis of a transform, if there is data."""
        own = self.statistics.get(group.name)
        if own is None or not own.second_moment.size or group.grouped:
            return None
        if transform is None:
            return self._plain(group, own)
        if self._last is None or self._last[0] is not group or self._last[1] is not transform:
            self._last = group, transform, self._plain(group, own).turned(transform)
        return self._last[2]

    def forget(self, groups: Collection[Siblings]) -> None:
        """Drop the moments of groups."""
        self._known = {group: fit for group, fit in self._known.items() if group not in groups}
        self._wide = self._last = None

    def _plain(self, group: Siblings, own: Statistics) -> Fit:
        if self._wide is not None and self._wide[0] is group:
            return self._wide[1]
        found = self._known.get(group) or fit_of_group(group, own, self.devices[group], self.felt.get(group, ()))
        if group.width <= KEPT_WIDTH:
            self._known[group] = found
        else:
            self._wide = group, found
        return found


def fit_of_group(group: Siblings, own: Statistics, device: str = "cpu", felt: Sequence[Felt] = ()) -> Fit:
    """The moments of the value that siblings read, on a device; of no rows the moment is the identity.

    Args:
        felt: gradients at the outputs of the sites, if known. An error ``δx`` of the input costs ``(g · W δx)²``, and
            one of the weight, whose entries err by themselves, the diagonal of the gradients' second moment; the rows
            of ``W`` count by the mean of both, and have the energy that they have without. Rounding errs in proportion
            to the row ``x`` that it rounds, so that rows of the input count by ``‖g‖²``.
    """
    gram, rows = torch.zeros(group.width, group.width, device=device), 0
    costly = torch.zeros_like(gram)
    for i, site in enumerate(group.sites):
        weight = weight_matrix(site, device=device).reshape(-1, group.width)  # of patches, tap by tap
        gram, rows = gram.addmm_(weight.T, weight), rows + len(weight)
        if felt:
            gradients = felt[i].gradients.to(device)
            back = (gradients @ weight.reshape(gradients.shape[1], -1)).reshape(-1, group.width)
            alone = gradients.square().sum(0).repeat_interleave(len(weight) // gradients.shape[1])
            costly = costly.addmm_(back.T, back).addmm_(weight.T * alone, weight)
    moment, effective = moment_on(own.second_moment, device, torch.float64), own.effective
    if group.taps > 1:
        moment = diagonal_blocks(moment, group.width).mean(0)
    elif felt:
        moment, effective = _by_cost(moment, effective, felt)
    gram, costly = gram.double() / rows, costly.double()
    if (size := costly.trace()) > 0:
        gram = costly * (gram.trace() / size)
    return Fit(moment, gram, effective)


def _by_cost(moment: torch.Tensor, effective: float, felt: Sequence[Felt]) -> tuple[torch.Tensor, float]:
    """``Σ ‖g‖² x xᵀ`` of the few rows that are felt, shrunk towards the moment of all rows, at that one's energy.

    How far is what Ledoit and Wolf derive for a target that is known (Journal of Multivariate Analysis 88, 2004): the
    variance of the few, over their squared distance from it. The second result is how many rows the mean is worth.
    """
    rows = torch.cat([own.rows * own.gradients.norm(dim=1, keepdim=True) for own in felt]).to(moment.device)
    energies = rows.double().square().sum(1)
    if not (total := energies.sum()) > 0 or not (trace := moment.trace()) > 0:
        return moment, effective
    shares = energies / total
    few = (rows.T @ rows).double().div_(total)
    within = ((rows @ few.float()) * rows).sum(1).double() / energies.clamp_min(torch.finfo(torch.float64).tiny)
    variance = float((shares.square() * (1 - 2 * within + few.square().sum())).sum())
    distance = float((few - moment / trace).square().sum())
    rho = min(1.0, variance / distance) if distance > 0 else 1.0
    mixed = few.mul_((1 - rho) * trace).add_(moment, alpha=rho)
    return mixed, 1 / ((1 - rho) ** 2 * float(shares.square().sum()) + rho**2 / max(effective, 1.0))


def fit_of_space(
    axes: Axes, node: AxisNode, readers: Sequence[Siblings], fit_of: Callable[[Siblings], Fit | None],
    chosen: Mapping[AxisNode, Transform],
) -> Fit | None:  # fmt: skip
    """The moments along a space as its readers see it, of all alike, in the basis of the other spaces that changed.

    ``None`` if nothing was measured.

    Args:
        fit_of: the moments of the input of a group, if any were measured.
    """
    total: list[torch.Tensor] = []
    count, effective = 0, 0.0
    others = {other: transform for other, transform in chosen.items() if other is not node}
    for group in readers:
        fit = fit_of(group)
        if fit is None:
            continue
        fit = fit.turned(axis_transform(axes, group.ref, others))
        parts = [_along(axes, group.ref, node, matrix) for matrix in (fit.moment, fit.gram)]
        parts = [part / part.trace().clamp_min(torch.finfo(torch.float64).tiny) * len(part) for part in parts]
        total = [old.add_(part) for old, part in zip(total, parts, strict=True)] if total else parts
        count, effective = count + 1, effective + fit.effective
    return Fit(total[0] / count, total[1] / count, effective) if count else None


def seen_as(axes: Axes, node: AxisNode, readers: Sequence[Siblings]) -> Mode | None:
    """How readers see the basis of a space: as it is, or its dual; ``None`` where they differ."""
    modes = {leaf.mode for group in readers for leaf in axes.leaves(group.ref) if leaf.node is node}
    return modes.pop() if len(modes) == 1 else None


def _along(axes: Axes, ref: Ref, node: AxisNode, matrix: torch.Tensor) -> torch.Tensor:
    """The moment along a leaf of an axis: summed over the other factors, and over segments that have it."""
    root = axes.find(ref)
    size = node.size or 1
    if root.node.structure is Structure.LEAF:
        return matrix if root.node is node else matrix.new_zeros(size, size)
    children = axes.children(root)
    sizes = [axes.size(child) or 1 for child in children]
    total = matrix.new_zeros(size, size)
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
