"""The transform: an invertible matrix with structure.

Convention, everywhere in qcompile: a transform ``T`` of size ``n`` acts on column vectors. A value with a
transformed axis holds ``x' = T x`` along it. A site ``y = W x + b`` (``W`` written as ``[out, in]``) that reads
``x' = T_in x`` and is to write ``y' = T_out y`` holds ``W' = T_out W T_in⁻¹`` and ``b' = T_out b``: along its
output axis a weight is hit by ``T_out``, along its input axis by ``T_in⁻ᵀ``.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from qcompile.transforms.freedom import Freedom

if TYPE_CHECKING:
    import torch

    from qcompile.transforms.steps import Step

__all__ = ["Transform"]


class Transform(ABC):
    """An invertible ``size x size`` matrix that knows its structure.

    Subclasses are frozen dataclasses whose fields are how they are constructed (size, seed, factors), never a
    dense matrix where a construction exists; ``to_json`` and ``from_json`` round-trip through those fields. A class
    that names its ``kind`` is registered in ``kinds``.
    """

    kind: ClassVar[str]
    kinds: ClassVar[dict[str, type[Transform]]] = {}
    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    def __init_subclass__(cls, **options: Any) -> None:
        """Register the kind, if the class names one: ``from_json`` finds it there."""
        super().__init_subclass__(**options)
        if "kind" in vars(cls):
            cls.kinds[cls.kind] = cls

    if TYPE_CHECKING:  # a field of some subclasses: a property that is really there would become its default

        @property
        @abstractmethod
        def size(self) -> int:
            """Elements along the axis."""

    @property
    @abstractmethod
    def group(self) -> Freedom:
        """The smallest named group that holds this matrix for every choice of its random signs."""

    @property
    def orthogonal(self) -> bool:
        """Whether ``TᵀT = I``."""
        return self.group in Freedom.ORTHOGONAL

    @abstractmethod
    def apply(self, x: torch.Tensor, axis: int = -1) -> torch.Tensor:
        """``T x`` along ``axis``, in the dtype and on the device of ``x``, at the cost of ``flops``.

        Raises:
            InputError: if ``x.shape[axis] != size``.
        """

    @abstractmethod
    def apply_(self, x: torch.Tensor, axis: int = -1) -> torch.Tensor:
        """``T x`` written over ``x``, which is contiguous."""

    @abstractmethod
    def inverse(self) -> Transform:
        """``T⁻¹``."""

    @abstractmethod
    def transpose(self) -> Transform:
        """``Tᵀ``."""

    def dual(self) -> Transform:
        """``T⁻ᵀ``: what a weight is multiplied by along the axis that it reads, itself if orthogonal."""
        return self if self.orthogonal else self.inverse().transpose()

    @property
    @abstractmethod
    def flops(self) -> int:
        """Floating-point operations to apply it to one vector."""

    @abstractmethod
    def factors(self) -> list[Step]:
        """The matrix as a product of steps that a graph or a kernel can run, first applied first.

        Each step is ``(outer, inner, M)``: view the axis as ``[outer, m, inner]`` with ``M`` an ``m x m``
        float64 matrix, and multiply ``M`` along the middle; the steps of a Kronecker product are its factors,
        a diagonal is one step whose ``M`` is a vector of length ``size``.
        """

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """``{"kind", "size", ...}``: enough to construct it again."""

    def __str__(self) -> str:
        """``kind(size, field=value, …)`` on one line, without fields at their default; of tensors the shape."""
        parts = [str(self.size)]
        for field in dataclasses.fields(self):
            text = _brief(getattr(self, field.name))
            if field.name != "size" and text != _brief(field.default):
                parts.append(f"{field.name}={text}")
        return f"{self.kind}({', '.join(parts)})"

    def matrix(self) -> torch.Tensor:
        """The dense float64 matrix; for tests and small sizes."""
        import torch

        return self.apply(torch.eye(self.size, dtype=torch.float64), axis=0)


def _brief(value: Any) -> str:
    if hasattr(value, "shape"):
        return f"{'x'.join(map(str, value.shape))} values"
    if isinstance(value, tuple):
        return f"[{', '.join(map(_brief, value))}]"
    return str(value)
