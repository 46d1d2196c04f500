"""Stacks of experts in libraries of TVM."""

from __future__ import annotations

import pytest
from families import load, stored
from stack_cases import STACKS, stack_model

pytest.importorskip("tvm", reason="TVM is not installed: it is the extra 'tvm'")

from qcompile.backends.relax import lowering
from qcompile.backends.relax.runner import load as load_library
from qcompile.compiler import Options, export, plan
from qcompile.run.compare import compare
from qcompile.run.data import example_inputs
from qcompile.targets.plans import planned
from qcompile.targets.registry import get_target, lowered_to

ROUNDING = 2e-6


def check(model, scheme: str, folder) -> None:
    """The library computes what the reference does."""
    graph = plan(model, Options(target="tvm-cpu", formats=[scheme]))
    sites = sorted(node.name for node, _ in planned(graph))
    inputs = example_inputs(graph)
    with lowered_to(get_target("reference"), graph.clone()) as run:
        want = run(inputs)
    said = lowering.lower(graph, get_target("tvm-cpu"), folder)
    assert sorted(said.sites) == sites
    assert compare(want, load_library(folder)(inputs))[0] < ROUNDING


@pytest.mark.parametrize("name", STACKS)
def test_every_form_of_stack(name: str, tmp_path) -> None:
    check(stack_model(name), "int4-g32", tmp_path)


@pytest.mark.parametrize("scheme", ["mxfp4-even/mxfp4-even", "nvfp4"])
@pytest.mark.parametrize("name", ["rows of its own", "two looked up"])
def test_stacks_in_other_formats(name: str, scheme: str, tmp_path) -> None:
    check(stack_model(name), scheme, tmp_path)


@pytest.mark.parametrize("name", ["experts batched", "experts gathered"])
def test_mixtures_of_experts(name: str, tmp_path) -> None:
    check(load(stored(name)), "int4-g32", tmp_path)


def test_an_export_compares_every_matrix_on_equal_inputs(tmp_path) -> None:
    options = Options(target="tvm-cpu", formats=["mxfp4-even/mxfp4-even"])
    artifact = export(stack_model("rows of its own"), options, tmp_path / "a")
    compared = artifact.manifest["runtimes"]["tvm"]["sites"]
    assert compared["checked"] == 5  # four experts and the site in front of them
    assert compared["codes"] == 3 * 2 * 16 + 4 * 2 * 3 * 32
    assert compared["differing_codes"] == 0
    assert compared["rel_l2"] < ROUNDING
