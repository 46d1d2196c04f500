"""What the two byte-level language models share: settings, schedule, loop, held-out loss, sampling."""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

import corpus

__all__ = [
    "add_arguments",
    "cosine_with_warmup",
    "held_out_loss",
    "optimizer_for",
    "sample",
    "set_learning_rate",
    "train",
]


def add_arguments(parser: argparse.ArgumentParser, *, steps: int, rows: int, length: int) -> None:
    """Options of a training script; the defaults are those of the shipped weights."""
    default_device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--rows", type=int, default=rows, help="windows in a batch")
    parser.add_argument("--length", type=int, default=length, help="bytes in a window")
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="peak, after the warm-up")
    parser.add_argument("--warmup", type=int, default=300, help="steps")
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--evaluate-every", type=int, default=250, help="steps between held-out losses")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default=default_device)
    parser.add_argument("--corpus", type=Path, help="a file made by corpus.py; default: this Python's library")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop early, as a safeguard")


def cosine_with_warmup(step: int, steps: int, warmup: int) -> float:
    """Share of the peak learning rate at `step`: a linear rise, then half a cosine down to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def optimizer_for(model: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW that decays matrices only: a decayed norm gamma or state decay would lose its meaning."""
    named = list(model.named_parameters())
    matrices = [p for name, p in named if p.ndim >= 2 and not name.endswith("A_log")]
    others = [p for name, p in named if p.ndim < 2 or name.endswith("A_log")]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    fused = next(model.parameters()).is_cuda
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), fused=fused)


def _random_windows(text: Tensor, rows: int, length: int, generator: torch.Generator) -> Tensor:
    limit = len(text) - length
    starts = torch.randint(limit, (rows, 1), generator=generator, device=text.device)
    return text[starts + torch.arange(length, device=text.device)].long()


def next_byte_loss(model: nn.Module, window: Tensor) -> Tensor:
    """Mean cross entropy in nats per byte of window[:, 1:] given what stands before."""
    logits = model(window[:, :-1])
    return F.cross_entropy(logits.float().flatten(0, 1), window[:, 1:].flatten())


def _autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")


@torch.no_grad()
def held_out_loss(model: nn.Module, text: np.ndarray, rows: int, length: int, device: torch.device) -> float:
    """Nats per byte over all non-overlapping windows, less the last incomplete batch."""
    batches = len(text) // (rows * (length + 1))
    used = text[: batches * rows * (length + 1)].reshape(batches, rows, length + 1)
    training = model.training
    model.eval()
    with _autocast(device):
        losses = [next_byte_loss(model, torch.from_numpy(b).to(device).long()).item() for b in used]
    model.train(training)
    return sum(losses) / len(losses)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """One rate for all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = rate


class Report:
    """Prints both losses now and then and keeps the weights that did best on held-out text."""

    def __init__(self, model: nn.Module, output: Path) -> None:
        self.model, self.output = model, output
        self.started, self.best = time.monotonic(), math.inf
        self.losses: list[Tensor] = []

    def seconds(self) -> float:
        """Since training began."""
        return time.monotonic() - self.started

    def write(self, step: int, held_out: float) -> None:
        """One line; saves the weights when they are the best so far."""
        train_loss = torch.stack(self.losses).mean().item()
        self.losses.clear()
        mark = "(best)" if held_out < self.best else ""
        line = f"step {step:6d}  train {train_loss:.4f}  held out {held_out:.4f}  {self.seconds():.0f} s {mark}"
        print(line, flush=True)
        if held_out < self.best:
            self.best = held_out
            save_file({n: p.detach().cpu().contiguous() for n, p in self.model.state_dict().items()}, self.output)


def train(model: nn.Module, options: argparse.Namespace, output: Path) -> None:
    """Train on random windows and save the weights whenever the held-out loss has improved."""
    device = torch.device(options.device)
    splits = corpus.load(options.corpus)
    text = torch.from_numpy(splits["train"].copy()).to(device)
    generator = torch.Generator(device).manual_seed(options.seed)
    model.to(device).train()
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(text):,} bytes to learn", flush=True)
    fast = torch.compile(model) if device.type == "cuda" else model
    optimizer = optimizer_for(model, options.learning_rate, options.weight_decay)
    report = Report(model, output)
    for step in range(1, options.steps + 1):
        share = cosine_with_warmup(step - 1, options.steps, options.warmup)
        set_learning_rate(optimizer, options.learning_rate * share)
        with _autocast(device):
            loss = next_byte_loss(fast, _random_windows(text, options.rows, options.length + 1, generator))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        report.losses.append(loss.detach())
        last = step == options.steps or report.seconds() > 60 * options.minutes
        if step % options.evaluate_every == 0 or last:
            report.write(step, held_out_loss(fast, splits["held_out"], options.rows, options.length, device))
        if last:
            return


@torch.no_grad()
def sample(model: nn.Module, prompt: bytes, count: int, temperature: float, seed: int) -> bytes:
    """Continue the prompt by `count` bytes; temperature 0 takes the likeliest byte each time."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.tensor([list(prompt)])
    model.eval()
    for _ in range(count):
        logits = model(tokens)[0, -1].float()
        if temperature == 0:
            chosen = logits.argmax(keepdim=True)
        else:
            chosen = torch.multinomial(torch.softmax(logits / temperature, 0), 1, generator=generator)
        tokens = torch.cat((tokens, chosen[None]), dim=1)
    return bytes(tokens[0].tolist())
