"""Charts as numbers, which templates write as SVG: places of points, lines at round numbers, fits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from qcompile.artifact.phrases import format_name, human_bytes, scientific

__all__ = ["Axis", "Chart", "Fit", "Spot", "front_chart", "outline", "prediction_chart"]

#: Width and height of the area of a chart, in its own units; labels lie around it.
AREA = (640.0, 360.0)

#: About so many lines are drawn across an axis.
LINES = 6


@dataclass(frozen=True)
class Axis:
    """One of the two axes of a chart.

    Args:
        title: the quantity and its unit.
        low, high: the numbers at its ends.
        logarithmic: whether factors are even.
        length: in the units of the chart.
        flipped: whether it starts at the far end, as those do that go up.
        said: a number of it in words.
    """

    title: str
    low: float
    high: float
    logarithmic: bool
    length: float
    flipped: bool = False
    said: Callable[[float], str] = "{:.6g}".format

    @staticmethod
    def of(title: str, values: Sequence[float], length: float, logarithmic: bool = False, up: bool = False) -> Axis:
        """An axis on which all values lie, with a little room at both ends."""
        low, high = min(values), max(values)
        if logarithmic:
            room = max((high / low) ** 0.06, 1.1)
            return Axis(title, low / room, high * room, True, length, up)
        room = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
        return Axis(title, min(low, 0.0) if up else low - room, high + room, False, length, up)

    def place(self, value: float) -> float:
        """Where a number lies."""
        ends = (self.low, self.high, value)
        low, high, at = map(math.log, ends) if self.logarithmic else ends
        part = (at - low) / (high - low)
        return round((1 - part if self.flipped else part) * self.length, 2)

    @property
    def lines(self) -> list[tuple[float, str]]:
        """Places of lines at round numbers, with these in words."""
        return [(self.place(value), self.said(value)) for value in self._round_numbers()]

    def _round_numbers(self) -> list[float]:
        if not self.logarithmic:
            step = _nice((self.high - self.low) / LINES)
            numbers = (step * i for i in range(math.ceil(self.low / step), math.floor(self.high / step) + 1))
            return [float(f"{number:.10g}") for number in numbers]
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        tens = [10.0**decade for decade in decades]
        finer = tens if len(tens) > 4 else [ten * times for ten in tens for times in (1, 2, 5)]
        return [number for number in finer if self.low <= number <= self.high]


def _nice(step: float) -> float:
    """The next of 1, 2, 5, 10, … that is no smaller."""
    ten = 10.0 ** math.floor(math.log10(step))
    return next(ten * times for times in (1, 2, 5, 10) if ten * times >= step * (1 - 1e-9))


@dataclass(frozen=True)
class Spot:
    """A point of a chart.

    Args:
        x, y: its place.
        title: in words, under the pointer.
        of: the name of the site, or the number of the row, that it shows.
        color: the number of its color.
    """

    x: float
    y: float
    title: str
    of: str
    color: int = 0


@dataclass(frozen=True)
class Fit:
    """A line through points whose axes are both logarithmic: ``log measured = slope · log predicted + …``.

    Args:
        slope: 1 where errors are predicted to grow as they do.
        r2: the part of the variance of the logarithms that the prediction explains.
        factor: the geometric mean of measured over predicted.
    """

    slope: float
    r2: float
    factor: float


@dataclass(frozen=True)
class Chart:
    """A chart.

    Args:
        line: the points that a line joins, in order.
        legend: names of colors.
    """

    x: Axis
    y: Axis
    spots: Sequence[Spot]
    line: Sequence[tuple[float, float]] = ()
    fit: Fit | None = None
    legend: Sequence[tuple[int, str]] = ()
    width: float = AREA[0]
    height: float = AREA[1]


# -- predicted against measured --------------------------------------------------------------------------------------


def prediction_chart(sites: Iterable[Mapping[str, Any]], colors: Mapping[str, int]) -> Chart | None:
    """Predicted against measured errors of the sites that were measured; ``None`` for fewer than two."""
    known = [site for site in sites if (site.get("measured_t2") or 0) > 0 and (site["t2"] or 0) > 0]
    if len(known) < 2:
        return None
    predicted, measured = ([site[key] for site in known] for key in ("t2", "measured_t2"))
    both = [*predicted, *measured]  # one scale for both: the diagonal is where predictions are right
    x = Axis.of("predicted t²", both, AREA[0], logarithmic=True)
    y = Axis.of("measured t²", both, AREA[1], logarithmic=True, up=True)
    spots = [
        Spot(
            x.place(site["t2"]), y.place(site["measured_t2"]), _errors_of(site), site["name"], colors[format_name(site)]
        )
        for site in known
    ]
    diagonal = [(x.place(end), y.place(end)) for end in (x.low, x.high)]
    shown = {format_name(site) for site in known}
    return Chart(x, y, spots, diagonal, _fit(predicted, measured), [(c, n) for n, c in colors.items() if n in shown])


def _errors_of(site: Mapping[str, Any]) -> str:
    said = f"predicted {scientific(site['t2'])}, measured {scientific(site['measured_t2'])}"
    return f"{site.get('module') or site['name']}: {said} ({format_name(site)})"


def _fit(predicted: Sequence[float], measured: Sequence[float]) -> Fit:
    a, b = np.log(predicted), np.log(measured)
    spread = float(np.var(a))
    slope = float(np.cov(a, b, bias=True)[0, 1]) / spread if spread > 0 else float("nan")
    varied = float(np.var(b))
    r2 = float(np.corrcoef(a, b)[0, 1] ** 2) if spread > 0 and varied > 0 else float("nan")
    return Fit(slope, r2, float(np.exp(np.mean(b - a))))


# -- histograms ------------------------------------------------------------------------------------------------------

#: The least share of values that has a height.
RAREST = 1e-5


def outline(counts: Sequence[int], width: float, height: float) -> str:
    """Points of the outline of a histogram; heights are logarithms of shares, so that the few loud values are seen."""
    total, step = max(sum(counts), 1), width / max(len(counts), 1)
    tall = [max(0.0, 1 - math.log(max(count, RAREST * total) / total) / math.log(RAREST)) * height for count in counts]
    corners = [(x, height - y) for i, y in enumerate(tall) for x in (i * step, (i + 1) * step)]
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in [(0.0, height), *corners, (width, height)])


# -- budgets ---------------------------------------------------------------------------------------------------------


def front_chart(points: Sequence[Mapping[str, Any]], unit: str) -> Chart | None:
    """Predicted loss against what is spent, over the budgets that can be met; ``None`` where fewer than two can.

    Args:
        points: as ``qcompile sweep --json`` has them.
        unit: of what is spent, ``bits`` or ``bytes``.
    """
    met = sorted(((i, p) for i, p in enumerate(points) if "missed" not in p), key=lambda pair: pair[1]["spent"][unit])
    if len(met) < 2:
        return None
    spent, losses = [p["spent"][unit] for _, p in met], [p["predicted_loss_delta"] for _, p in met]
    wide = min(losses) > 0 and max(losses) > 20 * min(losses)
    x = Axis.of(_UNITS[unit], spent, AREA[0])
    x = replace(x, said=human_bytes) if unit == "bytes" else x
    y = Axis.of("predicted loss above the float model", losses, AREA[1], logarithmic=wide, up=True)
    places = [(x.place(s), y.place(loss)) for s, loss in zip(spent, losses)]
    spots = [Spot(*place, _said_of(point, unit), str(i)) for place, (i, point) in zip(places, met)]
    return Chart(x, y, spots, places)


#: What is spent, in words.
_UNITS = {"bits": "mean bits of codes", "bytes": "bytes of weights"}


def _said_of(point: Mapping[str, Any], unit: str) -> str:
    spent = point["spent"][unit]
    said = human_bytes(spent) if unit == "bytes" else f"{spent:.4g} {unit}"
    formats = ", ".join(f"{count} x {name}" for name, count in sorted(point["formats"].items()))
    return f"{said}: {scientific(point['predicted_loss_delta'])} ({formats})"
