"""Train a shipped classifier: `python train_classifiers.py resnet` (one core, about three minutes)."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

import digits
from classifiers import CLASSIFIERS
from training import cosine_with_warmup, optimizer_for, set_learning_rate


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image moved by up to two places in each direction, with a little noise."""
    size = images.shape[-1]
    padded = F.pad(images, (2, 2, 2, 2), value=-1.0)
    down, right = torch.randint(5, (2, len(images)), generator=generator)
    rows = (down[:, None] + torch.arange(size))[:, None, :, None]
    columns = (right[:, None] + torch.arange(size))[:, None, None, :]
    moved = padded[torch.arange(len(images))[:, None, None, None], 0, rows, columns]
    return moved + 0.1 * torch.randn(moved.shape, generator=generator)


@torch.no_grad()
def accuracy(model: nn.Module, split: digits.Split) -> float:
    """Share of images that are read right."""
    scores = model.eval()(torch.from_numpy(digits.enlarged(split.images)))
    return float((scores.argmax(1).numpy() == split.labels).mean())


def train(model: nn.Module, options: argparse.Namespace) -> None:
    """Train on the digits to learn from; the last weights are those that are kept."""
    generator = torch.Generator().manual_seed(options.seed)
    learn, held_out = digits.load()
    images, labels = torch.from_numpy(digits.enlarged(learn.images)), torch.from_numpy(learn.labels)
    optimizer = optimizer_for(model, options.learning_rate, options.weight_decay)
    started = time.monotonic()
    for step in range(1, options.steps + 1):
        model.train()
        share = cosine_with_warmup(step - 1, options.steps, warmup=50)
        set_learning_rate(optimizer, options.learning_rate * share)
        chosen = torch.randint(len(labels), (options.rows,), generator=generator)
        scores = model(shifted(images[chosen], generator))
        F.cross_entropy(scores, labels[chosen], label_smoothing=0.05).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % options.evaluate_every == 0 or step == options.steps:
            shares = [accuracy(model, split) for split in (learn, held_out)]
            seconds = time.monotonic() - started
            print(f"step {step:5d}  learned {shares[0]:.2%}  held out {shares[1]:.2%}  {seconds:.0f} s", flush=True)


def main() -> None:
    """Train on scikit-learn's digits and save NAME.safetensors."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("model", choices=CLASSIFIERS)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--rows", type=int, default=128, help="images in a batch")
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--evaluate-every", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    model = CLASSIFIERS[options.model]()
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    train(model, options)
    parameters = {name: p.detach().contiguous() for name, p in model.state_dict().items()}
    save_file(parameters, options.output or Path(f"{options.model}.safetensors"))


if __name__ == "__main__":
    main()
