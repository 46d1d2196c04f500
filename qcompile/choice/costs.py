"""The cost of sites in each budget: bits, bytes, milliseconds and bit operations."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from qcompile.analysis.matrices import layout_of
from qcompile.analysis.spaces import Site
from qcompile.choice.branches import Apart, rank_in, size_of
from qcompile.choice.splits import beside
from qcompile.ir.required import constant
from qcompile.prices.graph_clock import GraphClock
from qcompile.targets.scheme import Scheme
from qcompile.targets.target import Target

__all__ = ["HALF", "cost_of"]

#: Bits of a number of a branch that stays float.
HALF = 16


def cost_of(
    pairs: Sequence[tuple[Site, Scheme]], own: Collection[str], target: Target, clock: GraphClock | None = None
) -> dict[str, float]:  # fmt: skip
    """The cost of sites that read one value in each budget, of which ``own`` have a weight that none before them has.

    A weight is stored once and read by every site; an embedding table is looked up, which takes no time to speak of.

    Args:
        clock: tells the time; without it is that in which the target reads the bytes.
    """
    bits = sum(_bits(site, scheme) for site, scheme in pairs if site.name in own)
    stored = sum(_bytes(site, scheme) for site, scheme in pairs if site.name in own)
    read = sum(_bytes(site, scheme) for site, scheme in pairs if site.input is not None)
    products = sum(_products(site, scheme) for site, scheme in pairs if site.input is not None)
    reading = [(site, scheme) for site, scheme in pairs if site.input is not None]
    seconds = read / (target.bandwidth or 1.0) if clock is None else clock.products(reading)
    return {"bits": bits, "bytes": stored, "latency": 1e3 * seconds, "bops": products}


def _bit_operations(scheme: Scheme) -> float:
    """Those of one product: the bits of a weight times the bits of what it multiplies."""
    return scheme.bits * (scheme.activation.bits if scheme.activation else 32)


def _bits(site: Site, scheme: Scheme) -> float:
    apart = size_of(site.shape, scheme.branch) * _code(scheme.beside, HALF) if isinstance(scheme, Apart) else 0
    return constant(site.weight).size * _code(scheme, _float_bits(site)) + apart


def _products(site: Site, scheme: Scheme) -> float:
    apart = size_of(site.shape, scheme.branch) * _bit_operations(scheme.beside) if isinstance(scheme, Apart) else 0
    return constant(site.weight).size * _bit_operations(scheme) + apart


def _bytes(site: Site, scheme: Scheme) -> float:
    width = layout_of(site).columns
    stored = constant(site.weight).size * _width(scheme, width, _float_bits(site))
    if isinstance(scheme, Apart):
        rank, out = rank_in(site.shape, scheme.branch), site.shape[site.axis_out]
        # By rank: the inputs of the first factor, and the longer side of a third one, if there is any.
        rows = size_of(site.shape, scheme.branch) // max(rank, 1) - out
        stored += rank * (rows * _width(scheme.beside, width, HALF) + out * _width(scheme.beside, rank, HALF))
    return stored / 8


def _float_bits(site: Site) -> int:
    """The bits of a float weight: those of branches are stored in half."""
    return HALF if beside(site.node) else 32


def _code(scheme: Scheme, in_float: int) -> float:
    return scheme.bits if scheme.weight else in_float


def _width(scheme: Scheme, width: int, in_float: int) -> float:
    return scheme.weight.bits_per_weight(width) if scheme.weight else in_float
