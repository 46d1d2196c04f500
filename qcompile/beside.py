"""Threads for what runs outside of Python's lock: onnxruntime, NumPy and torch on large arrays."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

__all__ = ["threads"]


@contextmanager
def threads(count: int) -> Iterator[Executor]:
    """So many threads beside the caller; all work that they were given is done at the end.

    In each of them, and meanwhile in the caller, torch computes with one thread: where its teams outnumber the cores,
    they wait for each other actively, which can take a minute.
    """
    import torch

    own = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(count, initializer=partial(torch.set_num_threads, 1)) as executor:
            yield executor
    finally:
        torch.set_num_threads(own)
