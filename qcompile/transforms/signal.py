"""Transforms of signals: cosines, Haar's wavelets, real Fourier waves, and the one that fits a second moment."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal

import torch

from qcompile.errors import InputError
from qcompile.transforms.composite import BlockDiagonal, Compose
from qcompile.transforms.fields import StepTransform
from qcompile.transforms.freedom import Freedom
from qcompile.transforms.hadamard import Hadamard
from qcompile.transforms.orders.orders import has_hadamard
from qcompile.transforms.steps import Step
from qcompile.transforms.transform import Transform

__all__ = ["Signal", "leakage", "matched"]

Form = Literal["dct", "haar", "dft"]


@dataclass(frozen=True, eq=False)
class Signal(StepTransform):
    """An orthogonal transform that gathers what is smooth in few channels.

    Args:
        size: the order.
        form: ``"dct"``, ``√(2/n) c_k cos(π (2j + 1) k / 2n)``; ``"haar"``, means and differences of pairs, and of the
            means again while they are even in number; ``"dft"``, the real discrete Fourier transform, cosine and sine
            of a frequency next to each other.
        transposed: whether this is the transpose.

    Raises:
        InputError: on another form.
    """

    kind: ClassVar[str] = "signal"
    size: int
    form: Form = "dct"
    transposed: bool = False

    def __post_init__(self) -> None:
        if self.form not in _MATRICES:
            raise InputError(f"the transform of signals '{self.form}' is none of {', '.join(_MATRICES)}")

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
    return _MATRICES[form](size)


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


def _fourier(size: int) -> torch.Tensor:
    k, j = torch.arange(size // 2 + 1, dtype=torch.float64)[:, None], torch.arange(size, dtype=torch.float64)
    angles = 2 * torch.pi * k * j / size
    waves = torch.stack([torch.cos(angles), torch.sin(angles)], 1).flatten(0, 1)
    norms = waves.norm(dim=1, keepdim=True)
    kept = norms[:, 0] > 0.5  # the sines of the mean, and of the highest frequency of an even size, vanish
    return (waves / norms)[kept]


_MATRICES: dict[str, Callable[[int], torch.Tensor]] = {"dct": _cosines, "haar": _haar, "dft": _fourier}


# -- by the moment -----------------------------------------------------------------------------------------------------


def leakage(moments: torch.Tensor, transform: Transform) -> float:
    """``‖off(T G Tᵀ)‖ / ‖G‖``: 0 where a transform makes channels independent.

    Args:
        moments: second moments of blocks, ``[count, b, b]``.
        transform: of ``b`` channels, orthogonal.
    """
    turned = transform.apply(transform.apply(moments, 1), 2)
    turned.diagonal(dim1=1, dim2=2).zero_()
    return float(turned.norm() / moments.norm().clamp_min(1e-30))


def matched(moments: torch.Tensor) -> Transform | None:
    """The transform of signals that nearly makes channels independent, then Hadamard; in blocks if there are several.

    Of cosines, wavelets, Walsh functions and the Fourier transform the one of least ``leakage`` is taken: each is that
    of the group which a moment may be invariant under (a unification of signal transforms). Eigenvectors leak nothing,
    but have no structure; those are the kind ``klt``. ``None`` where the blocks have no Hadamard matrix.

    Args:
        moments: second moments of blocks, ``[count, b, b]``.
    """
    count, size, _ = moments.shape
    if not has_hadamard(size):
        return None
    made: list[Transform] = [*(Signal(size, form) for form in ("dct", "haar", "dft")), Hadamard(size)]
    block = Compose((min(made, key=lambda t: leakage(moments, t)), Hadamard(size, 0)))
    return block if count == 1 else BlockDiagonal(block, count)
