"""Random inputs are drawn so that a model takes them, and a model that takes none asks for real ones."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from commands import done, refused
from typer.testing import CliRunner

import qcompile as qc
from qcompile.cli.commands import app
from qcompile.errors import InputError
from qcompile.ir.capture import capture
from qcompile.run.data import Data, accepted, example_inputs, hold_out, load_data
from qcompile.run.session import evaluate
from qcompile.run.sources import batches_of

#: A mask of flags that forbid: with all of them set, nothing is left but NaN.
FORBIDDING = """g (float[n,8] x, bool[n,8] pad) => (float[n,8] y) <float[8,8] w>
    { low = Constant<value_float=-inf>()\n s = Where(pad, low, x)\n p = Softmax(s)\n y = MatMul(p, w) }"""

#: A length that must be a multiple of 64.
MULTIPLE = """g (float[n,length] x) => (float[m,8] y) <float[64,8] w>
    { s = Constant<value_ints=[-1,2,64]>()\n a = Reshape(x, s)\n y = MatMul(a, w) }"""

#: An exporter wrote down the length of its example.
BAKED = """g (float[n,length,8] x) => (float[m,5,8] y) <float[8,8] w>
    { s = Constant<value_ints=[-1,5,8]>()\n a = Reshape(x, s)\n y = MatMul(a, w) }"""


@pytest.mark.parametrize("text", [FORBIDDING, MULTIPLE], ids=["flags that forbid", "a multiple of 64"])
def test_inputs_are_drawn_until_the_model_takes_them(parse, tmp_path, text):
    model = parse(text)
    data, outputs = accepted(model, load_data(None, model), lambda batch: evaluate(model, batch))
    assert data.random
    assert len(data.batches) == 8
    assert np.isfinite(outputs["y"]).any()
    manifest = qc.export(model, "blackwell-fp4", tmp_path / "out").manifest
    assert 0 < manifest["quantization"]["rel_l2"] < 0.5


def test_a_model_that_takes_none_asks_for_real_ones(parse, tmp_path):
    ir.save(parse(BAKED), tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=np.ones((2, 5, 8), np.float32))
    command = ["rotate", str(tmp_path / "m.onnx"), "-o", str(tmp_path / "r.onnx")]
    refused = CliRunner().invoke(app, command)
    assert refused.exit_code == 2
    assert "give it real ones with --calibration; onnxruntime cannot run the graph: Reshape" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    done = CliRunner().invoke(app, [*command, "--calibration", str(tmp_path / "x.npz")])
    assert done.exit_code == 0, done.stderr


def test_a_command_names_the_option_that_it_has(parse, tmp_path):
    ir.save(parse(BAKED), tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=np.ones((2, 5, 8), np.float32))
    qc.export(str(tmp_path / "m.onnx"), "cpu-int4", tmp_path / "out", calibration=tmp_path / "x.npz")
    asked = refused(tmp_path, "verify", tmp_path / "out")
    assert "give it real ones with --evaluation; onnxruntime" in asked
    done("verify", tmp_path / "out", "--evaluation", tmp_path / "x.npz")
    (tmp_path / "none").mkdir()
    export = ("export", tmp_path / "m.onnx", "--target", "cpu-int4", "-o", tmp_path / "other")
    empty = "has no .npz, .npy, .safetensors or .txt files and no images"
    for given, option in ((export, "--calibration"), (("verify", tmp_path / "out"), "--evaluation")):
        for path, said in (
            (tmp_path / "gone", "there is no data at"),
            (tmp_path / "none", empty),
        ):
            message = refused(tmp_path, *given, option, path)
            assert said in message
            assert f"which {option} names" in message


#: The first step of a decoder: nothing is past yet. One site reads that alone.
PREFILL = """g (float[b,s,64] x, float[b,p,64] past) => (float[b,s,64] y)
    <int64[1] length, float[64,64] query, float[64,64] key, float[64,64] out> {
        q = MatMul(x, query)  before = MatMul(past, key)
        all = Concat<axis=1>(before, q)  mean = ReduceMean<keepdims=1>(all, length)
        mixed = Add(mean, q)  y = MatMul(mixed, out) }"""


@pytest.mark.parametrize("method", ["gptq", "search", "rtn"])
def test_a_past_may_be_empty(parse, tmp_path, method):
    ir.save(parse(PREFILL, length=np.array([1])), tmp_path / "m.onnx")
    x = np.random.default_rng(0).standard_normal((4, 16, 64)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x, past=np.zeros((4, 0, 64), np.float32))
    given = {"calibration": tmp_path / "x.npz", "transforms": "none", "method": method}
    manifest = qc.export(str(tmp_path / "m.onnx"), "cpu-int8", tmp_path / "out", **given).manifest
    assert [site["format"] for site in manifest["sites"]].count("float") < 3
    assert 0 < manifest["quantization"]["rel_l2"] < 0.1


def test_rows_go_along_where_one_array_has_none(parse):
    """A past whose length comes first is empty along its first axis; the file is one batch then."""
    model = parse("g (float[b,8] x, float[p,8] past) => (float[m,8] y) { y = Concat<axis=0>(past, x) }")
    given = {"x": np.ones((6, 8), np.float32), "past": np.ones((0, 8), np.float32)}
    (batch,) = batches_of(given, model)
    assert {name: array.shape for name, array in batch.items()} == {"x": (6, 8), "past": (0, 8)}


def test_data_without_a_value_is_refused(parse, tmp_path):
    np.savez(tmp_path / "x.npz", x=np.zeros((0, 8), np.float32), past=np.zeros((0, 8), np.float32))
    model = parse("g (float[b,8] x, float[p,8] past) => (float[m,8] y) { y = Concat<axis=0>(past, x) }")
    with pytest.raises(InputError, match="is empty: none of its arrays holds a value"):
        load_data(tmp_path / "x.npz", model)


def test_nothing_but_nan_is_no_answer(parse):
    model = parse("g (float[n,8] x) => (float[n,8] y) { a = Sub(x, x)\n y = Div(a, a) }")
    with pytest.raises(InputError, match="nothing but NaN"):
        accepted(model, load_data(None, model), lambda batch: evaluate(model, batch))


@pytest.mark.parametrize("name, size", [("past + length", 21), ("2*length", 10), ("length//2", 2), ("a b", 16)])
def test_sizes_of_sums_and_products_of_names(name, size):
    values = [
        ir.Value(name="x", shape=ir.Shape(["batch", "length"]), type=ir.TensorType(ir.DataType.INT64)),
        ir.Value(name="mask", shape=ir.Shape(["batch", name]), type=ir.TensorType(ir.DataType.INT64)),
    ]
    model = ir.Model(ir.Graph(values, values, nodes=[], opset_imports={"": 18}), ir_version=9)
    assert example_inputs(model, sizes={"length": 5})["mask"].shape == (2, size)


def test_dimensions_below_zero_are_taken_for_open_ones(tmp_path):
    """Paddle writes -1 for a batch of any size."""
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [value("x", onnx.TensorProto.FLOAT, [-1, 4])],
        [value("y", onnx.TensorProto.FLOAT, [-1, 4])],
    )  # fmt: skip
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)]), tmp_path / "m.onnx")
    assert example_inputs(capture(tmp_path / "m.onnx").model)["x"].shape == (2, 4)


LENGTH = "g (int64[n,l] i, float[n,l] m) => (float[n,l] y) { c = Cast<to=1>(i)\n y = Mul(c, m) }"


@pytest.mark.parametrize(("count", "held_out"), [(1, 0), (3, 0), (4, 2), (8, 2), (32, 8), (200, 16), (1000, 32)])
def test_sequences_are_held_out_as_a_whole(parse, count, held_out):
    """Each is in one place, none is lost, and what is learned from comes in parts that can be compared."""
    i, m = np.arange(count * 5).reshape(count, 5), np.ones((count, 5), np.float32)
    given = Data(tuple(batches_of({"i": i, "m": m}, parse(LENGTH), "")), random=False)
    data = hold_out(given, parse(LENGTH))
    assert [batch["i"].shape for batch in data.held_out] == [(1, 5)] * held_out
    learned, kept = (sorted(row[0] for b in part for row in b["i"]) for part in (data.batches, data.held_out))
    assert sorted(learned + kept) == list(i[:, 0])
    if held_out:
        assert len(data.batches) >= min(8, count - held_out)
        assert np.diff([0, *np.array(kept) // 5, count - 1]).max() <= 2 * count // held_out  # spread over all


@pytest.mark.parametrize(
    ("wanted", "left"), [(0, [7, 7, 2]), (1, [1, 1, 1]), (8, [3, 3, 2]), (16, [7, 7, 2]), (99, [7, 7, 2])]
)
def test_fewer_sequences_are_taken_from_all_batches(wanted, left):
    batches = tuple({"x": np.arange(size) + 10 * i, "scale": np.float32(2)} for i, size in enumerate((7, 7, 2)))
    thinned = Data(batches, random=False, sizes=(7, 7, 2)).thinned(wanted)
    assert [len(batch["x"]) for batch in thinned.batches] == list(thinned.sizes) == left
    assert [int(batch["x"][0]) for batch in thinned.batches] == [0, 10, 20]
    assert all(batch["scale"] == 2 for batch in thinned.batches)


def test_what_cannot_be_cut_is_a_sequence_as_it_is(parse):
    model = parse("g (float[2,l] x, float[l,2] z) => (float[2,2] y) { y = MatMul(x, z) }")
    batches = tuple({"x": np.full((2, 3), n, np.float32), "z": np.ones((3, 2), np.float32)} for n in range(9))
    data = hold_out(Data(batches, random=False), model)
    assert [len(data.batches), len(data.held_out)] == [7, 2]
    assert all(any(batch is one for one in batches) for batch in (*data.batches, *data.held_out))
