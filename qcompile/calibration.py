"""Calibration: one pass of data through the float graph, and what is kept of it.

Kept per distinct site input: the second moment ``G = E[x xᵀ]`` and a sample of rows. The effect of every transform
and format is then computed (``G ↦ T G Tᵀ``), not run again. Sensitivities ``α`` come from noise on one weight at a
time: by the linearity theorem (HIGGS, arXiv:2411.17525) the change of the metric is ``α · t²`` for a relative error
``t²``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from qcompile.data import Data
from qcompile.errors import InputError
from qcompile.evaluate import Session
from qcompile.spaces import Site
from qcompile.stacks import Route
from qcompile.tapping import expose

if TYPE_CHECKING:
    import torch

__all__ = ["Routed", "Statistics", "collect", "held_out_from", "sensitivities"]

Progress = Callable[[str, int, int], None]

#: Rows of each site input that are learned from; on the shipped language model, four times fewer cost a twelfth more
#: divergence in NVFP4.
MAX_ROWS = 32768

#: Rows of each site input that are kept.
SAMPLE_ROWS = 512

#: So many rows, and one in eight at most, are kept from the second moment: does what it teaches hold on others?
HELD_OUT_ROWS, HELD_OUT = 256, 8

#: Relative squared error of the noise that measures sensitivities: that of a good 4-bit format.
NOISE = 0.01


@dataclass(frozen=True)
class Routed:
    """Rows of one value and the experts that multiply them.

    Args:
        rows: ``[rows, size]`` float32.
        owners: ``[rows, choices]``.
    """

    rows: np.ndarray
    owners: np.ndarray

    def of(self, expert: int) -> Statistics | None:
        """What one expert saw; ``None`` for nothing."""
        own = self.rows[(self.owners == expert).any(1)]
        if not len(own):
            return None
        kept = np.arange(len(own)) % HELD_OUT != HELD_OUT - 1
        learned = own[kept]
        moment = (learned.T @ learned).astype(np.float64) / len(learned)
        return Statistics(moment, own[:SAMPLE_ROWS], len(own), own[~kept])


@dataclass(frozen=True)
class Statistics:
    """What is kept of one site input of ``size`` features.

    Args:
        second_moment: ``E[x xᵀ]``, ``[size, size]`` float64.
        sample: ``[rows, size]`` float32, of all rows.
        rows: how many rows were seen.
        held_out: ``[rows, size]`` float32, rows that the second moment has not seen.
        batches: how many of the data they come from.
        routed: the rows by how stacks of experts share them.
    """

    second_moment: np.ndarray
    sample: np.ndarray
    rows: int
    held_out: np.ndarray
    batches: int = 0
    routed: Mapping[Route, Routed] = field(default_factory=dict)


def collect(
    model: ir.Model, inputs: Mapping[str, int], data: Data, *, routes: Mapping[str, Sequence[Route]] | None = None,
    max_rows: int = MAX_ROWS, progress: Progress | None = None,
) -> dict[str, Statistics]:  # fmt: skip
    """Run the data through the graph and keep the statistics of site inputs.

    Args:
        model: the float graph.
        inputs: the axis of the features, by name of the value.
        routes: by name of the value, how experts share its rows.
        data: batches; they stop once ``max_rows`` rows of every value were seen.

    Returns:
        by name of the value; one that got no row at all, such as the input of an expert without a token, is left out,
        and one in a body that cannot be seen from outside (``tapping``).

    Raises:
        InputError: if a value is NaN or infinite on that data.
    """
    import torch

    outer = ir.convenience.create_value_mapping(model.graph, include_subgraphs=False)
    inner = {name: axis for name, axis in inputs.items() if name not in outer}
    model, places = expose(model, inner) if inner else (model, {})
    inputs = {name: axis for name, axis in inputs.items() if name not in inner} | dict.fromkeys(places, -1)
    names, routes = [*inputs], routes or {}
    indices = [route.indices for value in routes.values() for route in value if route.indices is not None]
    given = {value.name for value in model.graph.inputs} | set(model.graph.initializers)
    taps = [*(name for name in names if name not in places), *(name for name in indices if name not in given)]
    session = Session(model, list(dict.fromkeys(taps)))
    fixed = {name: v.const_value.numpy() for name, v in model.graph.initializers.items() if name in indices}
    found = {name: _Collected(max_rows, len(data.batches)) for name in names}
    total = len(data.batches)
    for done, batch in enumerate(data.batches):
        if names and min(one.rows for one in found.values()) >= max_rows:
            break
        results = {**fixed, **batch, **session.run(batch)}
        for name, axis in inputs.items():
            array = np.moveaxis(results[places.get(name, name)], axis, -1)
            x = torch.from_numpy(np.ascontiguousarray(array)).float()
            if not found[name].add(x.reshape(-1, x.shape[-1])):
                raise InputError(f"{data.about} gives NaN or infinity at '{name}'")
            for route in routes.get(name, ()):
                found[name].share(x, route, route.owners(results[name], results.get(route.indices)))
        if progress is not None:
            progress("calibrating", done + 1, total)
    return {name: one.statistics() for name, one in found.items() if one.rows}


def held_out_from(before: int, rows: int, expected: int) -> int:
    """Where the last rows of a batch begin, which are held out; as many came ``before``, so many are ``expected``."""
    every = max(HELD_OUT, expected // HELD_OUT_ROWS)
    return rows - ((before + rows) // every - before // every)


class _Collected:
    """The statistics of one value, as its rows come in."""

    def __init__(self, most: int, batches: int) -> None:
        self.most, self.batches, self.rows, self.learned = most, batches, 0, 0
        self.moment: Any = 0.0
        self.taken = 0
        self.sample: list[torch.Tensor] = []
        self.held_out: list[torch.Tensor] = []
        self.routed: dict[Route, list[tuple[np.ndarray, np.ndarray]]] = defaultdict(list)

    def share(self, x: torch.Tensor, route: Route, owners: np.ndarray) -> None:
        """Keep rows ``[..., size]`` with the experts that multiply them."""
        self.routed[route].append((x.reshape(-1, x.shape[-1]).numpy().copy(), owners))

    def add(self, x: torch.Tensor) -> bool:
        """Take ``[rows, size]`` in, unless something in it is no number.

        The last rows of each batch are held out, so that they come from other places than those in front of them.
        """
        stop = held_out_from(self.rows, len(x), min(self.most, len(x) * self.batches))
        moment = (x[:stop].T @ x[:stop]).double()
        if not (moment.isfinite().all() and x[stop:].isfinite().all()):
            return False
        self.moment = self.moment + moment
        self.sample.append(_spread(x, len(x) * SAMPLE_ROWS // self.most))
        self.held_out.append(x[stop:].clone())
        self.rows, self.learned, self.taken = self.rows + len(x), self.learned + stop, self.taken + 1
        return True

    def statistics(self) -> Statistics:
        """What is known after the last row."""
        import torch

        sample, held_out = (torch.cat(parts).numpy() for parts in (self.sample, self.held_out))
        routed = {route: Routed(*map(np.concatenate, zip(*parts))) for route, parts in self.routed.items()}
        moment = (self.moment / max(self.learned, 1)).numpy()
        return Statistics(moment, sample, self.rows, held_out, self.taken, routed)


def _spread(x: torch.Tensor, count: int) -> torch.Tensor:
    """That many rows, but at least one if there is any, evenly spread."""
    import torch

    return x[torch.linspace(0, len(x) - 1, min(max(1, count), len(x))).long()]


# -- sensitivities ---------------------------------------------------------------------------------------------------


def sensitivities(
    model: ir.Model,
    sites: Sequence[Site],
    data: Data,
    *,
    seed: int = 0,
    tokens: int = 256,
    progress: Progress | None = None,
) -> dict[str, float]:
    """``α`` of every site: how much the metric grows per unit of relative squared weight error.

    The metric is the mean KL divergence to the float model where the output is logits over a table that the inputs
    index, else half the relative squared error of the outputs.

    Args:
        tokens: leading positions of each batch that are used, over all batches together.
    """
    batches = _short(data.batches, tokens)
    overridable = model.clone()
    for name in {site.weight.name for site in sites}:
        _make_overridable(overridable, overridable.graph.initializers[name])
    session = _Overridable(overridable, [v.name for v in model.graph.inputs])
    logits = logit_outputs(model, sites)
    reference = [session.run(batch) for batch in batches]
    result = {}
    for done, site in enumerate(sites):
        rng = np.random.default_rng([seed, done])
        weight = site.weight.const_value.numpy()
        dtype = np.float32 if site.weight.dtype == ir.DataType.BFLOAT16 else weight.dtype
        weight = weight.astype(dtype)
        noise = rng.standard_normal(weight.shape, np.float32)
        noise *= np.sqrt(NOISE) * np.linalg.norm(weight) / np.linalg.norm(noise)
        override = {site.weight.name: (weight + noise).astype(dtype)}
        moved = [session.run(batch | override) for batch in batches]
        changes = [divergence(a, b, logits) for a, b in zip(reference, moved, strict=True)]
        result[site.name] = float(np.mean(changes)) / NOISE
        if progress is not None:
            progress("measuring sensitivities", done + 1, len(sites))
    return result


def _make_overridable(model: ir.Model, weight: ir.Value) -> None:
    """Let a weight be given as an input: in float32 where onnxruntime takes no array of its type."""
    if weight.dtype == ir.DataType.BFLOAT16:
        narrow = ir.Node("", "Cast", [weight], [ir.AttrInt64("to", int(weight.dtype))])
        narrow.outputs[0].name, narrow.outputs[0].shape = f"{weight.name}/narrow", weight.shape
        narrow.outputs[0].type = weight.type
        for node, index in weight.uses():
            if node is not narrow:
                node.replace_input_with(index, narrow.outputs[0])
        model.graph.insert_before(model.graph[0], narrow)
        weight.type = ir.TensorType(ir.DataType.FLOAT)
        weight.const_value = ir.tensor(weight.const_value.numpy().astype(np.float32), name=weight.name)
    model.graph.inputs.append(weight)


class _Overridable(Session):
    """A session whose weights may be given as inputs."""

    def __init__(self, model: ir.Model, required: Sequence[str]) -> None:
        super().__init__(model)
        self.required = list(required)

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(self.outputs, self._session.run(None, dict(inputs)), strict=True))


def _short(batches: Sequence[Mapping[str, np.ndarray]], tokens: int) -> list[dict[str, np.ndarray]]:
    """The first batches, as many as hold about ``tokens`` elements of integer inputs (two where there are none)."""
    chosen, seen = [], 0
    for batch in batches:
        count = max((array.size for array in batch.values() if np.issubdtype(array.dtype, np.integer)), default=0)
        chosen.append(dict(batch))
        seen += count or tokens // 2
        if seen >= tokens:
            break
    return chosen


def logit_outputs(model: ir.Model, sites: Sequence[Site]) -> set[str]:
    """Outputs whose last axis is as long as a table that an embedding looks up: scores over the same vocabulary."""
    rows = {site.shape[site.axis_in] for site in sites if site.input is None}
    tables = [node.inputs[0] for node in model.graph if node.op_type == "Gather"]
    rows |= {int(table.shape[0]) for table in tables if table.const_value is not None and len(table.shape) == 2}
    return {v.name for v in model.graph.outputs if v.shape is not None and len(v.shape) and v.shape[-1] in rows}


def divergence(reference: Mapping[str, np.ndarray], moved: Mapping[str, np.ndarray], logits: set[str]) -> float:
    """Mean KL divergence over logits, if there are any, else half the relative squared error of the outputs."""
    if logits:
        return float(np.mean([_kl(reference[name], moved[name]) for name in logits]))
    errors = [
        float(np.sum((moved[name] - want) ** 2.0) / max(np.sum(want**2.0), 1e-30))
        for name, want in reference.items()
        if np.issubdtype(want.dtype, np.floating)
    ]
    if not errors:
        raise InputError("the model has no floating-point output to measure the effect of quantization on")
    return 0.5 * float(np.mean(errors))


def _kl(reference: np.ndarray, moved: np.ndarray) -> float:
    import torch

    p = torch.from_numpy(np.ascontiguousarray(reference)).float().log_softmax(-1)
    q = torch.from_numpy(np.ascontiguousarray(moved)).float().log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def next_token_loss(logits: np.ndarray, tokens: np.ndarray) -> float:
    """Mean cross-entropy in nats of next tokens: logits ``[batch, length, vocabulary]``, ids ``[batch, length]``."""
    import torch

    scores = torch.from_numpy(np.ascontiguousarray(logits)).float()[:, :-1]
    target = torch.from_numpy(np.ascontiguousarray(tokens)).long()[:, 1:]
    return float(torch.nn.functional.cross_entropy(scores.flatten(0, 1), target.flatten()))
