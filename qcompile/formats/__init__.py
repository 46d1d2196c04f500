"""Number formats: the registry, and quantization to the bit.

    fmt = get_format("nvfp4")
    q = quantize(weight, fmt)            # codes, stored scales, tensor scale
    q.dequantize()                       # float32, in the shape of ``weight``
    unpack(pack(q))                      # bytes and back

Names that need torch are imported when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from qcompile.formats.catalogue import EXTENDED_FORMATS, FORMATS, AnyFormat, get_format
from qcompile.formats.elements import ELEMENTS
from qcompile.formats.format import Element, Format, Kind, ScaleRule, ScaleType

if TYPE_CHECKING:
    from qcompile.formats.fake import fake_quantize, fake_quantize_rows
    from qcompile.formats.packed import pack, unpack
    from qcompile.formats.quantizer import Quantized, compute_scales, decode, encode, quantize, round_to
    from qcompile.formats.scales import Scales
    from qcompile.formats.search import search_scales
    from qcompile.formats.static import range_within

_LAZY = {
    "Quantized": "quantizer",
    "Scales": "scales",
    "compute_scales": "quantizer",
    "decode": "quantizer",
    "encode": "quantizer",
    "fake_quantize": "fake",
    "fake_quantize_rows": "fake",
    "pack": "packed",
    "quantize": "quantizer",
    "range_within": "static",
    "round_to": "quantizer",
    "search_scales": "search",
    "unpack": "packed",
}

__all__ = [
    "ELEMENTS",
    "EXTENDED_FORMATS",
    "FORMATS",
    "AnyFormat",
    "Element",
    "Format",
    "Kind",
    "Quantized",
    "ScaleRule",
    "ScaleType",
    "Scales",
    "compute_scales",
    "decode",
    "encode",
    "fake_quantize",
    "fake_quantize_rows",
    "get_format",
    "pack",
    "quantize",
    "range_within",
    "round_to",
    "search_scales",
    "unpack",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    globals()[name] = value
    return value
