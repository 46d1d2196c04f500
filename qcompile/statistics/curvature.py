"""How much a model minds errors at a site, from gradients: the Fisher information of its own output distribution.

A metric that is least at the float model grows by half a quadratic form in the change ``δz`` of a site's output. For
the divergence of logits the form is ``E[(g · δz)²]`` with ``g`` the gradient of the log-probability of tokens that are
drawn from the model's own distribution (Martens, New insights and perspectives on the natural gradient method,
arXiv:1412.1193); for the relative squared error of other outputs, with ``g`` that of a random projection. Errors of the
weight act alike on all rows of a window, so that their effects add up before they are squared; errors of the input are
independent from row to row, but the same for all sites that read it, through which they add up. Neither holds for the
part of an error that is a multiple of what it is an error of, which clipping leaves: it acts alike on all rows, columns
and siblings, and is weighed as a whole.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from qcompile.analysis.spaces import Site
from qcompile.group.group import ALONE, Group
from qcompile.ir.graph import is_float
from qcompile.ir.required import name_of
from qcompile.run.data import Data
from qcompile.run.executor import Executor
from qcompile.run.foreign import stopping
from qcompile.run.gradients import gradients
from qcompile.run.sequences import tensors
from qcompile.run.stream import Stream
from qcompile.statistics.kept_statistics import kept_curvatures
from qcompile.statistics.noise import noise_curvatures
from qcompile.statistics.sensitivity import Curvature, logit_outputs
from qcompile.statistics.site_sums import DRAWS, Place, Sent, Sums, place_of
from qcompile.work import Work

if TYPE_CHECKING:
    import torch

    from qcompile.notes import Decline, Progress
    from qcompile.statistics.collected import Statistics

__all__ = ["curvatures", "measure_curvatures", "spread_evenly"]

#: A measurement, by the words in which it is declined, and the operators that are named then.
BY_GRADIENTS, NAMED = "measuring by gradients what errors cost", 3

#: Sites where noise is measured beside gradients: few positions and their own tokens give it another level.
LEVELLED = 3

#: Batches, and elements of the largest input of whole numbers in all of them: tokens.
BATCHES, TOKENS = 32, 8192


def curvatures(
    model: ir.Model, sites: Sequence[Site], data: Data, logits: set[str], *, seed: int = 0, device: str = "cpu",
    progress: Progress | None = None, decline: Decline | None = None, group: Group = ALONE,
) -> dict[str, Curvature]:  # fmt: skip
    """The curvature at every site that gradients reach, by its name.

    Sites in bodies, stacks of matrices and kernels with groups are left out, and all sites of a graph where gradients
    stop between sites and outputs, at an operator that the engine has no row for.

    Args:
        logits: names of the outputs that are scores over one vocabulary; without any, of all outputs.
        data: of whose batches ``BATCHES`` are used, evenly spread; fewer where they hold more than ``TOKENS`` tokens.
        decline: told of the operators that onnxruntime runs, and why there is no curvature where there is none.
        group: the processes that share the batches.
    """
    places = [place for site in sites if (place := place_of(site, device)) is not None]
    names = {name for place in places for name in (place.x, place.y)}
    outputs = sorted(logits) or [name_of(value) for value in model.graph.outputs if is_float(value)]
    engine = Executor(model, outputs=outputs, hooked=names, device=device)
    places = [place for place in places if {place.x, place.y} <= engine.hooked]
    stops = stopping(model, engine.foreign, {place.y for place in places})
    if decline is not None:
        engine.tell(decline)
    chosen, rng = [] if stops or not outputs or not places else _chosen(data.batches), np.random.default_rng(seed)
    stream = Stream(engine)
    kept: dict[str, torch.Tensor] | None = None if stream.large else {}
    seeds = [[int(rng.integers(1 << 62)) for _ in range(DRAWS * len(outputs))] for _ in chosen]

    def of_batches(own: Sequence[int]) -> Iterator[list[Sums]]:
        for done, number in enumerate(own):
            new = [replace(place, sums=Sums(), kept=kept) for place in places]
            _collect(stream, new, chosen[number], bool(logits), iter(seeds[number]), len(chosen))
            yield [place.sums for place in new]
            if progress is not None:
                progress("measuring sensitivities", done + 1, len(own))

    for sums in group.spread(range(len(chosen)), of_batches):
        for place, own in zip(places, sums, strict=True):
            place.sums.extend(own)
    found = {place.site.name: place.curvature() for place in places if place.sums.of("energy") > 0}
    if not found and decline is not None:
        decline("*", BY_GRADIENTS, f"they stop at {', '.join(stops[:NAMED])}" if stops else "they lead to no site")
    return found


def measure_curvatures(
    model: ir.Model, sites: Sequence[Site], statistics: Mapping[str, Statistics], data: Data, decline: Decline,
    seed: int = 0, device: str = "cpu", progress: Progress | None = None, work: Work | None = None,
    group: Group = ALONE, noise: bool = True,
) -> dict[str, Curvature]:  # fmt: skip
    """The curvature at every site: by gradients, and from noise in its weight where they do not reach.

    Args:
        statistics: of what sites read, by name, which turn errors of a weight into errors of its output.
        decline: told where noise is used.
        work: about this graph and this data.
        group: the processes that share batches, and weights where noise measures.
        noise: whether it may measure, which runs the graph once for each weight. Without, sites that gradients do not
            reach count as the median of those that they do, and none is known where they reach none.
    """
    logits = logit_outputs(model, sites)
    work = work or Work()
    by_gradients = partial(
        curvatures, model, sites, data, logits, seed=seed, device=device, progress=progress, group=group
    )
    found = kept_curvatures(work, sites, seed, decline, lambda decline: by_gradients(decline=decline))
    rest = [site for site in sites if site.name not in found]
    if not rest:
        return found
    instead = "noise does" if noise else "it counts as the median of the others"
    for site in rest if found else ():
        decline(site.name, "measuring by gradients what its errors cost", f"gradients do not reach it: {instead}")
    if not found:
        decline("*", BY_GRADIENTS, "noise does" if noise else "errors of all sites count alike, relative to outputs")
    if not noise:
        return found and found | dict.fromkeys((site.name for site in rest), _median(list(found.values())))
    shared = [site for site in sites if site.name in found and site.input is not None]
    shared = [shared[i] for i in np.linspace(0, len(shared) - 1, min(LEVELLED, len(shared))).astype(int)]
    both = noise_curvatures(model, [*rest, *shared], statistics, data, seed, progress, work, group)
    pairs = [(found[site.name].weight, both[site.name].weight) for site in shared]
    level = float(np.median([ours / theirs for ours, theirs in pairs if min(ours, theirs) > 0] or [1.0]))
    levelled = {site.name: both[site.name] for site in rest}
    return found | {
        name: replace(own, weight=own.weight * level, input=own.input * level) for name, own in levelled.items()
    }


def _median(known: Sequence[Curvature]) -> Curvature:
    weight, of_input, coherence = (
        float(np.median([getattr(own, name) for own in known])) for name in ("weight", "input", "coherence")
    )
    return Curvature(weight, of_input, coherence)


def spread_evenly(batches: Sequence[Mapping[str, np.ndarray]], count: int) -> list[Mapping[str, np.ndarray]]:
    """Some of batches that may be sorted: the middles of equal parts, so that the ends do not count for more."""
    count = min(count, len(batches))
    return [batches[int((i + 0.5) * len(batches) / count)] for i in range(count)]


def _chosen(batches: Sequence[Mapping[str, np.ndarray]]) -> list[Mapping[str, np.ndarray]]:
    """Batches to measure on, spread evenly over the data."""
    tokens = max((a.size for a in tensors(batches[0]).values() if np.issubdtype(a.dtype, np.integer)), default=1)
    return spread_evenly(batches, min(BATCHES, max(1, TOKENS // max(tokens, 1))))


def _collect(
    stream: Stream, places: Sequence[Place], batch: Mapping[str, np.ndarray], logits: bool, seeds: Iterator[int],
    count: int,
) -> None:  # fmt: skip
    """Add one batch of ``count`` to the sums of all places."""
    units = 1

    def scores(outputs: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
        nonlocal units
        units = sum(value[..., 0].numel() for value in outputs.values()) if logits else 1
        return [_score(outputs, logits, seeds) for _ in range(DRAWS)]

    read, written = {place.x for place in places}, {place.y for place in places}
    for seen, met, draws in gradients(stream, batch, written, read, scores):
        here = [place for place in places if place.y in met]
        for place in here:
            place.see(seen[place.x], units)
        for draw in draws:
            siblings: dict[tuple[str, torch.Size, int], list[tuple[Place, Sent]]] = defaultdict(list)
            for place in (place for place in here if place.y in draw):
                sent = place.add(seen[place.x], draw[place.y], count * DRAWS)
                if sent is not None:
                    siblings[place.x, sent.back.shape, len(sent.gains)].append((place, sent))
            for found in siblings.values():
                every = Sent.joined([sent for _, sent in found])
                joined, separate = every.through, sum(sent.through for _, sent in found)
                for place, sent in found:
                    place.sums.add("shrunk", float(sent.gains @ every.gains))
                    place.sums.add("joined", joined)
                    place.sums.add("separate", separate)


def _score(outputs: Mapping[str, torch.Tensor], logits: bool, seeds: Iterator[int]) -> torch.Tensor:
    """A function of the outputs whose squared gradients are, in the mean over draws, twice the metric's curvature."""
    import torch

    total = torch.zeros(())
    for value in outputs.values():
        noise = torch.Generator(value.device).manual_seed(next(seeds))
        if logits:
            scores = value.reshape(-1, value.shape[-1]).float().log_softmax(-1)
            drawn = torch.multinomial(scores.detach().exp(), 1, generator=noise)
            total = total.to(value.device) + scores.gather(1, drawn).sum()
        else:
            direction = torch.randn(value.shape, generator=noise, device=value.device)
            size = value.detach().norm().clamp_min(1e-30) * len(outputs) ** 0.5
            total = total.to(value.device) + (direction * value).sum() / size
    return total
