"""The kinds of transforms that can be asked for by name, and where each is allowed."""

from __future__ import annotations

from dataclasses import dataclass

from qcompile.transforms.freedom import Freedom

__all__ = ["FITTED", "FREE", "KINDS", "NAMED", "Kind"]


@dataclass(frozen=True)
class Kind:
    """A way to make transforms.

    Args:
        summary: one line for people.
        freedom: the least that a space must allow to take one offline.
        online: whether one can stand in front of sites; what only moves or scales channels does nothing there alone.
        fitted: whether it is made from calibration data.
    """

    summary: str
    freedom: Freedom
    online: bool = True
    fitted: bool = False


#: By name, in the order in which they are shown.
NAMED: dict[str, Kind] = {
    "hadamard": Kind("full-width Hadamard matrices with random signs", Freedom.ORTHOGONAL_ONES),
    "block": Kind("Hadamard matrices in blocks of the format's group", Freedom.ORTHOGONAL_ONES),
    "two-block": Kind("two Hadamard matrices with random signs, one after the other", Freedom.ORTHOGONAL),
    "regular": Kind("regular Hadamard matrices, which keep constant vectors", Freedom.ORTHOGONAL_ONES),
    "dct": Kind("the discrete cosine transform", Freedom.ORTHOGONAL),
    "haar": Kind("the Haar wavelet transform", Freedom.ORTHOGONAL),
    "matched": Kind("the transform of signals that fits the second moment best, then Hadamard", Freedom.ORTHOGONAL,
                    fitted=True),
    "klt": Kind("eigenvectors of the second moment, then Hadamard", Freedom.ORTHOGONAL, fitted=True),
    "duquant": Kind("rotations in blocks that spread peaks, a zigzag permutation, rotations", Freedom.ORTHOGONAL,
                    fitted=True),
    "duquant-pp": Kind("one rotation that spreads peaks in each group of the format", Freedom.ORTHOGONAL, fitted=True),
    "kronecker": Kind("a Kronecker product of two fitted factors", Freedom.ORTHOGONAL, fitted=True),
    "wush": Kind("the closed form that makes both moments equal and flat, in blocks", Freedom.GENERAL, fitted=True),
    "wush-shared": Kind("the same, one for all blocks of the format's group", Freedom.GENERAL, fitted=True),
    "diagonal": Kind("a scale of each channel, from inputs to weights", Freedom.POSITIVE_DIAGONAL, False, True),
    "permutation": Kind("channels in order of magnitude", Freedom.PERMUTATION, False, True),
    "zigzag": Kind("channels dealt out to groups by magnitude", Freedom.PERMUTATION, False, True),
}  # fmt: skip

#: Kinds that are made from calibration data.
FITTED = frozenset(name for name, kind in NAMED.items() if kind.fitted)

#: Kinds that are compared with doing nothing. The others are used wherever they can be.
FREE = ("auto", "wush")

#: What ``--transforms`` takes.
KINDS = ("auto", "none", *NAMED)
