"""Small work on a GPU as one graph of kernels: launched one by one, tens of small ones would wait for Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

__all__ = ["captured", "capturing"]

T = TypeVar("T")


def captured(work: Callable[[], T], device: torch.device) -> tuple[torch.cuda.CUDAGraph, T]:
    """A graph that does the work anew on the tensors that it reads, and its result, which each replay overwrites.

    Args:
        work: on tensors that stay where they are; nothing in it may wait for the GPU.
    """
    beside = torch.cuda.Stream(device)
    beside.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(beside):
        work()  # what is set up at a first use cannot be captured
    torch.cuda.current_stream(device).wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may load weights meanwhile
        result = work()
    return graph, result


def capturing(x: torch.Tensor) -> bool:
    """Whether what is computed of a tensor becomes part of a graph now, so that nothing may wait for its values."""
    return x.is_cuda and torch.cuda.is_current_stream_capturing()
