"""The chosen transforms of a graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qcompile.analysis.axes import AxisNode
from qcompile.analysis.folding import axis_transform
from qcompile.analysis.siblings import Siblings
from qcompile.analysis.spaces import Analysis
from qcompile.transforms.composite import compose

if TYPE_CHECKING:
    from qcompile.transforms import Transform

__all__ = ["Placement", "Worth", "joined", "total_transform"]


@dataclass(frozen=True)
class Worth:
    """The worth of a decision: what was chosen, and the next best of what was measured.

    Args:
        chosen, other: their names.
        loss, other_loss: predicted, the price of what stays in the graph included: what the decision went by.
    """

    chosen: str
    loss: float
    other: str
    other_loss: float

    @staticmethod
    def of(losses: Mapping[str, float], chosen: str) -> Worth | None:
        """The next best of some losses; ``None`` where nothing else competed."""
        others = {name: loss for name, loss in losses.items() if name != chosen}
        if not others or chosen not in losses:
            return None
        other = min(others, key=lambda name: (others[name], name))
        return Worth(chosen, losses[chosen], other, others[other])


@dataclass(frozen=True)
class Placement:
    """The transforms of a graph.

    Args:
        offline: by leaf of the axis forest; folded into constants.
        online: by name of the value in front of whose sites the transform stays in the graph.
        errors: by space or value, the predicted error of each candidate relative to none, for the report.
        boundaries: by name of a boundary, the online transform that it becomes, and its arithmetic relative to that
            of the sites in the changed space.
        skipped: by name of the value, why its sites got no online transform although one was asked for.
        unproven: by name of the value, why they got none of those that were fitted to data.
        behind: by name of the value, a diagonal that the norm which writes it takes over.
        worth: by space or value, what its transform was worth.
        rate: the loss that a second was worth to online transforms; ``None`` where their times are not known.
        schemes: by value or table, what its scheme was worth, where several competed; others may cost more.
    """

    offline: dict[AxisNode, Transform]
    online: dict[str, Transform]
    errors: dict[str, dict[str, float]] = field(default_factory=dict)
    boundaries: dict[str, tuple[Transform, float]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    unproven: dict[str, str] = field(default_factory=dict)
    behind: dict[str, Transform] = field(default_factory=dict)
    worth: dict[str, Worth] = field(default_factory=dict)
    schemes: dict[str, Worth] = field(default_factory=dict)
    rate: float | None = None

    def to_json(self, analysis: Analysis) -> dict[str, Any]:
        """The transforms alone, by space, value and boundary."""
        spaces = {space.id: self.offline[space.node] for space in analysis.spaces if space.node in self.offline}
        between = {name: transform for name, (transform, _) in self.boundaries.items()}
        named = {"offline": spaces, "behind": self.behind, "online": self.online, "boundaries": between}
        return {kind: {name: t.to_json() for name, t in found.items()} for kind, found in named.items()}

    @property
    def plain(self) -> bool:
        """Whether nothing changes basis."""
        return not (self.offline or self.online or self.boundaries or self.behind)


def total_transform(analysis: Analysis, group: Siblings, placement: Placement) -> Transform | None:
    """The transform of the group's input: offline, then what a norm takes over, then online."""
    offline = axis_transform(analysis.axes, group.ref, placement.offline)
    return joined(offline, placement.behind.get(group.name), placement.online.get(group.name))


def joined(*transforms: Transform | None) -> Transform | None:
    """One transform after the other, ``None`` if there is none."""
    total: Transform | None = None
    for transform in transforms:
        if transform is not None:
            total = transform if total is None else compose(total, transform)
    return total
