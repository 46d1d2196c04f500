"""Groups: results in order whoever makes them, sums of fixed lanes, and faults that all processes raise."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qcompile.choice.export_options import Options
from qcompile.errors import InputError, InternalError, LostError, MissingExtraError
from qcompile.group.faults import Fault
from qcompile.group.group import ALONE, LANES, Group, LaneSum, _dealt, lane_of
from qcompile.members import on_devices


@pytest.fixture(autouse=True)
def members_find_this_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the processes of a group import what a test hands to them."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2])


def parts(count: int) -> list[torch.Tensor]:
    rng = np.random.default_rng(count)
    scale = 10.0 ** rng.integers(-9, 9, (count, 1, 1))
    return [torch.from_numpy(part) for part in (rng.standard_normal((count, 5, 5)) * scale).astype(np.float32)]


def large(rank: int) -> dict[str, Any]:
    """Tensors of several types that go by themselves, one of them turned and one twice, beside others that do not."""
    generator = torch.Generator().manual_seed(rank)
    whole = torch.randn(200, 300 + rank, generator=generator)
    return {"codes": (whole > 0).to(torch.uint8), "turned": whole.T, "twice": [whole, whole], "true": whole > 0,
            "few": whole[0], "half": whole.bfloat16(), "rank": rank}  # fmt: skip


def sums(made: dict[str, Any]) -> dict[str, Any]:
    """What can be compared of them."""
    return {name: (item.shape, item.dtype, item.double().sum().item()) if isinstance(item, torch.Tensor)
            else [t.double().sum().item() for t in item] if isinstance(item, list) else item
            for name, item in made.items()}  # fmt: skip


def work(options: Options, progress: Any, count: int = 11) -> dict[str, Any]:
    """Everything that a group does, as each process has it in the end."""
    group = options.group
    total = LaneSum(group)
    for number in group.lanes(count):
        total.add(parts(count)[number], lane_of(number, count))
    late = LaneSum(group)  # the last batch alone has something
    if count - 1 in group.lanes(count):
        late.add(parts(count)[-1], lane_of(count - 1, count))
    nothing = LaneSum(group).joined()
    if progress is not None:
        progress("working", 1, 2)
    return {
        "spread": group.spread(list(range(7)), lambda own: (3 * item for item in own)),
        "dealt": group.dealt([1.0, 5.0, 2.0, 2.0], lambda number: f"item {number}"),
        "first": group.by_first(lambda: "written"),
        "sum": total.joined().numpy().tobytes(),
        "late": late.joined().numpy().tobytes(),
        "nothing": nothing,
        "all": group.gathered(lambda: os.getpid()),
        "large": [sums(made) for made in group.gathered(lambda: large(group.rank))],
    }


def failing(options: Options, progress: Any, fault: Callable[[Group], None]) -> None:
    """Whatever one process does wrong; the others wait for it."""
    with options.group.together():
        fault(options.group)
    options.group.gathered(lambda: None)


def refuse(group: Group) -> None:
    if group.rank == 1:
        raise InputError("process 1 cannot read its part")


def break_down(group: Group) -> None:
    if group.rank == 1:
        raise ZeroDivisionError("a bug")


def be_killed(group: Group) -> None:
    if group.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def recover(options: Options, progress: Any) -> list[str]:
    """A fault that the work makes up for is one that all of them make up for."""
    said = []
    for attempt in range(3):
        try:
            options.group.gathered(partial(refuse, options.group))
            said.append("done")
        except InputError as error:
            said.append(f"{attempt}: {error}")
    return said


def test_one_process_is_a_group() -> None:
    alone = work(Options("cpu-int4"), None)
    expected = np.zeros((5, 5))
    lanes = np.array([lane_of(number, 11) for number in range(11)])
    for lane in range(LANES):
        own = np.zeros((5, 5))
        for number in np.flatnonzero(lanes == lane):
            own = own + parts(11)[number].numpy().astype(np.float64)
        expected = expected + own
    assert np.frombuffer(alone["sum"]).tobytes() == expected.tobytes()
    assert alone["spread"] == [0, 3, 6, 9, 12, 15, 18]
    assert alone["nothing"] is None


@pytest.mark.parametrize("count", [1, 7, 8, 9, 117])
def test_lanes_are_even_and_their_batches_one_behind_another(count: int) -> None:
    lanes = [lane_of(number, count) for number in range(count)]
    assert lanes == sorted(lanes)
    sizes = np.bincount(lanes, minlength=LANES)
    assert sizes.max() - sizes.min() <= 1
    assert ALONE.lanes(count) == list(range(count))


@pytest.mark.parametrize("size", [1, 2, 3, 8, 11])
def test_every_batch_and_item_is_one_processs(size: int) -> None:
    groups = []
    for rank in range(size):
        groups.append(Group())
        groups[-1].rank, groups[-1].size = rank, size
    assert [n for group in groups for n in group.lanes(29)] == list(range(29))
    assert [n for group in groups for n in group.share(5)] == list(range(5))
    costs = [3.0, 1.0, 9.0, 4.0, 4.0, 2.0, 1.0]
    owners = _dealt(costs, size)
    loads = [sum(cost for cost, owner in zip(costs, owners, strict=True) if owner == rank) for rank in range(size)]
    assert max(loads) <= max(max(costs), 4 / 3 * sum(costs) / size)


@pytest.mark.parametrize("devices", [2, 3])
def test_all_processes_have_what_one_alone_has(devices: int) -> None:
    told: list[Any] = []
    alone, several = work(Options("cpu-int4"), None), on_devices(
        work, Options("cpu-int4"), devices, lambda *entry: told.append(entry)
    )  # fmt: skip
    assert len(set(several.pop("all"))) == devices
    del alone["all"]
    alone["large"] = [sums(large(rank)) for rank in range(devices)]
    assert several == alone
    assert told == [("working", 1, 2)]


def test_a_refusal_of_one_is_that_of_all() -> None:
    with pytest.raises(InputError, match="^process 1 cannot read its part$"):
        on_devices(partial(failing, fault=refuse), Options("cpu-int4"), 2)


def test_a_bug_in_one_stops_all_and_says_where() -> None:
    with pytest.raises(InternalError, match="process 1 of the group failed: ZeroDivisionError: a bug") as caught:
        on_devices(partial(failing, fault=break_down), Options("cpu-int4"), 2)
    assert "be_killed" not in str(caught.value.__notes__)
    assert "break_down" in str(caught.value.__notes__)


def test_a_killed_process_stops_all() -> None:
    with pytest.raises(LostError, match="^process 1 of 3 was killed by signal 9; the others were stopped") as caught:
        on_devices(partial(failing, fault=be_killed), Options("cpu-int4"), 3)
    assert caught.value.status == 1


def test_a_fault_can_be_made_up_for_by_all() -> None:
    said = on_devices(recover, Options("cpu-int4"), 2)
    assert said == [f"{attempt}: process 1 cannot read its part" for attempt in range(3)]


def test_faults_keep_their_kind() -> None:
    missing = MissingExtraError("lowering", "tvm")
    found = Fault.of(missing, 0).error()
    assert type(found) is MissingExtraError
    assert str(found) == str(missing)


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    options = Options("cpu-int4")
    with pytest.raises(InputError, match="--devices 0 leaves nobody"):
        on_devices(work, options, 0)
    with pytest.raises(InputError, match="cannot go to other processes"):
        on_devices(lambda options, progress: None, options, 2)
