"""Normalizations and softmax."""

from __future__ import annotations

from cases import Case

__all__ = ["CASES"]

SKIP = "u0 = MatMul(s, w3)\n u = Reshape(u0, hs)\n"
SITE = "float[1,5] s, float[5,A*B*C] w3, int64[3] hs = {A,B,C}"
CASES = [
    Case("softmax", "A B C", "P P P", "g = Softmax<axis=-1>(h)"),
    Case("softmax along rows", "A B C", "P P P", "g = Softmax<axis=1>(h)"),
    Case("logarithm of softmax", "A B C", "P P P", "g = LogSoftmax<axis=-1>(h)"),
    Case("hardmax", "A B C", "P P N", "g = Hardmax<axis=-1>(h)", loose="- - P"),
    Case("hardmax of equal elements", "A B C", "P P N", "r = Clip(h, , z)\n g = Hardmax<axis=-1>(r)", "float z = {-9.0}"),
    Case("layer norm", "A B C", "S S 1", "g = LayerNormalization<axis=-1>(h, o)", "float[C] o:ones"),
    Case("layer norm with a scale", "A B C", "S S P", "g = LayerNormalization<axis=-1>(h, o)", "float[C] o"),
    Case("layer norm with a shift", "A B C", "P P 1", "g = LayerNormalization<axis=-1>(h, o, c)", "float[C] o:ones, float[C] c"),
    Case("layer norm, its statistics read", "A B C", "P P 1", "g, g1, g2 = LayerNormalization<axis=-1>(h, o)", "float[C] o:ones", free=False),
    Case("layer norm, its scale also a bias", "A B C", "P P 1", "g = LayerNormalization<axis=-1>(h, o, o)", "float[C] o:ones"),
    Case("layer norm over two axes", "A B C", "S 1 1", "g = LayerNormalization<axis=1>(h, o)", "float[B,C] o:ones"),
    Case("layer norm over two axes with a scale", "A B C", "P P P", "g = LayerNormalization<axis=1>(h, o, c)", "float[B,C] o, float[B,C] c"),
    Case("layer norm over two axes, scaled along one", "A B C", "S 1 P", "g = LayerNormalization<axis=1>(h, o)", "float[C] o"),
    Case("rms norm", "A B C", "S S O", "g = RMSNormalization<axis=-1>(h, o)", "float[C] o:ones", opset=23),
    Case("rms norm with a scale", "A B C", "S S S", "g = RMSNormalization<axis=-1>(h, o)", "float[C] o", opset=23),
    Case("rms norm with one scale", "A B C", "S S O", "g = RMSNormalization<axis=-1>(h, o)", "float[1] o", opset=23),
    Case("2-norm", "A B C", "S S O", "g = LpNormalization<axis=-1, p=2>(h)"),
    Case("1-norm", "A B C", "S S S", "g = LpNormalization<axis=-1, p=1>(h)"),
    Case("batch norm", "A C D", "1 M 1", "g = BatchNormalization(h, c, d, m, v)",
         "float[C] c, float[C] d, float[C] m, float[C] v:positive"),
    Case("batch norm of a matrix", "A C", "1 M", "g = BatchNormalization(h, c, d, m, v)",
         "float[C] c, float[C] d, float[C] m, float[C] v:positive"),
    Case("batch norm in training", "A C D", "N N N", "g, m1, v1 = BatchNormalization<training_mode=1, epsilon=1.0>(h, c, d, m, v)",
         "float[C] c, float[C] d, float[C] m, float[C] v:positive"),
    Case("group norm of uneven channels", "A 3 D", "N N N", "t = Concat<axis=1>(h, c5)\n g = GroupNormalization<num_groups=2, epsilon=1.0>(t, c, d)",
         "float[A,5,D] c5, float[8] c, float[8] d", free=False),
    Case("instance norm", "A C 5 D", "P S 1 1", "g = InstanceNormalization(h, c, d)", "float[C] c, float[C] d"),
    Case("group norm", "A C D", "P S*P 1", "g = GroupNormalization<num_groups=2>(h, c, d)", "float[C] c, float[C] d",
         need="C%2==0 and C>2"),
    Case("group norm without a scale", "A C D", "S S*1 1", "g = GroupNormalization<num_groups=2>(h, c, d)", "float[C] c:ones, float[C] d:zeros",
         need="C%2==0 and C>2"),
    Case("group norm of each channel", "A C D", "P S 1", "g = GroupNormalization<num_groups=C>(h, c, d)", "float[C] c, float[C] d"),
    Case("local response", "A C D E", "S s S S", "g = LRN<size=3, alpha=1.0>(h)"),
    Case("mean and variance", "A C D", "1 S 1", "g = MeanVarianceNormalization<axes=[0,2]>(h)"),
    Case("layer norm of older opsets", "A B C", "P P 1", "g = qcompile.LayerNorm(h, o, c)", "float[C] o:ones, float[C] c"),
    Case("rms norm of older opsets", "A B C", "S S O", "g = qcompile.RMSNorm(h, o)", "float[C] o:ones"),
    Case("norm of a sum", "A B C", "P P 1", SKIP + "g = com.microsoft.SkipLayerNormalization(h, u, o, c)",
         "float[C] o:ones, float[C] c, " + SITE),
    Case("norm of a sum with a bias", "A B C", "P P 1", SKIP + "g, m, v, t = com.microsoft.SkipLayerNormalization(h, u, o, c, b)\n g1 = Neg(t)",
         "float[C] o:ones, float[C] c, float[C] b, " + SITE),
    Case("rms norm of a sum", "A B C", "S S O", SKIP + "g = com.microsoft.SkipSimplifiedLayerNormalization(h, u, o)", "float[C] o:ones, " + SITE),
    Case("rms norm of a sum, the sum read", "A B C", "S S O",
         SKIP + "g, m, v, t = com.microsoft.SkipSimplifiedLayerNormalization(h, u, o)\n g1 = Neg(t)", "float[C] o:ones, " + SITE),
    Case("rms norm of a sum with a constant", "A B C", "P S O", "g = com.microsoft.SkipSimplifiedLayerNormalization(h, c, o)",
         "float[C] o:ones, float[B,C] c"),
    Case("simplified layer norm", "A B C", "S S O", "g = SimplifiedLayerNormalization<axis=-1, epsilon=0.00001>(h, o)", "float[C] o:ones"),
]  # fmt: skip
