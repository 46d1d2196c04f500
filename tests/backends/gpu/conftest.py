"""Generated programs run under Triton's interpreter here, unless there is a GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

Run = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Keeps lowering from compiling kernels ahead, which takes seconds each; gets the architectures asked for."""
    pytest.importorskip("triton", reason="the generated programs import triton")
    from qcompile.backends.gpu import lowering

    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(lowering, "compile_ahead", lambda folder, arches: asked.append(tuple(arches)))
    return asked


@pytest.fixture
def lower(tmp_path: Path, compiled: list) -> Callable[..., tuple[Run, str]]:
    """Lower a planned graph: its program as a function, and the source."""
    from qcompile.backends.gpu import lowering, runner
    from qcompile.targets.registry import get_target

    def make(model: ir.Model, target: str = "hopper-int4", dtype: str = "float32") -> tuple[Run, str]:
        folder = tmp_path / f"artifact{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        lowering.lower(model, get_target(target), folder)
        return runner.load(folder, dtype=dtype), (folder / "model.py").read_text()

    return make
