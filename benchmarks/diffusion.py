"""The shipped diffusion models in four bits: digits that are drawn, against the float model's from the same noise.

    python benchmarks/diffusion.py [--models dit,unet] [--schemes nvfp4/nvfp4,…] [--draw 200] [--steps 8] [--guidance 2]
                                   [--sampled]

Each scheme is rounded to nearest without transforms, then as qcompile chooses, and once more where single sites may
have eight bits, within a quarter of a bit a weight. Calibration data is that of the zoo, points between noise and
digits over all times; with ``--sampled`` that which the sampler of the float model meets, with the class and without
it. A row has the size over float, the relative L2 of the velocity on held-out points of the path, that of the images,
and how many of them the judge of the zoo (which needs scikit-learn) reads as asked. Formats are emulated (target
``reference``), and nothing is timed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

import qcompile as qc
from qcompile.formats.catalogue import get_format

ZOO = Path(__file__).parent.parent / "examples" / "zoo"
sys.path.insert(0, str(ZOO))

import digits  # noqa: E402  (a script of the zoo)

SCHEMES = "nvfp4-4over6/nvfp4-4over6,mxfp4-even/mxfp4-even,int4-g32/int8-channel"
EIGHT = "mxfp8-e4m3/mxfp8-e4m3"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="dit,unet")
    parser.add_argument("--schemes", default=SCHEMES)
    parser.add_argument("--draw", type=int, default=200, help="digits")
    parser.add_argument("--steps", type=int, default=8, help="of the midpoint rule")
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--sampled", action="store_true")
    options = parser.parse_args()
    print("| model | scheme | rounded | size | velocity | images | recognised |\n|---|---|---|---|---|---|---|")
    for name in options.models.split(","):
        source, data = ZOO / f"{name}.onnx", ZOO / "dit_calibration.npz"
        if options.sampled:
            data = Path(tempfile.mkdtemp()) / "sampled.npz"
            np.savez(data, **met(source, options))
        want = drawn(source, options)
        print(f"| {name} | float | | 1 | 0 | 0 | {share(want):.3f} |", flush=True)
        for scheme in options.schemes.split(","):
            for how, given in ways(scheme).items():
                with tempfile.TemporaryDirectory() as folder:
                    artifact = qc.export(source, "reference", Path(folder) / "out", calibration=data, **given)
                    written = Path(folder) / "out" / "model.onnx"
                    size = artifact.manifest["bytes"]["artifact"] / artifact.manifest["bytes"]["source"]
                    speed, have = relative(on_path(written), on_path(source)), drawn(written, options)
                error, read = relative(have, want), share(have)
                print(
                    f"| {name} | {scheme} | {how} | {size:.3f} | {speed:.4f} | {error:.4f} | {read:.3f} |", flush=True
                )


def ways(scheme: str) -> dict[str, dict[str, Any]]:
    """What is compared, as options of an export."""
    alone = {"formats": [scheme]}
    found = {"to nearest": {**alone, "transforms": "none", "method": "rtn"}, "qcompile": alone}
    fmt = get_format(scheme.partition("/")[0])
    if "/" in scheme and not scheme.endswith("int8-channel"):
        bits = round(fmt.bits + 8 / fmt.group + 0.25, 2)
        found[f"qcompile, {bits:g} bits"] = {"formats": [scheme, EIGHT], "budget": {"bits": bits}}
    return found


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def drawn(path: Path, options: argparse.Namespace) -> np.ndarray:
    """Digits 0 to 9 in turn, from noise that is the same for every model."""
    own = session(path)
    labels = np.arange(options.draw) % 10
    return digits.draw(
        lambda x, t, y: np.asarray(own.run(None, {"x": x, "t": t, "y": y})[0]), labels, steps=options.steps,
        guidance=options.guidance,
    )  # fmt: skip


def met(path: Path, options: argparse.Namespace, rows: int = 512) -> dict[str, np.ndarray]:
    """Some inputs of the float model as it draws other digits, in the order of time."""
    own, seen = session(path), []

    def velocity(x: np.ndarray, t: np.ndarray, y: np.ndarray) -> np.ndarray:
        seen.append((x, t, y))
        return np.asarray(own.run(None, {"x": x, "t": t, "y": y})[0])

    labels = np.arange(64) % 10
    digits.draw(velocity, labels, steps=options.steps, guidance=options.guidance, seed=1)
    every = [np.concatenate(parts) for parts in zip(*seen, strict=True)]
    chosen = np.sort(np.random.default_rng(0).choice(len(every[0]), min(rows, len(every[0])), replace=False))
    return dict(zip("xty", (own[chosen] for own in every), strict=True))


def on_path(path: Path) -> np.ndarray:
    """Velocities on held-out points between noise and digit."""
    with np.load(ZOO / "dit_evaluation.npz") as points:
        return np.asarray(session(path).run(None, dict(points))[0])


def relative(have: np.ndarray, want: np.ndarray) -> float:
    return float(np.linalg.norm(have - want) / np.linalg.norm(want))


def share(images: np.ndarray) -> float:
    return digits.recognised_share(images, np.arange(len(images)) % 10)


if __name__ == "__main__":
    main()
