"""Patterns by which a user names sites: as a shell's, over their names and over the paths of their modules."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from qcompile.analysis.spaces import Site
from qcompile.errors import InputError, nearest

__all__ = ["fitting", "sites_of"]


def sites_of(pattern: str, sites: Sequence[Site], option: str) -> list[Site]:
    """The sites that a pattern such as ``*.mlp.down_proj`` means.

    Args:
        option: the option of the command that the pattern came with, for the message.

    Raises:
        InputError: if there are none; it lists the names that are most like the pattern.
    """
    found = fitting(pattern, sites)
    if not found:
        names = [name for site in sites for name in _names(site)]
        near = nearest(pattern.strip("*"), names) or names[:5]
        listed = f"the nearest are {', '.join(near)}" if near else "the model has none"
        raise InputError(f"{option} '{pattern}' fits no site and no module: {listed} (qcompile inspect lists all)")
    return found


def fitting(pattern: str, sites: Sequence[Site]) -> list[Site]:
    """The sites that a pattern means, of which there may be none."""
    return [site for site in sites if any(_fits(name, pattern) for name in _names(site))]


def _names(site: Site) -> list[str]:
    return [site.name] if site.module is None else [site.name, site.module]


def _fits(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern)  # a name may hold brackets, which patterns read otherwise
