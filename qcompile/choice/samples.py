"""Rows of the inputs of sites that predictions are computed on: one sample for all sites that read a value."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from qcompile.choice.compensation import Compensation, LastMoment
from qcompile.formats import fake_quantize_rows, range_within
from qcompile.statistics.collected import spread
from qcompile.transforms.widened import Widened

if TYPE_CHECKING:
    import torch

    from qcompile.formats import Format
    from qcompile.formats.static import Activation
    from qcompile.statistics.collected import Statistics
    from qcompile.transforms import Transform

__all__ = ["HeldOut", "Rows", "Samples", "rounded_by_place"]

#: Rows of the sample that a prediction looks at.
ROWS = 256

#: Rows of all sequences together that evidence is taken from.
HELD_OUT_ROWS = 512

#: Rows of the sample by which candidates are told apart that are far from the best.
SCREENED_ROWS = 64


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Rows that nothing was fitted on, ``[rows, in]``, and how many each sequence has."""

    rows: torch.Tensor
    lengths: tuple[int, ...]

    @staticmethod
    def of(statistics: Statistics, device: str = "cpu") -> HeldOut | None:
        """Some rows of every sequence; ``None`` where none were held out."""
        import torch

        found = [torch.from_numpy(rows) for rows in statistics.held_out]
        few = [spread(rows, max(HELD_OUT_ROWS // len(found), 1)) for rows in found]
        return HeldOut(torch.cat(few).to(device), tuple(map(len, few))) if few else None


@dataclass(frozen=True, eq=False)
class Samples:
    """All that is known of one input, for the sites that read it: rows, rows held out, what GPTQ learns from them."""

    rows: torch.Tensor
    held_out: HeldOut | None
    learned: Compensation | None

    @staticmethod
    def of(statistics: Statistics, learned: LastMoment | None = None, device: str = "cpu") -> Samples:
        """A few rows, evenly spread, on a device.

        Args:
            learned: has the moments, if weights will be rounded by GPTQ on these statistics.
        """
        import torch

        rows = spread(torch.from_numpy(statistics.sample), ROWS).to(device)
        compensation = None if learned is None else Compensation(statistics, learned)
        return Samples(rows, HeldOut.of(statistics, device), compensation)

    @cached_property
    def thin(self) -> Samples:
        """Fewer rows."""
        return Samples(spread(self.rows, SCREENED_ROWS), None, None)


class Rows:
    """Rows in the basis of a transform, as they are and as they are rounded: siblings read the same.

    Args:
        transform: of the features of one place.
        widened: makes of it that of rows.
        taps: places of a row, each of which is rounded by itself.
    """

    def __init__(self, transform: Transform | None, widened: Widened, taps: int) -> None:
        self.transform, self.taps = widened(transform), taps
        self._turned: dict[int, torch.Tensor] = {}
        self._seen: dict[tuple[int, str], torch.Tensor] = {}

    def of(
        self, rows: torch.Tensor, activation: Format | None, learned: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows, and what a site sees of them.

        Args:
            learned: rows that teach the range of a static format; ``rows`` themselves by default.
        """
        turned = self._in_basis(rows)
        if activation is None:
            return turned, turned
        key = id(rows), activation.name
        if key not in self._seen:
            teach = turned if learned is None else self._in_basis(learned)
            rounds = range_within(teach, activation) if activation.static else activation
            self._seen[key] = rounded_by_place(turned, rounds, self.taps)
        return turned, self._seen[key]

    def _in_basis(self, rows: torch.Tensor) -> torch.Tensor:
        if id(rows) not in self._turned:
            self._turned[id(rows)] = rows if self.transform is None else self.transform.apply(rows, -1)
        return self._turned[id(rows)]


def rounded_by_place(rows: torch.Tensor, activation: Activation, taps: int) -> torch.Tensor:
    """Rows ``[rows, taps · features]`` with the features of each place rounded as a row of their own."""
    if taps == 1:
        return fake_quantize_rows(rows, activation)
    return fake_quantize_rows(rows.reshape(len(rows) * taps, -1), activation).reshape(rows.shape)
