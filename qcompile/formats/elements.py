"""The scalar codebooks: integers, small floats and tables, each built from a few numbers."""

from __future__ import annotations

from qcompile.formats.format import Element, Kind

__all__ = ["ELEMENTS", "float_element", "integer_element", "table_element"]


def integer_element(name: str, low: int, high: int, bits: int, step: float = 1.0) -> Element:
    """Uniform levels ``low·step … high·step``; ``step`` must be a power of two."""
    levels = tuple(code * step for code in range(low, high + 1))
    return Element(name, bits, Kind.INTEGER, levels)


def float_element(
    name: str, exponent_bits: int, mantissa_bits: int, bias: int, reserved: int = 0, native: str = ""
) -> Element:
    """A sign-magnitude float with subnormals.

    Args:
        reserved: how many of the largest codes stand for NaN or infinity and are no levels.
        native: name of the torch dtype that is this format exactly, where one exists.
    """
    count = 2 ** (exponent_bits + mantissa_bits) - reserved
    magnitudes = [_magnitude(code, mantissa_bits, bias) for code in range(count)]
    levels = tuple(-value for value in reversed(magnitudes[1:])) + tuple(magnitudes)
    bits = 1 + exponent_bits + mantissa_bits
    return Element(name, bits, Kind.FLOAT, levels, exponent_bits, mantissa_bits, bias, native=native)


def _magnitude(code: int, mantissa_bits: int, bias: int) -> float:
    exponent, mantissa = divmod(code, 2**mantissa_bits)
    if exponent == 0:
        return mantissa * 2.0 ** (1 - bias - mantissa_bits)
    return (1 + mantissa / 2**mantissa_bits) * 2.0 ** (exponent - bias)


def table_element(name: str, values: dict[int, float] | list[float]) -> Element:
    """Any levels; a dict gives the code of each, a list numbers them in increasing order."""
    codes = values if isinstance(values, dict) else dict(enumerate(sorted(values)))
    order = sorted(codes, key=codes.__getitem__)
    bits = max(codes).bit_length()
    return Element(name, bits, Kind.TABLE, tuple(codes[c] for c in order), codes=tuple(order))


# QLoRA, arXiv:2305.14314, appendix E: quantiles of the normal distribution, scaled to [-1, 1].
_NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip
# Yoshida, "NF4 isn't information theoretically optimal", arXiv:2306.06965: AF4 for blocks of 64.
_AF4 = [
    -1.0, -0.69441008, -0.51243739, -0.3736951, -0.25607552, -0.14982478, -0.04934812, 0.0,
    0.04273164, 0.12934483, 0.21961274, 0.31675666, 0.42563882, 0.55496234, 0.72424863, 1.0,
]  # fmt: skip
# bitsandbytes, csrc/kernels.cu (dDequantizeFP4Tree): sign, then a three-bit tree; code 8 is a second zero.
_BNB = {0: 0.0, 1: 0.00520833333, 2: 0.66666667, 3: 1.0, 4: 0.33333333, 5: 0.5, 6: 0.16666667, 7: 0.25}
_BNB_FP4 = _BNB | {code + 8: -value for code, value in _BNB.items() if value}

_FLOATS = (
    float_element("e1m2", 1, 2, 1),
    float_element("e2m1", 2, 1, 1),
    float_element("e3m0", 3, 0, 3),
    float_element("e2m3", 2, 3, 1),
    float_element("e3m2", 3, 2, 3),
    float_element("e4m3", 4, 3, 7, reserved=1, native="float8_e4m3fn"),
    float_element("e5m2", 5, 2, 15, reserved=4, native="float8_e5m2"),
)
_TABLES = (table_element("nf4", _NF4), table_element("af4", _AF4), table_element("bnb-fp4", _BNB_FP4))
_INTEGERS = tuple(
    element
    for bits in range(2, 9)
    for element in (
        integer_element(f"int{bits}", 1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1, bits),
        integer_element(f"int{bits}-full", -(2 ** (bits - 1)), 2 ** (bits - 1) - 1, bits),
        integer_element(f"uint{bits}", 0, 2**bits - 1, bits),
        # The MX integers are fractions below two: MXINT8 is k/64 (OCP MX 1.0, section 5.3.4).
        integer_element(f"mxint{bits}", 1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1, bits, 2.0 ** (2 - bits)),
    )
)

ELEMENTS: dict[str, Element] = {element.name: element for element in _FLOATS + _TABLES + _INTEGERS}
