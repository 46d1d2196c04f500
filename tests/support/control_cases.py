"""If and Scan: bodies that read the graph around them."""

from __future__ import annotations

from cases import Case

__all__ = ["CASES"]

OTHER = "u0 = MatMul(s, w3)\n u = Reshape(u0, hs)\n "
SITE = "float[1,5] s, float[5,A*B*C] w3, int64[3] hs = {A,B,C}, bool k = {1}"
CASES = [
    Case("branches of two sites", "A B C", "G G G",
         OTHER + "g = If(k) <then_branch = t () => (float[A,B,C] a) { a = Identity(u) }, else_branch = e () => (float[A,B,C] b) { b = Neg(h) }>",
         SITE, mixed=False),
    Case("branches of two sites, the other one taken", "A B C", "G G G",
         OTHER + "g = If(k) <then_branch = t () => (float[A,B,C] a) { a = Identity(u) }, else_branch = e () => (float[A,B,C] b) { b = Neg(h) }>",
         SITE.replace("{1}", "{0}"), mixed=False),
    Case("branches of two shapes", "A B C", "N 1 1",
         OTHER + "v = If(k) <then_branch = t () => (float[D,B,C] a) { a = Concat<axis=0>(h, h) }, else_branch = e () => (float[A,B,C] b) { b = Neg(u) }>\n"
         "g = Neg(h)\n g1 = ReduceSum<keepdims=1>(v)", SITE, mixed=False, loose="1 - -"),
    Case("steps through an axis", "A B C", "N G G",
         "z0, g = Scan<num_scan_inputs=1, body = b (float[B,C] i, float[B,C] e) => (float[B,C] j, float[B,C] o) "
         "{ j = Add(i, e)\n o = Neg(j) }>(f, h)", "float[B,C] f", mixed=False),
    Case("the state of a loop over an axis", "B C", "G G",
         "g, g1 = Scan<num_scan_inputs=1, body = b (float[B,C] i, float[B,C] e) => (float[B,C] j, float[B,C] o) "
         "{ j = Sub(e, i)\n o = Neg(j) }>(h, x3)", "float[A,B,C] x3", mixed=False),
]  # fmt: skip
