"""Predicted against measured time of a run: the float source and artifacts, one thread, in turn.

    python benchmarks/latency.py MODEL.onnx[:DATA.npz] … --target cpu-int8 --target cpu-int4 [--profile machine]

Models without data run on random inputs. Each artifact is made by plain rounding with the chosen transforms (`auto`)
and without (`none`), and with a Hadamard transform in front of every site (`hadamard`). Times are processor times of
the thread that computes, of which one run in ten is below; a machine that does other things shows in the last column,
the median over that.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from time import thread_time

import numpy as np
import onnxruntime as ort

import qcompile as qc


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="+")
    parser.add_argument("--target", action="append", required=True)
    parser.add_argument("--transforms", default="none,auto,hadamard")
    parser.add_argument("--batch", type=int, help="rows of the data; by default all that a batch of calibration has")
    parser.add_argument("--profile", default="shipped")
    parser.add_argument("--runs", type=int, default=40)
    args = parser.parse_args()
    print(f"{'model':18} {'target':9} {'transforms':10} {'online':>6} {'of it ms':>8} {'predicted':>9} {'measured':>9} "
          f"{'ratio':>6} {'over float':>10} {'spread':>6}")  # fmt: skip
    for word in args.model:
        model, _, data = word.partition(":")
        for target in args.target:
            rows(Path(model), data or None, target, args)


def rows(model: Path, data: str | None, target: str, args: argparse.Namespace) -> None:
    """Export a model in each way, and print the times of all, which are taken in turn."""
    with tempfile.TemporaryDirectory() as folder:
        given = None if data is None else {name: array[: args.batch] for name, array in np.load(data).items()}
        made = {
            word: qc.export(
                model, target, Path(folder) / word, calibration=given, transforms=word, method="rtn",
                profile=args.profile,
            )
            for word in args.transforms.split(",")
        }  # fmt: skip
        timing = next(iter(made.values())).manifest["timing"]
        inputs = given or random_inputs(model, timing["inputs"])
        inputs = {name: inputs[name][: shape[0]] for name, shape in timing["inputs"].items()}
        files = [model, *(Path(folder) / word / "model.onnx" for word in made)]
        source, *times = in_turn(files, inputs, args.runs)
        for (word, artifact), (low, middle) in zip(made.items(), times, strict=True):
            timing = artifact.manifest["timing"]
            ours, online = timing["predicted_ms"], timing["online_transforms_ms"]
            print(f"{model.stem[:18]:18} {target:9} {word:10} {len(online):6} {sum(online.values()):8.2f} {ours:9.2f} "
                  f"{low:9.2f} {ours / low:6.2f} {low / source[0]:10.2f} {middle / low:6.2f}", flush=True)  # fmt: skip


def random_inputs(model: Path, shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """Inputs as an export draws them, which makes its predictions for these shapes."""
    from qcompile.run.data import load_data

    batch = load_data(None, qc.capture(model).model).batches[0]
    assert {name: list(array.shape) for name, array in batch.items()} == shapes, "other inputs were drawn"
    return dict(batch)


def in_turn(files: list[Path], inputs: dict[str, np.ndarray], runs: int) -> list[tuple[float, float]]:
    """Milliseconds of each graph: what one run in ten is below, and the median."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    sessions = [ort.InferenceSession(file, options, providers=["CPUExecutionProvider"]) for file in files]
    times: list[list[float]] = [[] for _ in sessions]
    for session in sessions:
        session.run(None, inputs)
    for _ in range(runs):
        for own, session in zip(times, sessions, strict=True):
            start = thread_time()
            session.run(None, inputs)
            own.append(1e3 * (thread_time() - start))
    return [(sorted(own)[len(own) // 10], statistics.median(own)) for own in times]


if __name__ == "__main__":
    main()
