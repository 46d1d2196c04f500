"""Every pass, checked as it runs: it says whether it changed the graph, leaves it valid, and its function the same."""

from __future__ import annotations

import logging

import onnx
import onnx_ir as ir

from qcompile.checks.equivalence import observe_source
from qcompile.errors import InputError
from qcompile.ir.capture import begin_capture
from qcompile.ir.tensors import total_bytes
from qcompile.opt import VerifyEach
from qcompile.passes.pipeline import Hook, Pass
from qcompile.passes.state import State
from qcompile.run.data import load_data

__all__ = ["Checked", "written"]

#: Graphs with more bytes of constants are not run after each pass.
MOST_BYTES = 1 << 22

logging.getLogger("onnx_ir.serde").setLevel(logging.ERROR)  # it tells which values have no type


def written(model: ir.Model) -> bytes:
    """A graph with all of its constants, as it would be in a file."""
    return ir.to_proto(ir.external_data.load_to_model(model.clone())).SerializeToString(deterministic=True)


class Checked(Hook):
    """Holds every pass to its contract.

    Args:
        model: the graph before all of them.
        run: whether to compare its function as well, where onnxruntime runs it.
    """

    def __init__(self, model: ir.Model, *, run: bool = True) -> None:
        self._before = b""
        self._verify = _verifying(model) if run else None

    def before(self, step: Pass, state: State) -> None:
        """Keep what the graph was."""
        self._before = written(state.model)

    def after(self, step: Pass, state: State, changed: bool) -> None:
        """Compare the graph with that."""
        after = written(state.model)
        assert changed == (after != self._before), f"pass '{step.name}' returned {changed}"
        if changed:
            onnx.checker.check_model(after)
            if self._verify is not None:
                self._verify.after(step, state, changed)


def _verifying(model: ir.Model) -> VerifyEach | None:
    """What runs a graph again after each pass; ``None`` for a graph that is large, or that onnxruntime refuses."""
    if total_bytes(model) > MOST_BYTES:
        return None
    try:
        source = begin_capture(model.clone())
        return VerifyEach(source, observe_source(source, load_data(None, source.model, batches=1)))
    except InputError:
        return None
