"""Shared fixtures: graphs from ONNX's textual syntax, random members of freedoms, the check of soundness."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import changes
import onnx_ir as ir
import pytest
import torch
from checked import Checked
from hypothesis import settings

from qcompile.passes.pipeline import Hook, Pipeline
from qcompile.passes.state import State
from qcompile.transforms import Transform
from qcompile.transforms.freedom import Freedom

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before the first import of triton, whoever needs it

torch.set_num_threads(1)

# A run finds what the last one found; `pytest --hypothesis-profile=default` looks elsewhere each time.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")


@pytest.fixture
def parse() -> Callable[..., ir.Model]:
    """Makes a model from ONNX's textual syntax."""
    return changes.parse


@pytest.fixture
def member() -> Callable[[Freedom, int, int], Transform]:
    """Draws a random member of a freedom."""
    return changes.member


@pytest.fixture
def change() -> Callable[..., float]:
    """Measures what a change of basis does to a model's outputs."""
    return changes.change


@pytest.fixture
def check_sound() -> Callable[..., None]:
    """Applies random transforms from every space's claimed freedom and requires the same outputs."""

    def check(model: ir.Model, seed: int = 0) -> None:
        error, dtype = changes.basis_change(model, lambda analysis: changes.claimed(analysis, seed), seed)
        assert error < changes.TOLERANCE[dtype]

    return check


@pytest.fixture
def checked_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Holds every pass that a pipeline runs to its contract."""
    apply = Pipeline.apply

    def check(self: Pipeline, state: State, hooks: Sequence[Hook] = ()) -> bool:
        within = any(isinstance(hook, Checked) for hook in hooks)  # a pipeline that is a pass of another
        return apply(self, state, hooks if within else [*hooks, Checked(state.model)])

    monkeypatch.setattr(Pipeline, "apply", check)
