"""Where bytes and error sit: sums over the tree of modules."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Share", "by_kind", "by_place", "opened"]

#: Rows that are shown before anything is opened, at most.
MOST_ROWS = 28


@dataclass
class Share:
    """A module with what lies in it.

    Args:
        name: its path below the module around it.
        sites: how many sites it holds.
        before, after: bytes of its weights in the source, and in the artifact.
        error: the sum of the predicted errors of its sites.
        inner: the modules in it.
    """

    name: str
    sites: int = 0
    before: int = 0
    after: int = 0
    error: float = 0.0
    inner: dict[str, Share] = field(default_factory=dict)

    @property
    def parts(self) -> list[Share]:
        """The modules in it, in the order of the graph."""
        return list(self.inner.values())

    def largest(self, key: str) -> float:
        """The largest number of that name among its parts: the scale of their bars."""
        return max((getattr(part, key) for part in self.parts), default=0.0) or 1.0


def by_place(m: Mapping[str, Any], key: str) -> Share:
    """Bytes and errors by path of the module.

    Args:
        m: a manifest.
        key: the error that is summed, ``predicted_delta`` or ``t2``.
    """
    return _tree(m, key, lambda path: path)


def by_kind(m: Mapping[str, Any], key: str) -> Share:
    """The same with the layers of one kind together: numbers in paths become ``*``."""
    return _tree(m, key, lambda path: re.sub(r"(?<![^.])\d+(?![^.])", "*", path))


def _tree(m: Mapping[str, Any], key: str, named: Callable[[str], str]) -> Share:
    top = Share("")
    modules = {site["name"]: site.get("module") or site["name"] for site in m["sites"]}
    for site in m["sites"]:
        for node in _along(top, named(modules[site["name"]])):
            node.sites += 1
            node.error += max(site[key] or 0.0, 0.0)
    for weight in m.get("weights", ()):
        held = [modules[name] for name in weight["sites"] if name in modules]
        path = held[0] if held else weight.get("module") or weight["name"]
        for node in _along(top, named(path)):
            node.before += weight["bytes"]
            node.after += weight["bytes_after"] or 0
    return _joined(top)


def _along(top: Share, path: str) -> Iterable[Share]:
    """The shares from the top to a path, made where they are missing."""
    yield top
    for part in path.split("."):
        top = top.inner.setdefault(part, Share(part))
        yield top


def _joined(share: Share) -> Share:
    """The same tree with chains of single modules as one: ``model.layers``."""
    inner = {name: _joined(part) for name, part in share.inner.items()}
    only = next(iter(inner.values()), None)
    if share.name and only is not None and (only.sites, only.before) == (share.sites, share.before):
        only.name = f"{share.name}.{only.name}"
        return only
    share.inner = inner
    return share


def opened(top: Share) -> int:
    """How many levels are open at first: as many as fit into few rows."""
    level, rows, depth = top.parts, len(top.parts), 0
    while level:
        level = [part for share in level for part in share.parts]
        if rows + len(level) > MOST_ROWS or not level:
            return depth
        rows, depth = rows + len(level), depth + 1
    return depth
