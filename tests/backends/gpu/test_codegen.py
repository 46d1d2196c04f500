"""What the generated source looks like: shapes on the host, memory freed, precision kept where it matters."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import onnx_ir as ir
import pytest

pytest.importorskip("triton", reason="the generated programs import triton")


def build(graph: str, version: int = 18, **constants: np.ndarray) -> ir.Model:
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": {version}]> {graph}')
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in constants.items())
    return ir.from_proto(onnx.shape_inference.infer_shapes(model))


HEADS = """g (float[batch,length,12] x) => (float[batch,3,length,4] y) {
    s = Shape(x)  zero = Constant<value_int=0>()  one = Constant<value_int=1>()  front = Constant<value_ints=[0]>()
    b = Gather(s, zero)  l = Gather(s, one)  bs = Unsqueeze(b, front)  ls = Unsqueeze(l, front)
    rest = Constant<value_ints=[3,4]>()  shape = Concat<axis=0>(bs, ls, rest)
    r = Reshape(x, shape)  y = Transpose<perm=[0,2,1,3]>(r) }"""


def test_shape_arithmetic_becomes_numbers_of_the_host(lower: Callable) -> None:
    _, source = lower(build(HEADS))
    assert "r = x.reshape(batch, length, 3, 4)" in source
    assert "y = r.transpose(1, 2)" in source
    assert "CAPTURES" not in source


def test_waiting_for_the_gpu_is_said(lower: Callable) -> None:
    run, source = lower(build("g (float[N] x, int64[1] n) => (float y) { y = Reshape(x, n) }"))
    assert "CAPTURES = False" in source
    assert run({"x": np.ones(3, np.float32), "n": np.array([3])})["y"].shape == (3,)


def test_the_source_is_deterministic_and_parses(lower: Callable) -> None:
    sources = [lower(build(HEADS))[1] for _ in range(2)]
    assert sources[0] == sources[1]
    assert ast.parse(sources[0])


def test_what_nobody_reads_is_not_computed_and_what_was_read_is_freed(lower: Callable) -> None:
    lines = " ".join(f"v{i + 1} = Exp(v{i})" for i in range(20))
    _, source = lower(build(f"g (float[N] v0) => (float[N] v20) {{ unused = Sin(v0) {lines} }}"))
    assert "torch.sin" not in source
    freed = {name for line in source.splitlines() if "del " in line for name in line.split("del ")[1].split(", ")}
    assert {"v1", "v7"} <= freed
    assert not {"v0", "v20"} & freed


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_floats_of_16_bits_are_in_the_dtype_of_the_program(dtype: str, lower: Callable) -> None:
    run, _ = lower(build("g (float16[n] x, float16[n] y) => (float16[n] z) { z = Mul(x, y) }"), dtype=dtype)
    x = np.array([1.0, 1.0009765625], np.float16)  # the second has more digits than bfloat16
    z = run({"x": x, "y": x})["z"]
    assert z.dtype == np.float16
    assert (z[1] == 1) == (dtype == "bfloat16")


SUMS = """g (float[n,2000] x) => (float y, float z) {
    s = Constant<value_ints=[0]>()  first = Slice(x, s, one, one)  zero = Sub(first, first)  h = Squeeze(zero, one)
    c = MatMul(x, w)
    y, z = Scan<num_scan_inputs=1, scan_input_axes=[1], scan_output_axes=[1], body = step (float[n] a, float[n] b)
        => (float[n] d, float[n] e) { d = Add(a, b)  e = Identity(d) }>(h, c) }"""


def test_recurrences_stay_float32_in_bfloat16(lower: Callable) -> None:
    model = build(SUMS, w=np.eye(2000, dtype=np.float32), one=np.array([1]))
    run, _ = lower(model, dtype="bfloat16")
    assert run({"x": np.ones((1, 2000), np.float32)})["y"] == 2000  # bfloat16 would stop at 256


POSITIONS = """g (int64[batch,length] ids) => (float y) {
    end = Shape<start=1, end=2>(ids)  stop = Squeeze(end)  zero = Constant<value_int=0>()  one = Constant<value_int=1>()
    p = Range(zero, stop, one)  last = Constant<value_ints=[-1]>()  column = Unsqueeze(p, last)
    position = Cast<to=1>(column)  angle = Mul(position, frequencies)  c = Cos(angle)
    e = Gather(table, ids)  y = Mul(e, c) }"""


def test_positions_stay_float32_in_bfloat16(lower: Callable) -> None:
    rng = np.random.default_rng(0)
    constants = {"table": rng.standard_normal((100, 8)), "frequencies": rng.standard_normal(8)}
    model = build(POSITIONS, **{name: array.astype(np.float32) for name, array in constants.items()})
    run, source = lower(model.clone())
    narrow, _ = lower(model.clone(), dtype="bfloat16")
    assert 'weights.wide("frequencies")' in source
    assert 'weights.narrow("table")' in source
    ids = rng.integers(0, 100, (1, 600))
    want, have = run({"ids": ids})["y"], narrow({"ids": ids})["y"]
    assert np.abs(want - have).max() < 0.05  # cosines of positions rounded to bfloat16 would be anything


def test_the_protocol_names_all_that_rows_use_of_a_program_and_nothing_else() -> None:
    from qcompile.backends.gpu import private_rows
    from qcompile.operators import protocol, writer

    below = {"protocol.py", "values.py", "writer.py"}
    files = [path for path in Path(protocol.__file__).parent.glob("*.py") if path.name not in below]
    trees = [ast.parse(path.read_text()) for path in (Path(private_rows.__file__), *files)]
    attributes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    used = {node.attr for node in attributes if ast.unparse(node.value) in ("program", "c.program", "self.program")}
    own = vars(protocol.Program)
    assert used == {*own["__annotations__"], *(name for name in own if not name.startswith("_"))}
    assert {name for name in used if callable(own.get(name))} <= {*dir(writer.Program)}
