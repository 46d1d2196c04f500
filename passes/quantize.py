"""Quantize: round every planned weight to its format, in the basis that it has been brought to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from qcompile.calibration import Statistics
from qcompile.errors import InputError
from qcompile.formats import Format, Quantized, quantize, search_scales
from qcompile.groups import Group, routed
from qcompile.pipeline import State
from qcompile.scoring import weight_matrix
from qcompile.selection import METHODS
from qcompile.spaces import Site
from qcompile.stacks import Experts, Route, rows_of
from qcompile.targets import Plan, Scheme

if TYPE_CHECKING:
    import torch

    from qcompile.calibration import Progress
    from qcompile.gptq import Factor
    from qcompile.transforms import Transform

__all__ = ["Quantize"]


@dataclass(frozen=True)
class Quantize:
    """Round the weights of sites.

    Args:
        groups: sites by the value that they read, with the total transform of that value.
        tables: embedding tables, which read nothing.
        schemes: by site name.
        statistics: of the untransformed inputs, by value name.
        method: one of ``METHODS``; ``gptq`` needs statistics, and rounds to nearest where there are none, or where
            that is better on rows that were held out. Each matrix of a stack learns from the rows of its expert.
        device: where torch computes.
    """

    groups: Sequence[tuple[Group, Transform | None]]
    tables: Sequence[Site]
    schemes: Mapping[str, Scheme]
    statistics: Mapping[str, Statistics]
    method: str = "gptq"
    device: str = "cpu"
    progress: Progress | None = None
    name: ClassVar[str] = "quantize"

    def apply(self, state: State) -> bool:
        """Leaves ``plans`` in ``state.notes``, and ``held_out``: how GPTQ compares with rounding, by site.

        The graph keeps its weights until it is lowered.
        """
        if self.method not in METHODS:
            raise InputError(f"unknown method '{self.method}'; there are {', '.join(METHODS)}")
        plans: list[Plan] = []
        for done, (group, transform) in enumerate(self.groups):
            factors = _Factors(group, transform, self.statistics.get(group.value.name), self.device)
            for site in group.sites:
                scheme = self.schemes[site.name]
                rounded = self._round(state, site, scheme, factors)
                if rounded is not None and rounded.format != scheme.weight:
                    scheme = replace(scheme, weight=rounded.format)
                plans.append(Plan(site.name, scheme, rounded))
            if self.progress is not None:
                self.progress("quantizing", done + 1, len(self.groups))
        for site in self.tables:
            scheme = self.schemes[site.name]
            rounded = None if scheme.weight is None else quantize(weight_matrix(site), scheme.weight)
            plans.append(Plan(site.name, scheme, rounded))
        state.notes["plans"] = plans
        return bool(plans)

    def _round(self, state: State, site: Site, scheme: Scheme, factors: _Factors) -> Quantized | None:
        if scheme.weight is None:
            return None
        weight = weight_matrix(site).to(self.device)
        if self.method != "rtn":
            weight = weight.contiguous()  # the others walk over it often
        if not isinstance(scheme.weight, Format):
            if self.method == "search" or (self.method == "gptq" and factors.usable):
                state.decline(site.name, self.method, f"it chooses no scales for the codebook of {scheme.weight.name}")
            return _to_cpu(scheme.weight.quantize(weight).as_table())
        searched = self.method == "search"
        scales = search_scales(weight, scheme.weight, weight=factors.importance) if searched else None
        nearest = quantize(weight, scheme.weight, scales=scales)
        form = routed(site)
        if self.method == "gptq" and form is not None and factors.routes(form.route):
            return _to_cpu(self._experts(state, site, form, weight, nearest, factors))
        if self.method == "gptq" and factors.usable:
            return _to_cpu(self._learned(state, site, weight, nearest, factors))
        if self.method == "gptq" and factors.unusable is not None:
            state.decline(site.name, "GPTQ", f"{factors.unusable}, so it is rounded to nearest")
        return _to_cpu(nearest)

    def _experts(
        self, state: State, site: Site, form: Experts, weight: torch.Tensor, nearest: Quantized, factors: _Factors
    ) -> Quantized:
        """GPTQ for each matrix of a stack whose own rows suffice and say that it errs less on those held out."""
        result = replace(nearest, codes=nearest.codes.clone(), scales=nearest.scales.clone(),
                         zero_points=None if nearest.zero_points is None else nearest.zero_points.clone())  # fmt: skip
        count, short, errors = len(form.places), 0, []
        for expert, places in enumerate(form.places):
            own = factors.of(form.route, expert)
            if own is None or not own.usable:
                short += 1
                continue
            learned, found = _compared(weight[places], rows_of(nearest, places), own)
            errors.append(found)
            if found["gptq"] <= found["nearest"]:
                _put_rows(result, places, learned)
        if errors:
            means = {way: float(np.mean([found[way] for found in errors])) for way in errors[0]}
            state.notes.setdefault("held_out", {})[site.name] = means
        if short:
            reason = f"{short} of its {count} matrices see fewer rows of calibration data than their {weight.shape[1]}"
            state.decline(site.name, "GPTQ of every matrix", f"{reason} features, and are rounded to nearest")
        if worse := sum(found["gptq"] > found["nearest"] for found in errors):
            reason = "on rows of the calibration data that it had not seen, rounding to nearest errs less"
            state.decline(site.name, "GPTQ of every matrix", f"{reason} for {worse} of its {count} matrices")
        return result

    def _learned(
        self, state: State, site: Site, weight: torch.Tensor, nearest: Quantized, factors: _Factors
    ) -> Quantized:
        """GPTQ's weight, unless rounding to nearest errs less on rows that GPTQ has not seen."""
        from qcompile.gptq import gptq

        result = gptq(weight, factors.get(), nearest.format, scales="search")
        if result.damping > 0.011:
            reason = f"its inputs needed a damping of {result.damping:g}"
            state.decline(site.name, "the usual damping of GPTQ", reason)
        if not len(factors.held_out):
            return result.quantized
        errors = {
            way: _error(weight, rounded.dequantize(), factors.held_out)
            for way, rounded in (("gptq", result.quantized), ("nearest", nearest))
        }
        state.notes.setdefault("held_out", {})[site.name] = errors
        if errors["gptq"] <= errors["nearest"]:
            return result.quantized
        reason = "on rows of the calibration data that it had not seen, rounding to nearest errs less: {:.3g} < {:.3g}"
        state.decline(site.name, "GPTQ", reason.format(errors["nearest"], errors["gptq"]))
        return nearest


def _compared(weight: torch.Tensor, nearest: Quantized, factors: _Factors) -> tuple[Quantized, dict[str, float]]:
    """What GPTQ makes of one matrix of a stack, and how it and rounding err on rows that it has not seen."""
    from qcompile.gptq import gptq

    fmt = nearest.format
    shared = nearest.tensor_scale if fmt.tensor_scale is not None else None  # one for the whole stack
    learned = gptq(weight, factors.get(), fmt, scales="search", tensor_scale=shared).quantized
    ways = {"gptq": learned, "nearest": nearest}
    return learned, {way: _error(weight, rounded.dequantize(), factors.held_out) for way, rounded in ways.items()}


def _put_rows(q: Quantized, places: np.ndarray, rows: Quantized) -> None:
    q.codes[places], q.scales[places] = rows.codes, rows.scales
    if q.zero_points is not None:
        q.zero_points[places] = rows.zero_points


def _error(weight: torch.Tensor, rounded: torch.Tensor, rows: torch.Tensor) -> float:
    """``‖x (Ŵ - W)ᵀ‖² / ‖x Wᵀ‖²``."""
    exact = rows @ weight.T
    return float((rows @ (rounded.to(weight) - weight).T).square().sum() / exact.square().sum().clamp_min(1e-30))


def _to_cpu(quantized: Quantized) -> Quantized:
    def move(tensor: torch.Tensor | None) -> torch.Tensor | None:
        return None if tensor is None else tensor.cpu()

    return replace(quantized, codes=move(quantized.codes), scales=move(quantized.scales),
                   zero_points=move(quantized.zero_points), tensor_scale=move(quantized.tensor_scale))  # fmt: skip


class _Factors:
    """The transformed second moment of a group's input, factorized once for all of its sites."""

    def __init__(self, group: Group, transform: Transform | None, statistics: Statistics | None, device: str) -> None:
        self.group, self.transform, self.statistics, self.device = group, transform, statistics, device
        self.unusable = None if statistics is None else _unusable(statistics)
        self.usable = statistics is not None and self.unusable is None
        self._make: Callable[[], torch.Tensor] = lambda: _transformed(statistics, transform).to(device)
        self._factor: Factor | None = None
        self._held_out: Callable[[], torch.Tensor] = lambda: _moved(statistics.held_out, transform).to(device)

    def routes(self, route: Route) -> bool:
        """Whether the rows of each expert are known."""
        return self.statistics is not None and route in self.statistics.routed

    def of(self, route: Route, expert: int) -> _Factors | None:
        """Those of the rows of one expert; ``None`` if it got none."""
        own = self.statistics.routed[route].of(expert)
        return None if own is None else _Factors(self.group, self.transform, own, self.device)

    @cached_property
    def held_out(self) -> torch.Tensor:
        """Rows of the input that the second moment has not seen, ``[rows, size]``."""
        return self._held_out()

    @property
    def importance(self) -> torch.Tensor | None:
        """The energy of each input feature, ``None`` without statistics."""
        return self._make().diagonal().float() if self.usable else None

    def get(self) -> Factor:
        """The factor for GPTQ."""
        from qcompile.gptq import factorize

        if self._factor is None:
            self._factor = factorize(self._make())
        return self._factor


def _unusable(statistics: Statistics) -> str | None:
    """Why GPTQ cannot learn from those statistics: it moves errors to where the data happened to be silent."""
    if not statistics.second_moment.any():
        return "its input is zero on all calibration data"
    size = len(statistics.second_moment)
    if statistics.rows < size:
        return f"calibration data has {statistics.rows} rows for its {size} features"
    return None


def _moved(rows: np.ndarray, transform: Transform | None) -> torch.Tensor:
    """``x Tᵀ``."""
    import torch

    moved = torch.from_numpy(rows)
    return moved if transform is None else transform.apply(moved, -1)


def _transformed(statistics: Statistics, transform: Transform | None) -> torch.Tensor:
    """``T G Tᵀ``."""
    import torch

    moment = torch.from_numpy(np.ascontiguousarray(statistics.second_moment))
    if transform is not None:
        moment = transform.apply(transform.apply(moment, 0), 1)
    return moment
