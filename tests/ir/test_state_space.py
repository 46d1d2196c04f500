"""State-space operators: right, differentiable, and exported once to one node that runs at any batch and length."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import qcompile as qc
from qcompile.errors import InputError
from qcompile.ir.cache_pairs import cache_pairs
from qcompile.run.executor import Executor
from qcompile.run.session import evaluate

#: One letter an axis; b and l are dynamic.
SCAN = {"u": "blc", "delta": "blc", "A": "cn", "B": "bln", "C": "bln", "D": "c"}
DUALITY = {"x": "blhp", "delta": "blh", "A": "h", "B": "blgn", "C": "blgn", "D": "h"}
OPERATORS = {
    "scan": (qc.selective_scan, SCAN, {"c": 6, "n": 4}),
    "duality": (qc.state_space_duality, DUALITY, {"h": 6, "p": 3, "g": 2, "n": 4}),
    "duality, one group": (qc.state_space_duality, DUALITY, {"h": 4, "p": 2, "g": 1, "n": 3}),
}


def tensors(axes: dict[str, str], sizes: dict[str, int], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = {name: torch.randn([sizes[a] for a in letters], generator=generator) for name, letters in axes.items()}
    return list((made | {"delta": made["delta"].abs() / 2, "A": -made["A"].abs()}).values())


def step_by_step(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """The recurrences as the papers write them; the selective scan is one of heads of width one."""
    scan = A.dim() == 2
    if scan:
        x, delta, A, B, C = x[..., None], delta[..., None, None], A[:, None, :], B[:, :, None], C[:, :, None]
    else:
        delta, A = delta[..., None, None], A[:, None, None]
    repeat = x.shape[2] // B.shape[2]
    B, C = B.repeat_interleave(repeat, 2), C.repeat_interleave(repeat, 2)
    state, outputs = 0.0, []
    for t in range(x.shape[1]):
        added = delta[:, t] * x[:, t, :, :, None] * B[:, t, :, None, :]
        state = torch.exp(delta[:, t] * A) * state + added
        outputs.append((state * C[:, t, :, None, :]).sum(-1) + D[:, None] * x[:, t])
    y = torch.stack(outputs, 1)
    return y.squeeze(-1) if scan else y


class Call(torch.nn.Module):
    def __init__(self, function: Callable) -> None:
        super().__init__()
        self.function = function

    def forward(self, u, delta, A, B, C, D):
        return self.function(u, delta, A, B, C, D)


@pytest.mark.parametrize("length", [1, 5, 64, 150])
@pytest.mark.parametrize("name", OPERATORS)
def test_the_recurrence_is_what_the_paper_says(name: str, length: int) -> None:
    function, axes, sizes = OPERATORS[name]
    inputs = [t.double() for t in tensors(axes, sizes | {"b": 2, "l": length})]
    torch.testing.assert_close(function(*inputs), step_by_step(*inputs), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", OPERATORS)
def test_gradients(name: str) -> None:
    function, axes, sizes = OPERATORS[name]
    inputs = [t.double().requires_grad_() for t in tensors(axes, sizes | {"b": 1, "l": 3})]
    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("name", OPERATORS)
def test_exported_once_it_runs_at_any_batch_and_length(name: str) -> None:
    function, axes, sizes = OPERATORS[name]
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    dynamic = tuple({0: batch, 1: length} if "l" in letters else None for letters in axes.values())
    example = tensors(axes, sizes | {"b": 2, "l": 7})
    source = qc.capture(Call(function), example, dynamic_shapes=dynamic, input_names=list(axes))
    assert [(node.domain, node.op_type) for node in source.model.graph] == [
        ("qcompile", "SelectiveScan" if name == "scan" else "StateSpaceDuality")
    ]
    for b, n in [(2, 7), (1, 1), (3, 70)]:
        inputs = tensors(axes, sizes | {"b": b, "l": n}, seed=n)
        (found,) = evaluate(source.model, {k: v.numpy() for k, v in zip(axes, inputs, strict=True)}).values()
        want = function(*inputs).numpy()
        assert np.linalg.norm(found - want) <= 1e-6 * np.linalg.norm(want)


STATES = {"scan": "bcn", "duality": "bhpn", "duality, one group": "bhpn"}


class Continued(torch.nn.Module):
    """A call that goes on from a state."""

    def __init__(self, function: Callable) -> None:
        super().__init__()
        self.function = function

    def forward(self, u, delta, A, B, C, D, state):
        return self.function(u, delta, A, B, C, D, state)


@pytest.mark.parametrize("cut", [0, 1, 64, 149])
@pytest.mark.parametrize("name", OPERATORS)
def test_two_parts_make_the_whole(name: str, cut: int) -> None:
    function, axes, sizes = OPERATORS[name]
    sizes = sizes | {"b": 2, "l": 150}
    inputs = dict(zip(axes, (t.double() for t in tensors(axes, sizes)), strict=True))
    state, parts = torch.zeros([sizes[a] for a in STATES[name]], dtype=torch.float64), []
    for at in (slice(0, cut), slice(cut, None)):
        part = {key: t[:, at] if "l" in axes[key] else t for key, t in inputs.items()}
        y, state = function(*part.values(), state)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), step_by_step(*inputs.values()), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", OPERATORS)
def test_states_have_gradients(name: str) -> None:
    function, axes, sizes = OPERATORS[name]
    axes = axes | {"state": STATES[name]}
    inputs = [t.double().requires_grad_() for t in tensors(axes, sizes | {"b": 1, "l": 3})]
    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("name", OPERATORS)
def test_exported_with_its_state_it_goes_on(name: str) -> None:
    """In onnxruntime and in the engine, at any batch and length."""
    function, axes, sizes = OPERATORS[name]
    axes = axes | {"state": STATES[name]}
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    dynamic = tuple({0: batch, 1: length} if "l" in a else {0: batch} if "b" in a else None for a in axes.values())
    example = tensors(axes, sizes | {"b": 2, "l": 7})
    source = qc.capture(Continued(function), example, dynamic_shapes=dynamic, input_names=list(axes))
    operator = "SelectiveScan" if name == "scan" else "StateSpaceDuality"
    assert [(node.domain, node.op_type) for node in source.model.graph] == [("qcompile", operator + "WithState")]
    for b, n in [(2, 7), (1, 1), (3, 70)]:
        inputs = tensors(axes, sizes | {"b": b, "l": n}, seed=n)
        feeds = {k: v.numpy() for k, v in zip(axes, inputs, strict=True)}
        for found in (evaluate(source.model, feeds), Executor(source.model)(feeds)):
            for have, want in zip(found.values(), function(*inputs), strict=True):
                assert np.linalg.norm(np.asarray(have) - want.numpy()) <= 1e-6 * np.linalg.norm(want.numpy())
    assert [(p.past.name, p.axis) for p in cache_pairs(source.model)] == [("state", None)]


def test_a_saved_program_keeps_its_scan(tmp_path) -> None:
    inputs = tuple(tensors(SCAN, {"b": 1, "l": 3, "c": 2, "n": 2}))
    torch.export.save(torch.export.export(Call(qc.selective_scan), inputs), tmp_path / "scan.pt2")
    assert [node.op_type for node in qc.capture(tmp_path / "scan.pt2").model.graph] == ["SelectiveScan"]


def test_shapes_that_do_not_fit_are_refused() -> None:
    u, delta, A, B, C, D = tensors(SCAN, {"b": 1, "l": 3, "c": 2, "n": 2})
    with pytest.raises(InputError, match="axis 2 of B has size 3, but A says 2"):
        qc.selective_scan(u, delta, A, torch.zeros(1, 3, 3), C, D)
    with pytest.raises(InputError, match="A has 1 axes, not 2"):
        qc.selective_scan(u, delta, A[0], B, C, D)
    with pytest.raises(InputError, match="axis 2 of state has size 3, but A says 2"):
        qc.selective_scan(u, delta, A, B, C, D, torch.zeros(1, 2, 3))
    with pytest.raises(InputError, match="6 heads cannot share 4 groups"):
        qc.state_space_duality(*tensors(DUALITY, {"b": 1, "l": 1, "h": 6, "p": 1, "g": 4, "n": 1}))


def test_the_example_of_the_documentation_runs() -> None:
    text = (Path(__file__).parents[2] / "docs" / "state-space.md").read_text()
    names: dict = {}
    exec(text.split("```python\n")[1].split("```")[0], names)
    assert "SelectiveScan" in [node.op_type for node in names["source"].model.graph]
