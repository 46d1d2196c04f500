"""A graph that runs in sections gives what it gives as a whole, wherever its activations wait."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from qcompile.api import rotate
from qcompile.errors import InputError
from qcompile.preparation import prepare
from qcompile.run import stream
from qcompile.run.compare import compare
from qcompile.run.data import example_inputs
from qcompile.run.executor import Executor
from qcompile.run.memory_budget import Memory, parse_memory
from qcompile.run.session import Session
from qcompile.run.shelf import Shelf
from qcompile.run.stream import Stream, Streamed

ZOO = Path(__file__).parents[2] / "examples" / "zoo"


@pytest.fixture(params=[1, 300_000, 1 << 30])
def section_bytes(request, monkeypatch):
    """Bytes of weights in a section, none of which stay."""
    monkeypatch.setattr(stream, "SECTION_BYTES", request.param)
    monkeypatch.setattr(stream, "RESIDENT_BYTES", 0)
    return request.param


def test_sections_compute_what_the_whole_computes(section_bytes):
    model = rotate(ZOO / "language_model.onnx").prepared.model  # with functions of our own
    inputs = example_inputs(model)
    want = Session(model, optimize=False).run(inputs)
    assert compare(want, Streamed(model).run(inputs))[0] < 2e-6


@pytest.mark.parametrize("name", ["mamba", "dit"])
def test_many_batches_pass_a_section_before_the_next_begins(name, section_bytes):
    model = prepare(ZOO / f"{name}.onnx").model
    batches = [example_inputs(model, seed=seed) for seed in range(3)]
    whole = Executor(model)
    running = Stream(Executor(model))
    assert (len(running.sections) > 2) == (section_bytes < 1 << 30)
    order: list[int] = []
    hooked = [whole.outputs[0]]
    engine = Executor(model, hooked=hooked)
    running = Stream(engine)

    def hooks(number):
        return {hooked[0]: lambda value: order.append(number)}

    with torch.no_grad():
        for batch, found in zip(batches, running.run(batches, hooks), strict=True):
            for key, value in whole(batch).items():
                torch.testing.assert_close(found[key], value)
    assert order == [0, 1, 2]
    assert len(engine.weights) <= (len(whole.weights) if section_bytes == 1 << 30 else 0)  # let go of


def test_bodies_may_read_from_outside_and_outputs_may_be_constants(section_bytes, parse):
    model = parse("""g (float[2,3] x, bool c) => (float[2,4] y, float[3,4] w) <float[3,4] w, float[3,4] v>
        { a = MatMul(x, w)
          b = MatMul(x, v)
          y = If (c) <then_branch = t () => (float[2,4] p) { p = Add(a, b) },
                      else_branch = e () => (float[2,4] q) { q = Sub(a, b) }> }""")
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    w, v = (model.graph.initializers[name].const_value.numpy() for name in "wv")
    for flag in (True, False):
        got = Streamed(model).run({"x": x, "c": np.array(flag)})
        np.testing.assert_allclose(got["y"], x @ w + (x @ v if flag else -(x @ v)), rtol=1e-5)
        np.testing.assert_array_equal(got["w"], w)


def test_wrong_inputs_are_named():
    with pytest.raises(InputError, match="lacks input_ids"):
        Streamed(ir.load(ZOO / "language_model.onnx")).run({"ids": np.zeros((1, 4), np.int64)})


# -- the budget ------------------------------------------------------------------------------------------------------


def test_what_is_beyond_the_budget_waits_on_disk():
    tensors = {name: torch.randn(100).to(dtype) for name, dtype in (("a", torch.float32), ("b", torch.bfloat16))}
    with Shelf(torch.device("cpu"), Memory(host=400)) as shelf:
        for key in range(3):
            shelf.put(key, {**tensors, "size": 7})
        folder = shelf._folder
        assert sum(file.stat().st_size for file in folder.iterdir()) == 2 * 400 + 3 * 200  # the first "a" stays
        assert len(list(folder.iterdir())) == 5
        assert torch.equal(shelf.look(1, "a"), tensors["a"])
        for key in (2, 0, 1):
            found = shelf.take(key)
            assert found["size"] == 7
            assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
        assert list(folder.iterdir()) == []
        shelf.put(0, tensors)  # there is room again
        assert len(list(folder.iterdir())) == 1
    assert not folder.exists()


def test_results_do_not_depend_on_the_budget(section_bytes):
    model = prepare(ZOO / "dit.onnx").model
    batches = [example_inputs(model, seed=seed) for seed in range(2)]
    results = [list(Stream(Executor(model), memory=Memory(host=bound)).run(batches)) for bound in (0, 1 << 40)]
    for one, other in zip(*results, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_sizes_as_people_write_them():
    assert parse_memory({"device": "40GB", "host": "1.5 GiB"}) == Memory(40 * 10**9, 3 << 29)
    assert parse_memory({"host": 7}) == Memory(None, 7)
    for words, message in (
        ({"disk": "1GB"}, "knows 'device' and 'host', not 'disk'"), ({"host": "much"}, "'much' is no number of bytes"),
        ({"host": "-1GB"}, "less than nothing"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            parse_memory(words)
