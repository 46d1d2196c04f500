"""All formats by name: ``FORMATS`` has the scalar ones, ``EXTENDED_FORMATS`` those with a structure of their own."""

from __future__ import annotations

from qcompile.errors import InputError, nearest
from qcompile.formats.format import Format
from qcompile.formats.registry import SCALAR_FORMATS
from qcompile.formats.static import TENSOR_FORMATS
from qcompile.formats.structured.family import FAMILIES, FamilyFormat
from qcompile.formats.structured.trit_planes import PLANE_FORMATS, PlaneFormat
from qcompile.formats.structured.twin_log import TWIN_LOG_FORMATS, TwinLogFormat
from qcompile.formats.structured.two_axis import TWO_AXIS_FORMATS, TwoAxisFormat
from qcompile.formats.structured.vector import VECTOR_FORMATS, VectorFormat

__all__ = ["EXTENDED_FORMATS", "FORMATS", "AnyFormat", "get_activation", "get_format"]

ExtendedFormat = FamilyFormat | VectorFormat | PlaneFormat | TwoAxisFormat | TwinLogFormat
AnyFormat = Format | ExtendedFormat

FORMATS: dict[str, Format] = SCALAR_FORMATS
EXTENDED_FORMATS: dict[str, ExtendedFormat] = {
    **FAMILIES, **VECTOR_FORMATS, **PLANE_FORMATS, **TWO_AXIS_FORMATS, **TWIN_LOG_FORMATS,
}  # fmt: skip


def get_format(name: str) -> AnyFormat:
    """The format of that name.

    Raises:
        InputError: with the names that come closest.
    """
    found = FORMATS.get(name) or EXTENDED_FORMATS.get(name)
    if found is not None:
        return found
    near = nearest(name, [*FORMATS, *EXTENDED_FORMATS], 4)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise InputError(f"there is no format {name!r}{hint}")


def get_activation(name: str) -> Format:
    """The format of that name, in which activations can be quantized as they come.

    Raises:
        InputError: if there is none, or it has a structure of its own.
    """
    found = TENSOR_FORMATS.get(name) or get_format(name)
    if not isinstance(found, Format):
        raise InputError(f"no target quantizes activations to '{name}': it has a structure of its own")
    return found
