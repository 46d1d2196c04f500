"""scikit-learn's 8x8 digits, the sampler that draws them and the judge that reads them.

Everything here is numpy: a sampler takes any function (x, t, y) -> velocity, so a quantized artifact
in any runtime is judged exactly like the float model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

__all__ = ["NO_CLASS", "Split", "draw", "enlarged", "load", "noisy_batch", "recognised_share"]

NO_CLASS = 10
"""The label that asks for no digit in particular (classifier-free guidance)."""

TRAINING_IMAGES = 1500

Velocity = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Split:
    """Images float32 [n, 1, 8, 8] in -1..1 and their labels int64 [n]."""

    images: np.ndarray
    labels: np.ndarray


def load() -> tuple[Split, Split]:
    """The 1500 digits to learn from and the 297 held out, shuffled once with a fixed seed."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    images = (data.images[order, None] / 8 - 1).astype(np.float32)
    labels = data.target[order].astype(np.int64)
    n = TRAINING_IMAGES
    return Split(images[:n], labels[:n]), Split(images[n:], labels[n:])


def enlarged(images: np.ndarray) -> np.ndarray:
    """Images [n, 1, 8, 8] with every pixel four times, [n, 1, 16, 16]: places to stride over."""
    return images.repeat(2, axis=2).repeat(2, axis=3)


def noisy_batch(split: Split, rows: int, seed: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Model inputs x, t, y along the path from noise (t = 0) to digits (t = 1), and the true velocity."""
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(np.resize(np.arange(len(split.labels)), rows))
    noise = rng.standard_normal((rows, 1, 8, 8)).astype(np.float32)
    images = split.images[chosen]
    t = ((np.arange(rows) + 0.5) / rows).astype(np.float32)
    along = t[:, None, None, None]
    inputs = {"x": (1 - along) * noise + along * images, "t": t, "y": split.labels[chosen]}
    return inputs, images - noise


def draw(
    velocity: Velocity, labels: np.ndarray, *, steps: int = 32, guidance: float = 2.0, seed: int = 0
) -> np.ndarray:
    """Integrate dx/dt = velocity from noise to images with the midpoint rule, `steps` intervals.

    Guidance w follows v(no class) + w (v(class) - v(no class)); w = 1 asks the model once, without it.
    """
    x = np.random.default_rng(seed).standard_normal((len(labels), 1, 8, 8)).astype(np.float32)

    def guided(x: np.ndarray, time: float) -> np.ndarray:
        t = np.full(len(labels), time, dtype=np.float32)
        with_class = velocity(x, t, labels)
        if guidance == 1:
            return with_class
        without = velocity(x, t, np.full_like(labels, NO_CLASS))
        return without + np.float32(guidance) * (with_class - without)

    width = np.float32(1 / steps)
    for step in range(steps):
        middle = x + width / 2 * guided(x, step / steps)
        x = x + width * guided(middle, (step + 0.5) / steps)
    return x


def recognised_share(images: np.ndarray, labels: np.ndarray) -> float:
    """Share of images that a classifier trained on the real training digits reads as their label.

    The judge is the support vector machine of scikit-learn's own digits example.
    """
    from sklearn.svm import SVC

    def pixels(x: np.ndarray) -> np.ndarray:
        return np.clip((x.reshape(len(x), 64) + 1) * 8, 0, 16)

    train, _ = load()
    judge = SVC(gamma=0.001).fit(pixels(train.images), train.labels)
    return float((judge.predict(pixels(images)) == labels).mean())
