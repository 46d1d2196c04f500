"""Changes of basis for tests: graphs in ONNX's textual syntax, random members of freedoms, what they do to outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import torch

from qcompile.analysis.analyze import analyze
from qcompile.analysis.axes import AxisNode
from qcompile.analysis.folding import fold
from qcompile.analysis.spaces import Analysis
from qcompile.errors import InputError
from qcompile.ir.state_space_export import add_bodies
from qcompile.ir.widen import to_double
from qcompile.run.compare import compare
from qcompile.run.data import example_inputs
from qcompile.run.session import Session, evaluate_in_double
from qcompile.transforms import Compose, Dense, Diagonal, Permutation, Transform
from qcompile.transforms.freedom import Freedom

__all__ = ["TOLERANCE", "basis_change", "change", "claimed", "evaluate_exactly", "member", "parse"]

#: Relative L2 between a graph and itself in another basis, by the type that it is evaluated in.
TOLERANCE = {np.dtype(np.float64): 1e-9, np.dtype(np.float32): 2e-4}


#: What operators mean that have no kernel of their own, or one whose CPU version does not show it.
MEANINGS = {
    "BiasAdd": "BiasAdd (x, b, r) => (y) { t = Add(x, b)\n y = Add(t, r) }",
    "BiasSplitGelu": """BiasSplitGelu (x, b) => (y) { t = Add(x, b)\n p, q = Split<axis=-1, num_outputs=2>(t)
        half = Constant<value_float=0.5>()\n root = Constant<value_float=0.7071067811865476>()\n s = Mul(q, root)
        e = Erf(s)\n o = Constant<value_float=1.0>()\n f = Add(e, o)\n u = Mul(f, half)\n v = Mul(u, q)
        y = Mul(p, v) }""",
    "LayerNorm": """LayerNorm (x, c, d) => (y) { a = Constant<value_ints=[-1]>()\n m = ReduceMean<keepdims=1>(x, a)
        q = Sub(x, m)\n w = Mul(q, q)\n v = ReduceMean<keepdims=1>(w, a)\n i = Sqrt(v)\n n = Div(q, i)\n o = Mul(n, c)
        y = Add(o, d) }""",
    "RMSNorm": """RMSNorm (x, c) => (y) { a = Constant<value_ints=[-1]>()\n w = Mul(x, x)
        v = ReduceMean<keepdims=1>(w, a)\n i = Sqrt(v)\n n = Div(x, i)\n y = Mul(n, c) }""",
    "BiasSoftmax": "BiasSoftmax (x, b) => (y) { t = Add(x, b)\n y = Softmax<axis=-1>(t) }",
    # all experts taken, SiLU between; onnxruntime's own gives zeros where its result is not an output of the graph
    "MoE": """MoE (x, p, w, b, v, c) => (y) { s = Softmax<axis=-1>(p)\n a = Einsum<equation="bc,edc->bed">(x, w)
        t = Add(a, b)\n u = Sigmoid(t)\n q = Mul(t, u)\n o = Einsum<equation="bed,ecd->bec">(q, v)
        r = Add(o, c)\n y = Einsum<equation="be,bec->bc">(s, r) }""",
    # in two groups
    "GroupNorm": """GroupNorm (x, c, d) => (y) { t = Transpose<perm=[0,3,1,2]>(x)\n s = Shape(t)
        r = Constant<value_ints=[0,2,-1]>()\n a = Constant<value_ints=[-1]>()\n p = Reshape(t, r)
        m = ReduceMean<keepdims=1>(p, a)\n q = Sub(p, m)\n w = Mul(q, q)\n v = ReduceMean<keepdims=1>(w, a)
        e = Constant<value_float=0.1>()\n f = Add(v, e)\n i = Sqrt(f)\n n = Div(q, i)\n k = Reshape(n, s)
        l = Transpose<perm=[0,2,3,1]>(k)\n o = Mul(l, c)\n y = Add(o, d) }""",
}
MEANINGS["GroupNorm, SiLU"] = MEANINGS["GroupNorm"].replace(
    "y = Add(o, d)", "z = Add(o, d)\n j = Sigmoid(z)\n y = Mul(z, j)"
)


def parse(text: str, opset: int = 21, seed: int = 0, **fixed: np.ndarray) -> ir.Model:
    """A model from a graph in textual syntax; declared values that no node makes are constants, random unless given.

    A text with a header of its own says itself of which opset it is.
    """
    header = f'<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1, "qcompile" : 1]>'
    proto = onnx.parser.parse_model(text if text.startswith("<") else f"{header}\n{text}")
    for domain, meaning in sorted({(node.domain, _meaning(node)) for node in proto.graph.node if node.domain}):
        if meaning in MEANINGS:
            function = f'<domain: "{domain}", opset_import: ["" : {opset}]> {MEANINGS[meaning]}'
            proto.functions.append(onnx.parser.parse_function(function))
    rng = np.random.default_rng(seed)
    produced = {name for node in proto.graph.node for name in node.output}
    for info in [item for item in proto.graph.value_info if item.name not in produced]:
        dims = tuple(dim.dim_value for dim in info.type.tensor_type.shape.dim)
        array = fixed.get(info.name, rng.standard_normal(dims).astype(np.float32))
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), info.name))
        proto.graph.value_info.remove(info)
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=True))
    add_bodies(model)
    return model


def _meaning(node: onnx.NodeProto) -> str:
    active = any(attribute.name == "activation" and attribute.i for attribute in node.attribute)
    return f"{node.op_type}, SiLU" if active else node.op_type


def _orthogonal(size: int, rng: np.random.Generator) -> np.ndarray:
    return np.linalg.qr(rng.standard_normal((size, size)))[0]


def member(freedom: Freedom, size: int, seed: int) -> Transform:
    """A random member of a group, far from the identity and well conditioned."""
    rng = np.random.default_rng(seed)
    if freedom == Freedom.GENERAL:
        matrix = _orthogonal(size, rng) @ np.diag(rng.uniform(0.5, 2.0, size)) @ _orthogonal(size, rng)
        return Dense(torch.from_numpy(matrix))
    if Freedom.ORTHOGONAL in freedom:
        return Dense(torch.from_numpy(_orthogonal(size, rng)))
    if Freedom.ORTHOGONAL_ONES in freedom:
        basis = np.linalg.qr(np.column_stack([np.ones(size), rng.standard_normal((size, size - 1))]))[0]
        inner = np.eye(size)
        inner[1:, 1:] = _orthogonal(size - 1, rng)
        return Dense(torch.from_numpy(basis @ inner @ basis.T))
    scale = np.ones(size)
    if Freedom.POSITIVE_DIAGONAL in freedom:
        scale = rng.uniform(0.5, 2.0, size)
    if Freedom.SIGNS in freedom:
        scale = scale * rng.choice([-1.0, 1.0], size)
    parts: list[Transform] = [Diagonal(torch.from_numpy(scale))]
    if Freedom.PERMUTATION in freedom:
        parts.append(Permutation(torch.from_numpy(rng.permutation(size))))
    return Compose(tuple(parts))


def claimed(analysis: Analysis, seed: int) -> dict[AxisNode, Transform]:
    """A random member of the freedom that each space claims."""
    chosen = [space for space in analysis.spaces if space.freedom != Freedom.NONE]
    return {space.node: member(space.freedom, space.size, seed + i) for i, space in enumerate(chosen)}


def change(model: ir.Model, choose: Callable[[Analysis], Mapping[AxisNode, Transform]], seed: int = 0) -> float:
    """Relative L2 between a model and itself in another basis, both in float64."""
    return basis_change(model, choose, seed)[0]


def basis_change(
    model: ir.Model,
    choose: Callable[[Analysis], Mapping[AxisNode, Transform]],
    seed: int = 0,
    sizes: Mapping[str, int] | None = None,
) -> tuple[float, np.dtype]:
    """The same, and the type that both were evaluated in: fused operators of onnxruntime exist in float32 only."""
    wide = to_double(model)
    inputs = example_inputs(model, seed=seed, sizes=sizes)
    before, dtype = evaluate_exactly(wide, inputs)
    analysis = analyze(wide)
    fold(analysis, choose(analysis))
    return compare(before, evaluate_exactly(wide, inputs)[0])[0], dtype


def evaluate_exactly(wide: ir.Model, inputs: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], np.dtype]:
    """A float64 graph's outputs: in float64, or in float32 where operators have no other implementation."""
    try:
        if any(map(_misread, wide.graph)):
            raise NotImplementedError
        narrow = any(node.op_type == "LinearAttention" for node in wide.graph)  # inside of onnx' own evaluator
        return evaluate_in_double(wide, inputs), np.dtype(np.float32 if narrow else np.float64)
    except (InputError, NotImplementedError, KeyError, RuntimeError, ValueError, IndexError, TypeError):
        narrow = {k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in inputs.items()}
        return Session(_single(wide)).run(narrow), np.dtype(np.float32)


def _misread(node: ir.Node) -> bool:
    """What onnx's own evaluator does otherwise than it is defined: lengths of sequences, 1-norms without a modulus."""
    if node.op_type in ("GRU", "LSTM", "RNN"):
        return len(node.inputs) > 4 and node.inputs[4] is not None
    return node.op_type == "LpNormalization" and node.attributes.get_int("p", 2) == 1


def _single(wide: ir.Model) -> ir.Model:
    narrow = wide.clone()
    for value in [*narrow.graph.inputs, *narrow.graph.initializers.values(), *narrow.graph.outputs]:
        if value.dtype == ir.DataType.DOUBLE:
            value.type = ir.TensorType(ir.DataType.FLOAT)
            if value.const_value is not None:
                value.const_value = ir.tensor(value.const_value.numpy().astype(np.float32), name=value.name)
    for node in narrow.graph:
        for output in node.outputs:
            output.type, output.shape = None, None
        if node.op_type == "Cast" and node.attributes["to"].value == ir.DataType.DOUBLE:
            node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.FLOAT))
    return narrow
