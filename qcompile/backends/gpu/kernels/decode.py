"""From stored words to the operand of a matrix instruction, inside kernels.

A word is an int16 that holds one code of each of four (two for 8-bit codes) *planes*: the runs of ``PLANE`` consecutive
columns that make up a tile of K. Two neighbouring words share a register exactly as two neighbouring bfloat16
operands do, so that a plane comes out of its words with two or three instructions a pair and no shuffle.

``ASM`` chooses packed bfloat16 arithmetic in PTX; without it (AMD, the interpreter) the same values come from float32
arithmetic. All products here are exact in bfloat16.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["decode_plane", "group_scale"]

# 0x4300 is 128 in bfloat16, whose last bit is worth 1: OR-ing four bits gives 128 + n, exactly; then minus 136.
_INT = "lop3.b32 t, t, 0x000f000f, 0x43004300, 0xEA; fma.rn.bf16x2 $0, t, o, b; }"
_ONES = "{ .reg .b32 t, o, b; mov.b32 o, 0x3F803F80; mov.b32 b, 0xC308C308; "
_INT_0 = tl.constexpr(_ONES + "mov.b32 t, $1; " + _INT)
_INT_1 = tl.constexpr(_ONES + "shr.b32 t, $1, 4; " + _INT)
_INT_2 = tl.constexpr(_ONES + "shr.b32 t, $1, 8; " + _INT)
_INT_3 = tl.constexpr(_ONES + "shr.b32 t, $1, 12; " + _INT)

# E2M1 in the sign and the bits 8 to 6 of a bfloat16 is the value times 2^-126. The words keep the codes where one
# shift and one mask bring three of the planes there; the fourth has what bits are left (packing.FLOAT_BITS).
_FLOAT_0 = tl.constexpr("and.b32 $0, $1, 0x81C081C0;")
_FLOAT_1 = tl.constexpr("{ .reg .b32 t; shl.b32 t, $1, 3; and.b32 $0, t, 0x81C081C0; }")
_FLOAT_2 = tl.constexpr("{ .reg .b32 t; shl.b32 t, $1, 6; and.b32 $0, t, 0x81C081C0; }")
_FLOAT_3 = tl.constexpr(
    "{ .reg .b32 t, u, v; shl.b32 t, $1, 1; and.b32 t, t, 0x80008000; shr.b32 u, $1, 5; "
    "lop3.b32 t, u, 0x01000100, t, 0xEA; shr.b32 v, $1, 4; lop3.b32 $0, v, 0x00C000C0, t, 0xEA; }"
)


@triton.jit
def _packed(w, ASM_0: tl.constexpr, ASM_1: tl.constexpr, ASM_2: tl.constexpr, ASM_3: tl.constexpr, P: tl.constexpr):
    if P == 0:
        out = tl.inline_asm_elementwise(ASM_0, "=r,r", [w], dtype=tl.bfloat16, is_pure=True, pack=2)
    elif P == 1:
        out = tl.inline_asm_elementwise(ASM_1, "=r,r", [w], dtype=tl.bfloat16, is_pure=True, pack=2)
    elif P == 2:
        out = tl.inline_asm_elementwise(ASM_2, "=r,r", [w], dtype=tl.bfloat16, is_pure=True, pack=2)
    else:
        out = tl.inline_asm_elementwise(ASM_3, "=r,r", [w], dtype=tl.bfloat16, is_pure=True, pack=2)
    return out


@triton.jit
def _e2m1(w, P: tl.constexpr):
    """float32 values of plane P; bit positions as in packing.FLOAT_BITS."""
    if P == 3:
        code = ((w >> 10) & 3) | ((w >> 11) & 4)
        sign = (w >> 14) & 1
    else:
        code = (w >> (6 - 3 * P)) & 7
        sign = (w >> (15 - 3 * P)) & 1
    doubled = tl.where(code < 2, code, (2 + (code & 1)) << (tl.maximum(code >> 1, 1) - 1))
    return doubled.to(tl.float32) * (0.5 - sign.to(tl.float32))


@triton.jit
def decode_plane(w, zero, table, KIND: tl.constexpr, P: tl.constexpr, ASM: tl.constexpr):
    """The levels of plane P of words ``w [rows, PLANE]``; float32, or bfloat16 where that is exact and ``ASM``.

    ``zero`` are zero points ``[rows]`` or None. With ``ASM``, KIND "float" comes times 2^-126.
    """
    if KIND == "int":
        if ASM:
            out = _packed(w, _INT_0, _INT_1, _INT_2, _INT_3, P)
        else:
            out = ((w.to(tl.int32) >> (4 * P)) & 15).to(tl.float32) - 8.0
        if zero is not None:
            out = out - (zero.to(tl.float32) - 8.0).to(out.dtype)[:, None]
    elif KIND == "float":
        out = _packed(w, _FLOAT_0, _FLOAT_1, _FLOAT_2, _FLOAT_3, P) if ASM else _e2m1(w.to(tl.int32), P)
    elif KIND == "table":
        out = tl.load(table + ((w.to(tl.int32) >> (4 * P)) & 15))
    elif KIND == "byte-int":
        code = (w.to(tl.int32) >> (8 * P)) & 255
        out = code.to(tl.float32) - 128.0 if zero is None else code.to(tl.float32) - zero.to(tl.float32)[:, None]
    else:
        code = (w.to(tl.int32) >> (8 * P)) & 255
        bits = ((code & 128) << 24) | ((code & 127) << 20)  # E4M3 as float32 times 2^-120
        out = bits.to(tl.float32, bitcast=True) * 1.329227995784916e36
    return out


@triton.jit
def group_scale(s, SCALE: tl.constexpr, ASM: tl.constexpr):
    """Stored scale bytes as factors for KIND "float": with ``ASM`` bfloat16 times 2^126, else float32.

    "mx": a bfloat16 exponent, 253 for the largest scale of the weight. "nv": five bits of exponent and three of
    mantissa, of the scale times 2^-10. What is taken off stands in the row scales.
    """
    if ASM:
        wide = s.to(tl.int16)
        bits = wide << 7 if SCALE == "mx" else (wide << 4) + (233 << 7)
        out = bits.to(tl.bfloat16, bitcast=True)
    else:
        wide = s.to(tl.int32)
        bits = tl.maximum(wide - 126, 0) << 23 if SCALE == "mx" else (wide << 20) + (107 << 23)
        out = bits.to(tl.float32, bitcast=True)
    return out
