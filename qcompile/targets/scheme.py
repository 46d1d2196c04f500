"""How a site computes: the formats of its weight and of its input."""

from __future__ import annotations

from dataclasses import dataclass

from qcompile.errors import TargetError
from qcompile.formats.catalogue import AnyFormat, get_format
from qcompile.formats.format import Format

__all__ = ["FLOAT", "Scheme"]


@dataclass(frozen=True)
class Scheme:
    """How one site computes: the format of its weight, and of its input, quantized as it runs.

    Args:
        weight: ``None`` keeps the weight as it is.
        activation: ``None`` keeps the input as it is.
    """

    weight: AnyFormat | None = None
    activation: AnyFormat | None = None

    @property
    def name(self) -> str:
        """``"nvfp4/nvfp4"``, ``"int4-g32"`` for weights alone, ``"float"`` for neither."""
        if self.weight is None:
            return "float"
        return self.weight.name + (f"/{self.activation.name}" if self.activation else "")

    @property
    def scalar_activation(self) -> Format | None:
        """The format of the input, for a kernel.

        Raises:
            TargetError: if it has a structure of its own, which no kernel quantizes to.
        """
        if self.activation is None or isinstance(self.activation, Format):
            return self.activation
        raise TargetError(f"no kernel quantizes activations to '{self.activation.name}'")

    @property
    def bits(self) -> float:
        """Bits of one weight code, without scales; 32 for ``float``."""
        return self.weight.bits if self.weight else 32

    @staticmethod
    def parse(text: str) -> Scheme:
        """The scheme of that name.

        Raises:
            InputError: if a format is unknown.
        """
        if text == "float":
            return FLOAT
        weight, _, activation = text.partition("/")
        return Scheme(get_format(weight), get_format(activation) if activation else None)


#: Neither weight nor input quantized.
FLOAT = Scheme()
