"""Random convolutional networks, exported to the targets that compute them: every one runs, and stays near floats."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from random_cnns import grow

import qcompile as qc
from qcompile.errors import TargetError
from qcompile.run.session import Session

#: Relative L2 that rounding to nearest may take, several times what it does on these networks.
MOST = {"qdq-int8": 0.2, "cpu-int8": 0.1, "cpu-int4": 0.6, "integer": 0.2}


@pytest.mark.parametrize(("seed", "axes"), [(3, 2), (8, 2), (7, 2), (1, 1), (2, 3)])
@pytest.mark.parametrize("target", MOST)
def test_it_runs_near_the_float_network(tmp_path: Path, target: str, seed: int, axes: int) -> None:
    net = grow(seed, axes)
    onnx.save(net.model, tmp_path / "net.onnx")
    np.savez(tmp_path / "x.npz", x=net.data(8))
    export = {"calibration": tmp_path / "x.npz", "method": "rtn", "transforms": "none"}
    lacking = {node.op_type for node in net.model.graph.node} & {"ConvTranspose", "InstanceNormalization"}
    if target == "integer" and lacking:
        with pytest.raises(TargetError, match="has no integer form of"):
            qc.export(tmp_path / "net.onnx", target, tmp_path / "out", **export)
        return
    made = qc.export(tmp_path / "net.onnx", target, tmp_path / "out", **export)
    x = {"x": net.data(4, seed=1)}
    want, have = Session(tmp_path / "net.onnx").run(x), made.run(x)
    for name, exact in want.items():
        assert np.linalg.norm(have[name] - exact) < MOST[target] * np.linalg.norm(exact), name
