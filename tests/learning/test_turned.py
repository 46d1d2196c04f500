"""A graph in a learned basis is the same function, and what was learned folds into an ordinary placement."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families import load, stored

from qcompile.analysis.siblings import Siblings, siblings_of
from qcompile.analysis.spaces import Analysis
from qcompile.choice.placement import Placement
from qcompile.choice.staying import able
from qcompile.ir.widen import to_double
from qcompile.learning.loop import Lesson, Rated
from qcompile.learning.settings import Schedule
from qcompile.learning.transforms_learned import free_bases, learn_transforms, settled
from qcompile.learning.turned import Bases, Turned
from qcompile.passes.pipeline import run_pass
from qcompile.passes.rotate import Rotate
from qcompile.preparation import prepare
from qcompile.run.compare import compare
from qcompile.run.data import example_inputs
from qcompile.run.executor import Executor
from qcompile.run.session import evaluate_double
from qcompile.stages import Prepared
from qcompile.targets.eligible import quantizable
from qcompile.targets.scheme import FLOAT, Scheme
from qcompile.transforms import BlockDiagonal, Hadamard

SCHEME = Scheme.parse("int4-g16/int4-g16")

NAMES = [
    "gated, rotary, grouped heads", "tied embedding", "biases, layer norms, learned positions",
    "fused projection, stacked", "latent attention", "encoder and decoder", "audio encoder", "layer scale",
    "mamba", "mamba-2", "dit",
]  # fmt: skip


def prepared(name: str) -> tuple[Prepared, list[Siblings]]:
    found = prepare(to_double(load(stored(name))))
    return found, siblings_of(quantizable(found.analysis)[0])


def fixed(found: Analysis, groups: list[Siblings]) -> Bases:
    """An online transform in front of every other group of sites that shares no weight."""
    readers = [site.weight for own in groups for site in own.sites]
    wide = [own for own in groups if own.width % 16 == 0 and able(found, own)]
    alone = [own for own in wide if all(readers.count(site.weight) == 1 for site in own.sites)]
    return Bases({}, {}, {own.name: BlockDiagonal(Hadamard(16, 0), own.width // 16) for own in alone[::2]}, {})


def moved(bases: Bases, size: float = 0.1) -> Bases:
    drawn = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for own in bases.parametrizations:
            for tensor in own.parameters:
                tensor.copy_(size * torch.randn(tensor.shape, generator=drawn))
    return bases


@pytest.mark.parametrize("name", NAMES)
def test_any_values_of_the_parameters_leave_the_function(name: str) -> None:
    own, groups = prepared(name)
    schemes = {site.name: SCHEME for group in groups for site in group.sites}
    free = moved(free_bases(own.analysis, groups, schemes, fixed(own.analysis, groups), "cpu"))
    assert free.learned
    assert free.blocks
    inputs = example_inputs(own.model, sizes={"batch": 3, "length": 7})
    before = evaluate_double(own.model, inputs)
    # while learning: folded at every step, in float32
    turned = Turned(own.analysis, groups, [], dict.fromkeys(schemes, FLOAT), free, [Rated([], 0)])
    with torch.no_grad():
        found = turned(inputs)
    assert compare(before, {name: value.numpy() for name, value in found.items()})[0] < 2e-5
    # and for good: in float64, by the pass that folds all transforms
    result = settled(free)
    placement = Placement(dict(result.offline), dict(result.online), behind=dict(result.behind))
    run_pass(Rotate(own.analysis, tuple(groups), placement), own.state)
    after = evaluate_double(own.state.model, inputs)
    assert compare(before, dict(zip(before, after.values(), strict=True)))[0] < 1e-10


def test_learning_departs_less_on_rows_that_it_did_not_see_and_is_repeatable() -> None:
    own, groups = prepared("gated, rotary, grouped heads")
    schemes = {site.name: SCHEME for group in groups for site in group.sites}
    engine = Executor(own.model)
    batches = [example_inputs(own.model, seed=i, sizes={"batch": 4, "length": 12}) for i in range(10)]
    lesson = Lesson(batches[:6], batches[6:], engine, set())
    runs = [
        learn_transforms(
            own.analysis,
            groups,
            [],
            schemes,
            fixed(own.analysis, groups),
            lesson,
            Schedule(steps=12, rate=10),
            seed=3,
            device="cpu",
        )
        for _ in range(2)
    ]
    course = runs[0].course
    assert course.after.mean() < course.before.mean()
    assert 0 < course.best <= course.steps == 12
    assert np.array_equal(course.after, runs[1].course.after)
    named = [{name: t.to_json() for name, t in run.bases.online.items()} for run in runs]
    assert named[0] == named[1] != {}
