"""The common part of all transforms: tensors as dataclass fields, their JSON form, and joins of groups."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch

from qcompile.errors import InputError
from qcompile.transforms.freedom import Freedom
from qcompile.transforms.steps import Step, apply_steps, check_axis, to_dtype
from qcompile.transforms.transform import Transform

__all__ = ["StepTransform", "as_tensor", "decode_tensor", "encode_tensor", "freeze", "join"]

_NAMED = [freedom for name, freedom in Freedom.__members__.items() if not name.startswith("_")]


def join(groups: Iterable[Freedom]) -> Freedom:
    """The smallest named group that holds all of ``groups``."""
    union = Freedom.NONE
    for group in groups:
        union |= group
    return min((g for g in _NAMED if union in g), key=lambda g: g.value.bit_count())


def freeze(transform: Transform, **values: object) -> None:
    """Set fields of a frozen dataclass in its ``__post_init__``."""
    for name, value in values.items():
        object.__setattr__(transform, name, value)


def as_tensor(values: Any, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """A detached CPU copy in ``dtype``; InputError if it holds NaN or infinity."""
    tensor = torch.as_tensor(values).detach().to("cpu", dtype, copy=True).contiguous()
    if dtype.is_floating_point and not torch.isfinite(tensor).all():
        raise InputError("a transform cannot hold NaN or infinity")
    return tensor


def encode_tensor(tensor: torch.Tensor) -> dict[str, Any]:
    """Shape, type and little-endian bytes in base64."""
    array = tensor.numpy()
    array = array.astype(array.dtype.newbyteorder("<"))
    return {"shape": list(array.shape), "dtype": array.dtype.name, "data": base64.b64encode(array.tobytes()).decode()}


def decode_tensor(data: Mapping[str, Any]) -> torch.Tensor:
    """The inverse of ``encode_tensor``."""
    array = np.frombuffer(base64.b64decode(data["data"]), np.dtype(data["dtype"]).newbyteorder("<"))
    return torch.from_numpy(array.astype(data["dtype"]).reshape(data["shape"]))


def _encode(value: Any) -> Any:
    """A field of a transform as JSON; indices are written out, other tensors are bytes."""
    if isinstance(value, Transform):
        return value.to_json()
    if isinstance(value, torch.Tensor):
        return encode_tensor(value) if value.dtype.is_floating_point else value.tolist()
    return [_encode(part) for part in value] if isinstance(value, tuple) else value


class StepTransform(Transform):
    """A transform that applies by running its steps, and compares and hashes by its fields.

    Subclasses are frozen dataclasses with ``eq=False`` and implement ``factors``; those with a faster split for
    torch than for graphs override ``torch_steps``.
    """

    @property
    def stepwise(self) -> bool:
        """Whether the steps cost no more than ``flops``: otherwise ``apply`` is written out."""
        return True

    def torch_steps(self, dtype: torch.dtype, device: torch.device) -> list[Step]:
        """The steps that torch runs fastest, in ``dtype`` on ``device``."""
        return to_dtype(self.factors(), dtype, device)

    def _steps(self, x: torch.Tensor) -> list[Step]:
        """``torch_steps`` for a tensor, found once: one transform meets every weight of a space."""
        known: dict[tuple[torch.dtype, torch.device], list[Step]] = self.__dict__.setdefault("_known_steps", {})
        if (x.dtype, x.device) not in known:
            known[x.dtype, x.device] = self.torch_steps(x.dtype, x.device)
        return known[x.dtype, x.device]

    def apply(self, x: torch.Tensor, axis: int = -1) -> torch.Tensor:
        """``T x`` along ``axis``; half precision is computed in float32 and rounded once."""
        axis = check_axis(x, self.size, axis, self.kind)
        work = x if x.dtype in (torch.float32, torch.float64) else x.float()
        return apply_steps(work, self._steps(work), axis).to(x.dtype)

    def apply_(self, x: torch.Tensor, axis: int = -1) -> torch.Tensor:
        """``T x`` written over ``x``, with no memory beyond a few cache-sized pieces where the transform has steps.

        Raises:
            InputError: if ``x`` is not contiguous.
        """
        axis = check_axis(x, self.size, axis, self.kind)
        if not x.is_contiguous():
            raise InputError("a transform can only be applied in place to a contiguous tensor")
        if not self.stepwise or x.dtype not in (torch.float32, torch.float64):
            return x.copy_(self.apply(x, axis))
        with torch.no_grad():
            apply_steps(x, self._steps(x), axis, in_place=True)
        return x

    def to_json(self) -> dict[str, Any]:
        """``{"kind", "size", …}`` with the fields under their names."""
        fields = {field.name: _encode(getattr(self, field.name)) for field in dataclasses.fields(self)}
        return {"kind": self.kind, "size": self.size, **fields}

    def _key(self) -> tuple[object, ...]:
        values = (getattr(self, field.name) for field in dataclasses.fields(self))
        return tuple(v.numpy().tobytes() if isinstance(v, torch.Tensor) else v for v in values)

    def __eq__(self, other: object) -> bool:
        return self is other or (type(self) is type(other) and self._key() == other._key())

    def __hash__(self) -> int:
        return self._hashed

    @cached_property
    def _hashed(self) -> int:
        """Found once: it reads every number, and the choice asks for it as often as it tries something."""
        return hash((type(self), self._key()))
