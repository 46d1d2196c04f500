"""Constants: computed when read, mapped from files, checked."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from threading import Lock, RLock
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from qcompile.errors import InputError
from qcompile.ir.required import constant

if TYPE_CHECKING:
    import torch

__all__ = [
    "Derived", "EAGER_BYTES", "Turned", "check_weights", "holds_infinity", "initializers", "on_device", "origin",
    "read", "release", "shared_tensor", "taken_lines", "total_bytes", "weights_of",
]  # fmt: skip

#: Below this many bytes of constants, folded ones are kept in memory.
EAGER_BYTES = 4 << 30

_BYTES = "qcompile.bytes"
_FINITE = "qcompile.finite"


#: Held while a file is mapped for a tensor, or let go of: that may happen in several threads.
_MAPPING = RLock()


class Derived(ir.LazyTensor):
    """A constant that is computed from another one when it is read.

    Args:
        source: the other one.
        compute: makes the constant of it; called from any thread, so it reads with ``read``.
        shape: of the result.
        name: of the result.
        keep: whether the result stays in memory; without, it is computed again at each read.
        dtype: of the result, if it is not that of the source.

    ``origin`` is the constant at the beginning, which came with the model.
    """

    def __init__(
        self, source: ir.TensorProtocol, compute: Callable[[ir.TensorProtocol], ir.TensorProtocol],
        shape: ir.ShapeProtocol, *, name: str | None, keep: bool = False, dtype: ir.DataType | None = None,
    ) -> None:  # fmt: skip
        made = partial(compute, source)
        super().__init__(made, dtype or source.dtype, ir.Shape(shape.numpy()), name=name, cache=keep)
        self.source = source
        self.origin = origin(source)
        self._computing = Lock()

    def on(self, device: torch.device) -> torch.Tensor:
        """The constant as a tensor of torch, on a device."""
        return _moved(ir.tensor(self.numpy()), device)

    def _evaluate(self) -> ir.TensorProtocol:
        with self._computing:  # once, whoever asks
            return super()._evaluate()


class Turned(Derived):
    """A constant that is another one with its axes in another order.

    Args:
        source: the other one.
        order: its axes, as those of the result.
    """

    def __init__(self, source: ir.TensorProtocol, order: Sequence[int], *, name: str | None) -> None:
        shape = ir.Shape([source.shape.numpy()[axis] for axis in order])
        super().__init__(source, lambda tensor: ir.tensor(read(tensor).transpose(order)), shape, name=name)
        self.order = tuple(order)


def origin(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """The constant that a constant is computed from: itself, if it is not computed."""
    return tensor.origin if isinstance(tensor, Derived) else tensor


def read(tensor: ir.TensorProtocol) -> np.ndarray:
    """The array of a tensor, also while other threads read or release it."""
    if isinstance(tensor, Derived):
        return tensor.numpy()
    with _MAPPING:
        return tensor.numpy()


def on_device(tensor: ir.TensorProtocol, device: torch.device) -> torch.Tensor:
    """A constant as a tensor of torch; on a GPU, what it is computed by is computed there."""
    found = tensor.on(device) if isinstance(tensor, Derived) else _moved(tensor, device)
    release(tensor)
    return found


def _moved(tensor: ir.TensorProtocol, device: torch.device) -> torch.Tensor:
    import torch

    array, short = read(tensor), tensor.dtype is ir.DataType.BFLOAT16
    array = array.view(np.int16) if short else array
    readable = array.flags.c_contiguous and array.size and not (short and device.type == "cpu")
    moved = (shared_tensor(array) if readable else torch.from_numpy(np.array(array))).to(device)
    return moved.view(torch.bfloat16) if short else moved


def shared_tensor(array: np.ndarray) -> torch.Tensor:
    """A tensor over the memory of an array, which nobody writes to, though torch does not know that."""
    import torch

    if array.flags.writeable:
        return torch.from_numpy(array)
    content = (ctypes.c_char * array.nbytes).from_address(array.ctypes.data)
    content.array = array  # type: ignore[attr-defined]  # torch keeps the buffer, and that the memory
    dtype = torch.from_numpy(np.zeros(0, array.dtype)).dtype
    return torch.frombuffer(content, dtype=dtype).view(array.shape)


def taken_lines(tensor: ir.TensorProtocol, places: np.ndarray, axis: int) -> ir.TensorProtocol:
    """Some lines of a constant along an axis, in that order; one may be taken more than once."""
    return ir.tensor(np.take(read(tensor), places, axis))


def release(tensor: ir.TensorProtocol) -> None:
    """Let go of the pages of a memory-mapped tensor, so that large models stream through."""
    while isinstance(tensor, Derived):
        tensor = tensor.source
    if isinstance(tensor, ir.ExternalTensor):
        try:
            with _MAPPING:
                tensor.release()
        except BufferError:  # an array over it is still in use somewhere; its pages stay until that is gone
            return


def initializers(model: ir.Model) -> Iterator[tuple[str, ir.Value]]:
    """Constants by name, those of bodies among them."""
    for graph in model.graphs():
        yield from ((name, value) for name, value in graph.initializers.items() if value.const_value is not None)


def weights_of(model: ir.Model) -> dict[str, ir.TensorProtocol]:
    """Constants of floating-point numbers by name."""
    found = {name: constant(value) for name, value in initializers(model)}
    return {name: tensor for name, tensor in found.items() if tensor.dtype.is_floating_point() and tensor.size}


def check_weights(weights: Mapping[str, ir.TensorProtocol], path: str) -> bool:
    """Refuse weights with NaN; returns whether none holds infinity.

    It maps files by itself, so that others may read the same tensors meanwhile.

    Raises:
        InputError: naming the file and the weight.
    """
    infinite = [(name, tensor) for name, tensor in weights.items() if not _is_finite(tensor)]
    for name, tensor in infinite:
        if np.isnan(_mapped(tensor).astype(np.float64)).any():
            raise InputError(f"weight '{name}' of '{path}' holds NaN")
    return not infinite


def holds_infinity(tensor: ir.TensorProtocol) -> bool:
    """Whether a constant holds infinity, or is computed from one that does."""
    while isinstance(tensor, Derived):
        tensor = tensor.source
    if not tensor.dtype.is_floating_point() or not tensor.size or _is_finite(tensor):
        return False
    return bool(np.isinf(_mapped(tensor).astype(np.float64)).any())


def _is_finite(tensor: ir.TensorProtocol) -> bool:
    """Whether a constant holds nothing but numbers; asked once of each tensor, by whichever thread comes first."""
    if _FINITE not in tensor.meta:
        array = _mapped(tensor)
        tensor.meta[_FINITE] = _sums_up(array) or bool(np.isfinite(array.astype(np.float64)).all())
    return bool(tensor.meta[_FINITE])


def _sums_up(array: np.ndarray) -> bool:
    # A sum is not finite if any element is not, and needs no array of flags. It may also overflow: then look closer.
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(array.sum(dtype=np.float32)))


def _mapped(tensor: ir.TensorProtocol) -> np.ndarray:
    if not isinstance(tensor, ir.ExternalTensor) or tensor.dtype.bitwidth < 8:
        return read(tensor)
    dtype = tensor.dtype.numpy().newbyteorder("<") if tensor.dtype.bitwidth > 8 else tensor.dtype.numpy()
    return np.memmap(tensor.path, dtype, "r", tensor.offset or 0, tensor.shape.numpy())


def total_bytes(model: ir.Model) -> int:
    """Bytes of all constants when first asked; passes keep their number about the same."""
    if _BYTES not in model.meta:
        constants = (v.const_value for v in model.graph.initializers.values())
        model.meta[_BYTES] = sum(tensor.nbytes for tensor in constants if tensor is not None)
    return model.meta[_BYTES]
