"""The second moment of rows that come in parts, and how far so few of them can be trusted."""

from __future__ import annotations

import mmap
import tempfile
from typing import TYPE_CHECKING, Any

import numpy as np

from qcompile.group.group import ALONE, Group, LaneSum
from qcompile.ir.tensors import shared_tensor

if TYPE_CHECKING:
    import torch

__all__ = ["SecondMoment", "moment_on", "product", "shrinkage"]


#: Features up to which moments are kept in float64 and in RAM.
_EXACT = 1024


class SecondMoment:
    """``E[x xᵀ]``, summed up part by part, on the device of the rows.

    Args:
        group: the processes that have the parts, each those of some lanes.
    """

    def __init__(self, group: Group = ALONE) -> None:
        self._group, self._sum = group, LaneSum(group)
        self._total: Any = None
        self._squares: list[Any] = []  # of each part
        self._parts = self.rows = 0
        self._settled: np.ndarray | None = None
        self._effective = self._square_sum = 0.0

    def add(self, x: torch.Tensor, lane: int | None = None) -> None:
        """Take rows ``[rows, size]`` in: a part of the data, like which others may be or not."""
        if len(x):
            moment = product(x, x)
            self._sum.add(moment, lane)
            self._squares.append(moment.ravel() @ moment.ravel())
            self._parts, self.rows = self._parts + 1, self.rows + len(x)

    def _complete(self) -> Any:
        """The sum over all parts of all processes; nothing more will be added."""
        if self._total is None:
            own = np.array([float(square) for square in self._squares], np.float32)
            parts = self._group.gathered(lambda: (self.rows, own))
            squares = np.concatenate([found for _, found in parts])
            self.rows, self._parts = sum(rows for rows, _ in parts), len(squares)
            self._square_sum = float(np.add.accumulate(squares)[-1]) if len(squares) else 0.0  # one by one, in float32
            self._total = self._sum.joined()
        return self._total

    def settle(self) -> None:
        """Bring the result to RAM, or, if it is large, into a file that goes with it: nothing more will be added."""
        if self._settled is not None or self._complete() is None:
            return
        matrix = self._total / self.rows
        self._effective = self._independent(matrix)
        large = len(matrix) > _EXACT
        kept = (matrix.float() if large else matrix).cpu().numpy()
        self._settled = _filed(kept) if large else kept
        self._total, self._sum = None, LaneSum(self._group)

    @property
    def array(self) -> np.ndarray:
        """``[size, size]`` float64, of more than 1,024 features float32; empty without a row."""
        self.settle()
        return np.zeros((0, 0)) if self._settled is None else self._settled

    @property
    def matrix(self) -> torch.Tensor:
        """``[size, size]`` float64 on the device of the rows; empty without a row."""
        import torch

        nothing = torch.zeros(0, 0, dtype=torch.float64)
        total = self._complete()
        moment: torch.Tensor = nothing if total is None else total / self.rows
        return moment

    @property
    def effective(self) -> float:
        """The number of independent normal rows whose moment would vary as much as that of the parts does.

        Rows of one text are alike: a thousand of them may say as much as ten of different texts. Of one part nothing
        is known, which is 0.
        """
        return self._independent(self.matrix) if self._settled is None else self._effective

    def _independent(self, matrix: torch.Tensor) -> float:
        if self._parts < 2:
            return 0.0
        square = float(matrix.square().sum())
        variance = self._square_sum / self.rows**2 - square / self._parts
        variance *= self._parts / (self._parts - 1)
        spread = float(matrix.trace()) ** 2 + square
        return min(self.rows, spread / variance) if variance > 0 else self.rows


def _filed(array: np.ndarray) -> np.ndarray:
    """The same content, mapped from a file without a name, which goes when nothing maps it any more."""
    with tempfile.TemporaryFile(prefix="qcompile-") as file:
        array.tofile(file)
        file.flush()
        return np.memmap(file, array.dtype, "r", shape=array.shape)


def moment_on(moment: np.ndarray, device: str | torch.device, dtype: torch.dtype) -> torch.Tensor:
    """A copy of a settled moment ``[size, size]`` on a device; pages of its file are let go of once they are read."""
    found = shared_tensor(np.ascontiguousarray(moment)).to(device).to(dtype, copy=True)
    mapped = getattr(moment, "_mmap", None)
    if mapped is not None:
        mapped.madvise(mmap.MADV_DONTNEED)
    return found


def product(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """``xᵀ y`` in float32, of rows ``[rows, size]``.

    Of bfloat16 on a GPU every product of two values is exact, and only their sum is rounded: that takes a twentieth of
    the time.
    """
    import torch

    if x.is_cuda and x.dtype is y.dtype is torch.bfloat16:
        return torch.mm(x.T, y, out_dtype=torch.float32)
    return x.T.float() @ y.float()


def shrinkage(moment: torch.Tensor, effective: float) -> float:
    """The part ρ of a moment that should be replaced: ``(1 - ρ) G + ρ μ I`` errs least, ``μ`` its mean diagonal.

    After Ledoit and Wolf (Journal of Multivariate Analysis 88, 2004).

    Args:
        moment: ``[size, size]``, or blocks ``[count, size, size]``, for which there is one figure.
        effective: how many rows it was learned from; see ``SecondMoment``.

    Returns:
        from 0 to 1, where the moment says nothing.
    """
    blocks = moment.reshape(-1, *moment.shape[-2:])
    square, traces = float(blocks.square().sum()), blocks.diagonal(dim1=-2, dim2=-1).sum(-1).square().sum()
    variance, distance = square + float(traces), square - float(traces) / blocks.shape[-1]
    return min(1.0, variance / (effective * distance)) if effective * distance > 0 else 1.0
