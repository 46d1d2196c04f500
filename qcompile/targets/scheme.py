"""How a site computes: the formats of its weight and of its input."""

from __future__ import annotations

from dataclasses import dataclass

from qcompile.errors import InputError
from qcompile.formats.catalogue import get_activation, get_format
from qcompile.formats.format import Format
from qcompile.formats.scalar import Scalar, is_scalar
from qcompile.formats.static import TENSOR_FORMATS

__all__ = ["FLOAT", "Scheme"]


@dataclass(frozen=True)
class Scheme:
    """How one site computes: the format of its weight, and of its input, quantized as it runs.

    Args:
        weight: ``None`` keeps the weight as it is.
        activation: ``None`` keeps the input as it is. A static format has a range for each value, which plans hold.
    """

    weight: Scalar | None = None
    activation: Format | None = None

    @property
    def name(self) -> str:
        """``"nvfp4/nvfp4"``, ``"int4-g32"`` for weights alone, ``"float"`` for neither."""
        if self.weight is None:
            return "float"
        return self.weight.name + (f"/{self.activation.name}" if self.activation else "")

    @property
    def static(self) -> bool:
        """Whether the input has a scale that data must teach beforehand."""
        return self.activation is not None and self.activation.static

    @property
    def group(self) -> int | None:
        """Weights that share a scale; ``None`` where whole rows do, or where nothing is quantized."""
        return self.weight.group if self.weight else None

    @property
    def bits(self) -> float:
        """Bits of one weight code, without scales; 32 for ``float``."""
        return self.weight.bits if self.weight else 32

    @staticmethod
    def parse(text: str) -> Scheme:
        """The scheme of that name.

        Raises:
            InputError: if a format is unknown, or has a structure that no target computes with.
        """
        if text == "float":
            return FLOAT
        weight, _, activation = text.partition("/")
        if weight in TENSOR_FORMATS:
            raise InputError(f"'{weight}' is a format of activations: a weight is known, and has scales of its own")
        of_weight, of_input = get_format(weight), get_activation(activation) if activation else None
        if not is_scalar(of_weight):
            raise InputError(f"no target runs '{weight}': its codes are not levels of single values")
        return Scheme(of_weight, of_input)


#: Neither weight nor input quantized.
FLOAT = Scheme()
