"""E8P, the codebook of QuIP#: 2^16 points of a shifted E8 lattice for eight weights, two bits each.

A point is ``± |d| ± 1/4``: ``|d|`` is one of 256 vectors of half-integers (the 227 of D̂₈ within norm² 10, and 29 of
norm² 12), its signs are free up to the parity that D̂₈ asks for (seven bits), and all coordinates move by +1/4 or -1/4
(one bit). Tseng et al., QuIP#, arXiv:2402.04396. Which 29 of the 56 patterns of norm² 12 are used is a choice: here the
first in lexicographic order, so that codes are not interchangeable with the authors' files; the error is the same.

Code: bits 8-15 the pattern, bits 1-7 the signs of coordinates 0-6, bit 0 the shift (set: +1/4).
"""

from __future__ import annotations

import itertools
from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["decode_e8p", "encode_e8p", "patterns"]

_CHUNK = 1 << 12


@lru_cache
def patterns() -> Tensor:
    """The 256 magnitude patterns, float32 ``[256, 8]``, by norm and then in lexicographic order."""
    every = [v for v in itertools.product((0.5, 1.5, 2.5, 3.5), repeat=8) if sum(x * x for x in v) <= 10]
    shell = sorted(v for v in itertools.product((0.5, 1.5), repeat=8) if sum(x * x for x in v) == 12)
    inner = sorted(every, key=lambda v: (sum(x * x for x in v), v))
    return torch.tensor(inner + shell[: 256 - len(inner)])


def _odd(device: torch.device) -> Tensor:
    """Whether a pattern needs an odd number of minus signs for its sum to be even, bool ``[256]``."""
    return (patterns().sum(1).long() % 2 == 1).to(device)


def encode_e8p(x: Tensor) -> Tensor:
    """The nearest code, int32 ``[m]``, of each row of ``x [m, 8]``."""
    return torch.cat([_encode(part) for part in x.split(_CHUNK)]) if len(x) else x.new_zeros(0, dtype=torch.int32)


def _encode(x: Tensor) -> Tensor:
    best_score, best_code = None, None
    for bit, shift in enumerate((-0.25, 0.25)):
        score, code = _nearest_signed(x - shift)
        # Squared distances to the two shifted copies differ by |x - shift|² as well.
        score = score - (x - shift).square().sum(1) / 2
        code = code | bit
        if best_score is None:
            best_score, best_code = score, code
        else:
            best_code = torch.where(score > best_score, code, best_code)
    assert best_code is not None
    return best_code


def _nearest_signed(y: Tensor) -> tuple[Tensor, Tensor]:
    """Best ``y·d - |d|²/2`` over all patterns with legal signs, and the code without its shift bit."""
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
    signs = negative.int().scatter(1, weakest, (negative.gather(1, weakest) ^ flip).int())
    powers = 2 << torch.arange(7, device=y.device)
    return value, (pattern << 8 | (signs[:, :7] * powers).sum(1)).int()


def decode_e8p(codes: Tensor) -> Tensor:
    """The points ``[m, 8]`` of int32 codes ``[m]``."""
    codes = codes.long()
    pattern = codes >> 8
    signs = (codes.unsqueeze(1) >> torch.arange(1, 8, device=codes.device)) & 1
    last = (signs.sum(1) % 2 == 1) ^ _odd(codes.device)[pattern]
    signs = torch.cat([signs, last.long().unsqueeze(1)], 1)
    return patterns().to(codes.device)[pattern] * (1 - 2 * signs) + ((codes & 1) * 0.5 - 0.25).unsqueeze(1)
