"""How far the runtimes of one artifact are from the reference interpreter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from qcompile.checks.fake_quantized import SPREAD, FakeQuantized, planned_run, rounded_for
from qcompile.checks.runtimes import compare_sites, tapped
from qcompile.checks.sites import CHECKED_SITES, Checked
from qcompile.errors import InputError, TargetError, reason_of
from qcompile.ir.blueprint import blueprint_of
from qcompile.ir.required import name_of
from qcompile.run.compare import compare, number
from qcompile.run.data import Data, accepted, load_data
from qcompile.targets.registry import REFERENCE, backend, get_target, runtime_of
from qcompile.targets.split_stacks import unroll
from qcompile.targets.target import Target

__all__ = ["check_read_back", "compare_runtimes", "implementation_error"]

#: Relative L2 between the modules of a checkpoint and the graph, which parameters in bfloat16 stay well below.
READ_BACK = 0.05


def compare_runtimes(
    model: ir.Model, target: Target, device: str, folder: Path, runtimes: Mapping[str, dict[str, Any]],
    data: Data, tell: Callable[[str], None],
) -> None:  # fmt: skip
    """Note how far each runtime is from the engine with fake quantization, on small random inputs.

    On the first of the data where the model takes no random inputs. As a whole, and a sample of the sites on equal
    values: where activations are quantized, that alone shows that nothing but rounding differs. A rehearsal that fails
    is noted as ``not_checked``.

    Args:
        model: the planned graph before it was lowered.
        device: where the engine computes; what it cannot express, the reference interpreter runs.
        folder: of the artifact.
        runtimes: the entries of the manifest, added to.
        tell: called when a runtime is done.

    Raises:
        TargetError: if the modules of a checkpoint, read back, compute something else.
    """
    model = model.clone()
    unroll(model, routed=False)  # each matrix of a stack is a site to compare
    with planned_run(tapped(model, CHECKED_SITES), target, device) as run:
        try:
            small, outputs = accepted(model, load_data(None, model, batches=1), run)
        except InputError:
            small, outputs = accepted(model, data, run)
    inputs = dict(small.batches[0])
    values = inputs | dict(outputs)
    want = {name: values[name] for name in map(name_of, model.graph.outputs)}
    reference = get_target(REFERENCE).backends
    for name in target.backends:
        entry = runtimes[runtime_of(name)]
        if name in reference or "missing" in entry:
            continue
        try:
            rehearsed = backend(name).rehearse(folder)
            if rehearsed is None:
                entry["not_run"] = "compiled for another machine"
                continue
            have = rehearsed(inputs)
            entry["rel_l2_to_reference"] = number(compare(want, dict(zip(want, have.values(), strict=True)))[0])
            if not target.modules:  # whose parts are no modules of their own
                entry["sites"] = compare_sites(model, values, target, name)
        except Exception as error:  # whatever it is, this machine's part in it as well: the artifact may be good
            entry["not_checked"] = reason_of(error)
        tell(f"checking {runtime_of(name)}")
    if target.modules:
        check_read_back(runtimes, lambda: _stored(model, target, device, inputs))


def _stored(model: ir.Model, target: Target, device: str, inputs: Mapping[str, np.ndarray]) -> float:
    """How far outputs move where each rounded input moves by one place of the checkpoint's type, in relative L2.

    Parameters in bfloat16 move values by as much, and what lies near a border gets another code.
    """
    blueprint = blueprint_of(model)
    if blueprint is None or blueprint.dtype == "float32":
        return 0.0
    try:
        engine = FakeQuantized(rounded_for(model, target), device)
        if not engine.rounds_inputs:
            return 0.0
        step = torch.finfo(getattr(torch, blueprint.dtype)).eps
        (still,), (moved,) = engine([inputs]), engine.moved([inputs], step)
    except (TargetError, InputError):  # what the engine cannot run is held to the float limit
        return 0.0
    return compare(*({name: value.cpu().numpy() for name, value in one.items()} for one in (still, moved)))[0]


def check_read_back(runtimes: Mapping[str, Mapping[str, Any]], explained: Callable[[], float] = lambda: 0.0) -> None:
    """Refuse an artifact whose modules, as they were read back, compute something else than the planned graph.

    Args:
        explained: the relative L2 that rounded inputs explain, asked for where they may matter.

    Raises:
        TargetError: if it is farther from the graph than parameters rounded to bfloat16 explain.
    """
    for name, entry in runtimes.items():
        apart = entry.get("rel_l2_to_reference") or 0.0
        if apart > READ_BACK and apart > SPREAD * explained():
            raise TargetError(
                f"read back by {name}, the modules compute something else than the graph (relative L2 {apart:.2g}): a "
                "parameter of theirs is used in a way that this target does not know, so nothing is written"
            )


def implementation_error(runtime: Mapping[str, Any]) -> Checked | None:
    """The implementation error of a runtime whose artifacts cannot be looked into."""
    return Checked(runtime["sites"]["rel_l2"], runtime["sites"]["checked"]) if "sites" in runtime else None
