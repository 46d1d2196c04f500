"""Siblings: the sites that read one value, which share its basis and are transformed and assigned together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from qcompile.analysis.axes import Ref
from qcompile.analysis.forms import Stack, read_site
from qcompile.analysis.spaces import Site
from qcompile.analysis.stacks import Experts, Route, experts_of
from qcompile.errors import TargetError
from qcompile.ir.required import name_of

if TYPE_CHECKING:
    from qcompile.transforms import Transform

__all__ = ["Siblings", "cost_fraction", "siblings_of", "routed", "routes_of", "shared_table"]


@dataclass(frozen=True, eq=False)
class Siblings:
    """Sites that read one value, and therefore share its basis.

    Args:
        value: the activation.
        name: that of the activation; lowering gives it to another value.
        ref: its feature axis.
        sites: its readers.
    """

    value: ir.Value
    name: str
    ref: Ref
    sites: list[Site]

    @property
    def width(self) -> int:
        """Features of the value."""
        return self.sites[0].shape[self.sites[0].axis_in]

    @property
    def axis(self) -> int:
        """Where the features of the value are: channels come second, everything else reads the last axis."""
        return 1 if self.sites[0].node.op_type == "Conv" else -1

    @property
    def nested(self) -> bool:
        """Whether the value is made within the body of an operator, where it is not seen from outside."""
        return self.value.graph is not self.sites[0].weight.graph

    @property
    def flops(self) -> int:
        """Multiply-adds of the sites for one row, as floating-point operations."""
        return sum(2 * int(np.prod(site.shape)) for site in self.sites)


def siblings_of(sites: Sequence[Site]) -> list[Siblings]:
    """Sites with a matrix or a stack of them by the value that they read.

    Embedding tables read none, kernels read many places at once, and a value has one basis: sites that read it along
    another axis than the first are in no group.
    """
    found: dict[ir.Value, Siblings] = {}
    for site in sites:
        kernel = site.node.op_type in ("Conv", "ConvTranspose") and not site.is_matrix
        if site.input is not None and site.ref_in is not None and not kernel:
            group = found.setdefault(site.input, Siblings(site.input, name_of(site.input), site.ref_in, []))
            if site.ref_in is group.ref:
                group.sites.append(site)
    return list(found.values())


def routed(site: Site) -> Experts | None:
    """A site whose matrices have rows of their own."""
    if site.node.op_type not in ("MatMul", "Einsum") or site.input is None:
        return None
    try:
        form = read_site(site.node)
        found = experts_of(form) if isinstance(form, Stack) else None
    except TargetError:
        return None
    return found if found is not None and found.route is not None else None


def routes_of(group: Siblings) -> list[Route]:
    """How the stacks of a group share the rows of its value; a body does not show that."""
    if group.nested:
        return []
    forms = [form for form in map(routed, group.sites) if form is not None]
    return list(dict.fromkeys(route for form in forms if (route := form.route) is not None))


def shared_table(group: Siblings) -> ir.Value | None:
    """The table that the only site of a group shares."""
    site = group.sites[0]
    return site.stored if len(group.sites) == 1 and site.stored is not site.weight else None


def cost_fraction(group: Siblings, transform: Transform) -> float:
    """Arithmetic of an online transform, relative to that of the sites that it serves."""
    return transform.flops / group.flops if group.flops else math.inf
