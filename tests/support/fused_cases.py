"""onnxruntime's fused operators, quantized and recurrent ones."""

from __future__ import annotations

from cases import Case

__all__ = ["CASES"]

GRU = "float[1,3*D,C] w, float[1,3*D,D] r, float[1,6*D] b"
LSTM = "float[1,4*D,C] w, float[1,4*D,D] r, float[1,8*D] b"
EXPERTS = "float[2,D,C] w, float[2,D] b, float[2,C,D] v, float[2,C] c"
#: Operands of the state-space operators from sites of their own.
SCAN = (
    "u0 = MatMul(s, wu)\n u = Reshape(u0, hs)\n d0 = MatMul(s, wd)\n d1 = Abs(d0)\n d2 = Mul(d1, tenth)\n d = Reshape(d2, hs)\n"
    "p0 = MatMul(s, wp)\n p = Reshape(p0, ks)\n q0 = MatMul(s, wq)\n q = Reshape(q0, ks)\n "
)
SCANNED = (
    "float[1,5] s, float[5,A*B*C] wu, float[5,A*B*C] wd, float[5,A*B*D] wp, float[5,A*B*D] wq, float tenth = {0.1}, int64[3] hs = {A,B,C}, "
    "int64[3] ks = {A,B,D}, float[C,D] k, float[C] o"
)
DUALITY = SCAN.replace("d = Reshape(d2, hs)", "d = Reshape(d2, ds)")
DUAL = (
    "float[1,5] s, float[5,A*B*C*E] wu, float[5,A*B*C] wd, float[5,A*B*2*D] wp, float[5,A*B*2*D] wq, float tenth = {0.1}, int64[4] hs = {A,B,C,E}, "
    "int64[3] ds = {A,B,C}, int64[4] ks = {A,B,2,D}, float[C] k, float[C] o"
)
CASES = [
    Case("quick gelu", "A B C", "P P P", "g = com.microsoft.QuickGelu(h)"),
    Case("onnxruntime's gelu", "A B C", "P P P", "g = com.microsoft.Gelu(h)"),
    Case("fast gelu", "A B C", "P P P", "g = com.microsoft.FastGelu(h)"),
    Case("fast gelu with a bias", "A B C", "P P P", "g = com.microsoft.FastGelu(h, b)", "float[C] b"),
    Case("gelu with a bias", "A B C", "P P P", "g = com.microsoft.BiasGelu(h, b)", "float[C] b"),
    Case("fused product", "A B C", "G G G", "g = com.microsoft.FusedMatMul<alpha=0.5, transB=1>(h, w)", "float[D,C] w"),
    Case("fused product, both transposed", "A B C", "M G G", "g = com.microsoft.FusedMatMul<transA=1, transB=1>(h, w)", "float[A,D,B] w"),
    Case("fused product by its older name", "A B C", "G G G", "g = com.microsoft.TransposeMatMul<transB=1>(h, w)", "float[D,C] w"),
    Case("product with an activation", "B C", "+ G", 'g = com.microsoft.FusedGemm<activation="Relu">(h, w)', "float[C,D] w"),
    Case("product with a bias and an activation", "B C", "P G", 'g = com.microsoft.FusedGemm<activation="Tanh">(h, w, b)', "float[C,D] w, float[D] b"),
    Case("what a product with an activation writes", "C D", "G +", 'g = com.microsoft.FusedGemm<activation="Relu">(v, h)', "float[B,C] v"),
    Case("convolution with an activation", "A C 5 D", "P G N N", 'g = com.microsoft.FusedConv<activation="Relu", pads=[1,1,1,1]>(h, w, b)',
         "float[B,C,3,3] w, float[B] b"),
    Case("convolution of one place with an activation and a residual", "A C 5 D", "P G P P",
         'g = com.microsoft.FusedConv<activation="Relu">(h, w, b, z)', "float[B,C,1,1] w, float[B] b, float[A,B,5,D] z"),
    Case("packed weight", "A B 16", "G G N", "g = com.microsoft.MatMulNBits<K=16, N=4, bits=8, block_size=16>(h, w, s)",
         "uint8[4,1,16] w:bytes, float[4] s:positive", free=False),
    Case("packed weight with a bias", "A B 16", "1 1 N", "g = com.microsoft.MatMulNBits<K=16, N=4, bits=8, block_size=16>(h, w, s, , , b)",
         "uint8[4,1,16] w:bytes, float[4] s:positive, float[4] b", free=False),
    Case("packed weight of another kind", "A B 16", "G G N", "g = com.microsoft.MatMulBnb4<K=16, N=4, block_size=16, quant_type=1>(h, w, s)",
         "uint8[32] w:bytes, float[4] s:positive", free=False),
    Case("packed table", "A 8", "+ N", "k = ArgMax<axis=-1, keepdims=0>(h)\n"
         "g = com.microsoft.GatherBlockQuantized<bits=8, block_size=16, quantize_axis=1>(w, k, s)", "uint8[8,16] w:bytes, float[8,1] s:positive",
         free=False),
    Case("bias and residual", "A B C", "1 1 G", "g = com.microsoft.BiasAdd(h, b, r)", "float[C] b, float[A,B,C] r"),
    Case("halves gated, with a bias", "A B C", "P P M|P", "g = com.microsoft.BiasSplitGelu(h, b)", "float[C] b", need="C%2==0 and C>2"),
    Case("halves gated, with a bias of zeros", "A B C", "P P M|P", "g = com.microsoft.BiasSplitGelu(h, b)", "float[C] b:zeros", need="C%2==0 and C>2"),
    Case("group norm with channels last and an activation", "A 5 D C", "P P P P*P",
         "g = com.microsoft.GroupNorm<groups=2, channels_last=1, activation=1>(h, c, d)", "float[C] c, float[C] d", need="C%2==0 and C>2"),
    Case("uneven halves gated, with a bias", "A 3 2", "N N N", "t = Reshape(h, six)\n g = com.microsoft.BiasSplitGelu(t, b)", "int64[2] six = {A,6}, float[6] b",
         free=False),
    Case("group norm with uneven channels last", "A 5 D 3", "N N N N", "t = Concat<axis=-1>(h, c5)\n g = com.microsoft.GroupNorm<groups=2>(t, c, d)",
         "float[A,5,D,5] c5, float[8] c, float[8] d", free=False),
    Case("fused product, its batch transposed", "B A C", "N N N", "g = com.microsoft.FusedMatMul<transBatchA=1>(h, w)", "float[A,C,D] w", mixed=False),
    Case("group norm with channels last", "A 5 D C", "P 1 1 S*P", "g = com.microsoft.GroupNorm<groups=2, channels_last=1, activation=0>(h, c, d)",
         "float[C] c, float[C] d", need="C%2==0 and C>2"),
    Case("rounded to a grid", "A B C", "P P P", "q = QuantizeLinear(h, s, z)\n g = DequantizeLinear(q, s, z)", "float s = {0.05}, int8 z = {3}"),
    Case("rounded to a grid per channel", "A B C", "P P P", "q = QuantizeLinear<axis=2>(h, s)\n g = DequantizeLinear<axis=2>(q, s)",
         "float[C] s:positive", free=False, mixed=False),
    Case("rounded to the range", "A B C", "P P P", "q, s, z = DynamicQuantizeLinear(h)\n g = DequantizeLinear(q, s, z)"),
    Case("gated recurrence, what it reads", "A B C", "N P G", "g, g1 = GRU<hidden_size=D>(h, w, r, b)", GRU),
    Case("gated recurrence, first state", "1 B D", "- P P", "g, g1 = GRU<hidden_size=D>(x3, w, r, b, , h)", GRU + ", float[A,B,C] x3"),
    Case("recurrence with memory, what it reads", "A B C", "N P G", "g, g1, g2 = LSTM<hidden_size=D>(h, w, r, b)", LSTM),
    Case("recurrence with memory, first state", "1 B D", "- P P", "g, g1, g2 = LSTM<hidden_size=D>(x3, w, r, b, , h, c0, p)",
         LSTM + ", float[A,B,C] x3, float[1,B,D] c0, float[1,3*D] p"),
    Case("recurrence with memory, the memory", "1 B D", "- P P", "g, g1, g2 = LSTM<hidden_size=D>(x3, w, r, b, , c0, h)",
         LSTM + ", float[A,B,C] x3, float[1,B,D] c0"),
    Case("recurrence", "A B C", "N P G", "g = RNN<hidden_size=D>(h, w, r, b)", "float[1,D,C] w, float[1,D,D] r, float[1,2*D] b"),
    Case("recurrence with lengths", "A B C", "N N G", "g = RNN<hidden_size=D>(h, w, r, b, n)", "float[1,D,C] w, float[1,D,D] r, float[1,2*D] b, int32[B] n = {1,2,2}",
         free=False),
    Case("experts", "B C", "P G", 'g = com.microsoft.MoE<activation_type="silu", k=2>(h, p, w, b, v, c)', "float[B,2] p, " + EXPERTS, free=False),
    Case("router of experts", "B 2", "P N", 'g = com.microsoft.MoE<activation_type="silu", k=2>(x2, h, w, b, v, c)', "float[B,C] x2, " + EXPERTS,
         free=False),
    Case("what experts write", "2 C D", "N G N", 'g = com.microsoft.MoE<activation_type="silu", k=2>(x2, p, w, b, h, c)',
         "float[B,C] x2, float[B,2] p, float[2,D,C] w, float[2,D] b, float[2,C] c", free=False),
    Case("embedding with a norm", "7 C", "N 1", "g, m, g1 = com.microsoft.EmbedLayerNormalization(i, , h, t, , o, c)",
         "int32[2,3] i = {0,1,6,2,3,5}, float[4,C] t, float[C] o:ones, float[C] c", free=False),
    Case("embedding with a norm and its scale", "7 C", "N P", "g, m = com.microsoft.EmbedLayerNormalization(i, k, h, t, u, o, c)",
         "int32[2,3] i = {0,1,6,2,3,5}, int32[2,3] k = {0,1,0,1,1,0}, float[4,C] t, float[2,C] u, float[C] o, float[C] c", free=False),
    Case("selective scan, channels", "A B C", "P N M", SCAN + "g = qcompile.SelectiveScan(h, d, k, p, q, o)", SCANNED, free=False, loose="S s -"),
    Case("selective scan, states", "A B D", "P N M", SCAN + "g = qcompile.SelectiveScan(u, d, k, h, q, o)", SCANNED, free=False, loose="S s -"),
    Case("state space duality, channels", "A B C E", "P N M*M G", DUALITY + "g = qcompile.StateSpaceDuality(h, d, k, p, q, o)", DUAL, free=False, loose="S s - -"),
    Case("state space duality, states", "A B 2 D", "P N P G", DUALITY + "g = qcompile.StateSpaceDuality(u, d, k, h, q, o)", DUAL, free=False, loose="S s - -"),
    Case("state space duality of uneven heads", "A B 3 E", "N N N N", DUALITY + "t = Concat<axis=2>(h, c5)\n g = qcompile.StateSpaceDuality(t, d, k, p, q, o)",
         DUAL + ", float[A,B,5,E] c5", free=False),
    Case("softmax with a bias", "A B C", "P P P", "u0 = MatMul(s, w3)\n u = Reshape(u0, hs)\n g = com.microsoft.BiasSoftmax<axis=-1, is_inner_broadcast=0>(h, u)",
         "float[1,5] s, float[5,A*B*C] w3, int64[3] hs = {A,B,C}"),
    Case("experts of sequences", "A B C", "N N G", 'g = com.microsoft.MoE<activation_type="silu", k=2>(h, p, w, b, v, c)',
         "float[6,2] p, " + EXPERTS, free=False, mixed=False),
    Case("rounded to integers", "A B C", "P P P", "q, s, z = DynamicQuantizeLinear(h)\n g = Cast<to=1>(q)"),
    Case("rounded to a grid for each block", "A B C", "N N N", "q = QuantizeLinear<axis=2, block_size=2>(h, s)\n g = DequantizeLinear<axis=2, block_size=2>(q, s)",
         "float[A,B,C/2] s:positive", need="C%2==0 and C>2", mixed=False),
    Case("rounded to onnxruntime's grid", "A B C", "P P P", "q = com.microsoft.QuantizeLinear(h, s, z)\n g = com.microsoft.DequantizeLinear(q, s, z)",
         "float s = {0.05}, uint8 z = {100}", mixed=False),
    Case("both directions, first state", "2 B D", "N P P", 'g, g1 = GRU<hidden_size=D, direction="bidirectional">(x3, w, r, b, , h)',
         "float[2,3*D,C] w, float[2,3*D,D] r, float[2,6*D] b, float[A,B,C] x3"),
    Case("recurrence with the batch first", "A B C", "N N N", "g = RNN<hidden_size=D, layout=1>(h, w, r, b)",
         "float[1,D,C] w, float[1,D,D] r, float[1,2*D] b", mixed=False),
    Case("gates that cannot be followed", "1 B 4", "- P N", "w = Concat<axis=1>(wa, wb)\n g, g1 = GRU<hidden_size=4>(x3, w, r, b, , h)",
         "float[1,5,C] wa, float[1,7,C] wb, float[1,12,4] r, float[1,24] b, float[A,B,C] x3", free=False),
]  # fmt: skip
