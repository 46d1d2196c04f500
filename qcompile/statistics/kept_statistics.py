"""Statistics and sensitivities in the folder of ``--work``: computed once for a graph and its data.

Statistics are kept value by value, so that a target with other sites, or an export that leaves some out, computes those
alone that it is the first to need.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, astuple
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from qcompile.analysis.patches import Reading
from qcompile.analysis.spaces import Site
from qcompile.analysis.stacks import Route
from qcompile.group.group import ALONE, Group
from qcompile.notes import Decline, Declined, Progress
from qcompile.run.data import Data
from qcompile.run.memory_budget import Memory
from qcompile.statistics.calibration import collect
from qcompile.statistics.collected import Routed, Statistics
from qcompile.statistics.sensitivity import Curvature, Felt
from qcompile.work import Kept, Work

__all__ = ["kept_curvatures", "kept_noise", "kept_statistics"]


def kept_statistics(
    work: Work, model: ir.Model, inputs: Mapping[str, Reading], data: Data, *, wanted: Collection[str],
    routes: Mapping[str, Sequence[Route]], max_rows: int, moments: bool, device: str, memory: Memory,
    decline: Decline, progress: Progress | None, group: Group = ALONE,
) -> dict[str, Statistics]:  # fmt: skip
    """``collect``, of what the folder does not hold: nothing runs where that is nothing.

    Args:
        work: about this graph and this data.
        wanted: names of values among the inputs, which are all that any target may want: one run sees the same values
            whatever is wanted of them, for else it might not compute them to the same bit.
    """
    read = {name: asdict(own) for name, own in inputs.items()}
    shared = [read, {name: list(map(asdict, own)) for name, own in routes.items()}, max_rows, moments]
    about = work.about(lambda: shared)
    keys = {name: about.key(name) for name in wanted}
    kept = {name: about.find("statistics", key) for name, key in keys.items()}
    held = [own for own in kept.values() if own is not None]
    found = {name: _statistics(own) for name, own in kept.items() if own is not None and own.arrays}
    missing = [name for name, own in kept.items() if own is None]
    said = [Declined(*entry) for entry in held[0].facts["declined"]] if held else []
    if missing:
        said = []
        found |= collect(
            model, inputs, data, routes=routes, max_rows=max_rows, moments=moments, device=device, memory=memory,
            decline=lambda *entry: said.append(Declined(*entry)), progress=progress, wanted=missing, group=group,
        )  # fmt: skip
    for name in missing:
        about.keep("statistics", keys[name], partial(_of_statistics, found.get(name), said))
    for entry in said:
        decline(entry.site, entry.what, entry.reason)
    return {name: found[name] for name in wanted if name in found}


def kept_curvatures(
    work: Work, sites: Sequence[Site], seed: int, decline: Decline, measure: Callable[[Decline], dict[str, Curvature]]
) -> dict[str, Curvature]:
    """The curvatures of sites that are measured together, unless the folder holds them.

    Args:
        work: about this graph and this data.
        decline: told what was left alone when they were measured.
        measure: measures them, and declines what it leaves alone.
    """

    def measured() -> tuple[dict[str, Curvature], list[Declined]]:
        heard: list[Declined] = []
        return measure(lambda *entry: heard.append(Declined(*entry))), heard

    key = work.key(["gradients", [site.name for site in sites], seed])
    found, said = work.kept("sensitivities", key, measured, _of_curvatures, _curvatures)
    for entry in said:
        decline(entry.site, entry.what, entry.reason)
    return found


def kept_noise(
    work: Work, sites: Sequence[Site], seed: int, measure: Callable[[], dict[str, float]]
) -> dict[str, float]:  # fmt: skip
    """The same for the effects of noise in their weights."""
    key = work.key(["noise", [site.name for site in sites], seed])
    return work.kept("sensitivities", key, measure, lambda found: Kept(facts=found), lambda kept: dict(kept.facts))


# -- as arrays and facts ---------------------------------------------------------------------------------------------


def _of_statistics(own: Statistics | None, said: Sequence[Declined]) -> Kept:
    """Nothing but what was said of a value that got no row."""
    declined = list(map(astuple, said))
    if own is None:
        return Kept(facts={"declined": declined})
    arrays = {"second_moment": own.second_moment, "sample": own.sample}
    arrays |= {f"held_out {i}": rows for i, rows in enumerate(own.held_out)}
    routes = list(own.routed)
    for i, route in enumerate(routes):
        for side, parts in (("parts", own.routed[route].parts), ("held_out", own.routed[route].held_out)):
            for j, (rows, owners) in enumerate(parts):
                arrays |= {f"route {i} {side} {j} rows": rows, f"route {i} {side} {j} owners": owners}
    counts = [{"parts": len(own.routed[r].parts), "held_out": len(own.routed[r].held_out)} for r in routes]
    facts = {
        "rows": own.rows, "effective": float(own.effective), "batches": own.batches, "sequences": own.sequences,
        "held_out": len(own.held_out), "routes": list(map(asdict, routes)), "routed": counts,
        "declined": declined,
    }  # fmt: skip
    return Kept(arrays, facts)


def _statistics(kept: Kept) -> Statistics:
    arrays, facts = kept.arrays, kept.facts

    def parts(i: int, side: str) -> list[tuple[np.ndarray, np.ndarray]]:
        names = [f"route {i} {side} {j}" for j in range(facts["routed"][i][side])]
        return [(arrays[f"{name} rows"], arrays[f"{name} owners"]) for name in names]

    routes = [Route(**{name: _tuples(value) for name, value in route.items()}) for route in facts["routes"]]
    return Statistics(
        arrays["second_moment"], arrays["sample"], facts["rows"],
        [arrays[f"held_out {i}"] for i in range(facts["held_out"])], facts["effective"], facts["batches"],
        facts["sequences"], {r: Routed(parts(i, "parts"), parts(i, "held_out")) for i, r in enumerate(routes)},
    )  # fmt: skip


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _of_curvatures(measured: tuple[Mapping[str, Curvature], Sequence[Declined]]) -> Kept:
    arrays, numbers = {}, {}
    for name, own in measured[0].items():
        coefficients = own.weight, own.input, own.coherence, own.shrink, own.agreement
        numbers[name] = list(map(float, coefficients))
        if own.shares is not None:
            arrays[f"{name} shares"] = own.shares
        if own.felt is not None:
            arrays |= {f"{name} rows": own.felt.rows.numpy(), f"{name} gradients": own.felt.gradients.numpy()}
    return Kept(arrays, {"sites": numbers, "declined": list(map(astuple, measured[1]))})


def _curvatures(kept: Kept) -> tuple[dict[str, Curvature], list[Declined]]:
    import torch

    found = {}
    for name, numbers in kept.facts["sites"].items():
        felt = None
        if f"{name} rows" in kept.arrays:
            felt = Felt(*(torch.from_numpy(kept.arrays[f"{name} {what}"]) for what in ("rows", "gradients")))
        weight, of_input, coherence, shrink, agreement = numbers
        shares = kept.arrays.get(f"{name} shares")
        found[name] = Curvature(weight, of_input, coherence, shrink, shares, felt, agreement)
    return found, [Declined(*entry) for entry in kept.facts["declined"]]
