"""The exact choice at scale: sites with many candidates, spaces that they share, three budgets at once.

    python benchmarks/joint_choice.py [--sites 500] [--candidates 40] [--spaces 3]

Sites have formats of 3 to 8 bits times transforms in front; every site reads one of the spaces, whose four labels
change what its candidates lose. Prints the seconds, the method and the gap that it proves.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import numpy as np

from qcompile.choice.assignment import Option
from qcompile.choice.joint import Joint, Unit, Wall
from qcompile.choice.solving import decide

BITS = (3.0, 3.5, 4.0, 4.5, 5.0, 6.0, 7.0, 8.0)
LABELS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, default=500)
    parser.add_argument("--candidates", type=int, default=40, help="of each site, labels of its space included")
    parser.add_argument("--spaces", type=int, default=3)
    parser.add_argument("--tightness", type=float, default=0.55, help="of budgets: 0 is the least, 1 the most")
    args = parser.parse_args()
    print(f"{args.sites} sites, {args.candidates} candidates each, {args.spaces} spaces, 3 budgets")
    for seed in range(3):
        problem = made(args, seed)
        for budgets in (problem.budgets, {"bits": problem.budgets["bits"]}):
            start = time.perf_counter()
            found = decide(replace(problem, budgets=budgets)).assignment
            seconds = time.perf_counter() - start
            used = ", ".join(f"{name} {found.cost[name] / bound:.5f}" for name, bound in budgets.items())
            said = f"loss {found.loss:.6g}, proved within {found.gap:.1e}, {seconds:.1f} s, used of budgets: {used}"
            print(f"seed {seed}, {found.method}: {said}", flush=True)


def made(args: argparse.Namespace, seed: int) -> Joint:
    rng = np.random.default_rng(seed)
    per_label = args.candidates // LABELS
    units = [unit(rng, per_label, int(rng.integers(args.spaces))) for _ in range(args.sites)]
    budgets = {}
    for name in ("bits", "bytes", "ms"):
        ends = [[o.cost[name] for options in u.options.values() for o in options] for u in units]
        least, most = sum(map(min, ends)), sum(map(max, ends))
        budgets[name] = least + args.tightness * rng.uniform(0.8, 1.0) * (most - least)
    walls = [Wall(i, i + 1, 1e-4, frozenset((k, k) for k in range(LABELS))) for i in range(args.spaces - 1)]
    return Joint([[0.0] * LABELS] * args.spaces, units, walls, budgets)


def unit(rng: np.random.Generator, count: int, space: int) -> Unit:
    """A site: larger ones cost more, and some mind errors a thousand times as much as others."""
    size, minds = float(rng.lognormal(12, 1.2)), float(rng.lognormal(-2, 1.5))
    bits = rng.choice(BITS, count, replace=count > len(BITS))
    costs = [
        {"bits": size * b, "bytes": size * b / 8 * rng.uniform(1, 1.1), "ms": size * b / 8e9 * rng.uniform(0.8, 1.3)}
        for b in bits
    ]
    helps = rng.lognormal(-0.3, 0.4, LABELS)
    return Unit((space,), {
        (label,): [
            Option(f"o{i}", float(minds * 4.0 ** -b * helps[label] * rng.lognormal(0, 0.3)), cost)
            for i, (b, cost) in enumerate(zip(bits, costs, strict=True))
        ]
        for label in range(LABELS)
    })  # fmt: skip


if __name__ == "__main__":
    main()
