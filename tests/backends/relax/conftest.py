"""What the tests of the TVM backend share. All are skipped where TVM is not installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest


@pytest.fixture(scope="session")
def compiled() -> Callable[..., Callable[..., np.ndarray]]:
    """Compiles one kernel: a function of its arrays and the shape of its result."""
    import tvm

    from qcompile.backends.relax.compilation import machine

    where = machine(None, "cpu")

    def make(function: Any) -> Callable[..., np.ndarray]:
        module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
        run = tvm.tirx.build(module, target=where.target)["main"]

        def call(*arrays: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
            out = tvm.runtime.tensor(np.full(shape, np.nan, np.float32))
            run(*(tvm.runtime.tensor(np.ascontiguousarray(array)) for array in arrays), out)
            return out.numpy()

        return call

    return make


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)
