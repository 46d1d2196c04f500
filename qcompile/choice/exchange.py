"""The price of online transforms: a part of their sites' error, or the loss that their time would buy in bits.

A bit more in every code divides errors by four (``t²`` is a square: 6.02 dB) and makes products of ``b`` bits longer by
the ``b``-th part. A graph whose sites lose ``L`` in a time ``T`` could therefore lose ``ln(4) · b · L / T`` less for
each second more: that is the rate of exchange. A transform that gains less for its seconds is dearer than bits are, and
is left out. ``L`` is what is left once the transforms that pay are there, so that one loud site does not price those of
all others: the rate falls from that of plain rounding until what it pays for changes nothing any more. A bit takes its
part of the bytes as well, so that matrices of a transform's own count by these where they are more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from qcompile.analysis.siblings import Siblings
from qcompile.choice.candidates import LEAST_GAIN
from qcompile.ir.transform_nodes import halved
from qcompile.prices.graph_clock import GraphClock

if TYPE_CHECKING:
    from qcompile.transforms import Transform

__all__ = ["Exchange", "Offer", "Price", "Share", "rate_of"]


class Price(Protocol):
    """The loss that an online transform must gain to be worth its time."""

    def of(self, groups: Sequence[Siblings], transform: Transform, error: float) -> float:
        """The price of one transform that groups read behind, which lose ``error`` then."""

    def seconds(self, group: Siblings, transform: Transform) -> float:
        """The time of a transform in front of a group, 0 where it is not known."""


@dataclass(frozen=True)
class Share:
    """A part of the error that is left, by the share of arithmetic: for runtimes whose times nobody measured.

    Args:
        factor: an online transform that costs a fraction ``c`` of its sites' arithmetic must lower their error by a
            factor of at least ``1 + factor · c``.
    """

    factor: float

    def of(self, groups: Sequence[Siblings], transform: Transform, error: float) -> float:
        """As ``Price`` has it."""
        work = sum(group.flops for group in groups)
        return error * self.factor * (transform.flops / work if work else math.inf)

    def seconds(self, group: Siblings, transform: Transform) -> float:
        """Not known."""
        return 0.0


@dataclass(frozen=True)
class Exchange:
    """The seconds of a transform, each at one price.

    Args:
        clock: tells the seconds.
        rate: loss per second.
        per_byte: seconds that a byte stored counts as, because a bit takes its part of both.
    """

    clock: GraphClock
    rate: float
    per_byte: float = 0.0

    def of(self, groups: Sequence[Siblings], transform: Transform, error: float) -> float:
        """As ``Price`` has it."""
        return self.rate * self.worth(groups[0], transform)

    def worth(self, group: Siblings, transform: Transform) -> float:
        """The seconds, or those that its bytes count as where these are more."""
        return max(self.seconds(group, transform), self.per_byte * _own_bytes(transform))

    def seconds(self, group: Siblings, transform: Transform) -> float:
        """As the clock has it."""
        return self.clock.transform(group, transform)


def _own_bytes(transform: Transform) -> float:
    """Bytes of the matrices of single blocks: others are stored once for all sites of a graph."""
    own = [matrix for _, _, matrix in transform.factors() if matrix.ndim == 3]
    return sum((4.0 if halved(matrix.numpy()) is None else 2.0) * matrix.numel() for matrix in own)


@dataclass(frozen=True)
class Offer:
    """All that can be done in front of the sites that read one value.

    Args:
        error: of the sites as they are.
        others: the errors behind online transforms, and the seconds that these take.
    """

    error: float
    others: Sequence[tuple[float, float]]

    def taken(self, rate: float) -> float:
        """The error of what is cheapest at a rate."""
        ways = [(self.error, self.error), *((e + rate * t + LEAST_GAIN * self.error, e) for e, t in self.others)]
        return min(ways)[1]


def rate_of(offers: Sequence[Offer], bits: float, seconds: float) -> float:
    """The loss that a second is worth, where products of so many bits take so many seconds."""
    lost = math.fsum(offer.error for offer in offers)
    while seconds > 0:
        rate = math.log(4) * bits * lost / seconds
        left = math.fsum(offer.taken(rate) for offer in offers)
        if left >= lost:  # less is never chosen at a lower rate, so this ends
            return rate
        lost = left
    return 0.0
