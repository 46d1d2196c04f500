"""Spaces, sites and reasons as plain data, for manifests and for ``qcompile inspect``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from qcompile.analysis.siblings import cost_fraction
from qcompile.ir.graph import is_float
from qcompile.run.compare import number
from qcompile.transforms.freedom import Freedom

if TYPE_CHECKING:
    import onnx_ir as ir

    from qcompile.analysis.axes import AxisNode, Ref
    from qcompile.analysis.siblings import Siblings
    from qcompile.analysis.spaces import Analysis, Site, Space
    from qcompile.analysis.value_products import Product
    from qcompile.checks.fake_quantized import Departure
    from qcompile.checks.plain_rounding import Plain
    from qcompile.choice.export_options import Options
    from qcompile.choice.placement import Placement
    from qcompile.choice.selection import Choice
    from qcompile.choice.timing import Timing
    from qcompile.learning.taught import Taught
    from qcompile.notes import Declined
    from qcompile.statistics.ranges import Calibrated
    from qcompile.transforms import Transform

__all__ = [
    "assignment_entry", "bits_of", "contest_entry", "count_of", "decision_entries", "declined_entries", "engine_entry",
    "learned_entries", "numbers", "obstacles", "online_entries", "plain_entry", "product_entries", "range_entry",
    "site_entry", "space_entries", "ties", "transform_name", "value_entries", "with_modules",
]  # fmt: skip


def value_entries(values: Iterable[ir.Value]) -> list[dict[str, Any]]:
    """Names, types and shapes of values: an open dimension by its name, ``None`` for what is not known."""
    return [
        {
            "name": value.name,
            "dtype": None if value.dtype is None else str(value.dtype.numpy()),
            "shape": None if value.shape is None else [d if isinstance(d, int) else d.value for d in value.shape],
        }
        for value in values
    ]


def count_of(site: Site) -> int:
    """The number of elements of a site's weight."""
    return math.prod(site.shape)


def range_entry(found: Calibrated) -> dict[str, Any]:
    """The static range of a site's input, and the error of each calibrator by which it was chosen."""
    own = found.range
    return {
        "scale": own.scale, "zero_point": own.zero_point, "calibrator": found.calibrator,
        "errors": numbers(found.errors),
    }  # fmt: skip


def bits_of(site: Site) -> int:
    """The bits of one element of a site's weight, as the graph holds it."""
    return site.weight.dtype.bitwidth if site.weight.dtype is not None else 32


# -- transforms ------------------------------------------------------------------------------------------------------


def transform_name(transform: Any) -> str:
    """A transform in a word: ``none``, ``hadamard``, ``block-hadamard-32``, ``hadamard then block-dense-16``."""
    kind = "identity" if transform is None else transform.kind
    namer = {"identity": lambda _: "none", "block": _block, "kronecker": _kronecker, "block-dense": _block_dense}
    if kind in ("direct-sum", "compose"):
        names = dict.fromkeys(name for part in transform.parts if (name := transform_name(part)) != "none")
        return (" + " if kind == "direct-sum" else " then ").join(names) or "none"
    return namer.get(kind, lambda t: t.kind)(transform)


def _block(transform: Any) -> str:
    return f"block-{transform_name(transform.block)}-{transform.block.size}"


def _block_dense(transform: Any) -> str:
    return f"block-dense-{transform.matrices.shape[-1]}"


def _kronecker(transform: Any) -> str:
    sides = [(transform_name(side), side.size) for side in (transform.left, transform.right)]
    if transform_name(transform.left) == "none":  # I ⊗ T is T on every block
        inner = transform_name(transform.right)
        return inner if inner == "none" or inner.startswith("block-") else f"block-{inner}-{transform.right.size}"
    return " x ".join(f"{name}-{size}" for name, size in sides if name != "none")


# -- spaces ----------------------------------------------------------------------------------------------------------


def space_entries(analysis: Analysis, offline: Mapping[AxisNode, Transform] | None = None) -> list[dict[str, Any]]:
    """Every space that holds floating-point values or touches a site, with its transform."""
    numeric = _numeric_nodes(analysis)
    shown = [s for s in analysis.spaces if s.readers or s.writers or s.node in numeric]
    return [_space(space, (offline or {}).get(space.node)) for space in shown]


def _numeric_nodes(analysis: Analysis) -> set[AxisNode]:
    uses = analysis.uses().items()
    return {node for node, found in uses if any(value.dtype is None or is_float(value) for value, _ in found)}


def _space(space: Space, transform: Transform | None) -> dict[str, Any]:
    return {
        "id": space.id,
        "size": space.size,
        "freedom": space.freedom.label,
        "transform": transform_name(transform),
        "values": list(space.values),
        "limited_by": [{"freedom": limit.freedom.label, "reason": limit.reason} for limit in space.limits],
        "readers": [site.name for site in space.readers],
        "writers": [site.name for site in space.writers],
    }


# -- sites -----------------------------------------------------------------------------------------------------------


def site_entry(analysis: Analysis, site: Site, tie: str | None) -> dict[str, Any]:
    """A site as it stands in the float graph; an export overwrites the entries that it has chosen."""
    return {
        "name": site.name,
        "module": site.module,
        "op": site.node.op_type,
        "weight_shape": list(site.shape),
        "space_in": analysis.expression(site.ref_in),
        "space_out": analysis.expression(site.ref_out),
        "format": "float",
        "activation": None,
        "bits": bits_of(site),
        "bits_per_weight": bits_of(site),
        "transform_in": {"kind": "none", "online": False},
        "alpha": None,
        "t2": None,
        "predicted_delta": None,
        "tie": tie,
        "weight": site.weight.name,
        "input": site.input.name if site.input is not None else None,
    }


def ties(sites: Iterable[Site]) -> dict[str, str]:
    """By site, the name of the group that must agree on a format: the sites that read one value."""
    numbers: dict[Any, str] = {}
    return {site.name: numbers.setdefault(site.input or site, f"t{len(numbers)}") for site in sites}


# -- reasons ---------------------------------------------------------------------------------------------------------


def online_entries(siblings: Iterable[Siblings], placement: Placement) -> list[dict[str, Any]]:
    """The transforms that stay in the graph, with their arithmetic relative to that of the sites that they serve."""
    groups = [(group, placement.online.get(group.name)) for group in siblings]
    found = [(group.name, t, cost_fraction(group, t)) for group, t in groups if t is not None]
    found += [(name, transform, cost) for name, (transform, cost) in placement.boundaries.items()]
    return [
        {"value": name, "kind": transform_name(transform), "size": transform.size, "cost_fraction": number(cost)}
        for name, transform, cost in found
    ]


def timing_entry(timing: Timing | None, options: Options) -> dict[str, Any] | None:
    """The time of one run as it was predicted, and by what; ``None`` for a target whose times nobody measured."""
    if timing is None:
        return None
    profile, ms = timing.clock.profile, {name: number(1e3 * time) for name, time in timing.transforms.items()}
    return {
        "predicted_ms": number(1e3 * timing.whole),
        "products_ms": number(1e3 * timing.products),
        "float_products_ms": number(1e3 * timing.float_products),
        "online_transforms_ms": ms,
        "rest_ms": number(1e3 * timing.clock.rest),
        "inputs": {name: list(shape) for name, shape in timing.clock.shapes.items()},
        "profile": {"asked": options.profile, "machine": dict(profile.machine), "sha256": profile.digest},
        "loss_per_ms": None if timing.rate is None else number(timing.rate / 1e3),
    }  # fmt: skip


def decision_entries(placement: Placement) -> list[dict[str, Any]]:
    """Each choice among several, with its loss and that of the next best; the one that was worth most comes first."""
    found = [("transform", of, worth) for of, worth in placement.worth.items()]
    found += [("format", of, worth) for of, worth in placement.schemes.items()]
    found.sort(key=lambda entry: (entry[2].loss - entry[2].other_loss, entry[0], entry[1]))
    return [
        {
            "of": of, "what": what, "chosen": worth.chosen, "loss": number(worth.loss), "next": worth.other,
            "next_loss": number(worth.other_loss),
        }
        for what, of, worth in found
    ]  # fmt: skip


def declined_entries(declined: Iterable[Declined]) -> list[dict[str, str]]:
    """Everything that was left alone, with the reasons."""
    return [{"site": entry.site, "what": entry.what, "reason": entry.reason} for entry in declined]


def product_entries(products: Iterable[Product]) -> list[dict[str, Any]]:
    """The products of attention and of scans, with the reason why each stays as it is."""
    return [asdict(product) | {"operands": list(product.operands)} for product in products]


def with_modules(analysis: Analysis, entries: Iterable[Mapping[str, str]]) -> list[dict[str, str | None]]:
    """The same entries, each with the module of its site; ``None`` for what is none, or is of no known module."""
    modules = {site.name: site.module for site in (*analysis.sites, *analysis.infinite)}
    return [{"site": entry["site"], "module": modules.get(entry["site"]), **entry} for entry in entries]


def obstacles(analysis: Analysis, sites: Sequence[Site]) -> list[dict[str, str]]:
    """For every site whose input cannot be rotated at no cost, the operator that prevents it."""
    names = {space.node: space for space in analysis.spaces}
    found = [(site, _obstacle(analysis, site.ref_in, names)) for site in sites if site.ref_in is not None]
    what = "rotating its input offline"
    return [{"site": site.name, "what": what, "reason": reason} for site, reason in found if reason]


def _obstacle(analysis: Analysis, ref: Ref, names: Mapping[AxisNode, Space]) -> str | None:
    spaces = [names[leaf.node] for leaf in analysis.axes.leaves(ref) if leaf.node in names]
    if not spaces:
        return "the axis that it reads has no static size above one"
    if any(Freedom.ORTHOGONAL in space.freedom for space in spaces):
        return None
    space = max(spaces, key=lambda s: s.size)
    limit = next((limit for limit in space.limits if Freedom.ORTHOGONAL not in limit.freedom), None)
    because = f": {limit.reason}" if limit else ""
    return f"space {space.id}, which it reads, allows {space.freedom.label} only{because}"


def assignment_entry(chosen: Choice) -> dict[str, Any] | None:
    """How formats were assigned, where several competed."""
    if chosen.assignment is None:
        return None
    found = chosen.assignment
    return {"method": found.method, "gap": number(found.gap), "loss": number(found.loss), "cost": numbers(found.cost)}


def contest_entry(chosen: Choice) -> dict[str, Any] | None:
    """How the choice did beside simpler ones, where that was tried."""
    if chosen.contest is None:
        return None
    found = chosen.contest
    return {
        "kept": found.kept, "sequences": found.sequences, "divergences": numbers(found.divergences),
        "apart": numbers(found.apart), "predicted": numbers(found.predicted),
        "correction": None if found.correction is None else asdict(found.correction),
    }  # fmt: skip


def plain_entry(plain: Plain | None) -> dict[str, Any] | None:
    """Errors of rounding to nearest without transforms, on the artifact's data; its loss stands among the losses."""
    return None if plain is None else {"rel_l2": number(plain.rel_l2), "divergence": number(plain.divergence)}


def engine_entry(apart: Departure | None) -> dict[str, Any] | None:
    """How far an artifact is from the engine on which it was measured."""
    if apart is None:
        return None
    return {"rel_l2": number(apart.rel_l2), "explained": number(apart.explained), "inputs": apart.inputs}


def learned_entries(taught: Sequence[Taught]) -> list[dict[str, Any]]:
    """How learning went, part by part."""
    return [
        {
            "part": own.part, "parameters": own.parameters, "steps": own.steps, "best": own.best,
            "sequences": own.sequences, "before": number(own.before), "after": number(own.after), "kept": own.kept,
            "redrawn": own.redrawn, **({} if own.changed is None else {"changed": own.changed}),
        }
        for own in taught
    ]  # fmt: skip


def numbers(values: Mapping[str, float]) -> dict[str, float | None]:
    """Numbers as manifests have them."""
    return {name: number(value) for name, value in values.items()}
