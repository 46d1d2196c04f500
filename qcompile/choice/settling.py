"""Forgetting what is known of groups while spaces are labelled: all of it together outweighs the model."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from qcompile.analysis.siblings import Siblings, shared_table
from qcompile.choice.fits import KEPT_WIDTH
from qcompile.group.group import ALONE, Group

if TYPE_CHECKING:
    from qcompile.analysis.axes import AxisNode
    from qcompile.analysis.spaces import Analysis
    from qcompile.choice.online import Online
    from qcompile.targets.scheme import Scheme
    from qcompile.transforms import Transform

__all__ = ["settle"]


def settle(
    analysis: Analysis, node: AxisNode, readers: Sequence[Siblings], online: Online,
    competing: Mapping[Siblings, Sequence[Sequence[Scheme]]], transforms: Collection[Transform | None],
    processes: Group = ALONE,
) -> None:  # fmt: skip
    """Forget what was made for the readers of a space, where that is large or all has been found that it is for.

    Of one that reads nothing else, what is best behind each label is found here, as the decision asks for it.

    Args:
        node: the space.
        competing: by group, the schemes that compete.
        transforms: of the labels.
        processes: the processes that share the decision: several find each what they are asked for.
    """
    (first, *others) = readers
    leaves = [leaf.node for leaf in analysis.axes.leaves(first.ref)]
    if others or leaves != [node] or shared_table(first) is not None or processes is not ALONE:
        online.forget([group for group in readers if group.width > KEPT_WIDTH])
        return
    for transform, schemes in itertools.product(transforms, competing[first]):
        online.best(first, {} if transform is None else {node: transform}, schemes)
    online.forget(readers)
