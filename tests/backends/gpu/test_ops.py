"""Every row of the lowering table against onnxruntime, on graphs of a line or two."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torch_cases import CASES, build, example, graph_of_case

from qcompile.run.compare import compare
from qcompile.run.session import evaluate

pytest.importorskip("triton", reason="the generated programs import triton")


@pytest.mark.parametrize("name", CASES)
def test_a_row_computes_what_onnxruntime_does(name: str, lower: Callable) -> None:
    model = graph_of_case(name)
    run, _ = lower(model.clone())
    for batch in (2, 3):
        given = example(model, batch, batch)
        want, have = evaluate(model, given), run(given)
        assert have["z"].shape == want["z"].shape
        assert have["z"].dtype == want["z"].dtype
        if want["z"].dtype == np.int64:
            assert (have["z"] == want["z"]).all()
        assert compare(want, have)[0] < 3e-6


def test_an_unknown_operator_is_named_before_anything_is_written(compiled: list, tmp_path: Path) -> None:
    from qcompile.backends.gpu.lowering import lower as lower_to
    from qcompile.errors import TargetError
    from qcompile.targets.registry import get_target

    model = build("g (float[3,3] x) => (float z) { z = Det(x) }")
    next(iter(model.graph)).name = "culprit"
    with pytest.raises(TargetError, match=r"node 'culprit' \(Det\) cannot be lowered: the lowering table has no row"):
        lower_to(model, get_target("hopper-int4"), tmp_path)
    assert not list(tmp_path.iterdir())
    assert not compiled
