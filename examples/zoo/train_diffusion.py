"""Train a shipped diffusion model: `python train_diffusion.py dit` (a GPU, two minutes) or `unet` (one core, six)."""

from __future__ import annotations

import argparse
import copy
import math
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import digits
from dit import DiT
from training import cosine_with_warmup, optimizer_for, set_learning_rate
from unet import UNet

MODELS = {"dit": DiT, "unet": UNet}
SHIPPED = {
    "dit": {"steps": 2500, "rows": 256, "learning_rate": 1e-3},
    "unet": {"steps": 2000, "rows": 128, "learning_rate": 2e-3},
}
"""Settings of the models that ship."""


def flow_loss(model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """Rectified flow: the squared error of the velocity that leads from noise straight to the image."""
    device, rows = images.device, len(images)
    noise = torch.randn(images.shape, generator=generator, device=device)
    # Times crowd around the middle of the path, where the velocity is hardest to tell (Esser et al., 2024).
    t = torch.sigmoid(torch.randn(rows, generator=generator, device=device))
    along = t[:, None, None, None]
    # One label in ten is hidden, which teaches the model to draw without one.
    hidden = torch.rand(rows, generator=generator, device=device) < 0.1
    labels = torch.where(hidden, digits.NO_CLASS, labels)
    velocity = model((1 - along) * noise + along * images, t, labels)
    return (velocity - (images - noise)).square().mean()


def random_images(split: dict[str, Tensor], rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images drawn at random, with the rounding to 17 grey levels undone by uniform noise."""
    labels = split["labels"]
    chosen = torch.randint(len(labels), (rows,), generator=generator, device=labels.device)
    images = split["images"][chosen]
    spread = torch.rand(images.shape, generator=generator, device=images.device) - 0.5
    return images + spread / 8, labels[chosen]


@torch.no_grad()
def error_on(model: nn.Module, split: digits.Split, device: str) -> float:
    """Mean squared velocity error on 2048 fixed points of the path, all times alike."""
    inputs, target = digits.noisy_batch(split, 2048, seed=1)
    predicted = model(*(torch.from_numpy(value).to(device) for value in inputs.values()))
    return (predicted - torch.from_numpy(target).to(device)).square().mean().item()


@torch.no_grad()
def recognised(model: nn.Module, device: str, count: int, guidance: float) -> float:
    """Share of `count` drawn digits that the judge reads as asked."""

    def velocity(*inputs: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return model(*(torch.from_numpy(value).to(device) for value in inputs)).cpu().numpy()

    labels = np.arange(count) % 10
    return digits.recognised_share(digits.draw(velocity, labels, guidance=guidance), labels)


def average(into: nn.Module, model: nn.Module, decay: float) -> None:
    """Let the averaged weights follow the trained ones."""
    with torch.no_grad():
        torch._foreach_lerp_(list(into.parameters()), list(model.parameters()), 1 - decay)


def train(options: argparse.Namespace) -> nn.Module:
    """Return the averaged model."""
    torch.manual_seed(options.seed)
    torch.set_float32_matmul_precision("high")
    device = options.device
    generator = torch.Generator(device).manual_seed(options.seed)
    learn, held_out = digits.load()
    split = {name: torch.from_numpy(getattr(learn, name)).to(device) for name in ("images", "labels")}
    model = MODELS[options.model]().to(device)
    averaged = copy.deepcopy(model).eval()
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    fast = torch.compile(model) if device == "cuda" else model
    optimizer = optimizer_for(model, options.learning_rate, options.weight_decay)
    started = time.monotonic()
    for step in range(options.steps):
        share = cosine_with_warmup(step, options.steps, warmup=200)
        set_learning_rate(optimizer, options.learning_rate * share)
        images, labels = random_images(split, options.rows, generator)
        loss = flow_loss(fast, images, labels, generator)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average(averaged, model, min(0.999, (step + 1) / (step + 10)))
        seconds = time.monotonic() - started
        last = step + 1 == options.steps or seconds > 60 * options.minutes
        if (step + 1) % options.evaluate_every == 0 or last:
            errors = [error_on(averaged, s, device) for s in (learn, held_out)]
            print(
                f"step {step + 1:6d}  train {errors[0]:.4f}  held out {errors[1]:.4f}  {seconds:.0f} s",
                flush=True,
            )
        if last:
            break
    return averaged


def main() -> None:
    """Train on scikit-learn's digits and save NAME.safetensors."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--steps", type=int, help="this and the next two: by default those of the shipped model")
    parser.add_argument("--rows", type=int, help="images in a batch")
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--evaluate-every", type=int, default=250)
    parser.add_argument("--draw", type=int, default=1000, help="digits drawn for the metric")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop early, as a safeguard")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    for name, value in SHIPPED[options.model].items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    model = train(options)
    save_file(
        {name: p.detach().cpu().contiguous() for name, p in model.state_dict().items()},
        options.output or Path(f"{options.model}.safetensors"),
    )
    for guidance in (1.0, 2.0):
        share = recognised(model, options.device, options.draw, guidance)
        print(f"guidance {guidance}: {share:.1%} of {options.draw} digits recognised as asked", flush=True)


if __name__ == "__main__":
    main()
