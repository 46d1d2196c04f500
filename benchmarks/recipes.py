"""Ours against every recipe that the target runs, at the same formats: how far artifacts are from the float model.

    python benchmarks/recipes.py examples/zoo/dit.onnx --formats int4-g32/int4-g32 --formats nvfp4/nvfp4

Data stand beside the model, as ``NAME_calibration.npz`` and ``NAME_evaluation.npz``, or are given. Each row is an
artifact: its mean divergence over evaluation sequences (KL of logits, else half the squared relative error), how much
that is above ours with the standard error of the difference over sequences, bits per weight with scales, online
transforms, seconds. Recipes that split weights, or assign formats by budgets of their own, store other bits.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch

import qcompile as qc
from qcompile.analysis.analyze import analyze
from qcompile.recipes.recipe import all_recipes
from qcompile.statistics.sensitivity import divergence, logit_outputs

COLUMNS = ("way", 16), ("divergence", -11), ("above ours", -11), ("±", -9), ("bits", -6), ("online", -7), ("s", -5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", type=Path, help="by default NAME_calibration.npz")
    parser.add_argument("--evaluation", type=Path, help="by default NAME_evaluation.npz")
    parser.add_argument("--target", default="reference")
    parser.add_argument("--formats", action="append", help="of all ways; several for several tables")
    parser.add_argument("--recipes", default=",".join(all_recipes()), help="comma-separated; by default all")
    parser.add_argument("--sequences", type=int, default=32, help="of the evaluation data")
    parser.add_argument("--json", type=Path, help="write the tables here, too")
    args = parser.parse_args()
    float_run = ort.InferenceSession(args.model)
    names = [value.name for value in float_run.get_outputs()]
    batches = sequences(args.evaluation or beside(args.model, "evaluation"), args.sequences)
    exact = [tensors(dict(zip(names, float_run.run(names, batch), strict=True))) for batch in batches]
    analysis = analyze(qc.capture(args.model).model)
    logits, tables = logit_outputs(analysis.model, analysis.sites), {}
    for formats in args.formats or ["int4-g32/int4-g32"]:
        print(f"\n{args.model}, {args.target}, {formats}, {len(batches)} sequences")
        print(*(f"{name:{'<' if width > 0 else '>'}{abs(width)}}" for name, width in COLUMNS), flush=True)
        rows = tables[formats] = {}
        for way in ("ours", *args.recipes.split(",")):
            started = time.perf_counter()
            made = export(args, formats, way)
            if made is None:
                continue
            manifest, run = made
            found = [divergence(want, tensors(run(batch)), logits) for want, batch in zip(exact, batches, strict=True)]
            rows[way] = {
                "each": found,
                "bits": manifest["bits_per_weight"],
                "online": len(manifest["online_transforms"]),
            }
            report(way, rows, time.perf_counter() - started)
        fair = {way: row for way, row in rows.items() if row["bits"] < 1.01 * rows["ours"]["bits"]}
        better = [way for way, row in fair.items() if clearly_less(row["each"], rows["ours"]["each"])]
        print(f"clearly less than ours at no more bits: {', '.join(better) or 'none'} of {len(fair) - 1}", flush=True)
    if args.json is not None:
        args.json.write_text(json.dumps(tables, indent=1))


def export(args: argparse.Namespace, formats: str, way: str) -> tuple[dict, object] | None:
    """The manifest of an artifact, and the artifact as a function; ``None`` where the target cannot run the recipe."""
    options = {} if way == "ours" else {"recipe": way}
    if way == "ours" or "budget" not in all_recipes()[way].options:
        options["formats"] = formats
    data = args.calibration or beside(args.model, "calibration")
    with tempfile.TemporaryDirectory() as folder:
        try:
            artifact = qc.export(args.model, args.target, Path(folder) / "artifact", calibration=data, **options)
        except qc.QCompileError as error:
            print(f"{way:16} {error}", flush=True)
            return None
        return artifact.manifest, artifact.load()


def beside(model: Path, what: str) -> Path:
    return model.with_name(f"{model.stem}_{what}.npz")


def sequences(path: Path, count: int) -> list[dict[str, np.ndarray]]:
    """Spread evenly over the data, which may be sorted."""
    arrays = dict(np.load(path))
    chosen = np.linspace(0, min(map(len, arrays.values())) - 1, count).astype(int)
    return [{name: array[i : i + 1] for name, array in arrays.items()} for i in dict.fromkeys(chosen.tolist())]


def tensors(outputs: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.asarray(array)) for name, array in outputs.items()}


def difference(found: list[float], ours: list[float]) -> tuple[float, float]:
    """The mean difference over sequences, and its standard error."""
    apart = np.subtract(found, ours)
    return float(apart.mean()), float(apart.std(ddof=1) / len(apart) ** 0.5)


def clearly_less(found: list[float], ours: list[float]) -> bool:
    mean, error = difference(found, ours)
    return mean < -2 * error


def report(way: str, rows: dict, seconds: float) -> None:
    row = rows[way]
    mean, error = difference(row["each"], rows["ours"]["each"])
    print(
        f"{way:16} {np.mean(row['each']):11.5f} {mean:11.5f} {error:9.5f} {row['bits']:6.2f} {row['online']:7} "
        f"{seconds:5.0f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
