"""Whether onnxruntime, Triton and TVM compute the same from one planned graph, end to end and site by site.

    python benchmarks/runtimes.py MODEL.onnx … [--formats nvfp4/nvfp4 …] [--targets tvm-cpu hopper-w4a8 …]

The reference is the format's definition, emulated by onnxruntime. Per model, formats and target it prints

* *whole*: relative L2 of the outputs;
* *alone*: every site on the very input that it has in the reference: the worst relative L2 of a result, and how many
  activation codes differ, of how many. None may;
* *between*: the same where all that stands between two sites starts from what the reference's sites wrote. Its sums
  round differently, so a value on the border of two codes may fall to either side.

The row ``onnxruntime`` is the reference against itself with its vectors of constants (norms, biases) off by the last
bit, the worst of some draws: how far outputs drift by rounding alone, in one runtime, where activations are quantized.
A target that cannot run a format is left out. Without a GPU, Triton's interpreter computes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from qcompile.checks.runtimes import Agreement, Case, agreement, between_sites, observe, sites_alone, tapped
from qcompile.choice.export_options import Options
from qcompile.compiler import plan
from qcompile.errors import TargetError
from qcompile.run.data import example_inputs
from qcompile.targets.registry import get_target, lowered_to
from qcompile.targets.target import Target

COLUMNS = ("whole", "alone", "codes", "between", "codes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="+")
    parser.add_argument("--formats", nargs="+", default=["int4-g32", "nvfp4/nvfp4"])
    parser.add_argument("--targets", nargs="+", default=["tvm-cpu", "hopper-int4", "hopper-w4a8", "blackwell-fp4"])
    parser.add_argument("--transforms", default="auto")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--length", type=int, default=16)
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--features", type=int, help="of each value, whose codes are compared; all without it")
    args = parser.parse_args()
    print(" ".join(f"{name:>17}" for name in COLUMNS) + "  model, formats, target")
    for path in args.model:
        for name in args.formats:
            started = time.perf_counter()
            targets = [target for target in map(get_target, args.targets) if runs(target, name)]
            options = Options("reference", formats=(name,), transforms=args.transforms, method="rtn")
            model = plan(path, options)
            for label, entries in rows(model, inputs_of(model, args.batch, args.length), targets, args):
                took = time.perf_counter() - started
                print(" ".join(f"{e:>17}" for e in entries) + f"  {Path(path).stem}, {name}, {label} ({took:.0f} s)",
                      flush=True)  # fmt: skip


def inputs_of(model: ir.Model, batch: int, length: int) -> dict[str, np.ndarray]:
    """Random inputs; integers of which there are but two values are masks: nothing is masked."""
    shapes = [value.shape for value in model.graph.inputs if value.name not in model.graph.initializers]
    names = [{axis: dim.value for axis, dim in enumerate(s) if not isinstance(dim, int)} for s in shapes]
    sizes = {name: batch if axis == 0 else length for found in names for axis, name in found.items() if name}
    inputs = example_inputs(model, sizes=sizes)
    return {k: np.ones_like(v) if v.dtype.kind == "i" and v.max() < 2 else v for k, v in inputs.items()}


def rows(
    model: ir.Model, inputs: Mapping[str, np.ndarray], targets: list[Target], args: argparse.Namespace
) -> Iterator[tuple[str, list[str]]]:
    """For each target, the entries of its row; first the reference against itself."""
    values = dict(inputs) | run_reference(tapped(model), inputs)
    whole = Case(model, dict(inputs), {v.name: values[v.name] for v in model.graph.outputs}, {})
    drift = [agreement(whole, run_reference(nudged(model, seed), inputs)).rel_l2 for seed in range(args.draws)]
    yield "onnxruntime", [f"{max(drift, default=0.0):.1e}"]
    for target in targets:
        quick = replace(target, options={**target.options, "ahead": False})
        yield target.name, columns(quick, whole, values, args.features)


def runs(target: Target, formats: str) -> bool:
    """Whether a target runs exactly that scheme."""
    try:
        return target.scheme(formats).name == formats
    except TargetError:
        return False


def run_reference(model: ir.Model, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the formats' definition gives."""
    with lowered_to(get_target("reference"), model) as run:
        return dict(run(inputs))


def nudged(model: ir.Model, seed: int) -> ir.Model:
    """A copy whose vectors of constants are larger or smaller by one unit in the last place."""
    model, rng = model.clone(), np.random.default_rng(seed)
    for value in model.graph.initializers.values():
        if value.dtype == ir.DataType.FLOAT and len(value.shape) == 1 and value.shape[0] > 1:
            array = value.const_value.numpy()
            moved = np.nextafter(array, rng.choice([-np.inf, np.inf], array.shape).astype(np.float32))
            value.const_value = ir.tensor(moved, name=value.name)
    return model


def columns(target: Target, whole: Case, values: Mapping[str, np.ndarray], features: int | None) -> list[str]:
    """What one target makes of the model, whole and in parts."""
    name = next(name for name in reversed(target.backends) if name != "ort")
    entries = [f"{agreement(whole, observe(whole, target, name)).rel_l2:.1e}"]
    for cut in (sites_alone, between_sites):
        case = cut(whole.model, values, features)
        found: Agreement = agreement(case, observe(case, target, name))
        entries += [f"{found.rel_l2:.1e}", f"{found.differing} of {found.codes}" if found.codes else "-"]
    return entries


if __name__ == "__main__":
    main()
