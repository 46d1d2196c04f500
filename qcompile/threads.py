"""Threads for work outside of Python's lock: onnxruntime, NumPy and torch on large arrays."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["alone", "by_part", "threads"]

#: Operations, about, from which threads gain more than they take to begin: some milliseconds.
LONG = 1 << 22

#: How long a thread keeps Python's lock while others wait: with the usual 5 ms, an export takes a tenth longer.
SWITCH_SECONDS = 0.0002


@contextmanager
def threads(count: int) -> Iterator[Executor]:
    """A number of threads beside the caller; at the end all work that they were given is done.

    In each of them, and meanwhile in the caller, torch computes with one thread: teams of threads that outnumber the
    cores wait for each other actively, which can take a minute. Python's lock changes hands sooner than usual, because
    work outside of it needs it often, and briefly.
    """
    import torch

    interval = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        with alone(), ThreadPoolExecutor(count, initializer=partial(torch.set_num_threads, 1)) as executor:
            yield executor
    finally:
        sys.setswitchinterval(interval)


@contextmanager
def alone() -> Iterator[None]:
    """Let torch compute with one thread: on small work a team gains nothing, and waits actively for each member."""
    import torch

    own = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(own)


@lru_cache(maxsize=1)
def _workers(count: int) -> Executor:
    """Threads that stay: stacks come by the thousand, and those of each begin sooner than new ones do."""
    import torch

    return ThreadPoolExecutor(count, initializer=partial(torch.set_num_threads, 1))


def by_part(work: Callable[[Tensor], tuple[Tensor, ...]], stack: Tensor) -> tuple[Tensor, ...]:
    """Results for each matrix of a stack ``[count, n, n]`` of the CPU, some by each thread if it takes long.

    LAPACK goes through a stack one by one, and gives its threads the rows of one, which are too few.
    """
    import torch

    count = min(len(stack), os.cpu_count() or 1)
    if count == 1 or stack.is_cuda or stack.numel() * stack.shape[-1] < LONG:
        return work(stack)
    with alone():
        parts = list(_workers(count).map(work, stack.tensor_split(count)))
    return tuple(torch.cat(found) for found in zip(*parts, strict=True))
