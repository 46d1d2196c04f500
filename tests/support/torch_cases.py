"""Graphs of a line or two for every operator that is written as torch, in ONNX's textual syntax."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir

__all__ = ["CASES", "PREAMBLE", "build", "example", "graph_of_case"]

F = "float[N,4,6] x"
IMAGE = "float[N,4,8,8] x"
PAIR = "float[N,4,6] x, float[N,4,6] y"
COUNTS = "int64[N,4] i"

#: name: (inputs, body, version of the standard operators)
CASES: dict[str, tuple[str, str, int]] = {
    "arithmetic": (PAIR, "a = Add(x, y) b = Sub(a, x) c = Mul(b, a) d = Div(c, x) z = Neg(d)", 18),
    "constants": (F, "t = Constant<value_float=2.0>() a = Mul(x, t) b = Pow(a, t) z = Div(t, b)", 18),
    "functions": (F, "a = Abs(x) b = Sqrt(a) c = Log(b) d = Exp(c) e = Erf(d) f = Sin(e) g = Cos(f) z = Tanh(g)", 18),
    "rounding": (F, "a = Floor(x) b = Ceil(x) c = Round(x) d = Sign(x) z = Sum(a, b, c, d)", 18),
    "activations": (
        F, "a = Relu(x) b = Sigmoid(x) c = Softplus(x) d = Elu(x) e = HardSigmoid(x) f = HardSwish(x) "
        "g = LeakyRelu(x) h = Selu(x) j = Mish(x) k = Softsign(x) z = Sum(a, b, c, d, e, f, g, h, j, k)", 18),
    "dropout": (F, "a, m = Dropout(x) f = Cast<to=1>(m) z = Add(a, f)", 18),
    "gelu": (F, 'a = Gelu(x) b = Gelu<approximate="tanh">(x) z = Add(a, b)', 20),
    "gelu of onnxruntime": (
        PAIR, "a = com.microsoft.Gelu(x) b = com.microsoft.QuickGelu<alpha=1.5>(y) c = com.microsoft.FastGelu(a) "
        "z = Add(b, c)", 18),
    "gelu with a bias": (
        F, "b = Constant<value_floats=[1.0,-2.0,0.5,0.0,3.0,-0.5]>() a = com.microsoft.BiasGelu(x, b) "
        "z = com.microsoft.FastGelu(a, b)", 18),
    "product with a scale": (
        PAIR, "a = com.microsoft.FusedMatMul<alpha=0.5, transB=1>(x, y) b = com.microsoft.FusedMatMul<transA=1>(a, x) "
        "z = Add(b, x)", 18),
    "extremes": (PAIR, "a = Max(x, y) b = Min(a, x, y) c = Mean(a, b) z = Sum(a, b, c)", 18),
    "clip": (F, "l = Constant<value_float=-0.5>() h = Constant<value_float=0.5>() z = Clip(x, l, h)", 18),
    "clip as attributes": (F, "z = Clip<min=-0.5, max=0.5>(x)", 10),
    "comparison": (PAIR, "a = Less(x, y) b = GreaterOrEqual(x, y) c = Or(a, b) d = Not(a) e = And(c, d) "
                   "z = Where(e, x, y)", 18),
    "where of numbers": (F, "o = Constant<value_float=0.0>() m = Constant<value_float=-1.0>() c = Less(x, o) "
                         "a = Where(c, m, o) z = Add(a, x)", 18),
    "integers": (COUNTS, "t = Constant<value_int=3>() a = Div(i, t) b = Mod(i, t) c = Mul(a, t) d = Add(c, b) "
                 "z = Sub(d, i)", 18),
    "cast": (F, "a = Cast<to=7>(x) b = Cast<to=1>(a) c = Cast<to=9>(x) d = Cast<to=1>(c) z = Add(b, d)", 18),
    "shape arithmetic": (F, "s = Shape(x) a = Gather<axis=0>(s, zero) b = Mul(a, two) c = Unsqueeze(b, front) "
                         "m = Constant<value_ints=[-1]>() t = Concat<axis=0>(c, m) z = Reshape(x, t)", 18),
    "reshape keeps zero": (F, "s = Constant<value_ints=[0,-1]>() z = Reshape(x, s)", 18),
    "flatten": (F, "a = Flatten<axis=2>(x) z = Flatten<axis=0>(a)", 18),
    "transpose": (F, "a = Transpose<perm=[0,2,1]>(x) z = Transpose(a)", 18),
    "squeeze": (F, "a = Unsqueeze(x, ax) z = Squeeze(a, ax)", 18),
    "unsqueeze from both ends": (F, "a = Constant<value_ints=[-1,-3]>() b = Unsqueeze(x, a) "
                                 "c = Constant<value_ints=[0,-2]>() z = Unsqueeze(b, c)", 18),
    "slice": (F, "s = Constant<value_ints=[1,-4]>() e = Constant<value_ints=[3,9223372036854775807]>() "
              "a = Constant<value_ints=[1,2]>() p = Constant<value_ints=[1,2]>() z = Slice(x, s, e, a, p)", 18),
    "slice backwards": (F, "s = Constant<value_ints=[-1]>() e = Constant<value_ints=[-9223372036854775807]>() "
                        "a = Constant<value_ints=[2]>() p = Constant<value_ints=[-2]>() z = Slice(x, s, e, a, p)", 18),
    "slice by shape": (F, "n = Shape<start=0, end=1>(x) o = Constant<value_ints=[1]>() z = Slice(x, o, n, o)", 18),
    "split": (F, "a, b, c = Split<axis=2, num_outputs=3>(x) z = Concat<axis=1>(c, a, b)", 18),
    "split in sizes": (F, "s = Constant<value_ints=[1,5]>() a, b = Split<axis=2>(x, s) z = Concat<axis=-1>(b, a)", 18),
    "expand": (F, "r = ReduceSum(x, ax) s = Constant<value_ints=[3,1,1,1]>() a = Expand(r, s) t = Shape(x) "
               "b = Expand(r, t) z = Add(a, b)", 18),
    "tile": (F, "r = Constant<value_ints=[1,2,1]>() z = Tile(x, r)", 18),
    "range": (F, "n = Shape<start=0, end=1>(x) m = Squeeze(n) o = Constant<value_int=0>() e = Constant<value_int=1>() "
              "a = Range(o, m, e) z = Cast<to=1>(a)", 18),
    "filled": (F, "s = Shape(x) a = ConstantOfShape(s) z = Add(a, x)", 18),
    "triangle": (F, "a = Trilu(x) b = Trilu<upper=0>(x) z = Sub(a, b)", 18),
    "pad": (F, "p = Constant<value_ints=[0,1,2,0,0,-1]>() z = Pad(x, p)", 18),
    "pad by reflection": (F, 'p = Constant<value_ints=[0,1,2,0,2,1]>() z = Pad<mode="reflect">(x, p)', 18),
    "pad at the edge": (F, 'p = Constant<value_ints=[0,1,2,0,2,1]>() z = Pad<mode="edge">(x, p)', 18),
    "gather": (f"{F}, int64[N,3] i", "z = Gather<axis=1>(x, i)", 18),
    "gather a row": (F, "i = Constant<value_int=-1>() a = Gather<axis=2>(x, i) z = Gather<axis=1>(a, i)", 18),
    "gather elements": (f"{F}, int64[N,4,3] i", "z = GatherElements<axis=2>(x, i)", 18),
    "gather nd": (f"{F}, int64[N,2] i", "z = GatherND(x, i)", 18),
    "gather nd in batches": (f"{F}, int64[N,3,1] i", "z = GatherND<batch_dims=1>(x, i)", 18),
    "scatter elements": (f"{F}, int64[N,4,1] i, float[N,4,1] u", "z = ScatterElements<axis=2>(x, i, u)", 18),
    "scatter nd": (f"{F}, int64[2,1] j, float[2,4,6] v", 'z = ScatterND<reduction="add">(x, j, v)', 18),
    "one hot": (COUNTS, "d = Constant<value_int=5>() v = Constant<value_floats=[0.0,2.0]>() z = OneHot(i, d, v)", 18),
    "non zero": (F, "a = Relu(x) b = NonZero(a) z = Cast<to=1>(b)", 18),
    "cumulative sum": (F, "a = CumSum<reverse=1>(x, one) b = CumSum<exclusive=1>(x, one) z = Add(a, b)", 18),
    "best": (F, "k = Constant<value_ints=[2]>() a, i = TopK(x, k) b = Cast<to=1>(i) z = Add(a, b)", 18),
    "where the best": (F, "a = ArgMax<axis=1>(x) b = ArgMin<axis=1>(x) c = Sub(a, b) z = Cast<to=1>(c)", 18),
    "reductions": (F, "a = ReduceSum(x, ax) b = ReduceMean(x, ax) c = ReduceMax(x, ax) d = ReduceMin(x, ax) "
                   "e = ReduceL2(x, ax) f = ReduceProd(x, ax) g = ReduceLogSumExp(x, ax) h = ReduceSumSquare(x, ax) "
                   "z = Sum(a, b, c, d, e, f, g, h)", 18),
    "reductions as attributes": (F, "a = ReduceMean<axes=[1,2], keepdims=0>(x) b = ReduceL1<axes=[1,2], keepdims=0>(x) "
                                 "z = Add(a, b)", 13),
    "softmax": (F, "a = Softmax<axis=1>(x) b = LogSoftmax(x) z = Add(a, b)", 18),
    "softmax of a matrix": (F, "z = Softmax<axis=1>(x)", 11),
    "layer norm": (f"{F}, float[6] g, float[6] h", "z = LayerNormalization<epsilon=0.01>(x, g, h)", 18),
    "rms norm": (f"{F}, float[6] g", "z = RMSNormalization<epsilon=0.01>(x, g)", 23),
    "rms norm, weights of rows": (f"{F}, float[4,6] g", "z = RMSNormalization(x, g)", 23),
    "group norm": (f"{IMAGE}, float[4] g, float[4] h", "z = GroupNormalization<num_groups=2>(x, g, h)", 21),
    "instance norm": (f"{IMAGE}, float[4] g, float[4] h", "z = InstanceNormalization(x, g, h)", 18),
    "batch norm": (f"{IMAGE}, float[4] g, float[4] h, float[4] m",
                   "v = Abs(g) z = BatchNormalization(x, g, h, m, v)", 18),
    "batch norm of the batch": (f"{IMAGE}, float[4] g, float[4] h, float[4] m",
                                "v = Abs(g) z, r, s = BatchNormalization<training_mode=1>(x, g, h, m, v)", 18),
    "products": (PAIR, "t = Transpose<perm=[0,2,1]>(y) z = MatMul(x, t)", 18),
    "gemm": ("float[N,6] a, float[5,6] b, float[5] c", "z = Gemm<transB=1, alpha=0.5, beta=2.0>(a, b, c)", 18),
    "einsum": (PAIR, 'z = Einsum<equation="nij,nkj->nik">(x, y)', 18),
    "convolution": (f"{IMAGE}, float[6,2,3,3] w, float[6] b",
                    "z = Conv<group=2, strides=[2,1], pads=[1,1,0,1], dilations=[1,2]>(x, w, b)", 18),
    "convolution kept in size": (f"{IMAGE}, float[6,4,3,3] w",
                                 'z = Conv<auto_pad="SAME_UPPER", strides=[3,3]>(x, w)', 18),
    "deconvolution": (f"{IMAGE}, float[4,3,3,3] w",
                      "z = ConvTranspose<strides=[2,2], pads=[1,1,1,1], output_padding=[1,1]>(x, w)", 18),
    "pooling": (IMAGE, "a = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,0,0,1]>(x) z = GlobalMaxPool(a)", 18),
    "mean pooling": (IMAGE, "a = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(x) z = GlobalAveragePool(a)", 18),
    "resize": (IMAGE, 's = Constant<value_floats=[1.0,1.0,2.0,1.5]>() a = Resize<mode="linear">(x, , s) '
               'z = Resize<coordinate_transformation_mode="asymmetric", nearest_mode="floor">(a, , s)', 18),
    "resize by cubes": (IMAGE,
                        's = Constant<value_floats=[1.0,1.0,0.625,1.375]>() z = Resize<mode="cubic">(x, , s)', 18),
    "depth to space": (IMAGE, 'a = DepthToSpace<blocksize=2>(x) z = SpaceToDepth<blocksize=4>(a)', 18),
    "attention": ("float[N,4,5,8] q, float[N,2,5,8] k, float[N,2,5,8] v",
                  "z = Attention<is_causal=1, scale=0.3>(q, k, v)", 23),
    "attention in rows": ("float[N,5,32] q, float[N,7,16] k, float[N,7,16] v, float[5,7] m",
                          "z = Attention<q_num_heads=4, kv_num_heads=2, softcap=2.0>(q, k, v, m)", 23),
    "attention with a past": ("float[N,2,3,8] q, float[N,2,3,8] k, float[N,2,3,8] v, "
                              "float[N,2,4,8] pk, float[N,2,4,8] pv",
                              "a, b, c = Attention<is_causal=1>(q, k, v, , pk, pv) d = ReduceSum(b) e = ReduceSum(c) "
                              "z = Sum(a, d, e)", 23),
    "rotary": ("float[N,4,5,8] x, float[N,5,4] c, float[N,5,4] s",
               "a = RotaryEmbedding(x, c, s) b = RotaryEmbedding<interleaved=1>(x, c, s) z = Add(a, b)", 23),
    "branch": (F, "s = Size(x) c = Greater(s, zero) z = If(c)<then_branch = t () => (float[N,4,6] a) { a = Exp(x) }, "
               "else_branch = e () => (float[N,4,6] b) { b = Neg(x) }>", 18),
    "loop": (F, "n = Constant<value_int=3>() t = Constant<value=bool{1}>() z = Loop<body = b (int64 i, bool c, "
             "float[N,4,6] s) => (bool d, float[N,4,6] r) { d = Identity(c) f = Cast<to=1>(i) u = Mul(s, x) "
             "r = Add(u, f) }>(n, t, x)", 18),
    "scan": (F, "o = Constant<value_ints=[0]>() h = ReduceSum<keepdims=0>(x, ax) f, z = Scan<num_scan_inputs=1, "
             "scan_input_axes=[1], scan_output_axes=[1], body = b (float[N,6] s, float[N,6] v) => (float[N,6] r, "
             "float[N,6] w) { r = Add(s, v) w = Mul(r, v) }>(h, x)", 18),
}  # fmt: skip

PREAMBLE = "zero = Constant<value_int=0>() one = Constant<value_int=1>() two = Constant<value_int=2>() "
PREAMBLE += "ax = Constant<value_ints=[1]>() front = Constant<value_ints=[0]>()"


def build(graph: str, version: int = 18) -> ir.Model:
    """A model with inferred shapes, from ONNX's textual syntax."""
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": {version}, "com.microsoft": 1]> {graph}')
    return ir.from_proto(onnx.shape_inference.infer_shapes(model))


def example(model: ir.Model, batch: int, seed: int) -> dict[str, np.ndarray]:
    """Inputs of a batch size; integers are indices that fit every axis."""
    rng = np.random.default_rng(seed)
    inputs = {}
    for value in model.graph.inputs:
        shape = [dim if isinstance(dim, int) else batch for dim in value.shape]
        floats = value.dtype is ir.DataType.FLOAT
        inputs[value.name] = rng.standard_normal(shape, dtype=np.float32) if floats else rng.integers(0, 2, shape)
    return inputs


def graph_of_case(name: str) -> ir.Model:
    """The graph of a case: ``z`` of its inputs."""
    inputs, body, version = CASES[name]
    kind = "int64" if name == "integers" else "float"
    return build(f"g ({inputs}) => ({kind} z) {{ {PREAMBLE} {body} }}", version)
