"""Operators for ONNX's reference evaluator in place of its own, where these compute something else than runtimes."""

from __future__ import annotations

from typing import Any

from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_batch_normalization import BatchNormalization_14

__all__ = ["OPERATORS"]


class BatchNormalization(BatchNormalization_14):
    """By the statistics that the graph holds, unless it says that it trains.

    Below version 14 no attribute says so, and the evaluator's own takes the batch into the statistics.
    """

    def _run(self, *inputs: Any, **attributes: Any) -> Any:
        told = {name: value for name, value in attributes.items() if value is not None}
        return super()._run(*inputs, **{"epsilon": 1e-5, "momentum": 0.9, "training_mode": 0} | told)


#: All of them.
OPERATORS: list[type[OpRun]] = [BatchNormalization]
