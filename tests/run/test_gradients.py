"""Gradients section by section are those of the whole graph."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qcompile.ir.required import name_of
from qcompile.preparation import prepare
from qcompile.run import stream
from qcompile.run.data import example_inputs
from qcompile.run.executor import Executor
from qcompile.run.gradients import gradients
from qcompile.run.stream import Stream

ZOO = Path(__file__).parents[2] / "examples" / "zoo"


@pytest.mark.parametrize("name", ["language_model", "dit", "mamba"])
def test_sections_give_the_gradients_of_the_whole(name, monkeypatch):
    model = prepare(ZOO / f"{name}.onnx").model
    sites = [
        node for node in model.graph if node.op_type in ("MatMul", "Gemm") and node.inputs[1].const_value is not None
    ]
    written = [name_of(node.outputs[0]) for node in sites]
    read = [name_of(node.inputs[0]) for node in sites]
    inputs = example_inputs(model)
    drawn = [torch.Generator().manual_seed(seed) for seed in range(2)]
    directions: list[dict[str, torch.Tensor]] = [{}, {}]

    def scores(outputs):
        for own, generator in zip(directions, drawn, strict=True):
            for key, value in outputs.items():
                own.setdefault(key, torch.randn(value.shape, generator=generator, dtype=value.dtype))
        return [sum((own[key] * value).sum() for key, value in outputs.items()) for own in directions]

    found = []
    for bytes_ in (1 << 40, 100_000):
        monkeypatch.setattr(stream, "RESIDENT_BYTES", 0 if bytes_ < 1 << 40 else bytes_)
        monkeypatch.setattr(stream, "SECTION_BYTES", bytes_)
        running = Stream(Executor(model, hooked={*written, *read}, dtype=torch.float64))
        assert (len(running.sections) > 3) == (bytes_ < 1 << 40)
        values: dict[str, torch.Tensor] = {}
        at: list[dict[str, torch.Tensor]] = [{}, {}]
        for seen, met, draws in gradients(running, inputs, written, read, scores):
            assert all(name_of(node.inputs[0]) in seen for node in sites if name_of(node.outputs[0]) in met)
            values |= seen
            for own, new in zip(at, draws, strict=True):
                assert not own.keys() & new.keys()
                own |= new
        found.append((values, at))
    (values, at), (other_values, other_at) = found
    assert set(values) == set(read)
    assert all(set(own) == set(written) for own in at)
    for key, value in values.items():
        torch.testing.assert_close(other_values[key], value)
    for own, other in zip(at, other_at, strict=True):
        for key, value in own.items():
            torch.testing.assert_close(other[key], value)
