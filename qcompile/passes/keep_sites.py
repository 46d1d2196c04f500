"""Keep sites: those that a pattern means stay as they are, whatever the passes behind this one fold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qcompile.analysis.named_sites import sites_of
from qcompile.analysis.spaces import KEPT
from qcompile.passes.state import State

__all__ = ["KeepSites"]


@dataclass(frozen=True)
class KeepSites:
    """Mark sites that keep their weights bit for bit: what they read and write keeps its basis.

    Args:
        pattern: over names of sites and paths of their modules.
    """

    pattern: str = "*"
    name: ClassVar[str] = "keep-sites"

    def apply(self, state: State) -> bool:
        """Write the pattern into the metadata of the sites.

        Raises:
            InputError: if it means none.
        """
        found = sites_of(self.pattern, state.analyze_apart().sites, "--keep")
        new = [site.node for site in found if KEPT not in site.node.metadata_props]
        for node in new:
            node.metadata_props[KEPT] = self.pattern
        if new:
            state.edited()
        return bool(new)
