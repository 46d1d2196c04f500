"""Transforms of signals: the discrete cosine transform and Haar's wavelets, for what is smooth along an axis."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal

import torch

from qcompile.errors import InputError
from qcompile.transforms.fields import StepTransform
from qcompile.transforms.freedom import Freedom
from qcompile.transforms.steps import Step

__all__ = ["Signal"]


@dataclass(frozen=True, eq=False)
class Signal(StepTransform):
    """An orthogonal transform that gathers what is smooth in few channels.

    Args:
        size: the order.
        form: ``"dct"``, ``√(2/n) c_k cos(π (2j + 1) k / 2n)``; ``"haar"``, means and differences of pairs, and of the
            means again while they are even in number.
        transposed: whether this is the transpose.

    Raises:
        InputError: on another form.
    """

    kind: ClassVar[str] = "signal"
    size: int
    form: Literal["dct", "haar"] = "dct"
    transposed: bool = False

    def __post_init__(self) -> None:
        if self.form not in ("dct", "haar"):
            raise InputError(f"the transform of signals '{self.form}' is neither 'dct' nor 'haar'")

    @property
    def group(self) -> Freedom:
        return Freedom.ORTHOGONAL if self.size > 1 else Freedom.NONE

    def transpose(self) -> Signal:
        return dataclasses.replace(self, transposed=not self.transposed)

    def inverse(self) -> Signal:
        return self.transpose()

    @property
    def flops(self) -> int:
        return 2 * self.size**2

    def factors(self) -> list[Step]:
        matrix = _matrix(self.size, self.form)
        return [(1, 1, matrix.T.contiguous() if self.transposed else matrix)]

    def to_json(self) -> dict[str, Any]:
        """The fields; ``transposed`` where it is."""
        data = super().to_json()
        return data if self.transposed else {name: value for name, value in data.items() if name != "transposed"}


@lru_cache(maxsize=8)
def _matrix(size: int, form: str) -> torch.Tensor:
    return _cosines(size) if form == "dct" else _haar(size)


def _cosines(size: int) -> torch.Tensor:
    k, j = torch.arange(size, dtype=torch.float64)[:, None], torch.arange(size, dtype=torch.float64)
    matrix = torch.cos(torch.pi * (2 * j + 1) * k / (2 * size)) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix


def _haar(size: int) -> torch.Tensor:
    if size % 2:
        return torch.eye(size, dtype=torch.float64)
    half = torch.eye(size // 2, dtype=torch.float64)
    means = torch.kron(half, torch.ones(1, 2, dtype=torch.float64)) / math.sqrt(2)
    differences = torch.kron(half, torch.tensor([[1.0, -1.0]], dtype=torch.float64)) / math.sqrt(2)
    return torch.cat([_haar(size // 2) @ means, differences])
