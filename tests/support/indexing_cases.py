"""Operators that pick elements by indices computed at run time."""

from __future__ import annotations

from cases import Case

__all__ = ["CASES"]

LAST = "int64[1] a = {-1}"
ROWS = "int64[A,2,1] i = {1,0,2,2}, int64[3] s = {A,2,C}"
CASES = [
    Case("elements gathered along rows", "A B C", "D N D", "g = GatherElements<axis=1>(h, i)", "int64[A,2,C] i = {0,1,2,0,1,2,0,1,1,2,0,1,2,0,1,2,0,0,1,1,2,2,1,0,0,2,1,1,0,2,2,1}", free=False),
    Case("elements gathered by their own order", "A B C", "+ N +", "n = Neg(h)\n t, k = TopK<axis=1>(n, two)\n g = GatherElements<axis=1>(h, k)", "int64[1] two = {2}", loose="- P -"),
    Case("rows gathered by repeated indices", "A B C", "D N G", "j = Expand(i, s)\n g = GatherElements<axis=1>(h, j)", ROWS, free=False),
    Case("fewer elements gathered", "A B C", "N N G", "j = Expand(i, s)\n g = GatherElements<axis=1>(h, j)", "int64[1,2,1] i = {1,0}, int64[3] s = {1,2,C}", free=False),
    Case("elements scattered along rows", "A B C", "D N D", "g = ScatterElements<axis=1>(h, i, u)", "int64[A,1,C] i = {0,1,2,0,1,2,0,1,1,2,0,1,2,0,1,2}, float[A,1,C] u", free=False),
    Case("rows scattered by repeated indices", "A B C", "D N G", 'j = Expand(i, s)\n g = ScatterElements<axis=1, reduction="add">(h, j, u)', ROWS + ", float[A,2,C] u", free=False),
    Case("maximum of scattered rows", "A B C", "d N +", 'j = Expand(i, s)\n g = ScatterElements<axis=1, reduction="max">(h, j, u)', ROWS + ", float[A,2,C] u", free=False),
    Case("slices looked up", "A B C", "N N G", "g = GatherND(h, i)", "int64[4,2] i = {0,1,1,2,0,0,1,1}", free=False),
    Case("matrices looked up", "A B C", "N G G", "g = GatherND(h, i)", "int64[4,3,1] i = {0,1,1,0,0,1,0,1,1,0,0,1}", free=False),
    Case("slices put in places", "A B C", "N N G", "g = ScatterND(h, i, u)", "int64[2,2] i = {0,1,1,2}, float[2,C] u", free=False),
    Case("slices added in places", "A B C", "N G G", 'g = ScatterND<reduction="add">(h, i, u)', "int64[2,1] i = {0,0}, float[2,B,C] u", free=False),
    Case("slices multiplied in places", "A B C", "N P P", 'g = ScatterND<reduction="mul">(h, i, u)', "int64[2,1] i = {0,1}, float[2,B,C] u", free=False, loose="D - -"),
    Case("the largest three", "A B C", "+ + N", "g, k = TopK<axis=-1>(h, n)\n g1 = Cast<to=1>(k)", "int64[1] n = {3}"),
    Case("an element of each row looked up", "A C", "P P", "f = Abs(h)\n e = Clip(f, lo, hi)\n i = Cast<to=7>(e)\n j = Unsqueeze(i, a)\n g = GatherND(w, j)",
         LAST + ", float lo = {0.0}, float hi = {2.0}, float[3,4] w"),
    Case("scattered by its older name", "A B C", "D N D", "g = Scatter<axis=1>(h, i, u)", "int64[A,1,C] i = {0,1,2,0,1,2,0,1,1,2,0,1,2,0,1,2}, float[A,1,C] u",
         opset=9, until=10, free=False, mixed=False),
    Case("slices put in places of run time", "A B C", "N N N", "r = Cast<to=7>(f)\n j = Reshape(i, r)\n g = ScatterND(h, j, u)",
         "float[2] f = {1.0,2.0}, int64[2] i = {0,1}, float[1,C] u", free=False),
    Case("slices looked up in a batch", "A B C", "N N N", "g = GatherND<batch_dims=1>(h, i)", "int64[A,1] i = {0,2}", free=False),
    Case("one hot of its places", "A B", "P P", "f = Abs(h)\n e = Clip(f, lo, hi)\n i = Cast<to=7>(e)\n g = OneHot<axis=-1>(i, d, v)",
         "int64 d = {3}, float[2] v, float lo = {0.0}, float hi = {2.0}"),
    Case("one hot", "A B C", "P P P", "f = Exp(h)\n k = Floor(f)\n i = Cast<to=7>(k)\n o = OneHot<axis=-1>(i, d, v)\n p = ReduceSum<keepdims=0>(o, a)\n g = Mul(p, h)", LAST + ", int64 d = {3}, float[2] v", free=False),
]  # fmt: skip
