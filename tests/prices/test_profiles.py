"""Profiles: fits of work to times, files and their places, and the ones that come with the package."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.errors import InputError
from qcompile.prices.linear_model import NEAR, added, elements, fit, seconds
from qcompile.prices.machine import machine, word_of
from qcompile.prices.operator_work import operator_work, spans
from qcompile.prices.profile import Profile, input_work, kind_of, product_work, transform_work
from qcompile.prices.profile_files import MACHINE, NONE, cached_file, profile_of, save_profile
from qcompile.run.trace import Step
from qcompile.targets.registry import get_target, targets
from qcompile.targets.scheme import FLOAT, Scheme
from qcompile.transforms import BlockDiagonal, Hadamard

PRICED = sorted({target.name for target in targets().values() if target.profile is not None})


@settings(deadline=None)
@given(st.integers(0, 1000), st.floats(1e-9, 1e-5), st.floats(1e-12, 1e-9))
def test_a_fit_finds_the_coefficients_that_times_were_made_of(seed: int, call: float, each: float) -> None:
    draw = np.random.default_rng(seed)
    works = [{"call": 1.0, "element": float(2**exponent)} for exponent in draw.permutation(24)]
    found, left = fit([(work, seconds({"call": call, "element": each}, work)) for work in works])
    assert left < 1e-3
    assert found == pytest.approx({"call": call, "element": each}, rel=5e-3)


def test_no_work_makes_anything_quicker() -> None:
    falling = [({"call": 1.0, "element": n}, 1 / (1 + n)) for n in (0.0, 1.0, 2.0, 4.0)]
    assert fit(falling)[0]["element"] == 0.0


def test_far_elements_are_those_above_the_cache() -> None:
    assert elements("input", NEAR + 10) == {"input": NEAR + 10, "far_input": 10}
    assert elements("input", 10)["far_input"] == 0


def test_work_grows_with_rows_and_sites() -> None:
    scheme = Scheme.parse("int8-channel/int8-channel")
    one = added([input_work(4, 64), product_work(scheme, 4, 64, 32, 64 * 32)])
    assert one["multiply_add"] == 4 * 64 * 32
    assert one["byte"] == pytest.approx(64 * 32 + 4 * 32)  # a scale of four bytes for each output
    three = added([input_work(4, 64), *[product_work(scheme, 4, 64, 32, 64 * 32)] * 3])
    assert (three["call"], three["product"]) == (1.0, 3.0)  # codes of the input are made once


@pytest.mark.parametrize(
    ("scheme", "kind"),
    [
        ("int4-g32", "w4"), ("int8-channel/int8-channel", "w8a8"), ("int8-channel/uint8-tensor", "w8a8-tensor"),
        ("float", "w32"),
    ],
)  # fmt: skip
def test_kinds_tell_kernels_apart(scheme: str, kind: str) -> None:
    assert kind_of(Scheme.parse(scheme)) == kind
    assert kind_of(Scheme.parse(scheme), convolution=True) == "convolution"


@pytest.mark.parametrize(
    ("shapes", "count"),
    [
        ([(2, 384, 16), (2, 384, 16)], 0), ([(2, 384, 16), (16,)], 768), ([(2, 384, 1), (384, 16)], 768),
        ([(2, 16, 384), (2, 16, 1)], 32), ([(2, 16, 384), (1,)], 0), ([(4, 5), ()], 0), ([(7,)], 0), ([], 0),
        ([(4, 1, 64), (16, 1)], 64),
    ],
)  # fmt: skip
def test_operands_that_begin_anew_part_an_operator_into_stretches(shapes: list[tuple[int, ...]], count: int) -> None:
    assert spans(shapes) == count
    step = Step("", "Mul", tuple(shapes), ())
    assert operator_work(step)["span"] == count


def test_steps_of_a_transform_are_work() -> None:
    block = transform_work(BlockDiagonal(Hadamard(16, 0), 8), 10)
    assert block["step"] == 2  # random signs, and the matrix
    assert block["multiply_add"] == 10 * 128 * (16 + 1)
    assert transform_work(Hadamard(1536, 0), 10)["step"] > 2


@pytest.mark.parametrize("name", PRICED)
def test_shipped_profiles_price_all_that_their_targets_run(name: str) -> None:
    target = get_target(name)
    profile = profile_of(target)
    assert profile is not None
    for scheme in (FLOAT, *map(Scheme.parse, target.schemes)):
        assert profile.product(kind_of(scheme), product_work(scheme, 1, 64, 64, 64 * 64)) > 0
        assert profile.product("convolution", product_work(scheme, 1, 64, 64, 64 * 64)) > 0
    assert profile.transform(Hadamard(128, 0), 1) > 0
    assert profile.operator("no such kind", {"call": 1.0, "element": 10.0}) > 0
    assert {"processor", "threads", *target.runs_in} == set(profile.machine)


def test_files_hold_profiles(tmp_path: Path) -> None:
    target = get_target("cpu-int8")
    profile = profile_of(target)
    assert profile is not None
    save_profile(profile, tmp_path / "folder" / "own.json")
    again = profile_of(target, str(tmp_path / "folder" / "own.json"))
    assert again == profile
    assert again.digest == profile.digest
    assert replace(profile, machine={"processor": "other"}).digest != profile.digest


def test_the_machine_s_profile_is_looked_up_by_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    target = get_target("cpu-int8")
    with pytest.raises(InputError, match="`qcompile profile cpu-int8` measures this machine"):
        profile_of(target, MACHINE)
    where = cached_file(target)
    assert where.stem == word_of(machine(target.runs_in, 1))
    assert "onnxruntime" in where.stem
    shipped = profile_of(target)
    assert shipped is not None
    save_profile(shipped, where)
    assert profile_of(target, MACHINE) == shipped


def test_what_is_no_profile_is_refused(tmp_path: Path) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text(json.dumps({"target": "cpu-int8"}))
    with pytest.raises(InputError, match="holds no profile"):
        profile_of(get_target("cpu-int8"), str(broken))
    with pytest.raises(InputError, match="there is no profile"):
        profile_of(get_target("cpu-int8"), str(tmp_path / "absent.json"))
    with pytest.raises(InputError, match="is of target 'cpu-int4'"):
        profile_of(get_target("cpu-int8"), str(_shipped(tmp_path)))
    with pytest.raises(InputError, match="has no profile"):
        profile_of(get_target("reference"), MACHINE)
    assert profile_of(get_target("cpu-int8"), NONE) is None
    assert profile_of(get_target("reference")) is None


def _shipped(folder: Path) -> Path:
    profile = profile_of(get_target("cpu-int4"))
    assert isinstance(profile, Profile)
    save_profile(profile, folder / "other.json")
    return folder / "other.json"
