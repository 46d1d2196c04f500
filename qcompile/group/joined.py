"""Groups of several processes, over ``torch.distributed``: gloo for words and for tensors of CPUs, NCCL for GPUs.

Every exchange begins with words from all, so that a fault of one is raised by all, at the same place in their work.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from qcompile.errors import InputError, LostError
from qcompile.group.faults import Fault, is_told, told
from qcompile.group.group import ALONE, Group
from qcompile.group.parting import parted

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Joined", "invited", "join", "leave"]

#: How long processes wait for each other: as long as one computes. Of one that died all hear at once.
PATIENCE = timedelta(days=7)

_INVITATION = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

T = TypeVar("T")


class Joined(Group):
    """Several processes.

    Args:
        rank: the number of this one.
        size: how many there are.
        device: where each computes.
        words: the processes as ``torch.distributed`` knows them, for words.
    """

    def __init__(self, rank: int, size: int, device: str, words: Any) -> None:
        self.rank, self.size = rank, size
        self._device, self._words = device, words

    def gathered(self, work: Callable[[], T]) -> list[T]:
        """As for one alone.

        Raises:
            LostError: if a process is gone.
        """
        try:
            made = work()
        except Exception as error:
            if not is_told(error):
                self._tell(error)
            raise
        return self._exchanged(made)

    @contextmanager
    def together(self) -> Iterator[None]:
        """As for one alone."""
        try:
            yield
        except Exception as error:
            if not is_told(error):
                self._tell(error)
            raise
        self._exchanged(None)

    def folded(self, total: Tensor | None, lanes: Sequence[Tensor]) -> Tensor | None:
        """As for one alone: each process adds its lanes to what comes from the one before it, the last has the sum."""
        import torch.distributed as dist

        own = next((tensor for tensor in (total, *lanes) if tensor is not None), None)
        shapes = self.gathered(lambda: None if own is None else tuple(own.shape))
        chain = [rank for rank, shape in enumerate(shapes) if shape is not None]
        if not chain:
            return None
        shape = shapes[chain[0]]
        assert shape is not None, "the chain begins where there is something"
        if self.rank == chain[0]:
            total, lanes = (lanes[0].double(), lanes[1:]) if total is None else (total, lanes)
        else:
            total = self._empty(shape)
        with _lost():
            if self.rank in chain:
                place = chain.index(self.rank)
                if place:
                    dist.recv(total, chain[place - 1])
                for lane in lanes:
                    total.add_(lane)
                if place + 1 < len(chain):
                    dist.send(total, chain[place + 1])
            dist.broadcast(total, chain[-1])
        return total

    def _empty(self, shape: Sequence[int]) -> Tensor:
        import torch

        return torch.empty(*shape, dtype=torch.float64, device=self._device)

    def _tell(self, error: Exception) -> None:
        """Let all raise what this process does, unless some are gone."""
        told(error)
        try:
            self._exchanged(Fault.of(error, self.rank))
        except Exception as other:  # its own fault comes back, or another one that was first
            if isinstance(other, LostError):
                raise error from other

    def _exchanged(self, own: Any) -> list[Any]:
        """The words of every process.

        Raises:
            Exception: the fault of the first process that has one.
        """
        import torch.distributed as dist

        words, tensors = (own, []) if isinstance(own, Fault) else parted(own)
        found: list[Any] = [None] * self.size
        with _lost():
            dist.all_gather_object(found, words, group=self._words)
        for word in found:
            if isinstance(word, Fault):
                raise word.error()
        sent = [tensors if rank == self.rank else word.empty() for rank, word in enumerate(found)]
        with _lost():
            for rank, those in enumerate(sent):
                for tensor in those:
                    self._send(tensor, rank)
        return [word.whole(those) for word, those in zip(found, sent, strict=True)]

    def _send(self, tensor: Tensor, rank: int) -> None:
        """Give a tensor of the CPU to all, over the link of the devices."""
        import torch
        import torch.distributed as dist

        plain = tensor.reshape(-1).view(torch.uint8)
        moved = plain.to(self._device)
        dist.broadcast(moved, rank)
        if moved is not plain and rank != self.rank:
            plain.copy_(moved)


@contextmanager
def _lost() -> Iterator[None]:
    """Say in a sentence that a process is gone."""
    try:
        yield
    except RuntimeError as error:  # what gloo and NCCL raise where a connection is closed
        raise told(LostError("a process of the group is gone, so that the others stop")) from error


def invited(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is one of several that ``torchrun``, or what does the same, has started."""
    return all(name in environment for name in _INVITATION) and int(environment["WORLD_SIZE"]) > 1


def join(device: str) -> Group:
    """The group that this process was started in; alone if there is none.

    Args:
        device: where all compute; of GPUs each takes the one of its place on its machine.

    Raises:
        InputError: if there are fewer GPUs than processes on a machine, or they do not find each other.
    """
    return _joined(device) if invited() else ALONE


def leave() -> None:
    """Part from the others for good, when all is done: a thread that still listens ends the process with a signal."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


@cache
def _joined(device: str) -> Group:
    import torch
    import torch.distributed as dist

    place = int(os.environ.get("LOCAL_RANK", os.environ["RANK"]))
    if device == "cuda":
        _take_gpu(place)
        os.environ.setdefault("NCCL_NVLS_ENABLE", "0")  # multicast serves sums of NCCL's own, whose order is not fixed
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    try:
        if not dist.is_initialized():
            dist.init_process_group(backend, timeout=PATIENCE)
        words = dist.new_group(backend="gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"the processes of the group do not find each other: {error}") from error
    if device == "cuda":
        torch.cuda.set_device(0)
    return Joined(dist.get_rank(), dist.get_world_size(), device, words)


def _take_gpu(place: int) -> None:
    """Let this process see one GPU alone, so that each of its threads computes there.

    Raises:
        InputError: if there are too few.
    """
    import torch

    if os.environ.get("QCOMPILE_GPU") == str(place):  # taken before torch was loaded
        return
    there = torch.cuda.device_count()  # without beginning to use one
    if place >= there:
        raise InputError(f"process {place} of this machine has no GPU of its own: there are {there}")
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = seen.split(",") if seen else [str(number) for number in range(there)]
    os.environ |= {"CUDA_VISIBLE_DEVICES": names[place], "QCOMPILE_GPU": str(place)}
