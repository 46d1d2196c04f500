"""Sequences of tensors."""

from __future__ import annotations

from cases import Case

__all__ = ["CASES"]

OTHER = "u0 = MatMul(s, w3)\n u = Reshape(u0, hs)\n "
SITE = "float[1,5] s, float[5,A*B*C] w3, int64[3] hs = {A,B,C}, int64 i = {1}, int64 o = {0}, int64[1] a = {0}"
CASES = [
    Case("a sequence of two", "A B C", "G G G", OTHER + "q = SequenceConstruct(h, u)\n g = SequenceAt(q, i)", SITE),
    Case("a sequence of another two", "A B C", "G G G",
         OTHER + "q = SequenceConstruct(u, h)\n r = SequenceErase(q, o)\n g = SequenceAt(r, o)", SITE),
    Case("put into a sequence", "A B C", "G G G",
         OTHER + "q = SequenceConstruct(u)\n r = SequenceInsert(q, h)\n g = SequenceAt(r, i)", SITE),
    Case("a sequence of two sizes", "A B C", "N G G",
         "t = Concat<axis=0>(h, h)\n q = SequenceConstruct(t, h)\n r = SequenceAt(q, i)\n g = ReduceSum<keepdims=0>(r, a)",
         SITE, mixed=False, loose="1 - -"),
    Case("a sequence of two ranks", "A B C", "N N N",
         "t = Reshape(h, m)\n q = SequenceConstruct(h, t)\n g = SequenceAt(q, o)", SITE + ", int64[1] m = {-1}", mixed=False),
    Case("how long a sequence is", "A B C", "G G G",
         OTHER + "q = SequenceConstruct(h, u)\n n = SequenceLength(q)\n f = Cast<to=1>(n)\n g = Mul(h, f)", SITE),
    Case("cut into a sequence", "A B C", "N G G",
         "q = SplitToSequence<axis=0>(h, k)\n g = SequenceAt(q, i)", "int64 k = {1}, int64 i = {1}", mixed=False),
    Case("cut into a sequence of ones", "A B C", "N G G", "q = SplitToSequence<axis=0>(h)\n g = SequenceAt(q, i)", SITE),
    Case("cut into a sequence without the axis", "A B C", "G G N",
         "q = SplitToSequence<axis=-1, keepdims=0>(h)\n g = SequenceAt(q, i)", SITE),
    Case("elements side by side", "A B C", "N G G",
         OTHER + "q = SequenceConstruct(h, u)\n r = ConcatFromSequence<axis=0>(q)\n g = ReduceSum<keepdims=0>(r, a)",
         SITE, mixed=False, loose="1 - -"),
    Case("elements along a new axis", "A B C", "G G G",
         OTHER + "q = SequenceConstruct(h, u)\n r = ConcatFromSequence<axis=0, new_axis=1>(q)\n g = ReduceSum<keepdims=0>(r, a)", SITE),
]  # fmt: skip
