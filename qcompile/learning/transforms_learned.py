"""Learns transforms: whatever the freedoms of a graph leave open behind the closed forms that were chosen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import torch

from qcompile.analysis.axes import AxisNode, Mode
from qcompile.analysis.boundaries import boundaries, sides_of
from qcompile.analysis.scales import norm_before
from qcompile.analysis.siblings import Siblings
from qcompile.analysis.spaces import Analysis, Site
from qcompile.learning.loop import Course, Lesson, Rated, follow
from qcompile.learning.parametrizations import Diagonal, Parametrization, of_freedom
from qcompile.learning.turned import Bases, Turned
from qcompile.targets.scheme import Scheme
from qcompile.transforms.composite import compose
from qcompile.transforms.freedom import Freedom

if TYPE_CHECKING:
    from qcompile.learning.settings import Schedule
    from qcompile.notes import Progress
    from qcompile.transforms import Transform

    _Join = Callable[[Transform | None, Parametrization], Transform]

__all__ = ["LearnedBases", "free_bases", "learn_transforms", "settled"]

K = TypeVar("K")

#: Of Adam, at the top of the schedule: of the entries of skew-symmetric matrices, and of logarithms of scales.
RATE, SCALE_RATE = 3e-4, 1e-3

#: Features of the largest block that stays online and is learned as it is.
LARGEST = 128


@dataclass(frozen=True)
class LearnedBases:
    """The transforms after learning, in the form of ``Bases`` without parameters.

    Args:
        bases: fixed transforms.
        course: how learning went.
        parameters: numbers that were learned.
    """

    bases: Bases
    course: Course
    parameters: int


def learn_transforms(
    analysis: Analysis, groups: Sequence[Siblings], tables: Sequence[Site], schemes: Mapping[str, Scheme],
    bases: Bases, lesson: Lesson, schedule: Schedule, *, seed: int, device: str, progress: Progress | None = None,
) -> LearnedBases | None:  # fmt: skip
    """Learn what stands behind fixed transforms; ``None`` where no freedom leaves anything to learn.

    Args:
        groups: the sites by the value that they read.
        tables: embedding tables.
        schemes: by site name.
        bases: the fixed transforms, to begin from.
    """
    free = free_bases(analysis, groups, schemes, bases, device)
    parametrizations = free.parametrizations
    if not parametrizations:
        return None
    turned = Turned(analysis, groups, tables, schemes, free, _rated(parametrizations), device)
    course = follow(turned, lesson, schedule, seed=seed, what="learning transforms", progress=progress)
    count = sum(tensor.numel() for own in parametrizations for tensor in own.parameters)
    return LearnedBases(settled(free), course, count)


def _rated(parametrizations: Sequence[Parametrization]) -> list[Rated]:
    scales = [tensor for own in parametrizations for tensor in own.parameters if tensor.dim() < 3]
    rotations = [tensor for own in parametrizations for tensor in own.parameters if tensor.dim() == 3]
    return [Rated(tensors, rate) for tensors, rate in ((rotations, RATE), (scales, SCALE_RATE)) if tensors]


def free_bases(
    analysis: Analysis, groups: Sequence[Siblings], schemes: Mapping[str, Scheme], bases: Bases, device: str
) -> Bases:
    """The same with a parametrization wherever a freedom allows one that quantized sites would feel."""
    barred, alike = _walls(analysis, bases.between)
    read: dict[AxisNode, None] = {}
    for own in groups:
        leaves = [leaf for leaf in analysis.axes.leaves(own.ref) if leaf.mode is not Mode.PLAIN]
        read |= dict.fromkeys(leaf.node for leaf in leaves if _felt(own, schemes))
    made: dict[AxisNode, Parametrization] = {}
    for node in read:
        together = alike.get(node, [node])
        if (node.size or 0) < 2 or node in made or not barred.isdisjoint(together):
            continue
        freedom = Freedom.GENERAL
        for other in together:
            freedom &= other.freedom
        found = of_freedom(freedom, node.size or 0, device=device)
        if found is not None and not (_inner(analysis, together)):
            made |= dict.fromkeys(together, found)
    shared = Counter(site.weight for own in groups for site in own.sites)
    scales: dict[str, Parametrization] = {}
    blocks: dict[str, Parametrization] = {}
    for own in groups:
        if own.nested or any(shared[site.weight] > 1 for site in own.sites) or not _felt(own, schemes):
            continue
        if norm_before(analysis, own) is not None and not any(site.stored is not site.weight for site in own.sites):
            scales[own.name] = Diagonal(own.width, device)
        fixed = own.patches is not None  # kernels are not rounded as gradients flow
        if not fixed and own.name in bases.online and (block := _block(own, schemes, bases.online[own.name])):
            general = of_freedom(Freedom.GENERAL, own.width, block=block, device=device)
            blocks |= {} if general is None else {own.name: general}
    return replace(bases, learned=made, scales=scales, blocks=blocks)


def _felt(own: Siblings, schemes: Mapping[str, Scheme]) -> bool:
    return any(schemes[site.name].weight is not None for site in own.sites if site.name in schemes)


def _inner(analysis: Analysis, nodes: Collection[AxisNode]) -> bool:
    """Whether a constant within the body of an operator has one of those axes: it is not folded at every step."""
    outer = set(analysis.model.graph.initializers.values())
    return any(
        value.const_value is not None and value not in outer and leaf.node in nodes
        for value, refs in analysis.refs_of.items()
        for ref in refs or ()
        for leaf in analysis.axes.leaves(ref)
    )


def _walls(
    analysis: Analysis, between: Mapping[str, Transform]
) -> tuple[set[AxisNode], dict[AxisNode, list[AxisNode]]]:
    """The spaces that boundaries hold, and those that must change alike because a boundary between them goes."""
    barred: set[AxisNode] = set()
    alike: dict[AxisNode, list[AxisNode]] = {}
    for wall in boundaries(analysis):
        for one, other in sides_of(analysis, wall):
            if one is None or other is None or wall.name in between:
                barred |= {node for node in (one, other) if node is not None}
            else:
                both = list(dict.fromkeys([*alike.get(one, [one]), *alike.get(other, [other])]))
                alike |= dict.fromkeys(both, both)
    return barred, alike


def _block(own: Siblings, schemes: Mapping[str, Scheme], transform: Transform) -> int | None:
    """The size of blocks that are learned behind an online transform: its own, or those of the format's groups."""
    found = _block_of(transform)
    if found is not None:
        return found
    group = next((s.group for site in own.sites if (s := schemes[site.name]).weight is not None), None)
    return group if group is not None and 1 < group <= LARGEST and own.width % group == 0 else None


def _block_of(transform: Transform) -> int | None:
    """The size of the blocks of a transform, if they are small."""
    sizes = {transform.size // outer for outer, inner, matrix in transform.factors() if matrix.dim() > 1}
    return next(iter(sizes)) if len(sizes) == 1 and 1 < max(sizes) <= LARGEST else None


def settled(free: Bases) -> Bases:
    """Fixed transforms made of what was learned, each behind the one that it began from."""
    known = {own: own.transform() for own in free.parametrizations}
    made: dict[tuple[int, Parametrization], Transform] = {}  # spaces that change alike have one and the same

    def behind(first: Transform | None, own: Parametrization) -> Transform:
        key = id(first), own
        if key not in made:
            made[key] = known[own] if first is None else compose(first, known[own])
        return made[key]

    def added(fixed: Mapping[K, Transform], learned: Mapping[K, Parametrization], join: _Join) -> dict[K, Transform]:
        return {**fixed, **{name: join(fixed.get(name), own) for name, own in learned.items()}}

    def merged(first: Transform | None, own: Parametrization) -> Transform:
        return _merged(behind(first, own), own)

    return Bases(
        added(free.offline, free.learned, behind), added(free.behind, free.scales, behind),
        added(free.online, free.blocks, merged), free.between,
    )  # fmt: skip


def _merged(transform: Transform, own: Parametrization) -> Transform:
    """One matrix for each block, where all that stands online is made of the same blocks."""
    from qcompile.transforms import BlockDense

    with torch.no_grad():
        count, size, _ = own.matrices(torch.float64).matrix.shape
    whole = transform.matrix()
    blocks = torch.stack([whole[i * size : (i + 1) * size, i * size : (i + 1) * size] for i in range(count)])
    same = torch.equal(torch.block_diag(*blocks), whole)
    return BlockDense(blocks) if same else transform
