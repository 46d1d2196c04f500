"""How much a model minds errors at a site, from gradients: the Fisher information of its own output distribution.

A metric that is least at the float model grows by half a quadratic form in the change ``δz`` of a site's output. For
the divergence of logits the form is ``E[(g · δz)²]`` with ``g`` the gradient of the log-probability of tokens that are
drawn from the model's own distribution (Martens, New insights and perspectives on the natural gradient method,
arXiv:1412.1193); for the relative squared error of other outputs, with ``g`` that of a random projection. Errors of the
weight act alike on all rows of a window, so that their effects add up before they are squared; errors of the input are
independent. Neither holds for the part of an error that is a multiple of what it is an error of, which clipping leaves:
it acts alike on all rows, columns and siblings, and is weighed as a whole.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from qcompile.analysis.forms import Convolution, Linear, Lookup, Stack, read_site
from qcompile.analysis.matrices import weight_matrix
from qcompile.analysis.spaces import Site
from qcompile.errors import TargetError
from qcompile.ir.graph import is_float
from qcompile.ir.required import name_of
from qcompile.run.data import Data
from qcompile.run.executor import Executor
from qcompile.run.foreign import stopping
from qcompile.run.gradients import gradients
from qcompile.run.stream import Stream
from qcompile.statistics.kept_statistics import kept_curvatures
from qcompile.statistics.noise import noise_curvatures
from qcompile.statistics.rows_of_sites import rows_read, rows_written
from qcompile.statistics.sensitivity import Curvature, Felt, logit_outputs
from qcompile.work import Work

if TYPE_CHECKING:
    import torch

    from qcompile.notes import Decline, Progress
    from qcompile.statistics.collected import Statistics

__all__ = ["curvatures", "measure_curvatures", "spread_evenly"]

#: A measurement, by the words in which it is declined, and the operators that are named then.
BY_GRADIENTS, NAMED = "measuring by gradients what errors cost", 3

#: Draws of the output's distribution for each batch. More batches teach more than more draws of one.
DRAWS = 1

#: Batches, and elements of the largest input of whole numbers in all of them: tokens.
BATCHES, TOKENS = 32, 8192

#: Rows of each site that errors are weighed by. They are drawn by the size of the input and the gradient, so that few
#: are as good as all: on the shipped models 512 predict as well as 1024, and a little better than 256.
FELT_ROWS = 512


def curvatures(
    model: ir.Model, sites: Sequence[Site], data: Data, logits: set[str], *, seed: int = 0, device: str = "cpu",
    progress: Progress | None = None, decline: Decline | None = None,
) -> dict[str, Curvature]:  # fmt: skip
    """The curvature at every site that gradients reach, by its name.

    Sites in bodies, stacks of matrices and kernels with groups are left out, and all sites of a graph where gradients
    stop between sites and outputs, at an operator that the engine has no row for.

    Args:
        logits: names of the outputs that are scores over one vocabulary; without any, of all outputs.
        data: of whose batches ``BATCHES`` are used, evenly spread; fewer where they hold more than ``TOKENS`` tokens.
        decline: told of the operators that onnxruntime runs, and why there is no curvature where there is none.
    """
    places = [place for site in sites if (place := _place(site, device)) is not None]
    names = {name for place in places for name in (place.x, place.y)}
    outputs = sorted(logits) or [name_of(value) for value in model.graph.outputs if is_float(value)]
    engine = Executor(model, outputs=outputs, hooked=names, device=device)
    places = [place for place in places if {place.x, place.y} <= engine.hooked]
    stops = stopping(model, engine.foreign, {place.y for place in places})
    if decline is not None:
        engine.tell(decline)
    chosen, rng = [] if stops or not outputs or not places else _chosen(data.batches), np.random.default_rng(seed)
    stream = Stream(engine)
    for done, batch in enumerate(chosen):
        _collect(stream, places, batch, bool(logits), rng, len(chosen))
        if progress is not None:
            progress("measuring sensitivities", done + 1, len(chosen))
    found = {place.site.name: place.curvature() for place in places if place.energy > 0}
    if not found and decline is not None:
        reason = f"they stop at {', '.join(stops[:NAMED])}" if stops else "they lead to no site"
        decline("*", BY_GRADIENTS, f"{reason}: noise does")
    return found


def measure_curvatures(
    model: ir.Model, sites: Sequence[Site], statistics: Mapping[str, Statistics], data: Data, decline: Decline,
    seed: int = 0, device: str = "cpu", progress: Progress | None = None, work: Work | None = None,
) -> dict[str, Curvature]:  # fmt: skip
    """The curvature at every site: by gradients, and from noise in its weight where they do not reach.

    Args:
        statistics: of what sites read, by name, which turn errors of a weight into errors of its output.
        decline: told where noise is used.
        work: about this graph and this data.
    """
    logits = logit_outputs(model, sites)
    work = work or Work()
    by_gradients = partial(curvatures, model, sites, data, logits, seed=seed, device=device, progress=progress)
    found = kept_curvatures(work, sites, seed, decline, lambda decline: by_gradients(decline=decline))
    rest = [site for site in sites if site.name not in found]
    if not rest:
        return found
    for site in rest if found else ():
        decline(site.name, "measuring by gradients what its errors cost", "gradients do not reach it: noise does")
    return found | noise_curvatures(model, rest, statistics, data, seed, progress, work)


def spread_evenly(batches: Sequence[Mapping[str, np.ndarray]], count: int) -> list[Mapping[str, np.ndarray]]:
    """Some of batches that may be sorted: the middles of equal parts, so that the ends do not count for more."""
    count = min(count, len(batches))
    return [batches[int((i + 0.5) * len(batches) / count)] for i in range(count)]


def _chosen(batches: Sequence[Mapping[str, np.ndarray]]) -> list[Mapping[str, np.ndarray]]:
    """Batches to measure on, spread evenly over the data."""
    tokens = max((a.size for a in batches[0].values() if np.issubdtype(a.dtype, np.integer)), default=1)
    return spread_evenly(batches, min(BATCHES, max(1, TOKENS // max(tokens, 1))))


@dataclass
class _Place:
    """A site in the engine, and the sums that its curvature follows from."""

    site: Site
    form: Linear | Lookup | Convolution
    x: str
    y: str
    device: str
    seen: float = 0.0  # Σ‖x‖²
    energy: float = 0.0  # Σ‖xWᵀ‖²
    together: float = 0.0  # Σ over windows of ‖Σ g xᵀ‖²
    apart: float = 0.0  # Σ‖g‖²‖x‖²
    through: float = 0.0  # Σ‖Wᵀg‖²‖x‖²/d
    units: float = 0.0  # tokens, or batches where the metric is relative
    shrunk: float = 0.0  # Σ over windows of Σ g·z, times the same of all sites that read the input
    by_row: float | torch.Tensor = 0.0  # of a table, ``together`` by row: [rows]
    felt: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)  # inputs and gradients of some rows

    @property
    def weight(self) -> torch.Tensor:
        """The weight ``[out, in]``, read anew: those of all sites together may be too many to keep."""
        return weight_matrix(self.site, device=self.device).contiguous()

    def see(self, x: torch.Tensor, units: int) -> None:
        """Add what the site reads."""
        self.units += units
        if isinstance(self.form, Lookup):
            self.energy += x.numel()
            return
        weight = self.weight
        for rows in rows_read(self.form, x):
            self.seen += float(rows.square().sum())
            self.energy += float((rows @ weight.T).square().sum())

    def add(self, x: torch.Tensor, g: torch.Tensor, count: int) -> np.ndarray:
        """Add the gradient at the output for one draw of ``count``; the result is ``Σ g·z`` of each window."""
        import torch

        if isinstance(self.form, Lookup):
            entries = self.site.shape[1 - self.site.axis_out]
            rows, g = x.reshape(-1) % entries, g.reshape(-1, g.shape[-1]).float()
            sums = torch.zeros(entries, g.shape[1], device=g.device).index_add(0, rows, g)
            self.by_row = self.by_row + sums.square().sum(1).cpu()
            self.together += float(sums.square().sum())
            self.apart += float(g.square().sum())
            return np.zeros(0)
        weight = self.weight
        pairs = [*zip(rows_read(self.form, x), rows_written(self.form, g), strict=True)]
        self._draw(torch.cat([rows for rows, _ in pairs]), torch.cat([grads for _, grads in pairs]), FELT_ROWS // count)
        gains = []
        for rows, grads in pairs:
            size = rows.square().sum(1)
            self.together += _together(grads, rows)
            self.apart += float((grads.square().sum(1) * size).sum())
            back = grads @ weight
            self.through += float((back.square().sum(1) * size).sum()) / rows.shape[1]
            gains.append(float((back * rows).sum()))
        return np.array(gains)

    def _draw(self, rows: torch.Tensor, grads: torch.Tensor, count: int) -> None:
        """Keep some rows, each as often as its part of ``Σ‖g‖²‖x‖²``, and lighter for it."""
        import torch

        mass = (grads.square().sum(1) * rows.square().sum(1)).double()
        if not mass.sum() > 0:
            return
        share = mass / mass.sum()
        at = (torch.arange(count, device=rows.device, dtype=torch.float64) + 0.5) / count
        chosen = torch.searchsorted(share.cumsum(0), at).clamp_max(len(rows) - 1)
        weighed = grads[chosen] / (count * share[chosen]).sqrt().float()[:, None]
        self.felt.append((rows[chosen].cpu(), weighed.cpu()))

    def curvature(self) -> Curvature:
        """The coefficients, from the sums over all windows and draws."""
        import torch

        count = DRAWS * max(self.units, 1)
        if isinstance(self.form, Lookup):  # relative to the energy of the table, as errors of tables are
            table = self.weight
            spread = float(table.square().sum()) / table.numel()
            shares = np.asarray(self.by_row) / max(self.together, 1e-30)
            coherence = self.together / max(self.apart, 1e-30)
            return Curvature(
                0.5 * self.together / count * spread, 0.0, coherence, shares=shares if shares.ndim else None
            )
        weight = self.weight
        width = weight.shape[1]
        by_weight = len(weight) * self.seen / self.energy
        by_input = float(weight.square().sum()) * self.seen / width / self.energy
        rows, grads = ([pair[i] for pair in self.felt] for i in (0, 1))
        felt = Felt(torch.cat(rows), torch.cat(grads) * (0.5 / count) ** 0.5) if rows else None
        return Curvature(
            0.5 * self.together / count / by_weight, 0.5 * self.through / count / by_input,
            self.together / max(self.apart, 1e-30), 0.5 * self.shrunk / count, felt=felt,
        )  # fmt: skip


def _place(site: Site, device: str) -> _Place | None:
    if site.nested:
        return None
    try:
        form = read_site(site.node)
    except TargetError:
        return None
    if isinstance(form, Stack) or (isinstance(form, Convolution) and form.patches.groups > 1):
        return None
    x = name_of(form.indices if isinstance(form, Lookup) else form.x)
    return _Place(site, form, x, name_of(site.node.outputs[0]), device)


def _collect(
    stream: Stream, places: Sequence[_Place], batch: Mapping[str, np.ndarray], logits: bool, rng: np.random.Generator,
    count: int,
) -> None:  # fmt: skip
    """Add one batch of ``count`` to the sums of all places."""
    units = 1

    def scores(outputs: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
        nonlocal units
        units = sum(value[..., 0].numel() for value in outputs.values()) if logits else 1
        return [_score(outputs, logits, rng) for _ in range(DRAWS)]

    read, written = {place.x for place in places}, {place.y for place in places}
    for seen, met, draws in gradients(stream, batch, written, read, scores):
        here = [place for place in places if place.y in met]
        for place in here:
            place.see(seen[place.x], units)
        for draw in draws:
            siblings: dict[tuple[str, int], list[tuple[_Place, np.ndarray]]] = defaultdict(list)
            for place in (place for place in here if place.y in draw):
                gains = place.add(seen[place.x], draw[place.y], count * DRAWS)
                siblings[place.x, len(gains)].append((place, gains))
            for found in siblings.values():
                total = np.sum([gains for _, gains in found], axis=0)
                for place, gains in found:
                    place.shrunk += float(gains @ total)


def _score(outputs: Mapping[str, torch.Tensor], logits: bool, rng: np.random.Generator) -> torch.Tensor:
    """A function of the outputs whose squared gradients are, in the mean over draws, twice the metric's curvature."""
    import torch

    total = torch.zeros(())
    for value in outputs.values():
        noise = torch.Generator(value.device).manual_seed(int(rng.integers(1 << 62)))
        if logits:
            scores = value.reshape(-1, value.shape[-1]).float().log_softmax(-1)
            drawn = torch.multinomial(scores.detach().exp(), 1, generator=noise)
            total = total.to(value.device) + scores.gather(1, drawn).sum()
        else:
            direction = torch.randn(value.shape, generator=noise, device=value.device)
            size = value.detach().norm().clamp_min(1e-30) * len(outputs) ** 0.5
            total = total.to(value.device) + (direction * value).sum() / size
    return total


def _together(g: torch.Tensor, x: torch.Tensor) -> float:
    """``‖Σ g xᵀ‖²`` of rows ``[rows, out]`` and ``[rows, in]``, by what is cheaper: the matrix, or products of rows."""
    rows, out, width = len(g), g.shape[1], x.shape[1]
    if rows * (out + width) < out * width:
        return float(((g @ g.T) * (x @ x.T)).sum())
    return float((g.T @ x).square().sum())
