"""Target ``integer`` beside ``qdq-int8``, whose scales are floats: error, size and what classifiers get right.

    python benchmarks/integers.py [MODEL.onnx ...]

Without models: the shipped classifiers. Errors (relative L2 of the outputs) and labels are of the evaluation data of
the zoo, which nothing is calibrated with. Other models must read the same images.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime

import qcompile as qc

ZOO = Path(__file__).parent.parent / "examples" / "zoo"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="*", default=[ZOO / "resnet.onnx", ZOO / "mobilenet.onnx"])
    with np.load(ZOO / "classifier_evaluation.npz") as data, np.load(ZOO / "classifier_labels.npz") as known:
        images, labels = data["x"], known["labels"]
    print("| model | target | size | error | right |\n|---|---|---|---|---|")
    for model in parser.parse_args().models:
        want = outputs(model, images)
        print(f"| {model.stem} | float | 1 | 0 | {(want.argmax(-1) == labels).mean():.4f} |")
        for target in ("qdq-int8", "integer"):
            with tempfile.TemporaryDirectory() as folder:
                qc.export(model, target, Path(folder) / "out", calibration=ZOO / "classifier_calibration.npz")
                written = Path(folder) / "out" / "model.onnx"
                have, size = outputs(written, images), written.stat().st_size / model.stat().st_size
            error = np.linalg.norm(have - want) / np.linalg.norm(want)
            print(
                f"| {model.stem} | `{target}` | {size:.3f} | {error:.4f} | {(have.argmax(-1) == labels).mean():.4f} |"
            )


def outputs(path: Path, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: images})[0])


if __name__ == "__main__":
    main()
