"""How much a model minds: the effect of noise in one weight on its outputs, and the metrics that say so.

By the linearity theorem (HIGGS, arXiv:2411.17525) the change of the metric is ``α · t²`` for a relative error ``t²``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from qcompile.analysis.spaces import Site
from qcompile.errors import InputError
from qcompile.group.group import ALONE, Group
from qcompile.ir.required import constant, name_of, operand, rank_of, sizes_of
from qcompile.run.compare import float_tensors
from qcompile.run.data import Data
from qcompile.run.sequences import is_sequence, tensors
from qcompile.run.session import Session

if TYPE_CHECKING:
    import torch

    from qcompile.notes import Progress

__all__ = ["EVEN", "Curvature", "divergence", "logit_outputs", "next_token_loss", "next_tokens", "sensitivities"]


@dataclass(frozen=True, eq=False)
class Felt:
    """Rows of a site's input with gradients at its output, by which an error ``δz`` of its output is felt.

    Args:
        rows: ``[n, in]`` float32, drawn by how much they may matter.
        gradients: ``[n, out]`` float32, scaled so that the metric grows by ``Σ (g · δz)²``.
    """

    rows: torch.Tensor
    gradients: torch.Tensor


@dataclass(frozen=True)
class Curvature:
    """The growth of the metric per unit of squared error of a site's output, relative to the output's energy.

    Args:
        weight: for errors of the weight, which are the same in every row; of an embedding table relative to its own
            energy.
        input: for errors of the input, which are independent, and the same for all sites that read it; 0 for an
            embedding table.
        coherence: how alike errors of the weight act on the rows of a window: 1 if rows were independent.
        felt: by what an error is weighed where it is known, instead of by its size alone.
        shrink: for errors that make the output smaller by a part of itself, per square of that part. Formats that clip
            do so: such errors act alike on all rows and columns, and on all sites that read the input.
        agreement: how alike errors of the input act through all sites that read it: 1 if through each by itself.
        shares: of an embedding table, how ``weight`` is shared out among its rows, ``[rows]``: most are seldom read.
    """

    weight: float
    input: float
    coherence: float
    shrink: float = 0.0
    shares: np.ndarray | None = field(default=None, compare=False)
    felt: Felt | None = field(default=None, compare=False)
    agreement: float = 1.0


#: Of sites whose errors count alike.
EVEN = Curvature(1.0, 1.0, 1.0)

#: Numbers that are taken at a time where rows are many.
ROW_NUMBERS = 1 << 24

#: Relative squared error of the noise: that of a good 4-bit format.
NOISE = 0.01


def sensitivities(
    model: ir.Model,
    sites: Sequence[Site],
    data: Data,
    *,
    seed: int = 0,
    tokens: int = 256,
    progress: Progress | None = None,
    group: Group = ALONE,
) -> dict[str, float]:
    """``α`` of every site: how much the metric grows per unit of relative squared weight error.

    The metric is the mean KL divergence to the float model where the output is logits over a table that the inputs
    index, else half the relative squared error of the outputs. Noise in a weight that several sites read reaches all of
    them at once, so each has its part of what is measured.

    Args:
        tokens: leading positions of each batch that are used, over all batches together.
        group: the processes that share the weights.
    """
    batches = _short(data.batches, tokens)
    overridable = model.clone()
    for name in {name_of(site.weight) for site in sites}:
        _make_overridable(overridable, overridable.graph.initializers[name])
    session = _Overridable(overridable, [name_of(v) for v in model.graph.inputs])
    logits = logit_outputs(model, sites)
    reference = [session.run(batch) for batch in batches]
    readers: dict[ir.Value, list[Site]] = defaultdict(list)
    for site in sites:
        readers[site.weight].append(site)

    def moved_by(done: int) -> float:
        """The growth of the metric for noise in the weight of a site."""
        site, rng = sites[done], np.random.default_rng([seed, done])
        weight = constant(site.weight).numpy()
        dtype = np.float32 if site.weight.dtype == ir.DataType.BFLOAT16 else weight.dtype
        weight = weight.astype(dtype)
        noise = rng.standard_normal(weight.shape, np.float32)
        noise *= np.sqrt(NOISE) * np.linalg.norm(weight) / np.linalg.norm(noise)
        override = {name_of(site.weight): (weight + noise).astype(dtype)}
        moved = [session.run(batch | override) for batch in batches]
        changes = [divergence(a, b, logits) for a, b in zip(reference, moved, strict=True)]
        if progress is not None:
            progress("measuring sensitivities", done + 1, len(sites))
        return float(np.mean(changes)) / NOISE / len(readers[site.weight])

    first = [done for done, site in enumerate(sites) if site is readers[site.weight][0]]
    found = group.spread(first, lambda own: map(moved_by, own))
    alike = [(sites[done], alpha) for done, alpha in zip(first, found, strict=True)]
    return {other.name: alpha for site, alpha in alike for other in readers[site.weight]}


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
        weight.const_value = ir.tensor(constant(weight).numpy().astype(np.float32), name=weight.name)
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
        integers = (array for array in tensors(batch).values() if np.issubdtype(array.dtype, np.integer))
        count = max((array.size for array in integers), default=0)
        chosen.append(dict(batch))
        seen += count or tokens // 2
        if seen >= tokens:
            break
    return chosen


def logit_outputs(model: ir.Model, sites: Sequence[Site]) -> set[str]:
    """Outputs whose last axis is as long as a table that an embedding looks up: scores over the same vocabulary."""
    rows = {site.shape[site.axis_in] for site in sites if site.input is None}
    tables = [operand(node, 0) for node in model.graph if node.op_type == "Gather"]
    rows |= {sizes_of(table)[0] for table in tables if table.const_value is not None and rank_of(table) == 2}
    found = (v for v in model.graph.outputs if not is_sequence(v))
    return {name_of(v) for v in found if v.shape is not None and len(v.shape) and v.shape[-1] in rows}


def divergence(reference: Mapping[str, Any], moved: Mapping[str, Any], logits: Collection[str]) -> float:
    """Mean KL divergence over logits, if there are any, else half the relative squared error of the outputs.

    Args:
        reference: arrays or tensors by name; it is computed where these are.
        moved: what is compared with them.
        logits: names of those that are logits.

    Raises:
        InputError: if no output holds floating-point numbers.
    """
    want, have = float_tensors(reference), float_tensors(moved)
    if logits:
        return float(np.mean([_kl(want[name], have[name]) for name in logits]))
    if not want:
        raise InputError("the model has no floating-point output to measure the effect of quantization on")
    return 0.5 * float(np.mean([_energy(have[name] - x) / max(_energy(x), 1e-30) for name, x in want.items()]))


def _energy(x: torch.Tensor) -> float:
    import torch

    return float(torch.linalg.vector_norm(x, dtype=torch.float64)) ** 2


def _kl(reference: torch.Tensor, moved: torch.Tensor) -> float:
    return float(_by_rows(_kl_of_rows, reference.flatten(0, -2), moved.flatten(0, -2)).mean())


def _kl_of_rows(reference: torch.Tensor, moved: torch.Tensor) -> torch.Tensor:
    p, q = reference.float().log_softmax(-1), moved.float().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


def _by_rows(work: Callable[..., torch.Tensor], *rows: torch.Tensor) -> torch.Tensor:
    """What is found for each row of tensors ``[rows, …]``, of some at a time: logits are large, and copies of them."""
    import torch

    some = max(1, ROW_NUMBERS // max(rows[0].shape[-1], 1))
    return torch.cat([work(*parts) for parts in zip(*(own.split(some) for own in rows), strict=True)])


def next_tokens(
    batch: Mapping[str, Any], outputs: Mapping[str, torch.Tensor], logits: Collection[str]
) -> tuple[str, np.ndarray] | None:
    """The input whose next elements the logits predict, with its name: integers of the logits' leading shape.

    All of them are scored. ``None`` where no input is so.
    """
    if not logits:
        return None
    *shape, scored = outputs[next(iter(logits))].shape
    integers = ((n, v) for n, v in tensors(batch).items() if np.issubdtype(v.dtype, np.integer))
    found = (own for own in integers if own[1].shape == tuple(shape) and own[1].shape[-1] > 1)
    return next(((n, v) for n, v in found if not v.size or 0 <= v.min() <= v.max() < scored), None)


def next_token_loss(logits: torch.Tensor, tokens: np.ndarray) -> float:
    """Mean cross-entropy in nats of next tokens: logits ``[batch, length, vocabulary]``, ids ``[batch, length]``."""
    import torch

    def lost(rows: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(rows.float(), target[:, 0], reduction="none")

    target = torch.from_numpy(np.ascontiguousarray(tokens)).long()[:, 1:].to(logits.device)
    return float(_by_rows(lost, logits[:, :-1].flatten(0, 1), target.reshape(-1, 1)).mean())
