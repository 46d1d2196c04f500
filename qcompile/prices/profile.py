"""Profiles: what products, online transforms and other operators cost on one machine, for one target."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qcompile.errors import InputError
from qcompile.prices.linear_model import Work, elements, seconds

if TYPE_CHECKING:
    from qcompile.targets.scheme import Scheme
    from qcompile.transforms import Transform

__all__ = [
    "CONVOLUTION", "OTHER", "Profile", "input_work", "kind_of", "product_work", "stored_bytes", "transform_work",
]  # fmt: skip

#: The kind of convolutions.
CONVOLUTION = "convolution"

#: The kind of operators that are none of those that were measured.
OTHER = "other"


@dataclass(frozen=True)
class Profile:
    """Seconds that one of each sort of work takes.

    Args:
        target: whose artifacts were measured.
        machine: where, in the words of ``machine.machine``.
        products: by kind of scheme; see ``product_work`` and ``input_work``.
        transforms: of online transforms; see ``transform_work``.
        operators: of all else by kind; see ``operator_work``.
        apart: the mean relative error that each fit leaves on what it was fitted to.
    """

    target: str
    machine: Mapping[str, str | int]
    products: Mapping[str, Work]
    transforms: Work
    operators: Mapping[str, Work]
    apart: Mapping[str, float]

    def product(self, kind: str, work: Work) -> float:
        """Seconds of work of products of a kind.

        Raises:
            InputError: if no such product was measured.
        """
        if kind not in self.products:
            raise InputError(
                f"the profile of '{self.target}' has no products of kind {kind}, only {', '.join(self.products)}: "
                f"`qcompile profile {self.target}` measures them anew"
            )
        return seconds(self.products[kind], work)

    def transform(self, transform: Transform, rows: float) -> float:
        """Seconds of an online transform of so many rows."""
        return seconds(self.transforms, transform_work(transform, rows))

    def operator(self, kind: str, work: Work) -> float:
        """Seconds of an operator that is no site."""
        return seconds(self.operators.get(kind, self.operators[OTHER]), work)

    def to_json(self) -> dict[str, Any]:
        """The profile as a file holds it."""
        return asdict(self)

    @staticmethod
    def read(path: Path) -> Profile:
        """The profile in a file.

        Raises:
            InputError: if it holds none.
        """
        try:
            return Profile(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"'{path}' holds no profile, as `qcompile profile` writes them: {error}") from error

    @property
    def digest(self) -> str:
        """SHA-256 of the content."""
        return sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()


def kind_of(scheme: Scheme, *, convolution: bool = False) -> str:
    """The kind of kernel: ``w4``, ``w8a8``, ``w8a8-tensor``, ``w32``; the width of groups shows in the bytes.

    Runtimes whose times are measured compute convolutions in float, whatever their weights are stored as.
    """
    if convolution:
        return CONVOLUTION
    if scheme.weight is None:
        return "w32"
    if scheme.activation is None:
        return f"w{scheme.weight.bits:g}"
    return f"w{scheme.weight.bits:g}a{scheme.activation.bits:g}" + ("-tensor" if scheme.activation.whole else "")


def product_work(
    scheme: Scheme, rows: float, width: int, outs: int, weights: int, *, cold: float = 0.0, far: float = 0.0
) -> dict[str, float]:  # fmt: skip
    """The work of a product ``[rows, width] x [width, outs]``.

    Args:
        weights: numbers that its weight holds.
        cold: the share of its bytes that come from further than the cache of a core, which does not hold the weights
            of the whole graph.
        far: the share that comes from memory.
    """
    stored = stored_bytes(scheme, width, weights)
    return {
        "product": 1.0, "cold": cold, "byte": stored, "cold_byte": cold * stored, "far_byte": far * stored,
        "multiply_add": rows * width * outs, **elements("output", rows * outs),
    }  # fmt: skip


def stored_bytes(scheme: Scheme, width: int, weights: int) -> float:
    """Bytes of so many weights in rows of a width, scales included."""
    return weights * (32.0 if scheme.weight is None else scheme.weight.bits_per_weight(width)) / 8


def input_work(rows: float, width: int) -> dict[str, float]:
    """The work that products of one input share: its codes are made once."""
    return {"call": 1.0, **elements("input", rows * width)}


def transform_work(transform: Transform, rows: float) -> dict[str, float]:
    """The work of an online transform of ``[rows, size]``, step by step."""
    steps = transform.factors()
    multiplied = sum(matrix.shape[-1] if matrix.ndim > 1 else 1 for _, _, matrix in steps)
    size, count = rows * transform.size, len(steps)
    moved = {name: count * amount for name, amount in elements("element", size).items()}
    return {"step": float(count), "multiply_add": size * multiplied, **moved}
