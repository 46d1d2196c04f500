"""The folder of ``--work``: nothing is computed twice, and no byte of an artifact depends on it."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import changes
import numpy as np
import onnx_ir as ir
import pytest
from commands import done, refused
from small import write_data, write_model

import qcompile as qc
from qcompile.analysis.patches import Reading
from qcompile.analysis.stacks import Route
from qcompile.artifact.artifact import Artifact
from qcompile.errors import InputError
from qcompile.rounding.moments import InputMoments
from qcompile.rounding.sequential import Walk
from qcompile.run.data import example_inputs, hold_out, load_data
from qcompile.statistics import kept_statistics as statistics_of
from qcompile.statistics.calibration import collect
from qcompile.statistics.collected import Routed, Statistics
from qcompile.work import FORGOTTEN, Kept, Work

GRAPH = """g (int64[n,l] i) => (float[n,l,40] y)
    <float[128,64] e, float[64,96] a, float[96,64] b, float[64,96] c, float[96,64] d, float[64,40] h> {
    x = Gather(e, i)
    u = MatMul(x, a)
    r = Relu(u)
    v = MatMul(r, b)
    s = Add(x, v)
    w = MatMul(s, c)
    q = Sigmoid(w)
    p = MatMul(q, d)
    t = Add(s, p)
    y = MatMul(t, h) }"""

#: Sites of the graph that a walk passes.
WALKED = 5

#: Nothing is assigned here, so that no sensitivities are measured; all that is quantized is learned.
PLAIN: dict[str, Any] = {"formats": ["int4-g32/int8-g32"], "transforms": "block"}

#: A choice of formats.
CHOICE: dict[str, Any] = {"formats": ["int4-g32", "int8-g32"], "transforms": "none"}


def filled(seed: int = 3) -> ir.Model:
    rng, made = np.random.default_rng(seed), changes.parse(GRAPH)
    for value in made.graph.initializers.values():
        shape = [int(n) for n in value.shape]
        loud = 1 + 5 * (rng.random(shape[1]) < 0.1)
        array = (rng.standard_normal(shape) * loud * (1 if value.name == "e" else shape[0] ** -0.5)).astype(np.float32)
        value.const_value = ir.tensor(array, name=value.name)
    return made


def texts(seed: int = 5) -> dict[str, np.ndarray]:
    return {"i": np.random.default_rng(seed).integers(0, 128, (48, 12))}


@pytest.fixture(scope="module")
def model() -> ir.Model:
    return filled()


@pytest.fixture(scope="module")
def exported(model: ir.Model, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Artifact]:
    """Exports, into a folder of their own."""

    def export(work: Path | None, target: str = "reference", source: ir.Model = model, **options: Any) -> Artifact:
        folder = tmp_path_factory.mktemp("artifact") / "out"
        options = {"calibration": texts(), **options}
        return qc.export(source, target, folder, work=work, **options)

    return export


@pytest.fixture(scope="module")
def plain(exported: Callable[..., Artifact]) -> dict[str, bytes]:
    """The artifact that is made without a folder."""
    return content(exported(None, **PLAIN))


@pytest.fixture(scope="module")
def work(exported: Callable[..., Artifact], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that has seen one export with one format, and one with a choice of them."""
    folder = tmp_path_factory.mktemp("kept")
    exported(folder, **PLAIN)
    exported(folder, **CHOICE, budget={"bits": 5})
    return folder


def content(artifact: Artifact) -> dict[str, bytes]:
    files = [path for path in artifact.folder.rglob("*") if path.is_file()]
    return {path.relative_to(artifact.folder).as_posix(): path.read_bytes() for path in files}


def counts(artifact: Artifact) -> dict[str, tuple[int, int]]:
    """By kind, how many were reused and how many computed."""
    assert artifact.work is not None
    kinds = artifact.work.summary()["kinds"].items()
    return {kind: (found["reused"], found["computed"]) for kind, found in kinds}


def never(*_: object, **__: object) -> Any:
    raise AssertionError("this was known")


@pytest.fixture
def learned(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with every weight that GPTQ rounds."""
    found: list[int] = []
    learn = InputMoments.learn

    def counting(self: InputMoments, *arguments: Any, **options: Any) -> Any:
        found.append(1)
        return learn(self, *arguments, **options)

    monkeypatch.setattr(InputMoments, "learn", counting)
    return found


# -- exports ---------------------------------------------------------------------------------------------------------


def test_the_same_export_again_learns_nothing(exported, plain, tmp_path, monkeypatch, learned) -> None:
    first = exported(tmp_path / "work", **PLAIN)
    assert content(first) == plain
    assert counts(first) == {"statistics": (0, WALKED), "roundings": (0, WALKED)}
    assert len(learned) == WALKED
    monkeypatch.setattr(statistics_of, "collect", never)
    monkeypatch.setattr(Walk, "_pass", never)
    again = exported(tmp_path / "work", **PLAIN)
    assert content(again) == plain
    assert counts(again) == {"statistics": (WALKED, 0), "roundings": (WALKED, 0)}
    assert len(learned) == WALKED


def test_another_budget_rounds_alone(exported, work, monkeypatch) -> None:
    wanted = content(exported(None, **CHOICE, budget={"bits": 6}))
    steps: list[str] = []
    monkeypatch.setattr(statistics_of, "collect", never)
    found = exported(work, **CHOICE, budget={"bits": 6}, progress=lambda step, done, whole: steps.append(step))
    assert content(found) == wanted
    assert counts(found)["statistics"] == (WALKED, 0)
    assert counts(found)["sensitivities"] == (1, 0)
    assert not {"calibrating", "measuring sensitivities"} & set(steps)
    assert "quantizing" in steps


@pytest.mark.parametrize(
    ("target", "options"),
    [
        ("cpu-int4", {}),
        ("reference", {"formats": ["mxfp4/mxfp4"], "method": "search"}),
        ("reference", {"formats": ["nvfp4/nvfp4", "int4-g32"], "budget": {"bits": 4}}),
        ("reference", {**PLAIN, "exclude": ["node_3"]}),
        ("reference", {**PLAIN, "evaluation": texts(6)}),
    ],
)  # fmt: skip
def test_other_targets_and_formats_do_not_calibrate(exported, work, monkeypatch, target, options) -> None:
    wanted = content(exported(None, target, **options))
    monkeypatch.setattr(statistics_of, "collect", never)
    found = exported(work, target, **options)
    assert content(found) == wanted
    assert counts(found)["statistics"][1] == 0


def test_one_that_needs_more_values_learns_these_alone(exported, plain, tmp_path) -> None:
    few = exported(tmp_path / "work", **PLAIN, exclude=["node_3", "node_5"])
    assert counts(few)["statistics"] == (0, WALKED - 2)
    found = exported(tmp_path / "work", **PLAIN)
    assert counts(found)["statistics"] == (WALKED - 2, 2)
    assert content(found) == plain


@pytest.mark.parametrize("rounded", [1, 3])
def test_an_export_that_was_killed_goes_on(exported, plain, tmp_path, learned, rounded) -> None:
    class KilledError(Exception):
        pass

    def kill(step: str, done: int, _: int) -> None:
        if (step, done) == ("quantizing", rounded):
            raise KilledError

    with pytest.raises(KilledError):
        exported(tmp_path / "work", **PLAIN, progress=kill)
    assert len(learned) == rounded
    found = exported(tmp_path / "work", **PLAIN)
    assert content(found) == plain
    assert counts(found) == {"statistics": (WALKED, 0), "roundings": (rounded, WALKED - rounded)}
    assert len(learned) == WALKED


def test_a_walk_goes_as_far_as_it_is_needed(exported, plain, tmp_path, monkeypatch) -> None:
    """The second of five roundings is lost: one part of the graph runs, and those behind it do not change."""
    order: list[Path] = []
    keep = Work.keep
    monkeypatch.setattr(
        Work, "keep", lambda self, kind, key, pack: (order.append(self._path(kind, key)), keep(self, kind, key, pack))
    )
    exported(tmp_path / "work", **PLAIN)
    [path for path in order if path.name.startswith("roundings")][1].unlink()
    parts: list[int] = []
    run = Walk._pass
    monkeypatch.setattr(Walk, "_pass", lambda self, *at: (parts.append(1), run(self, *at)))
    found = exported(tmp_path / "work", **PLAIN)
    assert counts(found)["roundings"] == (WALKED - 1, 1)
    assert len(parts) == 2
    assert content(found) == plain


def test_another_seed_data_or_model_is_another_matter(exported, work) -> None:
    """Sensitivities are drawn with the seed; statistics are not."""
    choice = {**CHOICE, "budget": {"bits": 5}}
    assert counts(exported(work, **choice, seed=1)) == {
        "statistics": (WALKED, 0), "sensitivities": (0, 1), "roundings": (WALKED, 0)
    }  # fmt: skip
    for changed in ({"calibration": texts(7)}, {"source": filled(4)}):
        assert all(reused == 0 for reused, _ in counts(exported(work, **{**choice, **changed})).values())


def test_what_only_attributes_tell_apart_is_another_model(exported, tmp_path) -> None:
    def leaky(slope: float) -> ir.Model:
        made = filled()
        node = next(node for node in made.graph if node.op_type == "Relu")
        node.op_type = "LeakyRelu"
        node.attributes["alpha"] = ir.AttrFloat32("alpha", slope)
        return made

    exported(tmp_path / "work", **PLAIN, source=leaky(0.1))
    found = exported(tmp_path / "work", **PLAIN, source=leaky(0.2))
    assert counts(found) == {"statistics": (0, WALKED), "roundings": (0, WALKED)}
    assert content(found) == content(exported(None, **PLAIN, source=leaky(0.2)))


def test_what_was_left_alone_when_it_was_measured_is_said_again(exported, tmp_path) -> None:
    """The engine has no row for an operator, which stops gradients."""
    made, choice = filled(), {**CHOICE, "budget": {"bits": 6}, "transforms": "none"}
    node = next(node for node in made.graph if node.op_type == "Sigmoid")
    node.op_type = "MeanVarianceNormalization"
    node.attributes["axes"] = ir.AttrInt64s("axes", [2])
    first, again = (exported(tmp_path / "work", **choice, source=made) for _ in range(2))
    assert counts(again)["statistics"] == (WALKED, 0)
    assert counts(again)["sensitivities"] == (2, 0)
    whats = {entry["what"] for entry in again.manifest["declined"]}
    assert {"computing it in torch", "measuring by gradients what errors cost"} <= whats
    assert content(again) == content(first) == content(exported(None, **choice, source=made))


EXPERTS = """g (int64[n,2] i, float[n,32] e) => (float[n,2,16] y) <float[32,32] a, float[3,32,16] w> {
    p = MatMul(e, a)
    q = Sigmoid(p)
    k = Gather<axis=0>(w, i)
    y = Einsum<equation="nd,nkdf->nkf">(q, k) }"""
BODY = """g (float[n,32] e, bool c) => (float[n,32] y) <float[32,32] a, float[32,32] b> {
    p = MatMul(e, a)
    y = If (c) <then_branch = t () => (float[n,32] z) { z = MatMul(p, b) },
                else_branch = f () => (float[n,32] w) { w = Identity(p) }> }"""


@pytest.mark.parametrize("text", [EXPERTS, BODY], ids=["experts", "a body"])
def test_experts_and_bodies_come_back(exported, tmp_path, text) -> None:
    made, draw = changes.parse(text), np.random.default_rng(0)
    for value in made.graph.initializers.values():
        value.const_value = ir.tensor(draw.standard_normal([*value.shape]).astype(np.float32) / 8, name=value.name)
    data = [example_inputs(made, seed=seed, sizes={"n": 16}) for seed in range(12)]
    options = {"source": made, "calibration": data, **PLAIN}
    first, again = (exported(tmp_path / "work", **options) for _ in range(2))
    assert all(computed == 0 for _, computed in counts(again).values())
    assert content(again) == content(first) == content(exported(None, **options))


def test_a_walk_that_fails_leaves_no_roundings_behind(exported, plain, tmp_path, monkeypatch) -> None:
    """It may have failed for want of memory: the next export tries again."""

    def failing(*_: object) -> None:
        raise InputError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(Walk, "_pass", failing)
        failed = exported(tmp_path / "work", **PLAIN)
    assert [
        e["reason"] for e in failed.manifest["declined"] if e["what"] == "rounding all sites in the order of the graph"
    ]
    found = exported(tmp_path / "work", **PLAIN)
    assert content(found) == plain
    assert counts(found)["statistics"] == (WALKED, 0)
    assert counts(found)["roundings"] == (0, WALKED)


def test_files_that_are_not_what_was_written_are_computed_again(exported, plain, tmp_path) -> None:
    exported(tmp_path / "work", **PLAIN)
    files = sorted((tmp_path / "work").iterdir())
    for number, path in enumerate(files):
        if number % 2:
            path.write_bytes(path.read_bytes()[:-1])
    found = exported(tmp_path / "work", **PLAIN)
    assert content(found) == plain
    assert len(found.work.notes) == len(files) // 2
    assert "torn" in found.work.notes[0]
    assert counts(exported(tmp_path / "work", **PLAIN)) == {"statistics": (WALKED, 0), "roundings": (WALKED, 0)}


# -- the folder ------------------------------------------------------------------------------------------------------

KEPT = Kept(
    {"a": np.arange(6.0).reshape(2, 3), "one": np.array(3, np.int64), "none": np.zeros((0, 4))}, {"b": [1, None]}
)


def opened(folder: Path, about: object = "this") -> Work:
    return Work(folder).about(lambda: about)


def test_what_is_kept_comes_back(tmp_path: Path) -> None:
    work = opened(tmp_path / "a" / "b")
    key = work.key("it")
    assert work.find("things", key) is None
    work.keep("things", key, lambda: KEPT)
    found = opened(tmp_path / "a" / "b").find("things", key)
    assert found is not None
    assert found.facts == KEPT.facts
    assert found.arrays.keys() == KEPT.arrays.keys()
    for name, array in KEPT.arrays.items():
        assert (found.arrays[name].dtype, found.arrays[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(found.arrays[name], array)
    assert [path.suffix for path in work.folder.iterdir()] == [".safetensors"]


def test_keys_differ_with_what_they_are_about(tmp_path: Path) -> None:
    keys = [opened(tmp_path, about).key(facts) for about in ("this", "that") for facts in (1, [1], {"a": 1})]
    assert len(set(keys)) == len(keys)


def test_without_a_folder_nothing_is_asked() -> None:
    work = Work().about(never)
    assert work.find("things", work.key("it")) is None
    work.keep("things", work.key("it"), never)
    assert work.reuse.summary() == {"kinds": {}, "notes": []}


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def renamed(path: Path) -> None:
    work = opened(path.parent, "something else")
    work.keep("things", work.key("it"), lambda: KEPT)
    os.replace(next(other for other in path.parent.iterdir() if other != path), path)


@pytest.mark.parametrize(
    "damage",
    [
        flipped, renamed, lambda path: path.write_bytes(b""), lambda path: path.write_text("{}"),
        lambda path: path.write_bytes(path.read_bytes()[:100]), lambda path: path.write_bytes(path.read_bytes() + b"0"),
        lambda path: (path.unlink(), path.mkdir()),
    ],
    ids=["one bit", "another name", "empty", "foreign", "torn", "longer", "a folder"],
)  # fmt: skip
def test_a_damaged_file_is_noted_and_never_used(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    work = opened(tmp_path)
    key = work.key("it")
    work.keep("things", key, lambda: KEPT)
    (path,) = tmp_path.iterdir()
    damage(path)
    assert work.find("things", key) is None
    (note,) = work.reuse.notes
    assert note.startswith(f"'{path}' is not used, and computed again: ")


def test_a_full_disk_ends_the_keeping_and_not_the_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    work = opened(tmp_path)
    monkeypatch.setattr("safetensors.numpy.save_file", full)
    assert [work.kept("things", work.key(n), lambda: 7, lambda _: KEPT, never) for n in (1, 2)] == [7, 7]
    assert work.reuse.notes == [f"nothing more is kept in '{tmp_path}': No space left on device"]
    assert list(tmp_path.iterdir()) == []


def test_several_may_write_at_once(tmp_path: Path) -> None:
    works = [opened(tmp_path) for _ in range(8)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda work: [work.keep("things", work.key("it"), lambda: KEPT) for _ in range(8)], works))
    assert len(list(tmp_path.iterdir())) == 1
    assert works[0].find("things", works[0].key("it")) is not None
    assert [work.reuse.notes for work in works] == [[]] * 8


def test_what_a_killed_export_was_writing_goes_and_what_is_being_written_stays(tmp_path: Path) -> None:
    old, new = tmp_path / "things-1.xyz.part", tmp_path / "things-2.xyz.part"
    for path in (old, new):
        path.write_text("half")
    os.utime(old, (0, new.stat().st_mtime - 2 * FORGOTTEN))
    Work(tmp_path)
    assert list(tmp_path.iterdir()) == [new]


def test_statistics_of_experts_come_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [(rng.standard_normal((n, 4)).astype(np.float32), rng.integers(0, 3, (n, 2))) for n in (5, 0, 2)]
    routes = {Route(3, ("n",), (1,), None, "i", ("n", "k"), False): Routed(rows[:2], rows[2:])}
    own = Statistics(np.eye(4), rows[0][0], 7, [rows[2][0]], 0.1, 2, 5, routes)
    work = opened(tmp_path)
    work.keep("statistics", work.key(0), lambda: statistics_of._of_statistics(own, []))
    found = statistics_of._statistics(work.find("statistics", work.key(0)))
    (route,) = found.routed
    np.testing.assert_equal(vars(found.routed[route]), vars(routes[route]))
    np.testing.assert_equal({**vars(found), "routed": 0}, {**vars(own), "routed": 0})


def test_what_is_learned_of_a_value_does_not_depend_on_which_are_wanted(model: ir.Model) -> None:
    data = hold_out(load_data(texts(), model), model)
    inputs = {name: Reading(name, -1) for name in "xrsqt"}
    every, some = collect(model, inputs, data), collect(model, inputs, data, wanted=["s", "t"])
    assert [*some] == ["s", "t"]
    for name, own in some.items():
        np.testing.assert_equal(vars(own), vars(every[name]))


# -- the command -----------------------------------------------------------------------------------------------------


def test_the_command_says_what_it_reused(tmp_path: Path) -> None:
    words = (
        "export",
        write_model(tmp_path),
        "--target",
        "cpu-int4",
        "--calibration",
        write_data(tmp_path),
        "--no-latency",
    )
    done(*words, "-o", tmp_path / "first", "--work", tmp_path / "work")
    flipped(sorted((tmp_path / "work").glob("statistics-*"))[0])
    told = done(*words, "-o", tmp_path / "second", "--work", tmp_path / "work").stdout
    assert "reused from --work" in told
    assert "2 of 2 roundings, 1 of 1 sensitivities, 1 of 2 statistics" in told
    assert "warning: " in told
    assert "is not used, and computed again: it does not hold what was written" in " ".join(told.split())


@pytest.mark.parametrize("place", ["mlp.onnx", "mlp.onnx/below", "out", "out/work"])
def test_a_folder_that_cannot_be_is_refused(tmp_path: Path, place: str) -> None:
    model = write_model(tmp_path)
    words = "export", model, "--target", "cpu-int4", "-o", tmp_path / "out", "--work", tmp_path / place
    said = refused(tmp_path, *words)
    assert str(tmp_path / place) in said
    assert "--work" in said
