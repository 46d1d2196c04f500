"""Measure a model of the zoo as it ships, or a quantized copy of it with the same inputs and outputs.

python evaluate.py language_model --write 300
python evaluate.py mamba
python evaluate.py dit --model quantized.onnx          # or unet
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import digits
from language_model import LanguageModel
from mamba import Mamba
from training import sample
from weights import restore

HERE = Path(__file__).parent
NAMES = ("language_model", "mamba", "dit", "unet", "resnet", "mobilenet")
SHIPPED = {name: f"{name}.onnx" for name in NAMES}

Logits = Callable[[np.ndarray], np.ndarray]


def nats_per_byte(logits: Logits, windows: np.ndarray, rows: int = 8) -> float:
    """Mean cross entropy of every byte of the windows (int64 [n, length]) but the first."""
    losses = []
    for start in range(0, len(windows), rows):
        ids = windows[start : start + rows]
        scores = logits(ids)[:, :-1].astype(np.float64)
        scores -= scores.max(-1, keepdims=True)
        chosen = np.take_along_axis(scores, ids[:, 1:, None], -1)[..., 0]
        losses.append(np.log(np.exp(scores).sum(-1)) - chosen)
    return float(np.concatenate(losses).mean())


def _session(path: Path) -> Callable[..., np.ndarray]:
    """A function of the graph's inputs, in their order, that returns its first output."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return lambda *arrays: session.run(None, dict(zip(names, arrays, strict=True)))[0]


def _logits(model: str, path: Path) -> Logits:
    if path.suffix == ".onnx":
        return _session(path)
    network = restore(Mamba() if model == "mamba" else LanguageModel(), path).eval()

    @torch.no_grad()
    def logits(ids: np.ndarray) -> np.ndarray:
        return network(torch.from_numpy(ids)).numpy()

    return logits


def evaluate_text(options: argparse.Namespace) -> None:
    """Loss on the shipped windows of learned and of held-out modules."""
    logits = _logits(options.which, options.model)
    for name, file in (("learned", "calibration"), ("held-out", "evaluation")):
        with np.load(HERE / f"language_model_{file}.npz") as saved:
            windows = saved["input_ids"]
        print(f"{name} modules: {nats_per_byte(logits, windows):.4f} nats per byte, {windows.shape} bytes")
    if options.write:
        empty = Mamba() if options.which == "mamba" else LanguageModel()
        network = restore(empty, HERE / SHIPPED[options.which])
        text = sample(network, options.prompt.encode(), options.write, options.temperature, options.seed)
        print(text.decode(errors="replace"))


def evaluate_diffusion(options: argparse.Namespace) -> None:
    """Velocity error on the path, and the share of drawn digits that the judge reads as asked."""
    velocity = _session(options.model)
    for name, split, seed in zip(("learned", "held-out"), digits.load(), (2, 3), strict=True):
        inputs, target = digits.noisy_batch(split, 512, seed=seed)
        error = np.square(velocity(*inputs.values()) - target).mean()
        print(f"{name} digits: mean squared velocity error {error:.4f}")
    labels = np.arange(options.draw) % 10
    for guidance in (1.0, 2.0):
        images = digits.draw(velocity, labels, guidance=guidance, seed=options.seed)
        share = digits.recognised_share(images, labels)
        print(f"guidance {guidance}: {share:.1%} of {options.draw} drawn digits recognised as asked")


def read_right(scores: Callable[..., np.ndarray]) -> float:
    """Share of the shipped held-out digits that a classifier reads right."""
    with np.load(HERE / "classifier_evaluation.npz") as images, np.load(HERE / "classifier_labels.npz") as known:
        return float((scores(images["x"]).argmax(1) == known["labels"]).mean())


def main() -> None:
    """Print the metrics of one model of the zoo."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("which", choices=SHIPPED)
    parser.add_argument("--model", type=Path, help="the file to measure; default: the one that ships")
    parser.add_argument("--write", type=int, default=0, metavar="BYTES", help="also continue the prompt")
    parser.add_argument("--prompt", default="\0")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--draw", type=int, default=500, help="digits drawn for the metric")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.model = options.model or HERE / SHIPPED[options.which]
    if options.which in ("resnet", "mobilenet"):
        print(f"held-out digits: {read_right(_session(options.model)):.1%} read right")
        return
    (evaluate_diffusion if options.which in ("dit", "unet") else evaluate_text)(options)


if __name__ == "__main__":
    main()
