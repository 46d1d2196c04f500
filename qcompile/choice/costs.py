"""The cost of sites in each budget: bits, bytes, milliseconds and bit operations."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from qcompile.analysis.matrices import layout_of
from qcompile.analysis.spaces import Site
from qcompile.choice.branches import Apart, rank_in, size_of
from qcompile.ir.required import constant
from qcompile.targets.scheme import Scheme
from qcompile.targets.target import Target

__all__ = ["cost_of"]


def cost_of(pairs: Sequence[tuple[Site, Scheme]], own: Collection[str], target: Target) -> dict[str, float]:
    """The cost of sites in each budget, of which ``own`` have a weight that none before them has.

    A weight is stored once and read by every site; an embedding table is looked up, which takes no time to speak of.
    """
    bits = sum(_bits(site, scheme) for site, scheme in pairs if site.name in own)
    stored = sum(_bytes(site, scheme) for site, scheme in pairs if site.name in own)
    read = sum(_bytes(site, scheme) for site, scheme in pairs if site.input is not None)
    products = sum(_products(site, scheme) for site, scheme in pairs if site.input is not None)
    return {"bits": bits, "bytes": stored, "latency": 1e3 * read / (target.bandwidth or 1.0), "bops": products}


def _bit_operations(scheme: Scheme) -> float:
    """Those of one product: the bits of a weight times the bits of what it multiplies."""
    return scheme.bits * (scheme.activation.bits if scheme.activation else 32)


def _bits(site: Site, scheme: Scheme) -> float:
    beside = size_of(site.shape, scheme.branch) * scheme.beside.bits if isinstance(scheme, Apart) else 0
    return constant(site.weight).size * scheme.bits + beside


def _products(site: Site, scheme: Scheme) -> float:
    beside = size_of(site.shape, scheme.branch) * _bit_operations(scheme.beside) if isinstance(scheme, Apart) else 0
    return constant(site.weight).size * _bit_operations(scheme) + beside


def _bytes(site: Site, scheme: Scheme) -> float:
    width = layout_of(site).columns
    stored = constant(site.weight).size * _width(scheme, width)
    if isinstance(scheme, Apart):
        rank, out = rank_in(site.shape, scheme.branch), site.shape[site.axis_out]
        stored += rank * (width * _width(scheme.beside, width) + out * _width(scheme.beside, rank))
    return stored / 8


def _width(scheme: Scheme, width: int) -> float:
    return scheme.weight.bits_per_weight(width) if scheme.weight else 32
