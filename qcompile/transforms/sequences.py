"""Sequences behind the Hadamard orders that Paley's constructions do not reach, found by computer search.

``GOETHALS_SEIDEL[n]`` holds the first rows of four circulants of order n / 4 whose periodic autocorrelations
sum to zero; those of 92 and 116 are symmetric (Williamson's case), those of 172 and
292 constant on the orbits of a multiplier of order 7 and 9. ``T_SEQUENCES[n]`` holds four sequences
of disjoint support that multiply the Williamson matrices of order 13.
"""

from __future__ import annotations

__all__ = ["GOETHALS_SEIDEL", "T_SEQUENCES", "WILLIAMSON_13"]

GOETHALS_SEIDEL: dict[int, tuple[str, str, str, str]] = {
    92: (
        "+++---++--++++--++---++",
        "+--++-+-+-++++-+-+-++--",
        "+--+--+++------+++--+--",
        "+--+-+-++++++++++-+-+--",
    ),
    116: (
        "+--+++--++-+--++--+-++--+++--",
        "+--++----+-+-++++-+-+----++--",
        "+++-+++-+----++++----+-+++-++",
        "+--+-+-+++++++--+++++++-+-+--",
    ),
    172: (
        "++--+-++--++----+-+--+-++-+-++++--++--+-++-",
        "++-+++-+---++---+-++++----+-+++--+++-+---+-",
        "++++++--+--++---+--++++----+----++-+-+-+-++",
        "+-+----++---------+---+---+++++-+-+----+--+",
    ),
    292: (
        "+--+-+++--+-+-+--+-++--+++-++----+++--+++----++-+++--++-+--+-+-+--+++-+--",
        "+++-++-++-+--++-++--+-----+-++-++++--+-++--+-+-----+++-++-++--+++-+-+----",
        "+--------+-+-+-+--+--++--+++-+++---++----++++--+-++++-+--++-+++--+-+-++++",
        "+------------+---+-------+++-+-+-+++-------+-+---++++++---++-+++--+++-+--",
    ),
}

T_SEQUENCES: dict[int, tuple[str, str, str, str]] = {
    156: ("+00", "0+0", "00+", "000"),
    260: ("+0000", "0++00", "000+-", "00000"),  # from the Golay pair of length 2
}

WILLIAMSON_13 = (
    "+-+-++--++-+-",
    "++--+-++-+--+",
    "++-++----++-+",
    "++----------+",
)
