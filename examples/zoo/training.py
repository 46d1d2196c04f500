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

__all__ = ["add_arguments", "cosine_with_warmup", "held_out_loss", "optimizer_for", "sample", "train"]


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


def _save(model: nn.Module, path: Path) -> None:
    save_file({name: p.detach().cpu().contiguous() for name, p in model.state_dict().items()}, path)


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
    started, best = time.monotonic(), math.inf
    total = torch.zeros((), device=device)
    since = 0
    for step in range(options.steps):
        share = cosine_with_warmup(step, options.steps, options.warmup)
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * share
        with _autocast(device):
            window = _random_windows(text, options.rows, options.length + 1, generator)
            loss = next_byte_loss(fast, window)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        total += loss.detach()
        since += 1
        late = time.monotonic() - started > 60 * options.minutes
        if (step + 1) % options.evaluate_every and step + 1 < options.steps and not late:
            continue
        held_out = held_out_loss(fast, splits["held_out"], options.rows, options.length, device)
        seconds = time.monotonic() - started
        print(f"step {step + 1:6d}  train {total.item() / since:.4f}  held out {held_out:.4f}", end="  ")
        print(f"{seconds:.0f} s", "(best)" if held_out < best else "", flush=True)
        total.zero_()
        since = 0
        if held_out < best:
            best = held_out
            _save(model, output)
        if late:
            print("stopped by --minutes", flush=True)
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
