"""Formats that first choose their codebook: one of several scalar formats, by the error on the tensor itself.

LLM-FP4 searches how four bits are shared between exponent and mantissa, and the bias (a real number there: a free
scale). NUPES searches the exponent of a power function; with a table of levels each, its members are scalar block
formats like any other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qcompile.formats.elements import ELEMENTS, table_element
from qcompile.formats.format import Element, Format, ScaleType

if TYPE_CHECKING:
    from torch import Tensor

    from qcompile.formats.quantizer import Quantized
    from qcompile.formats.scales import Scales

__all__ = ["FAMILIES", "FamilyFormat", "power_element"]


@dataclass(frozen=True)
class FamilyFormat:
    """The best of several scalar formats for each tensor.

    Args:
        members: scalar formats of equal width; the first wins ties.
        search: whether each group's scale is searched as well.
    """

    name: str
    members: tuple[Format, ...]
    search: bool = False
    source: str = ""

    @property
    def bits(self) -> int:
        """Bits of one element code."""
        return self.members[0].bits

    @property
    def group(self) -> int | None:
        """Elements that share a scale."""
        return self.members[0].group

    def bits_per_weight(self, axis_size: int) -> float:
        """As for the widest member; the choice itself is a few bits for the whole tensor."""
        return max(member.bits_per_weight(axis_size) for member in self.members)

    def error_bound(self) -> float:
        """The bound of the worst member, in units of its effective scale; a searched scale may clip."""
        return max(self._bound(member) for member in self.members)

    def _bound(self, member: Format) -> float:
        from qcompile.formats.search import LEAST_SHRINK

        if not self.search:
            return member.error_bound()
        shrunk = LEAST_SHRINK * (1 - 2 * member.scale.rounding)  # the scale is rounded before and after
        return max(member.error_bound(), member.element.max * (1 / shrunk - 1))

    def quantize(self, x: Tensor, axis: int = -1, weight: Tensor | None = None) -> Quantized:
        """Quantize with the member that has the least squared error (weighted along ``axis`` if asked)."""
        from qcompile.formats.quantizer import quantize
        from qcompile.formats.search import search_scales, total_error

        def tried(member: Format) -> tuple[float, Format, Scales | None]:
            scales = search_scales(x, member, axis, weight) if self.search else None
            return total_error(x, member, axis, scales, weight), member, scales

        _, member, scales = min(map(tried, self.members), key=lambda found: found[0])
        return quantize(x, member, axis, scales)


def power_element(bits: int, exponent: float) -> Element:
    """NUPES: ``sign(k) · |k / m|^(1/exponent)``, ``k = -m … m``: uniform after raising magnitudes to ``exponent``."""
    top = 2 ** (bits - 1) - 1
    levels = [(1 if k > 0 else -1) * (abs(k) / top) ** (1 / exponent) for k in range(-top, top + 1)]
    return table_element(f"power{bits}-{exponent:g}", levels)


_GROUPS = (32, 64, 128, None)
_POWERS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


def _families() -> list[FamilyFormat]:
    found = []
    for group in _GROUPS:
        suffix = "channel" if group is None else f"g{group}"
        storage = ScaleType.FP32 if group is None else ScaleType.BF16
        for bits, names in {4: ("e2m1", "e1m2", "e3m0"), 6: ("e2m3", "e3m2"), 8: ("e4m3", "e5m2")}.items():
            members = tuple(Format(f"{n}-{suffix}", ELEMENTS[n], group, storage) for n in names)
            found.append(FamilyFormat(f"llm-fp{bits}-{suffix}", members, True, "LLM-FP4, arXiv:2310.16836"))
        for bits in (3, 4):
            elements = [power_element(bits, exponent) for exponent in _POWERS]
            members = tuple(Format(f"{e.name}-{suffix}", e, group, storage) for e in elements)
            found.append(FamilyFormat(f"nupes{bits}-{suffix}", members, False, "NUPES, arXiv:2308.05600"))
    return found


FAMILIES: dict[str, FamilyFormat] = {family.name: family for family in _families()}
