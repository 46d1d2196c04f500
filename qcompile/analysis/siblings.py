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
from qcompile.analysis.patches import CONVOLUTIONS, Patches, Reading, patches_of, windowed
from qcompile.analysis.spaces import Site
from qcompile.analysis.stacks import Experts, Route, experts_of
from qcompile.errors import TargetError
from qcompile.ir.required import name_of

if TYPE_CHECKING:
    from qcompile.transforms import Transform

__all__ = ["Siblings", "cost_fraction", "input_name", "siblings_of", "routed", "routes_of", "shared_table"]


@dataclass(frozen=True, eq=False)
class Siblings:
    """Sites that read one value, and therefore share its basis.

    Args:
        value: the activation.
        name: that of the activation, which lowering gives to another value; with the patches, where they read some.
        ref: its feature axis.
        sites: its readers.
        patches: those that they read of it, if they are convolutions of more than one place.
    """

    value: ir.Value
    name: str
    ref: Ref
    sites: list[Site]
    patches: Patches | None = None

    @property
    def width(self) -> int:
        """Features of the value."""
        groups = 1 if self.patches is None else self.patches.groups
        return self.sites[0].shape[self.sites[0].axis_in] * groups

    @property
    def taps(self) -> int:
        """Places that a row of what they read covers, each with as many features."""
        return 1 if self.patches is None else self.patches.taps

    @property
    def grouped(self) -> bool:
        """Whether each site reads parts of the features apart, which share one second moment."""
        return self.patches is not None and self.patches.groups > 1

    @property
    def reading(self) -> Reading:
        """How the sites read the value."""
        return Reading(name_of(self.value), self.axis, self.patches)

    @property
    def axis(self) -> int:
        """Where the features of the value are: channels come second, everything else reads the last axis."""
        return 1 if self.sites[0].node.op_type in CONVOLUTIONS else -1

    @property
    def nested(self) -> bool:
        """Whether the value is made within the body of an operator, where it is not seen from outside."""
        return self.value.graph is not self.sites[0].weight.graph

    @property
    def flops(self) -> int:
        """Multiply-adds of the sites for one row, as floating-point operations."""
        return sum(2 * int(np.prod(site.shape)) for site in self.sites)


def siblings_of(sites: Sequence[Site]) -> list[Siblings]:
    """Sites by what they read: a value, or all patches of it that a kernel makes.

    Embedding tables read none, and a value has one basis: sites that read it along another axis than the first are in
    no group.
    """
    found: dict[str, Siblings] = {}
    bases: dict[ir.Value, Ref] = {}
    for site in sites:
        if site.input is None or site.ref_in is None:
            continue
        if bases.setdefault(site.input, site.ref_in) is site.ref_in:
            name, patches = input_name(site), patches_of(site.node) if windowed(site.node) else None
            found.setdefault(name, Siblings(site.input, name, site.ref_in, [], patches)).sites.append(site)
    return list(found.values())


def input_name(site: Site) -> str:
    """The name of what a site reads: that of a value, or with the patches that are made of it; of a table its own."""
    name = name_of(site.weight if site.input is None else site.input)
    return f"{name} in patches {patches_of(site.node)}" if windowed(site.node) else name


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
