"""Graphs with a stack of matrices, and with sites in the bodies of If, Loop and Scan, for every backend."""

from __future__ import annotations

import onnx_ir as ir
from changes import parse

__all__ = ["BODIES", "STACKS", "body_model", "stack_model"]

BRANCHES = """p = ReduceSum<keepdims=0>(x)
    k = Cast<to=9>(p)
    g = If (k) <then_branch = a () => (t) { u = MatMul(h, m)
        r = Relu(u)
        t = MatMul(r, n) }, else_branch = b () => (t) { u = MatMul(h, m)
        r = Tanh(u)
        t = MatMul(r, n) }>"""

STEPS = """z = Gather<axis=1>(h, first)
    last, g = Scan<num_scan_inputs=1, scan_input_axes=[1], scan_output_axes=[1],
        body = step (s, row) => (t, o) { u = MatMul(s, m)
        r = Relu(u)
        v = MatMul(r, n)
        t = Add(v, row)
        o = Identity(t) }>(z, h)"""

ROUNDS = """g = Loop (times, yes, h) <body = step (int64 i, bool c, float[2,3,32] s) => (d, t) { d = Identity(c)
        u = MatMul(s, m)
        r = Relu(u)
        v = MatMul(r, n)
        t = Add(v, s) }>"""

BODIES = {"branches": BRANCHES, "steps": STEPS, "rounds": ROUNDS}

#: Products of h [2, 3, 32] with a stack or with what is looked up in it: the shapes of the stack and of the result.
STACKS = {
    "batched": ("e = Unsqueeze(h, one)\n g = MatMul(e, k)", "4,32,48", "2,4,3,48"),
    "rows of its own": (
        "e = Unsqueeze(h, one)\n o = Expand(e, four)\n g = MatMul(o, k)", "4,32,48", "2,4,3,48",
    ),
    "rows of its own, first": (
        'e = Unsqueeze(h, one)\n o = Expand(e, four)\n g = Einsum<equation="betd,edf->btfe">(o, k)', "4,32,48", "2,3,48,4",
    ),
    "experts added up": (
        'e = Unsqueeze(h, one)\n o = Expand(e, four)\n g = Einsum<equation="betd,edf->btf">(o, k)', "4,32,48", "2,3,48",
    ),
    "several axes of results": ('g = Einsum<equation="btd,dhe->bthe">(h, k)', "32,4,12", "2,3,4,12"),
    "summed over letters": ('g = Einsum<equation="btd,edf->btef">(h, k)', "4,32,48", "2,3,4,48"),
    "features first": ('g = Einsum<equation="btd,fde->btef">(h, k)', "48,32,4", "2,3,4,48"),
    "a matrix alone": ('g = Einsum<equation="btd,fd->btf">(h, k)', "48,32", "2,3,48"),
    "looked up": ('w = Gather<axis=0>(k, ids)\n g = Einsum<equation="btd,btdf->btf">(h, w)', "4,32,48", "2,3,48"),
    "two looked up": (
        'w = Gather<axis=0>(k, pair)\n g = Einsum<equation="btd,btndf->btnf">(h, w)', "4,32,48", "2,3,2,48",
    ),
    "looked up by one index": ('w = GatherND(k, last)\n g = Einsum<equation="btd,tdf->tbf">(h, w)', "4,32,48", "3,2,48"),
    "looked up, multiplied": (
        "w = Gather<axis=0>(k, ids)\n r = Unsqueeze(h, two)\n g = MatMul(r, w)", "4,32,48", "2,3,1,48",
    ),
}  # fmt: skip


def body_model(name: str) -> ir.Model:
    """Sites around and within a body."""
    return parse(
        f"""g (float[2,3,32] x) => (float[2,3,16] y)
        <float[32,32] w1, float[32,64] m, float[64,32] n, float[32,16] w2, int64 first, int64 times, bool yes> {{
            h = MatMul(x, w1)
            {BODIES[name]}
            y = MatMul(g, w2) }}""",
        first=0, times=2, yes=True,
    )  # fmt: skip


def stack_model(name: str) -> ir.Model:
    """A site in front of a stack."""
    text, weight, result = STACKS[name]
    return parse(
        f"""g (float[2,3,16] x, int64[2,3] ids) => (float[{result}] y)
        <float[16,32] w1, float[{weight}] k, int64[1] one, int64[1] two, int64[4] four, int64[2] places,
         int64[3,1] last> {{
            h = MatMul(x, w1)
            i = Unsqueeze(ids, two)
            pair = Sub(i, places)
            {text}
            u = Cast<to=1>(ids)
            v = ReduceSum<keepdims=0>(u)
            y = Add(g, v) }}""",
        one=[1], two=[2], four=[1, 4, 1, 1], places=[0, 4], last=[[2], [-1], [0]],
    )  # fmt: skip
