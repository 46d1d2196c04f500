"""Operators that act on each element, or on two elements at the same place."""

from __future__ import annotations

from cases import Case

__all__ = ["CASES"]

UNARY = {
    "G G G": "Identity Neg",
    "+ + +": "Abs Relu",
    "S S S": "Asinh Atan Erf Reciprocal Sign Sin Sinh Softsign Tan Tanh",
    "P P P": "Celu Cos Cosh Elu Exp Gelu HardSigmoid HardSwish Mish Selu Sigmoid Softplus",
}
#: Those that need a small or a positive argument, or have an attribute.
SHAPED = {
    "LeakyRelu<alpha=0.1>(h)": "+ + +", "Asin(Half(h))": "S S S", "Acos(Half(h))": "P P P", "Atanh(Half(h))": "S S S",
    "Acosh(Above(h))": "P P P", "Log(Above(h))": "P P P", "Sqrt(Above(h))": "P P P", "Round(h)": "S S S",
    "Ceil(h)": "P P P", "Floor(h)": "P P P", "Shrink<bias=0.1, lambd=0.5>(h)": "S S S",
    "ThresholdedRelu<alpha=0.3>(h)": "P P P",
}  # fmt: skip


def _wrapped(call: str) -> str:
    if "Half" in call:
        return f"q = Tanh(h)\n t = Mul(q, most)\n g = {call.replace('Half(h)', 't')}"
    if "Above" in call:
        return f"q = Exp(h)\n t = Add(q, one)\n g = {call.replace('Above(h)', 't')}"
    return f"g = {call}"


#: A second value of the same shape, from another site.
OTHER = "u0 = MatMul(s, w3)\n u = Reshape(u0, hs)\n "
OTHER_SITE = "float[1,5] s, float[5,A*B*C] w3, int64[3] hs = {A,B,C}"

CASES = [
    *(Case(op.lower(), "A B C", free, f"g = {op}(h)") for free, ops in UNARY.items() for op in ops.split()),
    *(Case(call, "A B C", free, _wrapped(call), "float one:ones, float most = {0.9}") for call, free in SHAPED.items()),
    Case("swish", "A B C", "P P P", "g = Swish(h)", opset=24),
    Case("clip", "A B C", "P P P", "g = Clip(h, lo, hi)", "float lo = {-0.3}, float hi = {0.4}"),
    Case("dropout", "A B C", "G G G", "g = Dropout(h)"),
    Case("dropout in training", "A B C", "N N N", "g = Dropout(h, r, k)", "float r = {0.0}, bool k = {1}"),
    Case("dropout, its mask read", "A B C", "P P P", "t, k = Dropout(h)\n g = Where(k, t, u)", "float[A,B,C] u", loose="G G G"),
    Case("not a number", "A B C", "P P P", "k = IsNaN(h)\n n = Not(k)\n g = Where(n, h, z)", "float z:zeros", loose="G G G"),
    Case("infinite", "A B C", "P P P", "k = IsInf(h)\n g = Where(k, z, h)", "float z:zeros", loose="G G G"),
    Case("cast between floating-point types", "A B C", "G G G", "t = Cast<to=11>(h)\n g = Cast<to=1>(t)"),
    Case("cast to integers", "A B C", "P P P", "t = Cast<to=7>(h)\n g = Cast<to=1>(t)", loose="S S S"),
    Case("cast to a type of few bits", "A B C", "P P P", "t = Cast<to=17>(h)\n g = Cast<to=1>(t)", loose="S S S"),
    Case("cast like", "A B C", "G G G", "g = CastLike(h, o)", "float o"),
    Case("bits of integers", "A B C", "P P P", "t = Cast<to=6>(h)\n n = BitwiseNot(t)\n a = BitwiseAnd(n, m)\n o = BitwiseOr(a, t)\n"
         "g = BitwiseXor(o, m)", "int32 m = {5}"),
    Case("shifted integers", "A B C", "P P P", "e = Exp(h)\n t = Cast<to=12>(e)\n g = BitShift<direction=\"LEFT\">(t, n)", "uint32 n = {2}"),
    Case("bits cast", "A B C", "P P P", "t = BitCast<to=7>(h)\n n = Mod(t, m)\n g = Cast<to=1>(n)", "int64 m = {101}", opset=26, free=False),
    Case("residual", "A B C", "G G G", "g = Add(h, h)"),
    Case("bias", "A B C", "1 1 G", "g = Add(h, c)", "float[C] c"),
    Case("constant of every row", "A B C", "1 G G", "g = Add(h, c)", "float[B,C] c"),
    Case("constant of full shape", "A B C", "G G G", "g = Sub(c, h)", "float[A,B,C] c"),
    Case("added number", "A B C", "1 1 1", "g = Add(h, c)", "float[1] c"),
    Case("added zero", "A B C", "G G G", "g = Add(h, c)", "float[1] c:zeros"),
    Case("sum and mean of several", "A B C", "1 G G", "t = Sum(h, c, d)\n g = Mean(t, h)", "float[A,B,C] c, float[B,C] d"),
    Case("scaled by a number", "A B C", "G G G", "g = Mul(h, c)", "float[1] c"),
    Case("scaled by equal numbers", "A B C", "G G G", "g = Mul(h, c)", "float[C] c:uniform"),
    Case("equal numbers that are also a bias", "A B C", "1 1 1", "t = Mul(h, c)\n g = Add(t, c)", "float[C] c:uniform"),
    Case("divided by equal numbers that are also a bias", "A B C", "1 1 1", "t = Add(h, c)\n g = Div(t, c)", "float[C] c:uniform"),
    Case("scaled per row", "A B C", "G G G", "r = MatMul(s, v)\n g = Mul(h, r)", "float[1,5] s, float[5,1] v"),
    Case("scaled per channel", "A B C", "G G M", "g = Mul(h, c)", "float[C] c"),
    Case("divided per channel", "A B C", "G G M", "g = Div(h, c)", "float[C] c"),
    Case("a number divided", "A B C", "S S S", "g = Div(c, h)", "float c"),
    Case("a vector divided", "A B C", "S S P", "g = Div(c, h)", "float[C] c"),
    Case("divided by itself", "A B C", "P P P", "e = Exp(h)\n t = Add(e, h)\n g = Div(h, t)"),
    Case("gated by another site", "A B C", "M M M", "u0 = MatMul(s, w3)\n u = Reshape(u0, hs)\n g = Mul(h, u)",
         "float[1,5] s, float[5,A*B*C] w3, int64[3] hs = {A,B,C}"),
    Case("gated, the gate nonlinear", "A B C", "P P P", "u0 = MatMul(s, w3)\n u = Reshape(u0, hs)\n e = Sigmoid(h)\n g = Mul(u, e)",
         "float[1,5] s, float[5,A*B*C] w3, int64[3] hs = {A,B,C}"),
    Case("squared", "A B C", "P P P", "g = Mul(h, h)"),
    Case("silu spelled out", "A B C", "P P P", "s = Sigmoid(h)\n g = Mul(h, s)"),
    Case("swish-gated", "A B C", "P P P", "u = SwiGLU(h, c)\n g = Add(u, c)", "float[A,B,C] c", opset=28),
    Case("linear side of a swish-gated pair", "A B C", "M M M", "g = SwiGLU(c, h)", "float[A,B,C] c", opset=28),
    Case("maximum with a vector", "A B C", "P P +", "g = Max(h, c)", "float[C] c"),
    Case("minimum with a number", "A B C", "P P P", "g = Min(h, c)", "float c"),
    Case("maximum with zero", "A B C", "+ + +", "g = Max(h, c)", "float c:zeros"),
    Case("clipped at zero", "A B C", "+ + +", "g = Clip(h, c)", "float c:zeros"),
    Case("clipped above zero", "A B C", "P P P", "g = Clip(h, c, d)", "float c:zeros, float d = {6.0}"),
    Case("power", "A B C", "P P P", "e = Exp(h)\n g = Pow(e, c)", "float c = {1.5}"),
    Case("slope per channel", "A B C", "+ + +", "g = PRelu(h, c)", "float[C] c"),
    Case("remainder", "A B C", "P P P", "g = Mod<fmod=1>(h, c)", "float c = {0.7}", loose="S S S"),
    *(Case(f"{op.lower()}", "A B C", "P P P", f"k = {op}(h, c)\n g = Where(k, e, d)", "float[C] c, float[C] e, float[B,1] d")
      for op in ("Greater", "GreaterOrEqual", "Less", "LessOrEqual")),
    *(Case(f"{op.lower()} of two", "A B C", "P P P", f"{OTHER}a = Greater(h, c)\n b = Less(u, c)\n k = {op}(a, b)\n g = Where(k, c, d)",
           OTHER_SITE + ", float[C] c, float[A,1,1] d") for op in ("And", "Or", "Xor")),
    Case("not, of another", "A B C", "P P P", OTHER + "a = Greater(u, c)\n k = Not(a)\n g = Where(k, h, z)", OTHER_SITE + ", float c, float z"),
    *(Case(f"{op.lower()} of integers", "A B C", "P P P", f"{OTHER}a = Cast<to=6>(h)\n b = Cast<to=6>(u)\n k = {op}(a, b)\n g = Cast<to=1>(k)", OTHER_SITE)
      for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor")),
    Case("not of bits", "A B C", "M M M", OTHER + "a = Cast<to=6>(u)\n k = BitwiseNot(a)\n n = Cast<to=1>(k)\n g = Mul(n, h)", OTHER_SITE),
    Case("equality of two", "A B C", "P P P", OTHER + "a = Cast<to=6>(h)\n b = Cast<to=6>(u)\n k = Equal(a, b)\n g = Where(k, c, d)",
         OTHER_SITE + ", float[C] c, float[A,1,1] d"),
    Case("comparisons", "A B C", "P P P", "a = Greater(h, c)\n b = Less(h, d)\n e = GreaterOrEqual(h, d)\n f = LessOrEqual(h, c)\n"
         "i = And(a, b)\n j = Or(i, e)\n k = Xor(j, f)\n g = Where(k, h, c)", "float[C] c, float[B,1] d"),
    Case("equality of integers", "A B C", "P P P", "t = Cast<to=7>(h)\n k = Equal(t, z)\n g = Where(k, h, c)", "int64 z = {0}, float[C] c", loose="- - S"),
    Case("choice per row", "A B C", "1 P G", "k = Greater(v, z)\n g = Where(k, h, f)", "float[1,B,1] v, float z:zeros, float[C] f"),
    Case("masked with zero", "A B C", "G D G", "g = Where(k, h, z)", "bool[1,B,1] k = {1,0,1}, float z:zeros", free=False),
    Case("masked with a number", "A B C", "1 N 1", "g = Where(k, h, z)", "bool[1,B,1] k = {1,0,1}, float z", free=False),
    Case("choice between vectors", "A B C", "P P P", "k = Greater(h, z)\n g = Where(k, c, d)", "float z:zeros, float[C] c, float[C] d"),
]  # fmt: skip
