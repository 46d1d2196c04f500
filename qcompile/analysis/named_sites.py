"""Patterns by which a user names sites: a shell's, over names and paths of modules, or ``kind:`` and a kind of site."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from qcompile.analysis.edges import is_edge
from qcompile.analysis.spaces import Site
from qcompile.errors import InputError, nearest, unknown

__all__ = ["KIND", "SITE_KINDS", "fitting", "sites_of"]

#: In front of a kind of site, which every model may have some or none of.
KIND = "kind:"

#: Kinds of sites, with what they are. A site may be of several.
SITE_KINDS = {
    "table": "embedding tables, which are looked up",
    "edge": "tables, and what writes an output of the graph",
    "linear": "products with a matrix",
    "stack": "products with several matrices, such as experts",
    "convolution": "convolutions",
}


def sites_of(pattern: str, sites: Sequence[Site], option: str) -> list[Site]:
    """The sites that a pattern such as ``*.mlp.down_proj`` means, or a kind, of which there may be none.

    Args:
        option: the option of the command that the pattern came with, for the message.

    Raises:
        InputError: if no name fits, with those that are most like the pattern, or if the kind is unknown.
    """
    found = fitting(pattern, sites)
    if not found and not pattern.startswith(KIND):
        names = [name for site in sites for name in _names(site)]
        near = nearest(pattern.strip("*"), names) or names[:5]
        listed = f"the nearest are {', '.join(near)}" if near else "the model has none"
        raise InputError(f"{option} '{pattern}' fits no site and no module: {listed} (qcompile inspect lists all)")
    return found


def fitting(pattern: str, sites: Sequence[Site]) -> list[Site]:
    """The sites that a pattern means, of which there may be none.

    Raises:
        InputError: if it names an unknown kind.
    """
    if pattern.startswith(KIND):
        return _of_kind(pattern.removeprefix(KIND), sites)
    return [site for site in sites if any(_fits(name, pattern) for name in _names(site))]


def _of_kind(kind: str, sites: Sequence[Site]) -> list[Site]:
    if kind not in SITE_KINDS:
        raise InputError(unknown("kind of site", kind, SITE_KINDS))
    if kind == "edge":  # weights lie in the model's own graph, and edges stand there
        return [site for site in sites if not site.nested and site.weight.graph and is_edge(site.weight.graph, site)]
    return [site for site in sites if _kind(site) == kind]


def _kind(site: Site) -> str:
    if site.input is None:
        return "table"
    if site.node.op_type in ("Conv", "ConvTranspose"):
        return "convolution"
    return "linear" if site.is_matrix else "stack"


def _names(site: Site) -> list[str]:
    return [site.name] if site.module is None else [site.name, site.module]


def _fits(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern)  # a name may hold brackets, which patterns read otherwise
