"""Control over an export: recipes, patterns, what is replaced, what is logged, summaries for programs, completion."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import call, done, refused
from small import write_data, write_model
from typer.testing import Result

import qcompile as qc
from qcompile.cli.console import Progress


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path)


def export(model: Path, words: str, *more: object, out: str = "out") -> Result:
    return done("export", model, "-o", model.parent / out, "--no-latency", *words.split(), *more)


def manifest_of(model: Path, out: str = "out") -> dict:
    return json.loads((model.parent / out / "manifest.json").read_text())


def written(model: Path, text: str) -> Path:
    (model.parent / "recipe.toml").write_text(text)
    return model.parent / "recipe.toml"


# -- recipes ---------------------------------------------------------------------------------------------------------

RECIPE = """
target = "cpu-int4"
method = "rtn"
seed = 3
formats = ["int4", "int8"]
quiet = true
exclude = ["second"]
[budget]
bits = 4.5
[format-for]
"block.*" = "uint4-g16"
"""


def test_a_recipe_has_all_options(model: Path) -> None:
    export(model, "--config", written(model, RECIPE))
    manifest = manifest_of(model)
    assert (manifest["target"], manifest["seed"]) == ("cpu-int4", 3)
    assert manifest["options"]["budget"] == {"bits": 4.5}
    assert {s["module"]: s["format"] for s in manifest["sites"]} == {"block.first": "uint4-g16", None: "float"}


def test_the_command_line_wins(model: Path) -> None:
    recipe = written(model, 'target = "cpu-int8"\nmethod = "gptq"\nexclude = "second"\n')
    export(model, "--config", recipe, "--target", "cpu-int4", "--method", "rtn", "--exclude", "block.first")
    manifest = manifest_of(model)
    assert (manifest["target"], manifest["options"]["method"]) == ("cpu-int4", "rtn")
    assert manifest["options"]["exclude"] == ["block.first"]


@pytest.mark.parametrize("folder", [False, True])
def test_the_manifest_of_an_artifact_is_a_recipe(model: Path, folder: bool) -> None:
    data = write_data(model.parent)
    given = "--target cpu-int4 --method rtn --seed 5 --transforms hadamard --formats int4,int8 --budget bits=6 -q"
    wishes = ["--format-for", "second=int8", "--transform-for", "second=none"]
    export(model, given, "--calibration", data, *wishes)
    recipe = model.parent / "out" if folder else model.parent / "out" / "manifest.json"
    export(model, "--config", recipe, "-q", out="again")
    assert manifest_of(model) == manifest_of(model, "again")
    export(model, "--config", recipe, "-q", "--seed", 6, out="other")
    assert manifest_of(model, "other")["seed"] == 6


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('target = "cpu-int4"\nmetod = "rtn"', "unknown option 'metod'; the nearest: method"),
        ('model = "x.onnx"', "unknown option 'model'"),
        ("target = [1, 2]", "'target' takes a single value"),
        ("exclude = [[1]]", "'exclude' takes a table, a list or a single value"),
        ("target = ", "not readable as TOML"),
        ('target = "cpu-int4"\nseed = "many"', "--seed"),
        ('target = "cpu-int4"\nformat_for = ["second"]', "not of the form PATTERN=FORMAT"),
    ],
)
def test_recipes_that_make_no_sense(model: Path, text: str, reason: str) -> None:
    import re

    message = refused(model.parent, "export", model, "-o", model.parent / "out", "--config", written(model, text))
    assert re.search(reason, message)


def test_files_that_are_no_recipes(model: Path) -> None:
    (model.parent / "some.json").write_text('{"a": 1}')
    for name, reason in (("none.toml", "cannot be read"), ("some.json", "not the manifest of an artifact")):
        arguments = ["export", model, "-o", model.parent / "out", "--config", model.parent / name]
        assert reason in refused(model.parent, *arguments)


# -- patterns --------------------------------------------------------------------------------------------------------


def test_patterns_of_the_command_line(model: Path) -> None:
    shown = export(model, "--target cpu-int4 --method rtn --format-for *=int8-g64 --format-for second=int4")
    assert "1 x int4-g32, 1 x int8-g64" in shown.stdout
    assert [site["asked"] for site in manifest_of(model)["sites"]] == [
        ["--format-for '*=int8-g64'"], ["--format-for 'second=int4'"],
    ]  # fmt: skip
    message = refused(model.parent, "export", model, "--target", "cpu-int4", "-o", model.parent / "o", "--keep", "frst")
    assert message.startswith("--keep 'frst' fits no site and no module: the nearest are ")
    assert "block.first" in message


def test_inspect_names_modules(model: Path) -> None:
    assert "block.first" in done("inspect", model).stdout
    found = json.loads(done("inspect", model, "--json", "-").stdout)
    assert [site["module"] for site in found["sites"]] == ["block.first", None]
    assert [weight["module"] for weight in found["weights"]] == ["block.first", None]
    page = model.parent / "page.html"
    done("inspect", model, "--html", page, "-q")
    assert '"module": "block.first"' in page.read_text()
    export(model, "--target cpu-int4 --method rtn -q")
    assert "block.first" in done("inspect", model.parent / "out").stdout
    assert '<td class="mono">block.<wbr>first</td>' in (model.parent / "out" / "report.html").read_text()


def test_a_format_is_the_targets_own(model: Path) -> None:
    export(model, "--target cpu-int4 --method rtn --formats int4 -q")
    assert [site["format"] for site in manifest_of(model)["sites"]] == ["int4-g32", "int8-g32"]
    out = ("-o", model.parent / "o")
    message = refused(model.parent, "export", model, "--target", "cpu-int4", "--formats", "int4-g33", *out)
    assert "the nearest: int4-g32" in message
    assert "it runs int4-g16, " in message
    assert "the nearest: cpu-int8" in refused(model.parent, "export", model, "--target", "cpu-it8", *out)


def test_a_budget_shows_the_number_that_it_bounds(model: Path) -> None:
    shown = export(model, "--target cpu-int4 --method rtn --formats int4,int8 --budget bits=6").stdout
    sites = manifest_of(model)["sites"]
    mean = sum(site["bits"] for site in sites) / 2  # weights of one size
    assert f"{mean:g} of at most 6: mean bits of the codes of sites that are not left out, scales not counted" in shown
    assert manifest_of(model)["budget"]["bits"]["spent"] == mean
    tight = ["--target", "cpu-int4", "--formats", "int4,int8", "--budget", "bits=5", "--format-for", "second=int8"]
    message = refused(model.parent, "export", model, *tight, "-o", model.parent / "o")
    assert message == "budget bits=5 cannot be met: the least reachable bits is 6"


# -- what is replaced ------------------------------------------------------------------------------------------------


def test_an_artifact_is_replaced_when_asked(model: Path) -> None:
    export(model, "--target cpu-int4 --method rtn -q")
    arguments = ["export", model, "--target", "cpu-int8", "--method", "rtn", "-q", "-o", model.parent / "out"]
    assert "--overwrite" in refused(model.parent, *arguments)
    done(*arguments, "--overwrite")
    assert manifest_of(model)["target"] == "cpu-int8"
    assert {path.name for path in model.parent.iterdir()} == {"mlp.onnx", "out"}


def test_nothing_else_is_replaced(model: Path) -> None:
    arguments = ["export", model, "--target", "cpu-int4", "--method", "rtn", "-o", model.parent / "out", "--overwrite"]
    (model.parent / "out").mkdir()
    assert "it is no artifact" in refused(model.parent, *arguments)
    (model.parent / "out").rmdir()
    done(*arguments)
    (model.parent / "out" / "notes.md").write_text("mine")
    assert "it holds 'notes.md'" in refused(model.parent, *arguments)


def test_a_failed_export_leaves_the_artifact(model: Path) -> None:
    export(model, "--target cpu-int4 --method rtn -q")
    arguments = ["export", model, "--target", "cpu-int4", "-o", model.parent / "out", "--overwrite"]
    assert "fits no site" in refused(model.parent, *arguments, "--exclude", "nothing")


# -- what is told ----------------------------------------------------------------------------------------------------


def test_logs(model: Path) -> None:
    log = model.parent / "log.txt"
    log.write_text("before\n")
    result = export(model, "--target cpu-int4 --method rtn --verbose --log-file", log)
    for text in (result.stderr, log.read_text()):
        assert "INFO qcompile.passes.pipeline: pass name-values " in text
        assert "left alone: second: the format int4-g32: it stands at the edge" in text
    assert log.read_text().startswith("before\n")
    done("inspect", model, "--log-file", log)
    again = done("inspect", model)
    assert "pass" not in again.stderr
    assert "cannot be written" in refused(model.parent, "inspect", model, "--log-file", model.parent / "no" / "log.txt")


def test_progress_without_a_terminal(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = "--target cpu-int4 --method rtn"
    assert export(model, arguments).stderr == ""  # a short export has nothing to say in between
    monkeypatch.setattr("qcompile.cli.console.SECONDS", 0.0)
    assert "quantizing: 2 of 2\n" in export(model, arguments, out="b").stderr
    assert export(model, arguments, "-q", out="c").stderr == ""


def test_progress_estimates_the_time_that_is_left(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    clock = iter([0.0, 100.0, 106.0, 107.0, 112.0, 130.0])
    monkeypatch.setattr("qcompile.cli.console.time.monotonic", lambda: next(clock))
    progress = Progress()
    for done_, total in ((1, 11), (2, 11), (3, 11), (4, 11), (11, 11)):
        progress("rounding", done_, total)
    assert capsys.readouterr().err.splitlines() == [
        "rounding: 1 of 11",  # at 100 s: its pace is not known
        "rounding: 2 of 11, about 54 s left",
        "rounding: 4 of 11, about 28 s left",  # 3 in 12 s; at 107 s it was too early for a line
        "rounding: 11 of 11",
    ]


def test_summaries_for_programs(model: Path) -> None:
    data, folder = write_data(model.parent), model.parent
    made = json.loads(export(model, "--target cpu-int4 --method rtn --json -").stdout)
    manifest = manifest_of(model)
    assert made["artifact"] == str(folder / "out")
    assert made["formats"] == {"int4-g32": 1, "int8-g32": 1}
    assert made["counts"]["sites"] == 2
    assert "quantizing" in made["effort"]["steps"]
    assert made["quantization"] == manifest["quantization"]
    ran = json.loads(done("run", folder / "out", "--inputs", data, "-o", folder / "y.npz", "--json", "-").stdout)
    assert ran == {"output": str(folder / "y.npz"), "arrays": {"y": {"shape": [6, 64], "type": "float32"}}}
    checked = json.loads(done("verify", folder / "out", "--json", "-").stdout)
    assert checked["manifest"] == manifest["quantization"]
    assert checked["rel_l2"] < 0.2
    listed = json.loads(done("inputs", model, "--json", "-").stdout)
    assert listed == {"inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", 64]}]}
    assert "int4-g32" in json.loads(done("targets", "--json", "-").stdout)["targets"]["cpu-int4"]["schemes"]
    passed = done("opt", model, "--passes", "canonicalize", "-o", folder / "opt.onnx", "--json", "-").stdout
    assert json.loads(passed)["output"] == str(folder / "opt.onnx")
    turned = done("rotate", model, "-o", folder / "turned.onnx", "--json", folder / "turned.json")
    assert "rotated spaces" in turned.stdout
    assert json.loads((folder / "turned.json").read_text())["equivalence"]["rel_l2"] < 1e-5


# -- the command itself ----------------------------------------------------------------------------------------------


def test_the_version_in_short() -> None:
    assert done("-V").stdout == done("--version").stdout == f"qcompile {qc.__version__}\n"


@pytest.mark.parametrize(
    ("words", "found"), [("qcompile ex", ["export"]), ("qcompile export --target cpu-i", ["cpu-int4", "cpu-int8"])]
)
def test_completion_in_a_shell(words: str, found: list[str]) -> None:
    count = str(len(words.split()) - 1)
    asked = {"_QCOMPILE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": count}
    run = subprocess.run([sys.executable, "-m", "qcompile"], env=os.environ | asked, capture_output=True, text=True)
    assert run.stdout.split() == found, run.stderr
    assert call("--show-completion", "bash").exit_code == 0


def test_providers(model: Path) -> None:
    data, folder = write_data(model.parent), model.parent
    export(model, "--target cpu-int4 --method rtn -q")
    arguments = ["run", folder / "out", "--inputs", data, "-o", folder / "y.npz", "--provider"]
    done(*arguments, "cpu")
    (folder / "y.npz").unlink()
    message = refused(folder, *arguments, "abacus")
    assert "no provider 'abacus' here; available are " in message
    assert "cpu" in message.partition("available are")[2]
