"""Objects parted into what is pickled and the tensors within, which go faster by themselves."""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Words", "parted"]

#: Bytes from which a tensor goes by itself.
LEAST = 1 << 16


@dataclass(frozen=True)
class Words:
    """An object without its large tensors.

    Args:
        pickled: the object, in which they have numbers.
        tensors: by number, the type and the shape of each.
    """

    pickled: bytes
    tensors: tuple[tuple[Any, tuple[int, ...]], ...]

    def empty(self) -> list[Tensor]:
        """Room for the tensors."""
        import torch

        return [torch.empty(shape, dtype=dtype) for dtype, shape in self.tensors]

    def whole(self, tensors: Sequence[Tensor]) -> Any:
        """The object with its tensors."""
        return _Joining(io.BytesIO(self.pickled), tensors).load()


class _Parting(pickle.Pickler):
    """Leaves large tensors of the CPU out, and keeps them."""

    def __init__(self, file: io.BytesIO) -> None:
        import torch

        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self._sort, self.tensors = torch.Tensor, list["Tensor"]()

    def persistent_id(self, obj: Any) -> int | None:
        """The number of a tensor that goes by itself."""
        if type(obj) is not self._sort or obj.is_cuda or obj.nbytes < LEAST:
            return None
        self.tensors.append(obj.detach().contiguous())
        return len(self.tensors) - 1


class _Joining(pickle.Unpickler):
    """Puts them back."""

    def __init__(self, file: io.BytesIO, tensors: Sequence[Tensor]) -> None:
        super().__init__(file)
        self._tensors = tensors

    def persistent_load(self, pid: int) -> Tensor:
        """The tensor of a number."""
        return self._tensors[pid]


def parted(whole: Any) -> tuple[Words, list[Tensor]]:
    """An object's words, and its tensors."""
    file = io.BytesIO()
    parting = _Parting(file)
    parting.dump(whole)
    return Words(file.getvalue(), tuple((t.dtype, tuple(t.shape)) for t in parting.tensors)), parting.tensors
