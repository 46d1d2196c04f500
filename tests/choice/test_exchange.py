"""Time has a price: rates of exchange, what stays in the graph at one, and budgets of milliseconds."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import onnx_ir as ir
import pytest
import torch
from commands import done, refused
from hypothesis import given
from hypothesis import strategies as st

import qcompile as qc
from qcompile.analysis.siblings import Siblings
from qcompile.choice.exchange import Exchange, Offer, rate_of
from qcompile.errors import InputError
from qcompile.prices.graph_clock import GraphClock
from qcompile.prices.profile_files import profile_of, save_profile
from qcompile.targets.registry import get_target
from qcompile.transforms import BlockDense, Hadamard
from qcompile.transforms.dense import in_half

TEXT = """g (float[batch,length,256] x) => (float[batch,length,256] y) <float[256,512] a, float[512,256] b> {
    h = MatMul(x, a)
    s = Sigmoid(h)
    l = Mul(s, h)
    y = MatMul(l, b) }"""

OFFERS = st.lists(
    st.builds(Offer, st.floats(0.01, 1), st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=3)),
    min_size=1, max_size=5,
)  # fmt: skip


@pytest.fixture
def model(parse, tmp_path: Path) -> Path:
    """Two products, the second of inputs with two loud channels."""
    made = parse(TEXT)
    weight = made.graph.initializers["a"].const_value.numpy().copy()
    weight[:, :2] *= 40
    made.graph.initializers["a"].const_value = ir.tensor(weight, name="a")
    ir.save(made, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


@pytest.fixture
def data() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).standard_normal((16, 4, 256)).astype(np.float32)}


def cheap(folder: Path, factor: float) -> Path:
    """A profile whose online transforms take a multiple of the shipped one's time."""
    profile = profile_of(get_target("cpu-int8"))
    assert profile is not None
    transforms = {name: factor * each for name, each in profile.transforms.items()}
    save_profile(replace(profile, transforms=transforms), folder / f"{factor}.json")
    return folder / f"{factor}.json"


def test_a_bit_is_worth_six_decibels() -> None:
    rate = rate_of([Offer(0.5, []), Offer(1.5, [])], bits=8, seconds=2.0)
    assert rate == pytest.approx(math.log(4) * 8 * 2.0 / 2.0)
    small = 1e-4  # of a bit more: errors fall by the rate times the time that it takes
    assert 2.0 * (1 - 4**-small) == pytest.approx(rate * small * 2.0 / 8, rel=1e-3)


def test_a_loud_site_does_not_price_the_others() -> None:
    loud, quiet = Offer(100.0, [(0.5, 0.01)]), Offer(1.0, [(0.5, 0.01)])
    rate = rate_of([loud, quiet], bits=4, seconds=1.0)
    assert rate < rate_of([loud], bits=4, seconds=1.0) * 4
    assert [loud.taken(rate), quiet.taken(rate)] == [0.5, 0.5]
    assert quiet.taken(rate_of([Offer(100.0, []), quiet], bits=4, seconds=1.0)) == 1.0


def test_matrices_of_a_transform_s_own_count_by_their_bytes() -> None:
    blocks = BlockDense(0.1 * torch.eye(16, dtype=torch.float64).repeat(4, 1, 1))
    clock = cast(GraphClock, SimpleNamespace(transform=lambda group, transform: 1e-6))
    price, groups = Exchange(clock, rate=2.0, per_byte=1e-6), cast("list[Siblings]", [None])
    assert price.of(groups, blocks, 1.0) == pytest.approx(2.0 * 4 * 16 * 16 * 4e-6)
    assert price.of(groups, in_half(blocks), 1.0) == pytest.approx(2.0 * 4 * 16 * 16 * 2e-6)  # stored in float16
    assert price.of(groups, Hadamard(64, 0), 1.0) == pytest.approx(2e-6)  # one for all sites


@given(OFFERS, st.floats(0.1, 10))
def test_the_rate_is_that_of_what_it_leaves(offers: list[Offer], seconds: float) -> None:
    rate = rate_of(offers, bits=4, seconds=seconds)
    left = math.fsum(offer.taken(rate) for offer in offers)
    assert rate == pytest.approx(math.log(4) * 4 * left / seconds)


@pytest.mark.parametrize(("factor", "stays"), [(0.0, True), (100.0, False)])
def test_transforms_stay_in_the_graph_where_their_time_is_worth_it(
    model: Path, data: dict[str, np.ndarray], tmp_path: Path, factor: float, stays: bool
) -> None:
    artifact = qc.export(model, "cpu-int8", tmp_path / "out", calibration=data, profile=cheap(tmp_path, factor))
    assert bool(artifact.manifest["online_transforms"]) is stays
    timing = artifact.manifest["timing"]
    assert set(timing["online_transforms_ms"]) == {entry["value"] for entry in artifact.manifest["online_transforms"]}
    parts = timing["products_ms"] + timing["rest_ms"] + sum(timing["online_transforms_ms"].values())
    assert timing["predicted_ms"] == pytest.approx(parts, rel=1e-4)
    assert timing["loss_per_ms"] > 0


def test_bytes_are_equal_wherever_an_export_is_made(
    model: Path, data: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A profile of this machine changes nothing unless it is asked for, and is then named."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first = qc.export(model, "cpu-int8", tmp_path / "first", calibration=data)
    profile = profile_of(get_target("cpu-int8"))
    assert profile is not None
    from qcompile.prices.profile_files import cached_file

    save_profile(
        replace(profile, transforms=dict.fromkeys(profile.transforms, 0.0)), cached_file(get_target("cpu-int8"))
    )
    second = qc.export(model, "cpu-int8", tmp_path / "second", calibration=data)
    assert (first.folder / "manifest.json").read_bytes() == (second.folder / "manifest.json").read_bytes()
    third = qc.export(model, "cpu-int8", tmp_path / "third", calibration=data, profile="machine")
    assert third.manifest["timing"]["profile"]["sha256"] != first.manifest["timing"]["profile"]["sha256"]
    assert third.manifest["online_transforms"]
    assert not first.manifest["online_transforms"]


def test_a_budget_bounds_the_time_of_the_whole_graph(
    model: Path, data: dict[str, np.ndarray], tmp_path: Path
) -> None:  # fmt: skip
    def export(name: str, latency: float) -> dict:
        return qc.export(
            model, "cpu-int4", tmp_path / name, calibration=data, formats=["int4-g32", "int8-g32"],
            budget={"latency": latency}, shape={"batch": 1, "length": 1},
        ).manifest  # fmt: skip

    loose = export("loose", 100.0)
    assert {site["format"] for site in loose["sites"]} == {"int8-g32"}
    assert loose["timing"]["inputs"] == {"x": [1, 1, 256]}
    assert loose["budget"]["latency"]["spent"] == pytest.approx(loose["timing"]["predicted_ms"], rel=1e-3)
    with pytest.raises(InputError, match="cannot be met: the least reachable latency is") as refused:
        export("none", 1e-4)
    least = float(str(refused.value).rpartition(" ")[2])
    tight = export("tight", least * 1.0001)
    assert tight["timing"]["predicted_ms"] <= least * 1.001
    assert tight["timing"]["online_transforms_ms"] == {}
    assert tight["timing"]["predicted_ms"] < loose["timing"]["predicted_ms"]


def test_the_command_line_takes_milliseconds_and_sizes(model: Path, tmp_path: Path) -> None:
    options = ["--target", "cpu-int8", "--method", "rtn", "--budget", "latency=50ms", "-q"]
    done("export", str(model), *options, "--shape", "batch=1", "--shape", "length=8", "-o", str(tmp_path / "out"))
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["budget"]["latency"]["bound"] == 50
    assert manifest["timing"]["inputs"] == {"x": [1, 8, 256]}
    said = refused(tmp_path, "export", str(model), *options, "--shape", "breadth=1", "-o", str(tmp_path / "other"))
    assert "unknown dimension 'breadth'" in said
    said = refused(
        tmp_path, "export", str(model), *options, "--profile", str(tmp_path / "absent"), "-o", str(tmp_path / "other")
    )
    assert "there is no profile" in said


def test_without_a_profile_nothing_is_timed(model: Path, tmp_path: Path) -> None:
    assert qc.export(model, "cpu-int8", tmp_path / "out", profile="none").manifest["timing"] is None
