"""The commands: what they write, and that each mistake is one sentence, status 2, and nothing written."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from cached_decoder import cached_decoder
from commands import call, done, refused
from onnx import TensorProto, helper, numpy_helper

from qcompile.cli.options import Device, Method, Transforms

WEIGHTS = {"up": (64, 128), "down": (128, 64)}


def graph(weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    """``x -> MatMul -> Relu -> MatMul -> y``, widths 64, 128, 64."""
    nodes = [
        helper.make_node("MatMul", ["x", "up"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "down"], ["y"], name="second"),
    ]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 64]) for n in "xy"]
    stored = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    made = helper.make_graph(nodes, "mlp", values[:1], values[1:], stored)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def random_weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(np.float32) / 8 for name, shape in WEIGHTS.items()}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    onnx.save(graph(random_weights()), tmp_path / "mlp.onnx")
    return tmp_path / "mlp.onnx"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(1).standard_normal((6, 64)).astype(np.float32))
    return tmp_path / "x.npz"


# -- the user's mistakes ---------------------------------------------------------------------------------------------


def export_refused(model: Path, *more: object, target: str = "cpu-int4") -> str:
    return refused(model.parent, "export", model, "--target", target, "-o", model.parent / "out", *more)


def test_missing_file(tmp_path: Path) -> None:
    assert "there is no file" in export_refused(tmp_path / "none.onnx")


@pytest.mark.parametrize("keep", [0, 1, 100, 10_000])
def test_truncated_file(model: Path, keep: int) -> None:
    model.write_bytes(model.read_bytes()[:keep])
    message = export_refused(model)
    assert str(model) in message
    assert "truncated" in message


def test_missing_external_data(model: Path) -> None:
    onnx.save(graph(random_weights()), model, save_as_external_data=True, location="weights.bin", size_threshold=0)
    (model.parent / "weights.bin").unlink()
    message = export_refused(model)
    assert "weights.bin" in message
    assert "missing" in message


def test_truncated_external_data(model: Path) -> None:
    onnx.save(graph(random_weights()), model, save_as_external_data=True, location="weights.bin", size_threshold=0)
    os.truncate(model.parent / "weights.bin", 40_000)
    assert "too short" in export_refused(model)


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_linked_external_data_is_read(model: Path, link: Callable[[Path, Path], None]) -> None:
    onnx.save(graph(random_weights()), model, save_as_external_data=True, location="weights.bin", size_threshold=0)
    blobs = model.parent / "blobs"
    blobs.mkdir()
    (model.parent / "weights.bin").rename(blobs / "b0")
    link(blobs / "b0", model.parent / "weights.bin")
    done("export", model, "--target", "cpu-int4", "-o", model.parent / "out", "--method", "rtn")


@pytest.mark.parametrize("location", ["../weights.bin", "inner/../../weights.bin", "/weights.bin"])
def test_external_data_outside_of_the_folder(model: Path, location: str) -> None:
    onnx.save(graph(random_weights()), model, save_as_external_data=True, location="weights.bin", size_threshold=0)
    proto = onnx.load(model, load_external_data=False)
    for tensor in proto.graph.initializer:
        next(entry for entry in tensor.external_data if entry.key == "location").value = location
    model.write_bytes(proto.SerializeToString())
    assert "outside of its own folder" in export_refused(model)


def test_graph_that_onnxruntime_cannot_load(model: Path) -> None:
    proto = onnx.load(model)
    proto.opset_import.append(helper.make_opsetid("elsewhere", 1))
    proto.graph.node[-1].domain = "elsewhere"
    onnx.save(proto, model)
    assert "onnxruntime cannot load the graph" in export_refused(model)
    turned = model.parent / "turned.onnx"
    assert "onnxruntime cannot load the graph" in refused(model.parent, "rotate", model, "-o", turned)


def test_wrong_names_in_the_calibration_file(model: Path) -> None:
    np.savez(model.parent / "wrong.npz", tokens=np.zeros((2, 64), np.float32))
    message = export_refused(model, "--calibration", model.parent / "wrong.npz")
    assert "tokens" in message
    assert "the model's inputs are x" in message


@pytest.mark.parametrize("option", ["--calibration", "--evaluation"])
def test_unreadable_data(model: Path, option: str) -> None:
    assert "none.npz" in export_refused(model, option, model.parent / "none.npz")
    (model.parent / "text.npz").write_text("not an archive")
    assert "text.npz" in export_refused(model, option, model.parent / "text.npz")


def test_wrong_shape_in_the_calibration_file(model: Path) -> None:
    np.savez(model.parent / "wrong.npz", x=np.zeros((2, 63), np.float32))
    export_refused(model, "--calibration", model.parent / "wrong.npz")


def test_weights_that_are_not_numbers(model: Path) -> None:
    weights = random_weights()
    weights["down"][5, 7] = np.nan
    onnx.save(graph(weights), model)
    assert "'down'" in export_refused(model)


def test_unknown_target(model: Path) -> None:
    message = export_refused(model, target="cpu-int3")
    assert "unknown target 'cpu-int3'" in message
    assert "cpu-int4" in message


def test_a_format_that_the_target_cannot_run(model: Path) -> None:
    message = export_refused(model, "--formats", "nvfp4")
    assert "target 'cpu-int4' cannot run format 'nvfp4'" in message


def test_unknown_format(model: Path) -> None:
    assert "int5" in export_refused(model, "--formats", "int5-g7")


def test_output_folder_exists(model: Path) -> None:
    (model.parent / "out").mkdir()
    (model.parent / "out" / "precious").write_text("kept")
    assert "exists already" in export_refused(model)


@pytest.mark.parametrize(
    "budget", ["4", "bits=", "bits=many", "bits=4,bits=5", "bits=1", "bits=-3", "watts=3", "bytes=10"]
)
def test_budgets_that_make_no_sense(model: Path, budget: str) -> None:
    assert "budget" in export_refused(model, "--budget", budget)


MEANINGLESS = [("--transforms", "magic"), ("--method", "guess"), ("--device", "abacus"), ("--seed", "-1"), ("--none",)]


@pytest.mark.parametrize("option", MEANINGLESS)
def test_unknown_options_and_values(model: Path, option: tuple[str, ...]) -> None:
    assert option[0] in export_refused(model, *option)


def test_a_model_without_sites(model: Path) -> None:
    made = graph({})
    del made.graph.node[:]
    made.graph.node.append(helper.make_node("Relu", ["x"], ["y"], name="relu"))
    onnx.save(made, model)
    assert "no linear map" in export_refused(model)


def test_usage_errors(tmp_path: Path) -> None:
    assert "bogus" in refused(tmp_path, "bogus")
    assert "--target" in refused(tmp_path, "export", "m.onnx")
    assert "MODEL" in refused(tmp_path, "rotate", "-o", "x.onnx")


def test_not_an_artifact(tmp_path: Path, data: Path) -> None:
    assert "is not an artifact" in refused(tmp_path, "verify", tmp_path)
    assert "is not an artifact" in refused(tmp_path, "run", tmp_path, "--inputs", data, "-o", tmp_path / "y.npz")


def test_a_bug_keeps_its_traceback(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("qcompile.inspection.prepare", fail)
    result = call("inspect", model)
    assert result.exit_code == 1
    assert isinstance(result.exception, RuntimeError)


def test_the_statuses_of_the_process(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "qcompile"]
    good = subprocess.run([*command, "--version"], capture_output=True, text=True)
    assert (good.returncode, good.stdout.split()[0]) == (0, "qcompile")
    bad = subprocess.run([*command, "inspect", str(tmp_path / "none")], capture_output=True, text=True)
    assert bad.returncode == 2
    assert bad.stderr.startswith("error: there is no file")
    assert len(bad.stderr.splitlines()) == 1


# -- interrupted -----------------------------------------------------------------------------------------------------

INTERRUPTED = """
import signal, sys, time
from qcompile import quantizing
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs start with it ignored
quantizing.begin_equivalence = lambda *_: (print("reached", flush=True), time.sleep(600))
from qcompile.cli.commands import main
main()
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_interrupted_export_leaves_no_artifact(model: Path, how: signal.Signals) -> None:
    out = model.parent / "out"
    arguments = ["export", str(model), "--target", "cpu-int4", "-o", str(out), "--method", "rtn"]
    command = [sys.executable, "-c", INTERRUPTED, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline().strip() == "reached"
    process.send_signal(how)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert not out.exists()
    done("export", model, "--target", "cpu-int4", "-o", out, "--method", "rtn")
    assert {path.name for path in model.parent.iterdir()} == {"mlp.onnx", "out"}  # what was left is swept up


# -- export, run, verify ---------------------------------------------------------------------------------------------


@pytest.fixture
def artifact(model: Path) -> Path:
    done("export", model, "--target", "cpu-int4", "-o", model.parent / "out", "--method", "rtn", "-q")
    return model.parent / "out"


def test_export_writes_and_says_what_it_wrote(model: Path, data: Path) -> None:
    result = done("export", model, "--target", "cpu-int4", "-o", model.parent / "out", "--calibration", data)
    manifest = json.loads((model.parent / "out" / "manifest.json").read_text())
    for words in ("bits per weight", "x smaller", "online transforms", "relative L2", "peak memory", "report.html"):
        assert words in result.stdout
    assert f"{manifest['bytes']['artifact']:,}" in result.stdout


def test_times_name_each_shape_once(tmp_path: Path) -> None:
    """A decoder of many layers has two caches in each, all of one shape."""
    path = cached_decoder(tmp_path / "model.onnx")
    said = done("export", path, "--target", "cpu-int4", "-o", tmp_path / "out", "--method", "rtn").stdout
    assert re.search(r"one\s+thread,\s+input_ids\s+and\s+1\s+more\s+\S+,\s+past_key\s+and\s+1\s+more\s+\S+x16", said), (
        said
    )


def test_the_manifest_keeps_its_contract(artifact: Path) -> None:
    manifest = json.loads((artifact / "manifest.json").read_text())
    keys = {"qcompile", "source", "target", "seed", "spaces", "sites", "declined", "online_transforms", "equivalence",
            "quantization", "bytes", "bits_per_weight"}  # fmt: skip
    assert keys <= manifest.keys()
    assert {"path", "sha256"} <= manifest["source"].keys()
    assert {"id", "size", "freedom", "transform", "values", "limited_by"} <= manifest["spaces"][0].keys()
    site = manifest["sites"][0]
    wanted = {"name", "op", "weight_shape", "space_in", "space_out", "format", "bits", "transform_in", "alpha", "t2",
              "predicted_delta", "tie"}  # fmt: skip
    assert wanted <= site.keys()
    assert site["transform_in"].keys() == {"kind", "online"}
    assert {"rel_l2", "max_abs", "checked_inputs"} <= manifest["equivalence"].keys()
    assert {"rel_l2", "predicted_loss_delta", "measured_loss_delta"} <= manifest["quantization"].keys()
    assert manifest["bytes"].keys() == {"source", "artifact"}


def test_bytes_and_bits_are_those_of_the_files(artifact: Path) -> None:
    manifest = json.loads((artifact / "manifest.json").read_text())
    own = [p for p in artifact.iterdir() if p.name not in ("manifest.json", "report.html")]
    assert manifest["bytes"]["artifact"] == sum(p.stat().st_size for p in own)
    weights = sum(int(np.prod(site["weight_shape"])) for site in manifest["sites"])
    stored = sum(site["bits_per_weight"] * np.prod(site["weight_shape"]) for site in manifest["sites"])
    assert manifest["bits_per_weight"] == pytest.approx(stored / weights, rel=1e-5)
    assert manifest["bytes"]["artifact"] >= stored / 8


def test_two_exports_are_byte_identical(model: Path, data: Path) -> None:
    for name in ("a", "b"):
        out = model.parent / name
        done("export", model, "--target", "cpu-int4", "-o", out, "--calibration", data, "--seed", 3, "-q")
    files = {p.name for p in (model.parent / "a").iterdir()}
    assert files == {p.name for p in (model.parent / "b").iterdir()}
    for name in files:
        assert (model.parent / "a" / name).read_bytes() == (model.parent / "b" / name).read_bytes(), name


def test_the_report_needs_no_network(artifact: Path) -> None:
    page = (artifact / "report.html").read_text()
    assert "<html" in page
    assert "first" in page
    assert not [word for word in ("http://", "https://", "src=", "@import") if word in page]


def test_default_folder(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model.parent)
    done("export", model.name, "--target", "cpu-int8", "--method", "rtn")
    assert (model.parent / "mlp.cpu-int8" / "manifest.json").is_file()


def test_run(artifact: Path, data: Path) -> None:
    output = artifact.parent / "y.npz"
    result = done("run", artifact, "--inputs", data, "-o", output, "--runtime", "ort")
    assert "6x64" in result.stdout
    with np.load(output) as content, np.load(data) as inputs:
        weights = random_weights()
        want = np.maximum(inputs["x"] @ weights["up"], 0) @ weights["down"]
        assert np.linalg.norm(content["y"] - want) / np.linalg.norm(want) < 0.2


def test_run_refuses_what_cannot_run(artifact: Path, data: Path) -> None:
    folder, output = artifact.parent, artifact.parent / "y.npz"
    assert "cannot run" in refused(folder, "run", artifact, "--inputs", data, "-o", output, "--runtime", "triton")
    np.savez(folder / "wrong.npz", z=np.zeros((2, 64), np.float32))
    np.savez(folder / "short.npz", x=np.zeros((2, 63), np.float32))
    for name, reason in (("wrong", "the model's inputs are x"), ("none", "there is no file"), ("short", "")):
        assert reason in refused(folder, "run", artifact, "--inputs", folder / f"{name}.npz", "-o", output)


def test_verify(artifact: Path, model: Path) -> None:
    assert "relative L2" in done("verify", artifact, "--against", model).stdout
    assert "relative L2" in done("verify", artifact).stdout
    other = random_weights()
    other["up"][0, 0] += 1
    onnx.save(graph(other), model.parent / "other.onnx")
    assert "is not the model" in refused(model.parent, "verify", artifact, "--against", model.parent / "other.onnx")


def test_verify_from_another_folder(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manifest keeps a relative path as it was given, and is the same wherever the export is made."""
    elsewhere, deep = model.parent / "elsewhere", model.parent / "a" / "b"
    elsewhere.mkdir()
    monkeypatch.chdir(model.parent)
    for folder in ("out", deep):
        done("export", model.name, "--target", "cpu-int4", "-o", folder, "--method", "rtn", "-q")
    assert (deep / "manifest.json").read_text() == Path("out/manifest.json").read_text()
    other = random_weights()
    other["up"][0, 0] += 1
    onnx.save(graph(other), elsewhere / model.name)  # of the same name, where the commands run
    monkeypatch.chdir(elsewhere)
    for folder in ("../out", deep):
        assert "relative L2" in done("verify", folder).stdout
    model.unlink()
    assert "is not the model" in refused(model.parent, "verify", "../out")
    (elsewhere / model.name).unlink()
    assert "not here: 'mlp.onnx'; --against names it" in done("verify", "../out").stdout


# -- rotate, inspect, lists ------------------------------------------------------------------------------------------


def test_rotate(model: Path) -> None:
    output = model.parent / "rotated.onnx"
    result = done("rotate", model, "-o", output)
    assert "relative L2" in result.stdout
    onnx.checker.check_model(onnx.load(output))
    assert "exists already" in refused(model.parent, "rotate", model, "-o", output)
    assert {p.name for p in model.parent.iterdir()} == {"mlp.onnx", "rotated.onnx"}


def test_rotate_writes_large_models_beside_their_weights(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qcompile.ir.files.INLINE_BYTES", 1000)
    output = model.parent / "rotated.onnx"
    done("rotate", model, "-o", output, "-q")
    assert output.stat().st_size < 20_000 < (model.parent / "rotated.onnx.data").stat().st_size
    onnx.checker.check_model(str(output))


def test_inspect_shows_spaces_and_sites(model: Path) -> None:
    result = done("inspect", model)
    assert "Relu 'relu'" in result.stdout
    assert "second" in result.stdout


def test_inspect_as_json(model: Path) -> None:
    found = json.loads(done("inspect", model, "--json", "-").stdout)
    assert [site["name"] for site in found["sites"]] == ["first", "second"]
    assert {"id", "size", "freedom", "transform", "values", "limited_by"} <= found["spaces"][0].keys()
    (why,) = [entry for entry in found["declined"] if entry["site"] == "second"]
    assert "Relu 'relu'" in why["reason"]
    done("inspect", model, "--json", model.parent / "found.json", "-q")
    assert json.loads((model.parent / "found.json").read_text()) == found


def test_inspect_draws_the_graph(model: Path) -> None:
    page = model.parent / "graph.html"
    done("inspect", model, "--html", page, "-q")
    text = page.read_text()
    (drawn,) = json.loads(text.split('<script id="drawn" type="application/json">')[1].split("</script>")[0])
    assert [node["op"] for node in drawn["nodes"]] == ["input", "MatMul", "Relu", "MatMul", "output"]
    assert [edge[:2] for edge in drawn["edges"]] == [[0, 1], [1, 2], [2, 3], [3, 4]]
    assert not [word for word in ("http://", "https://", "src=", "@import") if word in text]


def test_inspect_changes_nothing(model: Path) -> None:
    before = model.read_bytes()
    done("inspect", model)
    assert model.read_bytes() == before


def test_inspect_an_artifact(artifact: Path) -> None:
    assert "int4" in done("inspect", artifact, "--html", artifact.parent / "page.html").stdout
    text = (artifact.parent / "page.html").read_text()
    drawn = json.loads(text.split('<script id="drawn" type="application/json">')[1].split("</script>")[0])
    assert [graph["title"] for graph in drawn] == ["source", "artifact"]
    assert [node["op"] for node in drawn[1]["nodes"]] == ["input", "MatMulNBits", "Relu", "MatMulNBits", "output"]


def test_targets_and_passes() -> None:
    listed = done("targets").stdout
    assert all(name in listed for name in ("cpu-int4", "cpu-int8", "blackwell-fp4", "blackwell-mxfp4"))
    listed = done("passes").stdout
    assert all(name in listed for name in ("canonicalize", "fold-scales", "rotate", "quantize"))


def test_choices_are_those_of_the_core() -> None:
    from qcompile.choice.kinds import KINDS
    from qcompile.rounding.methods import METHODS

    assert [*Transforms] == [*KINDS]
    (said,) = (part for part in Method.__metadata__ if hasattr(part, "help"))
    assert [name for name in METHODS if not re.search(rf"\b{name}\b", said.help)] == []
    assert [*Device] == ["cpu", "cuda"]


# -- more of the user's mistakes: files that are something else ------------------------------------------------------


def test_files_that_are_something_else(model: Path, data: Path) -> None:
    folder = model.parent
    (folder / "m.pt2").write_text("junk")
    assert "not a readable exported program" in export_refused(folder / "m.pt2")
    np.save(folder / "plain.npy", np.zeros((2, 64), np.float32))
    (folder / "plain.npy").rename(folder / "plain.npz")
    (folder / "cut.npz").write_bytes(data.read_bytes()[:300])
    for name, reason in (("plain", "one array without a name"), ("cut", "not a readable .npz file")):
        for option in ("--calibration", "--evaluation"):
            assert reason in export_refused(model, option, folder / f"{name}.npz")


def test_outputs_under_a_file(model: Path) -> None:
    under = model / "under"
    for command in (["rotate", model, "-o"], ["inspect", model, "--html"], ["inspect", model, "--json"]):
        assert str(model) in refused(model.parent, *command, under)
    assert str(model) in refused(model.parent, "export", model, "--target", "cpu-int4", "-o", under)


@pytest.mark.parametrize("text", ['{"a": 1}', "[1, 2]", "[1, 2"])
def test_a_manifest_that_is_none(tmp_path: Path, data: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    for command in (["verify", tmp_path], ["inspect", tmp_path], ["run", tmp_path, "--inputs", data, "-o", data / "y"]):
        assert "manifest.json" in refused(tmp_path, *command)


def test_a_value_that_nothing_makes(model: Path) -> None:
    made = graph(random_weights())
    made.graph.node[2].input[0] = "nowhere"
    onnx.save(made, model)
    assert "has no value 'nowhere', which MatMul 'second' reads" in refused(model.parent, "inspect", model)


def test_outputs_of_one_name(model: Path) -> None:
    made = graph(random_weights())
    made.graph.output.append(made.graph.output[0])
    onnx.save(made, model)
    assert "several outputs named 'y'" in export_refused(model)


def test_weights_that_stand_among_the_inputs(model: Path) -> None:
    """As exporters of old wrote them, and two sites in a row, of which one reads what the other writes."""
    made = graph(random_weights())
    del made.graph.node[1]
    made.graph.node[1].input[0] = "h"
    for name, shape in WEIGHTS.items():
        made.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    onnx.save(made, model)
    done("export", model, "--target", "cpu-int4", "-o", model.parent / "out", "-q")
    manifest = json.loads((model.parent / "out" / "manifest.json").read_text())
    assert manifest["implementation"]["rel_l2"] < 1e-5
    done("verify", model.parent / "out")


def test_no_transforms_under_a_budget(model: Path) -> None:
    more = ("--formats", "int4-g32,int8-g32", "--budget", "bits=5", "--transforms", "none", "-q")
    done("export", model, "--target", "cpu-int4", "-o", model.parent / "out", *more)


def test_cuda_where_there_is_none(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "no CUDA device" in export_refused(model, "--device", "cuda")
