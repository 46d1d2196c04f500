"""Recipes: read word by word, refused with the part that is wrong, replaced option by option, the same again."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest
from commands import call, done, refused
from small import write_data, write_model

import qcompile as qc
from qcompile.errors import InputError, TargetError
from qcompile.recipes.recipe import all_recipes, read_recipe
from qcompile.targets.registry import get_target

ROOT = Path(__file__).parent.parent.parent
ZOO = ROOT / "examples" / "zoo"

MIXED = """
paper = "none"
does = "mixes"
transform = { kind = "block" }
weights = { format = ["int4-g32", "int8-g64"] }
acts = { format = "int8-channel", range = "dynamic" }
rounding = { kind = "gptq", shift = 1, damping = 0.05 }
assign = { bits = 6 }
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path)


def written(folder: Path, text: str, name: str = "mine.toml") -> Path:
    (folder / name).write_text(text)
    return folder / name


def manifest_of(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


def test_words_become_options(tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path, MIXED))
    assert recipe.options == {
        "transforms": "block",
        "formats": ("int4-g32/int8-channel", "int8-g64/int8-channel"),
        "method": "gptq{shift=1,damping=0.05}",
        "budget": {"bits": 6.0},
    }
    assert recipe.name == "mine"
    pairs = MIXED.replace('"int8-channel"', '["int8-channel", "fp8-e4m3-channel"]')
    assert read_recipe(written(tmp_path, pairs)).options["formats"] == (
        "int4-g32/int8-channel", "int8-g64/fp8-e4m3-channel",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("transform =", "transfrom =", "unknown part 'transfrom'.*the nearest: transform"),
        ("transform =", "cache =", "part 'cache' is not there yet"),
        ('"block"', '"blocks"', "part 'transform': unknown transforms 'blocks'.*the nearest: block"),
        ("kind = ", "kid = ", "part 'transform': unknown word 'kid'"),
        ('"int4-g32"', '"int4-g33"', "part 'weights': there is no format 'int4-g33'"),
        ('"int8-channel"', '["int8-channel", "int8-g32", "int8-g64"]', "'acts' has 3 formats for the 2 of"),
        ("weights = { format = [", "# ", "part 'acts' needs part 'weights'"),
        ('"dynamic"', '"static"', "part 'acts': range is 'dynamic'.*'static'"),
        ('"gptq"', '"gtpq"', "part 'rounding': unknown method 'gtpq'.*the nearest: gptq"),
        ("shift", "shaft", "part 'rounding': method 'gptq' has no option 'shaft'; there are shift, damping"),
        ("shift = 1", 'shift = "far"', "part 'rounding': option 'shift' of method 'gptq' takes a number"),
        ("bits", "bytez", "part 'assign': unknown word 'bytez'.*the nearest: bytes"),
        ("bits = 6", "bits = 0", "part 'assign': bits must be a number above 0, not 0"),
        ('{ kind = "block" }', '"block"', "part 'transform' is a table, such as transform = "),
        ('paper = "none"', "", "'paper' must be one line of text"),
        ("does =", "does", "not readable as TOML"),
    ],
)
def test_what_is_not_known_is_refused_with_its_part(tmp_path: Path, old: str, new: str, reason: str) -> None:
    assert old in MIXED
    with pytest.raises(InputError, match=reason) as caught:
        read_recipe(written(tmp_path, MIXED.replace(old, new, 1)))
    assert "mine.toml" in str(caught.value)


def test_recipes_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown recipe 'quarrot'.*the nearest: quarot"):
        read_recipe("quarrot")
    with pytest.raises(InputError, match="none.toml' cannot be read"):
        read_recipe(tmp_path / "none.toml")


def test_a_target_refuses_a_part_that_it_cannot_run(model: Path) -> None:
    out = ("-o", model.parent / "out")
    message = refused(model.parent, "export", model, "--target", "cpu-int4", "--recipe", "quarot", *out)
    assert message.startswith(
        "recipe 'quarot', part 'weights' and 'acts': target 'cpu-int4' cannot run format 'int4-ch"
    )
    timed = written(model.parent, 'paper = "none"\ndoes = "hurries"\nassign = { latency = 2 }\n')
    with pytest.raises(TargetError, match="recipe 'mine', part 'assign': target 'reference' has no estimate of time"):
        read_recipe(timed).on(get_target("reference"), {})
    assert not read_recipe(timed).runs_on(get_target("reference"))
    assert read_recipe(timed).runs_on(get_target("cpu-int4"))


def test_what_is_given_replaces_parts(model: Path) -> None:
    data, out = write_data(model.parent), model.parent / "out"
    words = ["--recipe", "quarot", "--formats", "int4", "--method", "rtn", "--calibration", data, "--no-latency"]
    shown = done("export", model, "--target", "cpu-int4", "-o", out, *words).stdout
    manifest = manifest_of(out)
    options = manifest["options"]
    assert [options[name] for name in ("recipe", "transforms", "formats", "method")] == [
        "quarot", "hadamard", ["int4"], "rtn",
    ]  # fmt: skip
    assert manifest["recipe"]["given"] == ["method", "formats"]
    assert manifest["recipe"]["parts"]["acts"] == {"format": "int4-channel", "range": "dynamic"}
    assert "with --" in shown
    assert "the cache of keys and values stays float" in shown


def test_a_file_of_options_names_a_recipe_and_a_manifest_repeats_it(model: Path) -> None:
    data, folder = write_data(model.parent), model.parent
    mine = written(
        folder, 'paper = "none"\ndoes = "turns"\ntransform = { kind = "hadamard" }\nrounding = { kind = "rtn" }\n'
    )
    config = written(folder, f'target = "cpu-int4"\nrecipe = "{mine}"\ncalibration = "{data}"\n', "options.toml")
    done("export", model, "--config", config, "-q", "-o", folder / "out")
    assert manifest_of(folder / "out")["options"]["method"] == "rtn"
    done("export", model, "--config", folder / "out", "-q", "-o", folder / "again")
    assert manifest_of(folder / "again") == manifest_of(folder / "out")
    from_python = qc.export(model, "cpu-int4", folder / "python", recipe=mine, calibration=data)
    assert from_python.manifest == manifest_of(folder / "out")
    assert from_python.manifest["recipe"]["given"] == []


KINDS = """
paper = "none"
does = "keeps edges"
transform = { kind = "none" }
sites = { edge = "int8-g64", convolution = "float" }
rounding = { kind = "rtn" }
"""


def test_kinds_of_sites_have_formats(model: Path) -> None:
    folder = model.parent
    mine = written(folder, KINDS)
    done("export", model, "--target", "cpu-int4", "--recipe", mine, "-q", "-o", folder / "out")
    manifest = manifest_of(folder / "out")
    assert [site["format"] for site in manifest["sites"]] == ["int4-g32", "int8-g64"]
    assert manifest["options"]["format_for"] == {"kind:edge": "int8-g64", "kind:convolution": "float"}
    assert manifest["sites"][1]["asked"] == ["--format-for 'kind:edge=int8-g64'"]
    words = ["--format-for", "kind:edge=float", "--format-for", "kind:linear=uint4-g16"]
    done("export", model, "--target", "cpu-int4", "--recipe", mine, "-q", "-o", folder / "other", *words)
    other = manifest_of(folder / "other")
    assert [site["format"] for site in other["sites"]] == ["uint4-g16", "uint4-g16"]  # the last that fits
    assert other["recipe"]["given"] == ["format-for"]
    refusing = written(folder, KINDS.replace("int8-g64", "nvfp4"))
    message = refused(folder, "export", model, "--target", "cpu-int4", "--recipe", refusing, "-o", folder / "no")
    assert message.startswith("recipe 'mine', part 'sites': target 'cpu-int4' cannot run format 'nvfp4'")
    wrong = written(folder, KINDS.replace("edge =", "edges ="))
    message = refused(folder, "export", model, "--target", "cpu-int4", "--recipe", wrong, "-o", folder / "no")
    assert "part 'sites': unknown word 'edges'" in message
    wrong = ["--format-for", "kind:edges=float"]
    message = refused(folder, "export", model, "--target", "cpu-int4", "-o", folder / "no", *wrong)
    assert message.startswith("unknown kind of site 'edges'")


def test_without_a_recipe_the_manifest_has_none(model: Path) -> None:
    manifest = qc.export(model, "cpu-int4", model.parent / "out", method="rtn").manifest
    assert manifest["recipe"] is None
    assert manifest["options"]["recipe"] is None


# -- those that come with the package --------------------------------------------------------------------------------


def test_the_command_lists_them() -> None:
    listed = json.loads(done("recipes", "--json", "-").stdout)["recipes"]
    assert listed.keys() == all_recipes().keys()
    assert {"rtn", "gptq", "gptaq", "quarot", "mr-gptq", "wush"} <= listed.keys()
    assert listed["quarot"]["targets"] == ["reference"]
    assert listed["gptq"]["options"] == {"transforms": "none", "method": "gptq{shift=0,tune=true}"}
    shown = done("recipes").stdout
    assert all(re.search(rf"^ {name} ", shown, re.M) for name in listed)
    assert call("recipes", "gptq").exit_code == 2


def test_the_page_lists_them() -> None:
    """Run ``docs/list_recipes.py`` to write it anew."""
    spec = importlib.util.spec_from_file_location("list_recipes", ROOT / "docs" / "list_recipes.py")
    listing = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(listing)
    assert listing.PAGE.read_text() == listing.page()


def test_every_recipe_runs_somewhere() -> None:
    for recipe in all_recipes().values():
        assert recipe.runs_on(get_target("reference")), recipe.name


@pytest.mark.slow
@pytest.mark.parametrize("name", all_recipes())
def test_every_recipe_quantizes_a_shipped_model(tmp_path: Path, name: str) -> None:
    data = ZOO / "dit_calibration.npz"
    manifest = qc.export(ZOO / "dit.onnx", "reference", tmp_path / "out", recipe=name, calibration=data).manifest
    assert manifest["recipe"]["given"] == []
    assert manifest["equivalence"]["rel_l2"] < 1e-5
    assert manifest["quantization"]["rel_l2"] < 0.6
    assert any(site["format"] != "float" for site in manifest["sites"])
