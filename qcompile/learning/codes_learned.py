"""Learns codes, scales, biases and norms of a planned graph for the whole model at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from qcompile.analysis.forms import read_site
from qcompile.formats.format import Format
from qcompile.formats.quantizer import Quantized
from qcompile.ir.graph import node_name
from qcompile.ir.required import constant, name_of
from qcompile.ir.tensors import read
from qcompile.learning.latent import Latent
from qcompile.learning.loop import Course, Lesson, Rated, follow
from qcompile.learning.straight_through import round_rows
from qcompile.run.executor import Executor, Hook
from qcompile.targets.fake_quantization import Place, Rounded
from qcompile.targets.plans import planned

if TYPE_CHECKING:
    from qcompile.learning.loop import Batch
    from qcompile.learning.settings import Schedule
    from qcompile.notes import Progress

__all__ = ["LearnedCodes", "learn_codes"]

#: Of Adam, at the top of the schedule: of moves in gaps between levels, of logarithms of scales, of biases and norms.
RATE, SCALE_RATE, VECTOR_RATE = 3e-3, 1e-3, 3e-4

#: How far a weight may move, in gaps between levels, and the logarithm of a scale: by a factor of 1.65 at most.
REACH, SCALE_REACH = 1.0, 0.5

#: Operands of operators that are biases and scales of norms.
VECTORS = {
    "LayerNormalization": (1, 2), "RMSNormalization": (1,), "SimplifiedLayerNormalization": (1,), "Gemm": (2,),
    "Conv": (2,),
}  # fmt: skip


@dataclass(frozen=True)
class LearnedCodes:
    """The codes after learning.

    Args:
        weights: by name of the operator.
        vectors: biases and norms by name of the constant.
        course: how learning went.
        changed, codes: codes that differ from those before, and all.
    """

    weights: Mapping[str, Quantized]
    vectors: Mapping[str, np.ndarray]
    course: Course
    changed: int
    codes: int


class _Planned:
    """A planned graph as a function of batches, with its codes and vectors as parameters."""

    def __init__(self, rounded: Rounded, real: Mapping[str, Tensor], device: str) -> None:
        self._engine = Executor(rounded.model, hooked=rounded.places, device=device)
        places = {name: place for name, place in rounded.places.items() if name in self._engine.hooked}
        self._hooks = {name: _rounding(place) for name, place in places.items() if place.activation is not None}
        self.latents = {
            name: Latent(own.weight, real[own.nodes[0]], self._engine.device)
            for name, own in rounded.weights.items()
        }  # fmt: skip
        self._rounded = rounded
        self._engine.sources |= rounded.weights
        self.vectors = {
            name: torch.from_numpy(read(constant(value)).astype(np.float32)).to(device).requires_grad_()
            for name, value in _vectors(rounded.model).items()
        }
        self._engine.weights |= self.vectors

    @property
    def rated(self) -> Sequence[Rated]:
        moves, vectors = [own.moves for own in self.latents.values()], list(self.vectors.values())
        scales = [own.stretch for own in self.latents.values() if own.stretch is not None]
        rated = [Rated(moves, RATE, REACH), Rated(scales, SCALE_RATE, SCALE_REACH), Rated(vectors, VECTOR_RATE)]
        return [own for own in rated if own.tensors]

    def __call__(self, batch: Batch) -> Mapping[str, Tensor]:
        for name, latent in self.latents.items():
            self._engine.weights[name] = self._rounded.weights[name].layout.weight(latent.values())
        return self._engine(batch, self._hooks)


def learn_codes(
    model: ir.Model, rounded: Rounded, lesson: Lesson, schedule: Schedule, *, seed: int, device: str,
    progress: Progress | None = None,
) -> LearnedCodes | None:  # fmt: skip
    """Learn the codes of a planned graph, which stays as it is; ``None`` where nothing was planned.

    Args:
        model: the planned graph, whose sites still have their float weights.
        rounded: the same, made ready for the engine.
    """
    real = {node_name(node): _real(node) for node, _ in planned(model)}
    own = _Planned(rounded, real, device)
    if not own.latents:
        return None
    course = follow(own, lesson, schedule, seed=seed, what="learning codes", progress=progress)
    weights = {node: latent.quantized() for name, latent in own.latents.items() for node in rounded.weights[name].nodes}
    vectors = {name: tensor.detach().cpu().numpy() for name, tensor in own.vectors.items()}
    changed = sum(latent.changed() for latent in own.latents.values())
    return LearnedCodes(weights, vectors, course, changed, sum(o.moves.numel() for o in own.latents.values()))


def _real(node: ir.Node) -> Tensor:
    """The float weight of a site as ``[out, in]``."""
    form = read_site(node)
    weight = torch.from_numpy(np.array(read(constant(form.weight)), np.float32))
    return form.layout.matrix(weight).contiguous()


def _vectors(model: ir.Model) -> dict[str, ir.Value]:
    """Biases and scales of norms by name: operands of such operators, and what is added to a product."""
    found: dict[str, ir.Value] = {}
    for node in model.graph:
        places: Sequence[int] = VECTORS.get(node.op_type, ()) if node.domain in ("", "com.microsoft") else ()
        if node.op_type == "Add" and any(_product(value) for value in node.inputs):
            places = (0, 1)
        operands = [node.inputs[place] for place in places if place < len(node.inputs)]
        found |= {name_of(value): value for value in operands if value is not None and _vector(value)}
    return found


def _vector(value: ir.Value) -> bool:
    held = value.const_value
    return held is not None and len(held.shape) == 1 and held.size > 1 and not value.is_graph_output()


def _product(value: ir.Value | None) -> bool:
    node = None if value is None else value.producer()
    return node is not None and node.op_type in ("MatMul", "Conv")


def _rounding(place: Place) -> Hook:
    axis, fmt = place.axis, place.activation
    assert isinstance(fmt, Format), "static scales are declined before"

    def hook(value: Tensor) -> Tensor:
        rows = value.movedim(axis, -1)
        return round_rows(rows.reshape(-1, rows.shape[-1]), fmt).reshape(rows.shape).movedim(-1, axis)

    return hook
