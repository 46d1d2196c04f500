"""Groups of operators for drawings: by path of the module, or, where nothing says it, by structure that repeats."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

__all__ = ["grouped", "repeats"]

#: Parts of a graph count as repeated from this many operators on, and where at least this share of all is in them.
LEAST, SHARE = 4, 0.4

#: The part of its operators by which a call of a module may differ from the others.
LOOSE = 0.25

#: More operators than this in no group of their own are cut into pieces.
MANY = 200


def grouped(
    modules: Sequence[str | None], kinds: Sequence[str], reads: Sequence[Sequence[int]]
) -> list[list[str]]:  # fmt: skip
    """The path of groups of each operator, the outermost first; empty for one that stands alone.

    Operators whose module is not known stand between such whose is: what reads from the module before belongs to it,
    the rest to the one behind, down to the first part in which the two paths differ; what reads constants alone, as
    where packed weights are decoded, stands with its readers. A module that is called again and again, as where layers
    share their weights, has a group for each call. Groups of one operator are none.

    Args:
        modules: paths such as ``layers.0.mlp``, in the order of the graph.
        kinds: the names of the operators, for what repeats.
        reads: for each operator, those whose outputs it reads.
    """
    paths = [module.split(".") if module else None for module in modules]
    alone = all(path is None for path in paths)
    found = (
        _by_structure(kinds)
        if alone
        else _by_calls(_with_readers(_by_module(paths, reads), _constant(paths, kinds, reads), reads), kinds)
    )
    sizes = Counter(tuple(path[:end]) for path in found for end in range(1, len(path) + 1))
    return _cut([[part for end, part in enumerate(path, 1) if sizes[tuple(path[:end])] > 1] for path in found])


def _cut(paths: list[list[str]]) -> list[list[str]]:
    """The same paths, with pieces of what is too much for one group."""
    own, seen = Counter(map(tuple, paths)), Counter[tuple[str, ...]]()
    found = []
    for path in paths:
        total, place = own[tuple(path)], seen[tuple(path)]
        seen[tuple(path)] += 1
        start = place // (MANY // 2) * (MANY // 2)
        piece = f"operators {start + 1} to {min(start + MANY // 2, total)}"
        found.append([*path, piece] if total > MANY else path)
    return found


def _by_module(paths: Sequence[list[str] | None], reads: Sequence[Sequence[int]]) -> list[list[str]]:
    before, behind = _known(paths), _known(paths[::-1])[::-1]
    found: list[list[str]] = []
    for i, path in enumerate(paths):
        a, b = before[i], behind[i]
        if path is not None or a is None or b is None:
            found.append(path or [])
            continue
        shared = _shared(a, b)
        after = any((known := paths[j]) is not None and known[: shared + 1] == a[: shared + 1] for j in reads[i])
        inner = a if after else b
        found.append(inner[: shared + 1] if shared and len(inner) > shared + 1 else inner[:shared])
    return found


def _constant(
    paths: Sequence[list[str] | None], kinds: Sequence[str], reads: Sequence[Sequence[int]]
) -> list[bool]:  # fmt: skip
    """Whether each operator, of no known module, reads nothing that depends on an input of the graph."""
    found: list[bool] = []
    for path, kind, read in zip(paths, kinds, reads, strict=True):
        found.append(path is None and kind != "input" and all(j < len(found) and found[j] for j in read))
    return found


def _with_readers(
    paths: list[list[str]], constant: Sequence[bool], reads: Sequence[Sequence[int]]
) -> list[list[str]]:  # fmt: skip
    """The same paths, but of what is constant that which all its readers share."""
    made, readers = list(paths), defaultdict[int, list[int]](list)
    for i, read in enumerate(reads):
        for j in read:
            readers[j].append(i)
    for i in reversed(range(len(paths))):
        if constant[i] and readers[i]:
            first, *others = (made[j] for j in readers[i])
            made[i] = first[: min((_shared(first, other) for other in others), default=len(first))]
    return made


def _by_calls(paths: list[list[str]], kinds: Sequence[str]) -> list[list[str]]:
    """The same paths, with a part behind that of each module that consists of equal pieces, so that it was called."""
    members: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for i, path in enumerate(paths):
        for end in range(1, len(path) + 1):
            members[tuple(path[:end])].append(i)
    made, parted = [list(path) for path in paths], set[int]()
    inner = {tuple(inside): group for group, inside in sorted(members.items(), key=lambda pair: len(pair[0]))}
    for group in sorted(inner.values(), key=len):  # of groups in groups that hold the same, the innermost
        inside = members[group]
        if parted.intersection(inside):
            continue
        calls = _calls([".".join([*paths[i][len(group) :], kinds[i]]) for i in inside])
        for i, call in zip(inside, calls or ()):
            if call:
                made[i].insert(len(group), f"call {call}")
        parted.update(inside if calls else ())
    return made


def _calls(kinds: Sequence[str]) -> list[int] | None:
    """The number of the call that each operator of a module belongs to, from 1; 0 for none. ``None`` if called once.

    Calls begin at the operator that is the module's first, if each has one of its kind: the first call may compute a
    little more, such as a mask, which the others take from it.
    """
    found = repeats(kinds)
    if found is None:
        return None
    start, period, count = found
    begins = [place for place, kind in enumerate(kinds) if kind == kinds[0]]
    lengths = [end - begin for begin, end in zip(begins, [*begins[1:], len(kinds)])]
    if len(begins) > 1 and all(abs(length - period) < LOOSE * period for length in lengths):
        return [call for call, length in enumerate(lengths, 1) for _ in range(length)]
    if len(kinds) - count * period >= period:  # a piece of it that repeats is no call
        return None
    run = [place // period + 1 for place in range(count * period)]
    return [*[0] * start, *run, *[0] * (len(kinds) - start - len(run))]


def _known(paths: Sequence[list[str] | None]) -> list[list[str] | None]:
    """The last known path up to each place."""
    found: list[list[str] | None] = []
    last = None
    for path in paths:
        last = last if path is None else path
        found.append(last)
    return found


def _shared(a: Sequence[str], b: Sequence[str]) -> int:
    """How many parts two paths share at their beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def _by_structure(kinds: Sequence[str]) -> list[list[str]]:
    paths: list[list[str]] = [[] for _ in kinds]
    found = repeats(kinds)
    if found is not None:
        start, period, count = found
        for i in range(count):
            for j in range(start + i * period, start + (i + 1) * period):
                paths[j] = [f"{count} equal blocks", f"block {i + 1}"]
    return paths


def repeats(kinds: Sequence[str]) -> tuple[int, int, int] | None:
    """The part of a sequence that consists of the longest run of equal pieces: start, length of a piece, how many.

    Of several that cover as much, the one with the shortest pieces; ``None`` where little repeats.
    """
    numbers = np.unique(np.asarray(kinds, dtype=str), return_inverse=True)[1] if len(kinds) else np.zeros(0, int)
    best, covered = None, SHARE * len(numbers)
    for period in range(LEAST, len(numbers) // 2 + 1):
        start, length = _longest(numbers[:-period] == numbers[period:])
        count = (length + period) // period
        if count >= 2 and count * period > covered:
            best, covered = (start, period, count), count * period
    return best


def _longest(equal: np.ndarray) -> tuple[int, int]:
    """Start and length of the longest run of true."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], equal, [False])).astype(np.int8)))
    if not len(edges):
        return 0, 0
    starts, ends = edges[::2], edges[1::2]
    longest = int(np.argmax(ends - starts))
    return int(starts[longest]), int(ends[longest] - starts[longest])
