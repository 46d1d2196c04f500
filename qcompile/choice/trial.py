"""Assignments tried out before anything is rounded for good: the float graph with fake quantization, on the engine."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import torch

from qcompile.analysis.matrices import as_weight, weight_matrix
from qcompile.analysis.siblings import Siblings
from qcompile.analysis.spaces import Site
from qcompile.choice.correction import Correction
from qcompile.formats import fake_quantize
from qcompile.group.group import ALONE, Group
from qcompile.ir.graph import node_name
from qcompile.ir.required import name_of
from qcompile.run.data import Data
from qcompile.run.executor import Executor, Hook
from qcompile.statistics.sensitivity import divergence
from qcompile.targets.fake_quantization import insert_place, rounding
from qcompile.targets.scheme import Scheme
from qcompile.transforms.widened import Widened

if TYPE_CHECKING:
    from qcompile.formats.scalar import Scalar
    from qcompile.transforms import Transform

__all__ = ["Contest", "Trial"]


@dataclass(frozen=True)
class Contest:
    """The outcome: how far the model diverges under each choice, with weights rounded to nearest.

    Args:
        divergences: means over the sequences, by name.
        apart: how much more than what was kept each diverges, in units of the error of that difference.
        kept: the name of the choice that was kept.
        sequences: on how many it was tried.
        predicted: the divergences that were predicted for weights rounded to nearest, by name; empty where the choice
            was not made by predictions.
        correction: what brings predictions to what was measured.
    """

    divergences: Mapping[str, float]
    apart: Mapping[str, float]
    kept: str
    sequences: int
    predicted: Mapping[str, float] = field(default_factory=dict)
    correction: Correction | None = None


class Trial:
    """A graph whose sites can be quantized and let go again, and its outputs on some data.

    Weights are rounded to nearest, inputs as a runtime rounds them; the sums are those of the engine.

    Args:
        model: the float graph; it stays as it is.
        groups: the sites by the value that they read; those in bodies stay float.
        tables: embedding tables.
        data: batches to compare on.
        logits: names of the outputs that are scores over one vocabulary.
        group: the processes that share the batches.
    """

    def __init__(
        self, model: ir.Model, groups: Sequence[Siblings], tables: Sequence[Site], data: Data, logits: Collection[str],
        device: str = "cpu", group: Group = ALONE,
    ) -> None:  # fmt: skip
        self._groups, self._logits, self._group = [own for own in groups if not own.nested], logits, group
        self._sites = [site for own in self._groups for site in own.sites] + list(tables)
        hooked = [_place(site) for own in self._groups for site in own.sites]
        self._engine = Executor(_with_places(model, self._groups), hooked=hooked, device=device)
        self._widened: dict[int, Widened] = {}
        self._rounded: dict[tuple[str, str, int], torch.Tensor] = {}
        self._batches = [data.batches[number] for number in group.share(len(data.batches))]
        with torch.no_grad(), group.together():
            self._reference = [self._engine(batch) for batch in self._batches]
        self._float = dict(self._engine.weights)

    def divergences(self, schemes: Mapping[str, Scheme], transforms: Mapping[str, Transform | None]) -> np.ndarray:
        """The divergence from the float graph on each batch.

        Args:
            schemes: by site name; sites without one stay float.
            transforms: by the name of the value that siblings read.
        """
        hooks: dict[str, Hook] = {}
        own_transform: dict[str, Transform | None] = {}
        for own in self._groups:
            transform = transforms.get(own.name)
            wide = None if own.grouped else self._widened.setdefault(own.taps, Widened(own.taps))(transform)
            own_transform |= dict.fromkeys((site.name for site in own.sites), wide)
            for site in own.sites:
                activation = schemes[site.name].activation if site.name in schemes else None
                if activation is not None:
                    hooks[_place(site)] = rounding(activation, own.axis, transform)
        weights = dict(self._float)
        for site in self._sites:
            fmt = schemes[site.name].weight if site.name in schemes else None
            if fmt is not None:
                weights[name_of(site.weight)] = self._weight(site, fmt, own_transform.get(site.name))
        self._engine.weights = weights

        def found() -> list[float]:
            with torch.no_grad():
                made = [self._engine(batch, hooks) for batch in self._batches]
            return [divergence(a, b, self._logits) for a, b in zip(self._reference, made, strict=True)]

        return np.array([error for own in self._group.gathered(found) for error in own])

    def _weight(self, site: Site, fmt: Scalar, transform: Transform | None) -> torch.Tensor:
        """A rounded weight, brought back to the basis of the graph."""
        key = site.name, fmt.name, id(transform)
        if key not in self._rounded:
            weight = weight_matrix(site)
            turned = weight if transform is None else transform.dual().apply(weight, -1)
            rounded = fake_quantize(turned, fmt)
            back = rounded if transform is None else transform.transpose().apply(rounded, -1)
            array = as_weight(site, back.numpy())
            self._rounded[key] = torch.from_numpy(np.array(array, np.float32)).to(self._engine.device)
        return self._rounded[key]


def _place(site: Site) -> str:
    return f"{site.name}/tried"


def _with_places(model: ir.Model, groups: Sequence[Siblings]) -> ir.Model:
    """A copy in which each site reads a value of its own, where other readers see nothing of it."""
    model = model.clone()
    nodes = {node_name(node): node for node in model.graph}
    for name, site in ((name_of(own.value), site) for own in groups for site in own.sites):
        node = nodes[site.name]
        value = next(value for value in node.inputs if value is not None and value.name == name)
        insert_place([node], value, _place(site))
    return model
