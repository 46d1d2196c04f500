"""Operators that carry a memory along time."""

from __future__ import annotations

from cases import Case

__all__ = ["CASES"]

OTHER = "u0 = MatMul(s, w3)\n u = Reshape(u0, hs)\n v0 = MatMul(s, w4)\n v = Reshape(v0, hs)\n d0 = MatMul(s, w5)\n d = Reshape(d0, hs)\n "
SITES = "float[1,5] s, float[5,A*B*C] w3, float[5,A*B*C] w4, float[5,A*B*C] w5, int64[3] hs = {A,B,C}"
HEADS = "d0 = MatMul(s, w5)\n d1 = Sigmoid(d0)\n d = Reshape(d1, ds)\n "
HEAD_SITES = SITES.replace("float[5,A*B*C] w5", "float[5,A*B*2] w5") + ", int64[3] ds = {A,B,2}"
CASES = [
    Case("cache written", "A D B C", "D G N G", "g = TensorScatter(k, h, i)", "float[A,D,7,C] k, int64[A] i = {1,3}", opset=24, free=False),
    Case("cache written at its start", "A D B C", "G G N G", "g = TensorScatter(k, h)", "float[A,D,7,C] k", opset=24, free=False),
    Case("the cache that is written", "A D 7 C", "D G N G", 'g = TensorScatter<mode="circular">(h, k, i)', "float[A,D,B,C] k, int64[A] i = {1,6}", opset=24,
         free=False),
    Case("causal convolution", "A C B", "G M N", "g, g1 = CausalConvWithState(h, w)", "float[C,1,3] w", opset=27, free=False),
    Case("causal convolution with a bias, a past and an activation", "A C B", "P P N",
         'g, g1 = CausalConvWithState<activation="silu">(h, w, b, k)', "float[C,1,3] w, float[C] b, float[A,C,2] k", opset=27, free=False),
    Case("the past of a causal convolution", "A C 2", "1 M N", "g, g1 = CausalConvWithState(x3, w, b, h)", "float[A,C,B] x3, float[C,1,3] w, float[C] b",
         opset=27, free=False),
    Case("linear attention, keys", "A B C", "P N P*G", OTHER + 'g, g1 = LinearAttention<q_num_heads=2, kv_num_heads=2, update_rule="linear">(u, h, v)', SITES,
         opset=27, free=False),
    Case("linear attention, values", "A B C", "P N P*G", OTHER + 'g, g1 = LinearAttention<q_num_heads=2, kv_num_heads=2, update_rule="linear">(u, v, h)', SITES,
         opset=27, free=False),
    Case("linear attention with decays", "A B C", "P N P*M",
         OTHER + 'e = Sigmoid(d)\n g, g1 = LinearAttention<q_num_heads=2, kv_num_heads=2, update_rule="gated">(u, h, v, , e)', SITES, opset=27, free=False),
    Case("linear attention with the delta rule", "A B C", "P N P*O",
         HEADS + OTHER.split("d0")[0] + 'g, g1 = LinearAttention<q_num_heads=2, kv_num_heads=2, update_rule="gated_delta", scale=0.1>(u, h, v, , d, d)',
         HEAD_SITES, opset=27, free=False),
    Case("linear attention of uneven heads", "A B 3", "N N N",
         't = Concat<axis=-1>(h, c5)\n g, g1 = LinearAttention<q_num_heads=2, kv_num_heads=2, update_rule="linear">(t, k, l)',
         "float[A,B,5] c5, float[A,B,8] k, float[A,B,8] l", opset=27, free=False),
    Case("linear attention with uneven decays", "A B 3", "N N N",
         't = Concat<axis=-1>(h, c5)\n g, g1 = LinearAttention<q_num_heads=2, kv_num_heads=2, update_rule="gated">(k, l, m, , t)',
         "float[A,B,5] c5:small, float[A,B,8] k, float[A,B,8] l, float[A,B,8] m", opset=27, free=False, loose="P - -"),
    Case("linear attention, its past", "A 2 4 4", "P P G G",
         'g, g1 = LinearAttention<q_num_heads=2, kv_num_heads=2, update_rule="linear">(u, v, t, h)', "float[A,B,8] u, float[A,B,8] v, float[A,B,8] t", opset=27,
         free=False),
    Case("linear attention, queries of shared keys", "A B C", "P D P*G*G",
         'g, g1 = LinearAttention<q_num_heads=4, kv_num_heads=2, update_rule="linear">(h, u, v)', "float[A,B,4] u, float[A,B,6] v", opset=27, free=False),
]  # fmt: skip
