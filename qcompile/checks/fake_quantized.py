"""Planned graphs on the engine, with fake quantization: what their errors are measured on, without any emulation.

What is lowered is compared with it on a sample. The code of a value between two levels depends on the order of sums,
and all that follows depends on the code: where inputs are rounded, a last place becomes a good part of the quantization
error within a few layers. How far that goes is learned from the engine itself, whose values are moved as far as the
order of sums moves them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch

from qcompile.checks.equivalence import tolerance
from qcompile.checks.losses import each
from qcompile.errors import InputError, TargetError, reason_of
from qcompile.formats import FORMATS
from qcompile.formats.static import Activation
from qcompile.group.group import ALONE
from qcompile.notes import AS_ON_ENGINE, ON_ENGINE
from qcompile.run.compare import relative_l2
from qcompile.run.executor import Executor, Hook, dtype_for
from qcompile.run.stream import Stream
from qcompile.targets.fake_quantization import Place, Rounded, rounded_graph
from qcompile.targets.registry import REFERENCE, backend, get_target, lowered_to

if TYPE_CHECKING:
    from qcompile.checks.losses import Batches, FloatModel, Outputs
    from qcompile.run.data import Data
    from qcompile.run.session import Run
    from qcompile.targets.plans import Plan
    from qcompile.targets.target import Target

__all__ = ["SPREAD", "Departure", "FakeQuantized", "departure", "measured_on", "planned_run", "rounded_for"]

#: Batches on which what is lowered is compared with the engine.
SAMPLE = 1

#: Last places by which the order of a sum moves it: the square root of some hundred terms.
_PLACES = 16

#: What another order of sums does differs from one order to the next, by less than this factor.
SPREAD = 2.0

#: A single value on a tie may move a small network by this part of its quantization error, if inputs are rounded.
_TIES = 0.25

T = TypeVar("T")


def rounded_for(model: ir.Model, target: Target) -> Rounded:
    """A planned graph, which stays as it is, made ready to compute on the engine what it does when it is lowered."""
    rounds_input_to = backend(target.backends[0]).rounds_input_to

    def activation(node: ir.Node, plan: Plan) -> Activation | None:
        name = rounds_input_to(node, plan, target) if plan.scheme.activation is None else None
        return plan.activation if name is None else FORMATS[name]

    return rounded_graph(model, activation)


class FakeQuantized:
    """A planned graph as a function of batches, on the engine.

    Raises:
        TargetError: if the engine cannot express it.
    """

    def __init__(self, rounded: Rounded, device: str) -> None:
        if rounded.lacks is not None:
            raise TargetError(rounded.lacks)
        engine = Executor(rounded.model, hooked=rounded.places, dtype=dtype_for(rounded.model, "cpu"), device=device)
        self._stream = Stream(engine)
        self._places = {name: place for name, place in rounded.places.items() if name in engine.hooked}
        lost = [place for name, place in rounded.places.items() if place.hook and name not in engine.hooked]
        if lost:
            outside = "; ".join(f"'{name}': {reason}" for name, reason in engine.foreign.items())
            raise TargetError(
                f"the input of '{lost[0].sites[0]}' is rounded within an operator that it lacks, {outside}"
            )
        found = ((name, place.hook) for name, place in self._places.items())
        self._hooks = {name: hook for name, hook in found if hook is not None}
        engine.sources |= rounded.weights

    @property
    def rounds_inputs(self) -> bool:
        """Whether the input of any site is rounded, so that codes depend on the order of sums."""
        return bool(self._hooks)

    def __call__(self, batches: Batches) -> Iterator[Mapping[str, torch.Tensor]]:
        """Outputs by name, for each batch."""
        return self._stream.run(batches, lambda _: self._hooks)

    def forget(self) -> None:
        """Let go of the weights; they are read anew if they are needed again."""
        self._stream.engine.weights.clear()

    def moved(self, batches: Batches, step: float | None = None) -> Iterator[Mapping[str, torch.Tensor]]:
        """Outputs where whatever sites read is first moved, by a part of its row's root mean square.

        Args:
            step: that part; as far as the order of sums moves it in the graph's type, if nothing is said.
        """
        drawn = torch.Generator(self._stream.engine.device).manual_seed(0)
        hooks = {name: _moving(place, drawn, self._hooks.get(name), step) for name, place in self._places.items()}
        return self._stream.run(batches, lambda _: hooks)


@contextmanager
def planned_run(model: ir.Model, target: Target, device: str) -> Iterator[Run]:
    """A planned graph, which may be edited, as a function of inputs: on the engine, or lowered to the reference.

    Where the engine cannot express or run it, which is said of its losses, the reference does: both are the definition.
    """
    with ExitStack() as stack:
        lowered: list[Run] = []

        def reference(inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
            if not lowered:
                lowered.append(stack.enter_context(lowered_to(get_target(REFERENCE), model)))
            return lowered[0](inputs)

        try:
            engine = FakeQuantized(rounded_for(model, target), device)
        except TargetError:
            yield reference
            return

        def compute(inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
            try:
                (outputs,) = engine([inputs])
            except InputError:
                return reference(inputs)
            return {name: value.cpu().numpy() for name, value in outputs.items()}

        yield compute


def _moving(place: Place, drawn: torch.Generator, rounded: Hook | None, step: float | None) -> Hook:
    """A hook that adds noise of some last places of the row's values, and then rounds."""
    epsilon = _PLACES * float(ml_dtypes.finfo(place.dtype.numpy()).eps) if step is None else step

    def hook(value: torch.Tensor) -> torch.Tensor | None:
        size = value.square().mean(place.axis, keepdim=True).sqrt()
        noise = torch.randn(value.shape, generator=drawn, device=value.device, dtype=value.dtype)
        value = value + epsilon * size * noise
        return value if rounded is None else rounded(value)

    return hook


def measured_on(
    engine: Callable[[], FakeQuantized], otherwise: Callable[[], AbstractContextManager[Run]],
    yardstick: FloatModel, work: Callable[[FloatModel, Outputs], T],
) -> tuple[T, FakeQuantized | None]:  # fmt: skip
    """The result of measuring a planned graph on the engine, or, where that fails, in a runtime, which is declined.

    Args:
        engine: makes the graph on the engine.
        otherwise: makes it of files, lowered; the first process of a group alone runs these.
        work: measures it, by the yardstick, as a function of batches.
    """
    try:
        run = engine()
        return work(yardstick, run), run
    except Exception as error:  # whatever torch raises of a graph that it computes otherwise
        yardstick.decline("*", ON_ENGINE, f"{reason_of(error)}; what is lowered was measured, in its runtime")

    def measured() -> T:
        with otherwise() as lowered:
            return work(replace(yardstick, group=ALONE), each(lowered))

    return yardstick.group.by_first(measured), None


@dataclass(frozen=True)
class Departure:
    """How far what is lowered is from the engine, on a sample.

    Args:
        rel_l2: of the outputs.
        explained: the same between the engine and itself with values moved as far as the order of sums moves them.
        inputs: of the sample.
    """

    rel_l2: float
    explained: float
    inputs: int


def departure(engine: FakeQuantized, lowered: Run, yardstick: FloatModel, data: Data, error: float) -> Departure:
    """Compare what is lowered with the engine on the first of some data; declined if rounding does not explain it.

    Args:
        lowered: loads what was lowered when it is first called; the engine has let go of its weights then.
        error: the relative L2 of the quantization error.
    """
    sample = data.batches[:SAMPLE]
    wanted = [yardstick.named(outputs) for outputs in engine(sample)]
    moved = map(yardstick.named, engine.moved(sample))
    explained = [relative_l2(want, own) for want, own in zip(wanted, moved, strict=True)]
    engine.forget()  # a runtime loads the same weights again
    apart = [relative_l2(want, yardstick.named(lowered(batch))) for want, batch in zip(wanted, sample, strict=True)]
    found = Departure(float(np.mean(apart)), float(np.mean(explained)), len(apart))
    allowed = max(SPREAD * found.explained, tolerance(yardstick.source.model), _TIES * error * engine.rounds_inputs)
    if not found.rel_l2 <= allowed:
        reason = f"what is lowered differs from it by a relative L2 of {found.rel_l2:.2g}, more than the {allowed:.2g} "
        yardstick.decline("*", AS_ON_ENGINE, reason + "that rounding explains: the errors measured may not be its own")
    return found
