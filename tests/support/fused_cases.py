"""onnxruntime's fused operators, quantized and recurrent ones."""

from __future__ import annotations

from cases import Case

__all__ = ["CASES"]

GRU = "float[1,3*D,C] w, float[1,3*D,D] r, float[1,6*D] b"
LSTM = "float[1,4*D,C] w, float[1,4*D,D] r, float[1,8*D] b"
EXPERTS = "float[2,D,C] w, float[2,D] b, float[2,C,D] v, float[2,C] c"
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
    Case("softmax with a bias", "A B C", "P P P", "t = Add(h, b)\n g = Softmax(t)", "float[A,B,C] b"),
]  # fmt: skip
