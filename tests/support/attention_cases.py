"""Fused attention and rotary embeddings."""

from __future__ import annotations

from cases import Case

__all__ = ["CASES"]

#: A second and a third operand of the same shape as ``h``.
PAIR = "u0 = MatMul(s, w3)\n u = Reshape(u0, hs)\n v0 = MatMul(s, w4)\n v = Reshape(v0, hs)\n"
SITES = "float[1,5] s, float[5,A*B*C] w3, float[5,A*B*C] w4, int64[3] hs = {A,B,C}"
FOUR = "float[1,5] s, float[5,A*D*B*C] w3, float[5,A*D*B*C] w4, int64[4] hs = {A,D,B,C}"
WIDE = SITES.replace("C", "16")
HEADS = "C%2==0 and C>2"
UNEVEN = "t = Concat<axis=-1>(h, c5)\n "
UNEVEN_PARTS = "float[A,B,5] c5, float[A,B,8] k, float[A,B,8] l"
CASES = [
    Case("attention, queries", "A B C", "S N S*G", PAIR + "g = Attention<q_num_heads=2, kv_num_heads=2>(h, u, v)", SITES, opset=23, need=HEADS, loose="- P -"),
    Case("attention, keys", "A B C", "S N S*G", PAIR + "g = Attention<q_num_heads=2, kv_num_heads=2>(u, h, v)", SITES, opset=23, need=HEADS),
    Case("attention, values", "A B C", "S N S*G", PAIR + "g = Attention<q_num_heads=2, kv_num_heads=2>(u, v, h)", SITES, opset=23, need=HEADS),
    Case("attention in four axes", "A D B C", "S S N G", PAIR + "g = Attention(h, u, v)", FOUR, opset=23, loose="- - P -"),
    Case("attention, values in four axes", "A D B C", "S S N G", PAIR + "g = Attention<is_causal=1>(u, v, h)", FOUR, opset=23),
    Case("attention, keys shared by heads", "A B 2*C", "S N S*P*G",
         "u0 = MatMul(s, w3)\n u = Reshape(u0, hs)\n v0 = MatMul(s, w4)\n v = Reshape(v0, hs)\n"
         "g = Attention<q_num_heads=4, kv_num_heads=2>(h, u, v)", SITES, opset=23, need=HEADS, loose="- P -"),
    Case("attention with a mask", "A D B C", "S S N G", PAIR + "g = Attention(h, u, v, m)", FOUR + ", float[B,B] m", opset=23),
    Case("attention with a mask per head", "A D B C", "S S N G", PAIR + "g = Attention(h, u, v, m)", FOUR + ", float[1,D,B,B] m", opset=23),
    Case("attention with a mask per sample", "A D B C", "S S N G", PAIR + "g = Attention(h, u, v, m)", FOUR + ", float[A,1,B,B] m", opset=23),
    Case("attention, its scores read", "A D B C", "s s N G", PAIR + "g, k, l, g1 = Attention(h, u, v)", FOUR, opset=23),
    Case("attention with a cache", "A D B C", "S S N G", PAIR + "g, g1, g2 = Attention(h, u, v, , k, l)",
         FOUR + ", float[A,D,2,C] k, float[A,D,2,C] l", opset=23, free=False, loose="- - P -"),
    Case("attention with a cache, keys", "A D B C", "S S N G", PAIR + "g, g1, g2 = Attention(u, h, v, , k, l)",
         FOUR + ", float[A,D,2,C] k, float[A,D,2,C] l", opset=23, free=False),
    Case("attention of uneven heads", "A B 3", "N N N", UNEVEN + "g = Attention<q_num_heads=2, kv_num_heads=2>(t, k, l)", UNEVEN_PARTS, opset=23, free=False),
    Case("attention with a length for each sequence", "A D B C", "s S N G", PAIR + "g = Attention(h, u, v, , , , n)", FOUR + ", int64[A] n = {2,3}", opset=24,
         free=False, mixed=False, loose="- - P -"),
    Case("rotary embedding of uneven pairs", "A D B 3", "D G D N", "t = Concat<axis=-1>(h, c5)\n g = RotaryEmbedding(t, cc, ss)",
         "float[A,D,B,5] c5, float[A,B,4] cc, float[A,B,4] ss", opset=23, free=False),
    Case("rotary embedding of uneven heads", "A B 3", "N N N", UNEVEN + "g = RotaryEmbedding<num_heads=2>(t, cc, ss)",
         UNEVEN_PARTS + ", float[A,B,2] cc, float[A,B,2] ss", opset=23, free=False),
    Case("onnxruntime's attention of uneven heads", "A B 3", "N N N", UNEVEN + "g = com.microsoft.MultiHeadAttention<num_heads=2>(t, k, l)", UNEVEN_PARTS, free=False),
    Case("onnxruntime's attention with padding", "A B C", "s N S*G", PAIR + "g = com.microsoft.MultiHeadAttention<num_heads=2>(h, u, v, , m)",
         SITES + ", int32[A,B] m = {1,1,0,1,1,1}", free=False, loose="- P -"),
    Case("onnxruntime's attention that projects, masked", "A B C", "N N G", "g = com.microsoft.Attention<num_heads=2>(h, w, b, m)",
         "float[C,12] w, float[12] b, int32[A,B] m = {1,1,0,1,1,1}", free=False),
    Case("onnxruntime's attention that projects to uneven heads", "C 5", "N N*N|-", "w = Concat<axis=1>(h, w0)\n g = com.microsoft.Attention<num_heads=2>(x3, w, b)",
         "float[2,3,C] x3, float[C,7] w0, float[12] b", free=False),
    Case("grouped attention of uneven heads", "A B 6", "N N N*N", "t = Concat<axis=-1>(h, c10)\n"
         "g = com.microsoft.GroupQueryAttention<num_heads=2, kv_num_heads=2>(t, k, l, , , n, t1)",
         "float[A,B,10] c10, float[A,B,16] k, float[A,B,16] l, int32[A] n = {2,1}, int32[1] t1 = {3}", free=False),
    Case("rotary embedding", "A D B C", "D G D N*D", "g = RotaryEmbedding(h, cc, ss)", "float[A,B,C/2] cc, float[A,B,C/2] ss", opset=23,
         need=HEADS),
    Case("rotary embedding of three axes", "A B C", "D D G*N*D", "g = RotaryEmbedding<num_heads=2>(h, cc, ss)",
         "float[A,B,C/4] cc, float[A,B,C/4] ss", opset=23, need="C%4==0 and C>4"),
    Case("rotary embedding, interleaved", "A D B C", "D G D D*N", "g = RotaryEmbedding<interleaved=1>(h, cc, ss)",
         "float[A,B,C/2] cc, float[A,B,C/2] ss", opset=23, need=HEADS),
    Case("rotary embedding of a part", "A D B C", "D G D N*D|G", "g = RotaryEmbedding<rotary_embedding_dim=4>(h, cc, ss)",
         "float[A,B,2] cc, float[A,B,2] ss", opset=23, need="C>6", free=False),
    Case("rotary embedding by positions", "A D B C", "D G D N*D", "g = RotaryEmbedding(h, cc, ss, i)",
         "float[7,C/2] cc, float[7,C/2] ss, int64[2,3] i = {0,1,2,2,3,4}", opset=23, free=False),
    Case("onnxruntime's rotary embedding", "A B C", "G D N*D", "g = com.microsoft.RotaryEmbedding(h, i, cc, ss)",
         "float[7,4] cc, float[7,4] ss, int64[1] i = {1}", free=False),
    Case("onnxruntime's rotary embedding of a part", "A D B C", "G G D N*D|G",
         "g = com.microsoft.RotaryEmbedding<rotary_embedding_dim=4, num_heads=4>(h, i, cc, ss)",
         "float[7,2] cc, float[7,2] ss, int64[1] i = {1}", free=False),
    Case("onnxruntime's attention, queries", "A B C", "S N S*G", PAIR + "g = com.microsoft.MultiHeadAttention<num_heads=2>(h, u, v)", SITES,
         need=HEADS, loose="- P -"),
    Case("onnxruntime's attention, values", "A B C", "S N S*G", PAIR + "g = com.microsoft.MultiHeadAttention<num_heads=2>(u, v, h)", SITES,
         need=HEADS),
    Case("onnxruntime's attention with a bias", "A B C", "P N S*G", PAIR + "g = com.microsoft.MultiHeadAttention<num_heads=2>(u, h, v, b)",
         SITES + ", float[3*C] b", need=HEADS),
    Case("onnxruntime's attention with a bias per head", "A B C", "S N S*G",
         PAIR + "g = com.microsoft.MultiHeadAttention<num_heads=2>(h, u, v, , , m)", SITES + ", float[1,2,B,B] m", need=HEADS),
    Case("onnxruntime's attention with a bias per sample", "A B C", "S N S*G",
         PAIR + "g = com.microsoft.MultiHeadAttention<num_heads=2>(h, u, v, , , m)", SITES + ", float[A,1,B,B] m", need=HEADS),
    Case("onnxruntime's attention that projects", "A B C", "P N G", "g = com.microsoft.Attention<num_heads=2>(h, w, b)", "float[C,12] w, float[12] b",
         free=False, loose="- P -"),
    Case("onnxruntime's attention that projects, its weight", "C 12", "G S*G|S*G|S*G",
         "g = com.microsoft.Attention<num_heads=2>(x3, h, b)", "float[2,3,C] x3, float[12] b", free=False),
    Case("grouped attention", "A B 16", "s N S*G", PAIR + "g = com.microsoft.GroupQueryAttention<num_heads=2, kv_num_heads=2>(h, u, v, , , n, t)",
         WIDE + ", int32[A] n = {2,1}, int32[1] t = {3}", free=False),
    Case("grouped attention, rotary", "A B 32", "s N S*N*D",
         PAIR + "g = com.microsoft.GroupQueryAttention<num_heads=2, kv_num_heads=2, do_rotary=1>(h, u, v, , , n, t, cc, ss)",
         WIDE.replace("16", "32") + ", int32[A] n = {2,1}, int32[1] t = {3}, float[7,8] cc, float[7,8] ss", free=False),
    Case("grouped attention, rotary of a part", "A B 64", "s N S*(N*D|G)",
         PAIR + "g = com.microsoft.GroupQueryAttention<num_heads=2, kv_num_heads=2, do_rotary=1>(h, u, v, , , n, t, cc, ss)",
         WIDE.replace("16", "64") + ", int32[A] n = {2,1}, int32[1] t = {3}, float[7,8] cc, float[7,8] ss", free=False),
    Case("grouped attention, values of shared heads", "A B 16", "s N S*G",
         "u0 = MatMul(s, w3)\n u = Reshape(u0, hs)\n v0 = MatMul(s, w4)\n v = Reshape(v0, ks)\n"
         "g = com.microsoft.GroupQueryAttention<num_heads=4, kv_num_heads=2>(u, v, h, , , n, t)",
         "float[1,5] s, float[5,A*B*32] w3, float[5,A*B*16] w4, int64[3] hs = {A,B,32}, int64[3] ks = {A,B,16}, int32[A] n = {2,1}, int32[1] t = {3}",
         free=False),
    Case("grouped attention, packed", "A B 64", "s N S*P*G|S*G|S*G",
         "g = com.microsoft.GroupQueryAttention<num_heads=4, kv_num_heads=2>(h, , , , , n, t)", "int32[A] n = {2,1}, int32[1] t = {3}",
         free=False),
    Case("grouped attention with sinks", "A B 16", "s N S*G",
         PAIR + "g = com.microsoft.GroupQueryAttention<num_heads=2, kv_num_heads=2>(h, u, v, , , n, t, , , , , k)",
         WIDE + ", int32[A] n = {2,1}, int32[1] t = {3}, float[2] k", free=False),
]  # fmt: skip
