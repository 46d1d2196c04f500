"""Train the shipped Mamba: `python train_mamba.py` (one GPU, a few minutes)."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import mamba
from training import add_arguments, train


def check_kernel(fast: mamba.Scan, device: str) -> float:
    """Largest relative L2 error of the fused scan, output and gradients, against the plain loop."""
    torch.manual_seed(0)
    shapes = [(2, 33, 64), (2, 33, 64), (64, 16), (2, 33, 16), (2, 33, 16), (64,)]
    inputs = [torch.randn(shape, device=device) for shape in shapes]
    inputs[1] = inputs[1].abs() * 0.3
    inputs[2] = -inputs[2].abs()
    probe = torch.randn(shapes[0], device=device)
    results = []
    for scan in (mamba.selective_scan, fast):
        leaves = [x.clone().requires_grad_() for x in inputs]
        y = scan(*leaves)
        (y * probe).sum().backward()
        results.append([y.detach(), *(x.grad for x in leaves)])
    pairs = zip(*results, strict=True)
    return max(((a - b).norm() / a.norm()).item() for a, b in pairs)


def choose_scan(device: str) -> mamba.Scan:
    """The Triton kernel on a GPU, once it has been checked; the plain loop elsewhere."""
    if device == "cpu":
        return mamba.selective_scan
    from scan_kernel import selective_scan

    error = check_kernel(selective_scan, device)
    print(f"fused scan against the loop: relative error {error:.1e}", flush=True)
    if not error < 1e-4:
        raise RuntimeError("the fused scan does not compute the selective scan on this device")
    return selective_scan


def main() -> None:
    """Train on Python's standard library and save mamba.safetensors."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    add_arguments(parser, steps=2000, rows=256, length=256)
    parser.add_argument("--output", type=Path, default=Path("mamba.safetensors"))
    options = parser.parse_args()
    scan = choose_scan(options.device)
    torch.manual_seed(options.seed)
    train(mamba.Mamba(dropout=options.dropout, scan=scan), options, options.output)


if __name__ == "__main__":
    main()
