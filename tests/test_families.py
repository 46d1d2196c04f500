"""What the mathematics allows for each family of networks is what the compiler finds, and the function stays."""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir
import pytest
from families import FAMILIES, export, load, stored

from qcompile.api import rotate
from qcompile.ir.widen import to_double
from qcompile.run.compare import compare
from qcompile.run.data import example_inputs
from qcompile.run.session import evaluate_double
from qcompile.targets.eligible import quantizable
from qcompile.targets.registry import get_target, targets


def check(name: str, model: ir.Model) -> None:
    family, model = FAMILIES[name], to_double(model)
    inputs = example_inputs(model, sizes={"batch": 3, "length": 7, "past": 2})
    rotated = rotate(model)
    placement, analysis = rotated.placement, rotated.prepared.analysis
    assert Counter(node.size for node in placement.offline) == family.offline
    groups = [group for group in rotated.siblings if group.value.name in placement.online]
    assert Counter((group.width, group.flops // group.width // 2) for group in groups) == family.online
    assert len(placement.boundaries) == family.boundaries
    for size, reason in family.because.items():
        limits = [limit.reason for space in analysis.spaces if space.size == size for limit in space.limits]
        assert any(reason in text for text in limits), limits
    before, after = (evaluate_double(graph, inputs) for graph in (model, rotated.prepared.model))
    assert compare(before, dict(zip(before, after.values(), strict=True)))[0] <= 1e-10


@pytest.mark.parametrize("name", FAMILIES)
def test_rotates_what_the_mathematics_allows(name: str) -> None:
    check(name, load(stored(name)))


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_also_as_torch_exports_it_now(name: str) -> None:
    check(name, load(export(name)))


@pytest.mark.parametrize("name", [name for name in FAMILIES if name.startswith("experts")])
def test_every_target_quantizes_every_expert(name: str) -> None:
    prepared = rotate(load(stored(name))).prepared
    experts = [site for site in prepared.analysis.sites if {32, 48} <= set(site.shape)]
    assert len(experts) == (24 if name == "experts one by one" else 6)
    for target in map(get_target, targets()):
        found = set(quantizable(prepared.analysis, target)[0])
        assert set(experts) <= found or (target.stacks == "none" and name != "experts one by one"), target.name
    assert not prepared.state.declined
