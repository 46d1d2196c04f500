"""Split features: a loud one is read in pieces of even size, each by a column of its own, so that no input sticks out.

FlattenQuant (Zhang et al., 2024, arXiv:2402.17985), with pieces that are fixed by calibration data.
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
from qcompile.choice.splits import Flatten, separable
from qcompile.ir.graph import add_initializer, append_node
from qcompile.ir.required import constant, shape_of
from qcompile.ir.tensors import Derived, taken_lines
from qcompile.passes.state import State
from qcompile.statistics.collected import Statistics

__all__ = ["SplitFeatures"]

_WHAT = "pieces of its loud features"

#: A bound that no number reaches, but infinity.
_UNBOUNDED = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class SplitFeatures:
    """Read loud features in pieces.

    Args:
        groups: the sites by the value that they read.
        statistics: of these values, by name.
        how: what is loud.
    """

    groups: Sequence[Siblings]
    statistics: Mapping[str, Statistics]
    how: Flatten
    name: ClassVar[str] = "split-features"

    def apply(self, state: State) -> bool:
        """Put the pieces in front of sites, and repeat the columns of weights that read them."""
        changed = False
        for group in self.groups:
            own = self.statistics.get(group.name)
            sites = separable(group.sites, state.decline, _WHAT, edge=True)
            if own is not None and sites:
                peaks = np.abs(np.concatenate([own.sample, *own.held_out])).max(0)
                bound = self.how.times * float(np.median(peaks))
                counts = np.clip(np.ceil(peaks / max(bound, 1e-30)), 1, self.how.most).astype(int)
                if bound > 0 and counts.max() > 1:
                    _flatten(state.model, group, sites, counts, bound)
                    changed = True
        if changed:
            state.edited()
        return changed


def _flatten(model: ir.Model, group: Siblings, sites: Sequence[Site], counts: np.ndarray, bound: float) -> None:
    first = next(node for node in model.graph if node in {site.node for site in sites})
    value, lead, rest = group.value, shape_of(group.value)[:-1], group.value
    places, pieces, within = [], [], np.arange(len(counts))

    def made(op: str, inputs: Sequence[ir.Value], name: str, width: int, **attributes: int) -> ir.Value:
        result = append_node(first, op, inputs, attributes, name=f"{value.name}_{name}").outputs[0]
        result.shape, result.type = ir.Shape([*lead, width]), value.type
        return result

    def number(array: np.ndarray, name: str) -> ir.Value:
        dtype = value.type.dtype.numpy() if value.type is not None else np.float32
        return add_initializer(model, f"{value.name}_{name}", array.astype(dtype))

    for turn in range(int(counts.max())):
        more = counts[within] > turn + 1
        top, width = np.where(more, bound, _UNBOUNDED), len(within)
        piece = rest
        if more.any():
            low = made("Max", [rest, number(-top, f"low{turn}")], f"above{turn}", width)
            piece = made("Min", [low, number(top, f"high{turn}")], f"piece{turn}", width)
        pieces.append(piece)
        places.append(within)
        if more.any():
            over = made("Sub", [rest, piece], f"over{turn}", width)
            chosen = add_initializer(model, f"{value.name}_loud{turn}", np.flatnonzero(more))
            rest = made("Gather", [over, chosen], f"rest{turn}", int(more.sum()), axis=-1)
            within = within[more]
    every = np.concatenate(places)
    flat = made("Concat", pieces, "flat", len(every), axis=-1)
    for site in sites:
        name, shape = f"{site.weight.name}_flat", list(site.shape)
        shape[site.axis_in] = len(every)
        compute = partial(taken_lines, places=every, axis=site.axis_in)
        tensor = Derived(constant(site.weight), compute, ir.Shape(shape), name=name)
        site.node.replace_input_with(0, flat)
        site.node.replace_input_with(1, add_initializer(model, name, tensor))
