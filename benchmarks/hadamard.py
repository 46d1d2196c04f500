"""How fast the Hadamard transform is, against a memory copy and other implementations.

Prints a Markdown table: milliseconds, the least of several rounds in which all take turns, on the CPU in float32.
``copy`` is ``copy_`` of the same tensor into memory that is already mapped, ``clone`` one into fresh memory; ``in
place`` and ``new`` are ours, and compare with them; ``dense`` is a product with ``scipy.linalg.hadamard``;
``hadamard-transform`` is the package of that name from PyPI, where installed (powers of two only). By default the clock
is the processor time of the process with one thread: what it costs, whatever else runs on the machine.

    python benchmarks/hadamard.py [--rows 4096] [--repeats 7] [--threads N] [--clock cpu|wall] [--sizes N ...]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

from qcompile.transforms import BlockDiagonal, Hadamard, Transform

SIZES = (128, 576, 1536, 4096, 5120, 8192, 11008, 14336)


def milliseconds(works: list[Callable[[], object] | None], repeats: int, clock: Callable[[], float]) -> list[float]:
    """The least time of each over several rounds, after one that warms caches up; infinity for None."""
    best = [float("inf")] * len(works)
    for turn in range(repeats + 1):
        for i, work in enumerate(works):
            start = clock()
            if work is not None:
                work()
                best[i] = min(best[i], (clock() - start) * 1e3) if turn else best[i]
    return best


def dense_product(x: torch.Tensor) -> Callable[[], object] | None:
    """A product with the dense matrix; None where scipy has none or it would take minutes."""
    from scipy.linalg import hadamard

    size = x.shape[1]
    if size & (size - 1) or size > 8192:
        return None
    matrix = torch.from_numpy(hadamard(size)).float()
    return lambda: x @ matrix


def package(x: torch.Tensor) -> Callable[[], object] | None:
    """The PyPI package ``hadamard-transform``; None where it is missing or has no such order."""
    try:
        from hadamard_transform import hadamard_transform
    except ImportError:
        return None
    return None if x.shape[1] & (x.shape[1] - 1) else lambda: hadamard_transform(x)


def row(label: str, transform: Transform, rows: int, repeats: int, clock: Callable[[], float]) -> str:
    """One line of the table."""
    x = torch.randn(rows, transform.size)
    mapped = torch.empty_like(x)
    works: list[Callable[[], object] | None] = [
        lambda: mapped.copy_(x), lambda: transform.apply_(mapped), x.clone, lambda: transform.apply(x),
        dense_product(x), package(x),
    ]  # fmt: skip
    times = milliseconds(works[:4], repeats, clock) + milliseconds(works[4:], min(repeats, 3), clock)
    cells = ["—" if t == float("inf") else f"{t:.1f}" for t in times]
    ratios = [f"{times[1] / times[0]:.1f}x", f"{times[3] / times[2]:.1f}x"]
    return "| " + " | ".join([label, *cells[:2], ratios[0], *cells[2:4], ratios[1], *cells[4:]]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=("cpu", "wall"), default="cpu")
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    columns = ["size", "copy", "in place", "ratio", "clone", "new", "ratio", "dense", "hadamard-transform"]
    print(f"{options.rows} rows, float32, {options.threads} threads, {options.clock} time, torch {torch.__version__}\n")
    print("| " + " | ".join(columns) + " |\n|" + "---:|" * len(columns))
    for size in options.sizes:
        print(row(str(size), Hadamard(size, seed=1), options.rows, options.repeats, clock), flush=True)
    blocks = BlockDiagonal(Hadamard(32, seed=1), 4096 // 32)
    print(row("4096 in blocks of 32", blocks, options.rows, options.repeats, clock))


if __name__ == "__main__":
    main()
