"""Split columns: those that read loud features become an operator of their own, in a format of its own.

LLM.int8 (Dettmers et al., 2022), QUIK (Ashkboos et al., 2023) and Atom (Zhao et al., 2023), with columns that are fixed
by calibration data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompile.analysis.siblings import Siblings
from qcompile.analysis.spaces import Site
from qcompile.choice.splits import SPLIT, Columns, separable
from qcompile.ir.graph import add_initializer, append_node
from qcompile.ir.required import constant, producer_of, shape_of
from qcompile.ir.sums import add_beside, product_like
from qcompile.ir.tensors import Derived, taken_lines
from qcompile.passes.state import State
from qcompile.statistics.collected import Statistics

__all__ = ["SplitColumns"]

_WHAT = "columns of its own for loud features"


@dataclass(frozen=True)
class SplitColumns:
    """Compute loud columns of weights apart.

    Args:
        groups: the sites by the value that they read.
        statistics: of these values, by name.
        how: which columns.
    """

    groups: Sequence[Siblings]
    statistics: Mapping[str, Statistics]
    how: Columns
    name: ClassVar[str] = "split-columns"

    def apply(self, state: State) -> bool:
        """Cut the inputs of sites in two, and their weights; siblings have the same loud features."""
        changed = False
        for group in self.groups:
            own = self.statistics.get(group.name)
            whole = [site for site in group.sites if SPLIT not in site.node.metadata_props]
            sites = separable(whole, state.decline, _WHAT)
            loud = None if own is None or not sites else self._loud(own)
            if loud is None or not loud.any():
                continue
            if loud.all():
                for site in sites:
                    site.node.metadata_props[SPLIT] = str(self.how)
            else:
                _split(state.model, group, sites, loud, self.how)
            changed = True
        if changed:
            state.edited()
        return changed

    def _loud(self, own: Statistics) -> np.ndarray:
        """Which features are loud: bool ``[size]``. Those of equal energy count in their order."""
        energy = own.second_moment.diagonal()
        loud = np.zeros(len(energy), bool)
        loud[np.argsort(-energy, kind="stable")[: min(self.how.count, len(energy) // 8)]] = True
        if self.how.above:
            rows = np.concatenate([own.sample, *own.held_out])
            loud |= np.abs(rows).max(0) >= self.how.above
        return loud


def _split(model: ir.Model, group: Siblings, sites: Sequence[Site], loud: np.ndarray, how: Columns) -> None:
    first = next(node for node in model.graph if node in {site.node for site in sites})
    parts = {}
    for word, chosen in (("rest", ~loud), ("columns", loud)):
        places = add_initializer(model, f"{group.name}_{word}_places", np.flatnonzero(chosen))
        name = f"{group.name}_{word}"
        part = append_node(first, "Gather", [group.value, places], {"axis": -1}, name=name).outputs[0]
        part.shape, part.type = ir.Shape([*shape_of(group.value)[:-1], int(chosen.sum())]), group.value.type
        parts[word] = part
    for site in sites:
        node = site.node
        rest, columns = (_taken(model, site, chosen, word) for word, chosen in (("rest", ~loud), ("columns", loud)))
        beside = product_like(node, parts["columns"], columns, f"{site.name}{how.suffix}")
        producer_of(beside).metadata_props[SPLIT] = str(how)
        node.replace_input_with(0, parts["rest"])
        node.replace_input_with(1, rest)
        add_beside(node, beside)


def _taken(model: ir.Model, site: Site, chosen: np.ndarray, word: str) -> ir.Value:
    """The part of a weight that reads some features, computed from it when it is read."""
    places, axis = np.flatnonzero(chosen), site.axis_in
    name, shape = f"{site.weight.name}_{word}", list(site.shape)
    shape[axis] = len(places)
    tensor = Derived(constant(site.weight), partial(taken_lines, places=places, axis=axis), ir.Shape(shape), name=name)
    return add_initializer(model, name, tensor)
