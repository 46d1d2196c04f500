"""The number format: data, read by one encoder, one packer and every backend.

A format stores a tensor as element codes, in groups along one axis that share a scale. ``x ≈ tensor_scale ·
scale[group] · element[code]`` (minus the zero point, for integer elements that have one).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from functools import cached_property

__all__ = ["Element", "Format", "Kind", "ScaleRule", "ScaleType"]


class Kind(enum.Enum):
    """How the element codes are laid out, which decides the rounding routine."""

    INTEGER = "integer"  # two's complement, ties to even
    FLOAT = "float"  # sign, exponent, mantissa; ties to even
    TABLE = "table"  # any increasing list of levels; ties to the lower code


class ScaleType(enum.Enum):
    """The storage of a group's scale. The value is its width in bits."""

    NONE = 0
    FP32 = 32
    FP16 = 16
    BF16 = -16  # the sign only tells the enum members apart; see ``bits``
    E8M0 = 8
    E4M3 = -8
    UE5M3 = -9

    @property
    def bits(self) -> int:
        """Stored bits per scale."""
        return 8 if self is ScaleType.UE5M3 else abs(self.value)

    @property
    def rounding(self) -> float:
        """The largest relative error of rounding a normal number to this type; 0 for powers of two, which are exact."""
        digits = {"FP32": 24, "FP16": 11, "BF16": 8, "E4M3": 4, "UE5M3": 4}
        return 2.0 ** -digits[self.name] if self.name in digits else 0.0


class ScaleRule(enum.Enum):
    """How a group's scale follows from its values (``amax`` is the largest magnitude in the group).

    The power-of-two rules are for E8M0 scales; ``emax`` is the exponent of the largest element.
    """

    ABSMAX = "absmax"  # amax / max element
    SIGNED_MAX = "signed-max"  # value of largest magnitude, with its sign, onto the most negative code (Q4_0)
    MINMAX = "minmax"  # (max - min) / (levels - 1), with a zero point
    FLOOR = "floor"  # 2^(⌊log2 amax⌋ - emax), OCP MX specification 1.0
    CEIL = "ceil"  # 2^(⌈log2 amax⌉ - emax)
    RCEIL = "rceil"  # 2^⌈log2(amax / max element)⌉: never clips
    EVEN = "even"  # FLOOR after rounding amax to the element's mantissa
    NEAREST = "nearest"  # 2^round(log2(amax / max element))
    FOUR_THIRDS = "four-thirds"  # 4/3 · FLOOR (MR-GPTQ): never clips E2M1


@dataclass(frozen=True)
class Element:
    """The codebook of one scalar.

    Args:
        name: the field's name for it, such as ``"e2m1"``.
        bits: width of a code.
        kind: the layout of the codes.
        levels: every representable value in increasing order, without NaN and infinity.
        exponent_bits, mantissa_bits, bias: for ``Kind.FLOAT``.
        codes: for ``Kind.TABLE``, the code of each level.
        native: the torch dtype that is this codebook exactly, where there is one.
    """

    name: str
    bits: int
    kind: Kind
    levels: tuple[float, ...]
    exponent_bits: int = 0
    mantissa_bits: int = 0
    bias: int = 0
    codes: tuple[int, ...] = ()
    native: str = ""

    @cached_property
    def step(self) -> float:
        """The distance between the two lowest levels: the step of a ``Kind.INTEGER``."""
        return self.levels[1] - self.levels[0]

    @cached_property
    def max(self) -> float:
        """The largest level."""
        return self.levels[-1]

    @cached_property
    def max_exponent(self) -> int:
        """The binary exponent of the largest level: ``emax`` of the MX specification."""
        import math

        return math.frexp(self.max)[1] - 1


@dataclass(frozen=True)
class Format:
    """A way to store a tensor, in groups along one axis.

    Args:
        name: its name on the command line and in manifests, such as ``"nvfp4"`` or ``"int4-g32"``.
        element: the codebook.
        group: elements along the quantized axis that share a scale; ``None`` for the whole axis.
        scale: storage of the group scale.
        rule: how the scale follows from the values.
        zero_point: whether each group stores an integer zero point of the element's width.
        tensor_scale: if set, a second-level FP32 scale ``amax / (targets[0] · tensor_scale)`` for the whole
            tensor; the number is the largest group scale that it leads to (448 for NVFP4, 256 with
            four-over-six).
        targets: magnitudes that the group's ``amax`` is mapped onto; the one with the least squared error is
            kept, per group. Empty means the element's maximum. ``(6, 4)`` is four-over-six.
        rows: rows of a weight that share one scale with the group (16 for square NVFP4 blocks).
        static: for activations: one scale, and zero point, for a whole tensor, which data taught (``formats.static``).
        whole: for activations: the same, but taken from the tensor as it comes.
        source: the specification or paper.
    """

    name: str
    element: Element
    group: int | None
    scale: ScaleType
    rule: ScaleRule = ScaleRule.ABSMAX
    zero_point: bool = False
    tensor_scale: float | None = None
    targets: tuple[float, ...] = ()
    rows: int = 1
    static: bool = False
    whole: bool = False
    source: str = ""

    @property
    def bits(self) -> int:
        """Bits of one element code, without scales."""
        return self.element.bits

    def bits_per_weight(self, axis_size: int) -> float:
        """Stored bits per weight, scales and zero points included, for an axis of ``axis_size``.

        Groups that do not divide the axis are padded, and the padding is counted.
        """
        group = self.group or axis_size
        groups = -(-axis_size // group)
        overhead = self.scale.bits / self.rows + (self.element.bits if self.zero_point else 0)
        return groups * (group * self.element.bits + overhead) / max(axis_size, 1)

    def error_bound(self) -> float:
        """The largest ``|x - x̂|`` of any value, in units of the effective scale, while the scale is not subnormal.

        Half the widest gap between levels, or what the rule lets stick out above the largest level.
        """
        levels = self.element.levels
        gap = max(b - a for a, b in zip(levels, levels[1:], strict=False)) / 2
        if self.zero_point:
            return 2 * gap * (1 + self._reach() * self.scale.rounding)  # the zero point rounds as well
        top = self._reach() * (1 + self.scale.rounding)
        return max(gap, top - self.element.max)

    def _reach(self) -> float:
        """The largest magnitude that the rule maps a group onto, before the scale is rounded."""
        top, binade = self.element.max, 2.0**self.element.max_exponent
        mantissa = self.element.mantissa_bits if self.element.kind is Kind.FLOAT else self.element.bits - 2
        reach = {
            ScaleRule.SIGNED_MAX: -self.element.levels[0],
            ScaleRule.FLOOR: 2 * binade,
            ScaleRule.EVEN: binade * (2 - 2.0 ** -(mantissa + 1)),
            ScaleRule.NEAREST: top * 2**0.5,
        }
        return reach.get(self.rule, top)
