"""Transforms that stay in the graph: what targets do without, and in front of which sites there can be any."""

from __future__ import annotations

from qcompile.analysis.infinity import infinity
from qcompile.analysis.siblings import Siblings
from qcompile.analysis.spaces import Analysis

__all__ = ["STAYING", "able"]

#: What a target does without, in the words of ``Target.online``.
STAYING = {
    "shared": "the target holds one matrix for all blocks of a layer: others do not compete",
    "none": "the artifact holds no transforms: what folds into weights is all that competes",
    "asked": "common readers of the artifact leave them out without a word, so that none competes; a kind that is "
             "asked for by name is written, if it is one matrix for all blocks of a layer",
}  # fmt: skip


def able(analysis: Analysis, group: Siblings, *, channels: bool = False) -> bool:
    """Whether there can be an online transform in front of a group: it would spread infinity over all features.

    Args:
        channels: whether convolutions may have one, between transposes; zeros around what they read stay zeros.
    """
    whole = channels and group.axis == 1 and not group.grouped and not group.nested
    return (features_last(analysis, group) or whole) and infinity(analysis, group.value, group.ref) is None


def features_last(analysis: Analysis, group: Siblings) -> bool:
    """Whether the features of the value run fastest, which online transforms need: nothing but axes of one follow."""
    refs = list(analysis.refs(group.value))
    while len(refs) > 1 and analysis.axes.size(refs[-1]) == 1:
        refs.pop()
    return all(site.ref_in is refs[-1] for site in group.sites)
