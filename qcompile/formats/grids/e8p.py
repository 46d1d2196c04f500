"""E8P, the codebook of QuIP#: 2^16 points of a shifted E8 lattice for eight weights, two bits each.

A point is a vector ``d`` of half-integers with an even sum, moved by +1/4 or -1/4 in all coordinates. The magnitudes
``|d|`` are one of 256 patterns: the 227 of D̂₈ within norm² 10, and 29 of norm² 12. Tseng et al., QuIP#,
arXiv:2402.04396.

Codes are those of the authors' files (``E8P12_codebook``, version 1): bits 8-15 the pattern, bits 0-7 the signs. The
parity of the eight sign bits is the shift (odd: -1/4) and is taken off bit 0; what remains flips an even number of
coordinates of the pattern, whose last coordinate is negative where the sum of its magnitudes is odd. Coordinate ``i``
has its sign in bit ``_SIGN_BIT[i]``.
"""

from __future__ import annotations

import itertools
from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["decode_e8p", "encode_e8p", "patterns"]

_CHUNK = 1 << 9  # rows; their scores of 256 patterns fit the cache
_SIGN_BIT = (0, 4, 1, 5, 2, 6, 3, 7)
# The patterns of norm² 12 have five coordinates of 3/2 and three of 1/2; these are the places of the three.
_HALVES = (
    "123", "023", "013", "012", "367", "357", "347",
    "356", "346", "345", "267", "257", "247", "256",
    "246", "245", "167", "157", "147", "156", "146",
    "045", "067", "057", "047", "056", "046", "014",
    "237",
)  # fmt: skip


@lru_cache
def patterns() -> Tensor:
    """The 256 magnitude patterns, float32 ``[256, 8]``: those within norm² 10 in lexicographic order, then the rest."""
    inner = [v for v in itertools.product((0.5, 1.5, 2.5), repeat=8) if sum(x * x for x in v) <= 10]
    outer = [tuple(0.5 if str(i) in places else 1.5 for i in range(8)) for places in _HALVES]
    return torch.tensor(inner + outer)


def _odd(device: torch.device) -> Tensor:
    """Whether a pattern needs an odd number of minus signs for its sum to be even, bool ``[256]``."""
    return (patterns().sum(1).long() % 2 == 1).to(device)


def encode_e8p(x: Tensor) -> Tensor:
    """The nearest code, int32 ``[m]``, of each row of ``x [m, 8]``."""
    codes = torch.empty(len(x), dtype=torch.int32, device=x.device)
    for start in range(0, len(x), _CHUNK):
        codes[start : start + _CHUNK] = _encode(x[start : start + _CHUNK])
    return codes


def _encode(x: Tensor) -> Tensor:
    score, code = _nearest_shifted(x, 0.25)
    other_score, other_code = _nearest_shifted(x, -0.25)
    return torch.where(other_score > score, other_code ^ 1, code)


def _nearest_shifted(x: Tensor, shift: float) -> tuple[Tensor, Tensor]:
    """The best score and code among the points shifted by that much; scores of both shifts compare."""
    score, code = _nearest_signed(x - shift)
    return score - (x - shift).square().sum(1) / 2, code


def _nearest_signed(y: Tensor) -> tuple[Tensor, Tensor]:
    """Best ``y·d - |d|²/2`` over all patterns with legal signs, and the code for a shift of +1/4."""
    table = patterns().to(y.device)
    negative, magnitude = y < 0, y.abs()
    score = magnitude @ table.t() - table.square().sum(1) / 2
    wrong = (negative.sum(1) % 2 == 1).unsqueeze(1) != _odd(y.device)
    # A pattern with the wrong parity flips the sign that costs least.
    cost = magnitude[:, :1] * table[:, 0]
    for i in range(1, 8):
        torch.minimum(cost, magnitude[:, i : i + 1] * table[:, i], out=cost)
    score = torch.where(wrong, score - 2 * cost, score)
    value, pattern = score.max(1)
    flip = wrong.gather(1, pattern.unsqueeze(1))
    weakest = (magnitude * table[pattern]).argmin(1, keepdim=True)
    signs = negative.scatter(1, weakest, negative.gather(1, weakest) ^ flip)
    signs[:, 7] ^= _odd(y.device)[pattern]
    return value, (pattern << 8 | (signs.int() << _sign_bits(y.device)).sum(1)).int()


def _sign_bits(device: torch.device) -> Tensor:
    return torch.tensor(_SIGN_BIT, dtype=torch.int32, device=device)


def decode_e8p(codes: Tensor) -> Tensor:
    """The points ``[m, 8]`` of int32 codes ``[m]``."""
    codes = codes.int().unsqueeze(1)
    parity = ((codes >> torch.arange(8, dtype=torch.int32, device=codes.device)) & 1).sum(1, keepdim=True) % 2
    negative = ((codes ^ parity.int()) >> _sign_bits(codes.device)) & 1
    pattern = (codes[:, 0] >> 8).long()
    negative[:, 7] ^= _odd(codes.device)[pattern].int()
    return patterns().to(codes.device)[pattern] * (1 - 2 * negative) + (0.25 - 0.5 * parity)
