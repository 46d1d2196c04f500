"""Wishes of single sites: left out, kept bit for bit, in a format or with a transform of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import qcompile as qc

WIDTH = 64


def written(folder: Path) -> Path:
    """Two residual blocks behind a table, named as torch's exporter names them, and a head; norms have scales."""
    rng = np.random.default_rng(0)
    weights, nodes, stream = {"emb": rng.standard_normal((50, WIDTH))}, [], "e"
    nodes.append(helper.make_node("Gather", ["emb", "ids"], ["e"], name="/emb/Gather"))
    for i in range(2):
        weights |= {
            f"g{i}": 1 + rng.random(WIDTH), f"u{i}": rng.standard_normal((WIDTH, 2 * WIDTH)) / 8,
            f"d{i}": rng.standard_normal((2 * WIDTH, WIDTH)) / 8,
        }  # fmt: skip
        at = f"/layers.{i}"
        nodes += [
            helper.make_node("RMSNormalization", [stream, f"g{i}"], [f"n{i}"], name=f"{at}/norm/RMSNormalization"),
            helper.make_node("MatMul", [f"n{i}", f"u{i}"], [f"h{i}"], name=f"{at}/up/MatMul"),
            helper.make_node("Relu", [f"h{i}"], [f"r{i}"], name=f"{at}/Relu"),
            helper.make_node("MatMul", [f"r{i}", f"d{i}"], [f"o{i}"], name=f"{at}/down/MatMul"),
            helper.make_node("Add", [stream, f"o{i}"], [f"s{i}"], name=f"{at}/Add"),
        ]
        stream = f"s{i}"
    weights |= {"gh": 1 + rng.random(WIDTH), "head": rng.standard_normal((WIDTH, 50)) / 8}
    nodes.append(helper.make_node("RMSNormalization", [stream, "gh"], ["f"], name="/norm/RMSNormalization"))
    nodes.append(helper.make_node("MatMul", ["f", "head"], ["y"], name="/head/MatMul"))
    stored = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "length"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "length", 50])
    graph = helper.make_graph(nodes, "g", [ids], [y], stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10), folder / "m.onnx")
    return folder / "m.onnx"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("wishes"))


def export(model: Path, folder: Path, **wishes: object) -> qc.Artifact:
    return qc.export(model, "cpu-int4", folder / "out", method="rtn", **wishes)


def by_module(artifact: qc.Artifact, key: str) -> dict[str, object]:
    return {site["module"]: site[key] for site in artifact.manifest["sites"]}


def weights_of(path: Path) -> list[np.ndarray]:
    return [numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer]


def test_sites_are_left_out_by_module_and_by_name(model: Path, tmp_path: Path) -> None:
    artifact = export(model, tmp_path, exclude=["layers.*.down", "/head/*"])
    formats = by_module(artifact, "format")
    floats = {module for module, name in formats.items() if name == "float"}
    assert floats == {"layers.0.down", "layers.1.down", "head"}
    assert all("int" in formats[name] for name in formats.keys() - floats)
    said = {(e["module"], e["reason"]) for e in artifact.manifest["declined"] if e["what"] == "quantizing its weight"}
    assert said == {
        ("layers.0.down", "excluded by --exclude 'layers.*.down'"),
        ("layers.1.down", "excluded by --exclude 'layers.*.down'"),
        ("head", "excluded by --exclude '/head/*'"),
    }
    kept = {entry["module"]: entry["reason"] for entry in artifact.manifest["weights"] if entry["status"] == "kept"}
    assert kept == dict(said)
    assert artifact.manifest["options"]["exclude"] == ["layers.*.down", "/head/*"]
    assert artifact.manifest["quantization"]["rel_l2"] < 0.2


def test_kept_sites_keep_their_weights_bit_for_bit(model: Path, tmp_path: Path) -> None:
    plain = export(model, tmp_path, exclude="head", transforms="hadamard")
    kept = qc.export(model, "cpu-int4", tmp_path / "kept", method="rtn", keep="head", transforms="hadamard")
    (head,) = (numpy_helper.to_array(t) for t in onnx.load(model).graph.initializer if t.name == "head")
    for artifact, same in ((plain, False), (kept, True)):
        assert by_module(artifact, "format")["head"] == "float"
        stored = weights_of(artifact.folder / "model.onnx")
        assert any(array.shape == head.shape and np.array_equal(array, head) for array in stored) == same
    said = [entry["reason"] for entry in kept.manifest["declined"] if entry["module"] == "head"]
    assert "kept by --keep 'head'" in said
    assert any(space["transform"] != "none" for space in plain.manifest["spaces"])
    assert "MatMul '/head/MatMul' is kept as it is" in str(kept.manifest["spaces"])


def test_a_kept_table_takes_no_norm(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["" : 23]>
    g (int64[n, m] ids) => (float[n, m, 32] y) <float[50, 64] t, float[64] s, float[64, 32] w>
    { [look] e = Gather(t, ids)\n [norm] f = RMSNormalization<axis=-1>(e, s)\n [map] y = MatMul(f, w) }"""
    proto, rng = onnx.parser.parse_model(text), np.random.default_rng(1)
    del proto.graph.initializer[:]
    arrays = {"t": rng.random((50, 64)), "s": 1 + rng.random(64), "w": rng.random((64, 32))}
    proto.graph.initializer.extend(numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items())
    onnx.save(proto, tmp_path / "m.onnx")
    table = arrays["t"].astype(np.float32)
    for wishes, same in (({"keep": "look"}, True), ({"exclude": "look"}, False)):
        out = tmp_path / next(iter(wishes))
        artifact = qc.export(tmp_path / "m.onnx", "cpu-int4", out, method="rtn", transforms="none", **wishes)
        found = [array for array in weights_of(artifact.folder / "model.onnx") if array.shape == table.shape]
        assert any(np.array_equal(array, table) for array in found) == same


def test_the_last_format_that_fits_is_taken(model: Path, tmp_path: Path) -> None:
    wishes = {"layers.*": "int8", "*.down": "uint4-g64", "head": "float", "emb": "int4-g16"}
    artifact = export(model, tmp_path, format_for=wishes, exclude="layers.1.down")
    assert by_module(artifact, "format") == {
        "emb": "int4-g16", "layers.0.up": "int8-g32", "layers.0.down": "uint4-g64", "layers.1.up": "int8-g32",
        "layers.1.down": "float", "head": "float",
    }  # fmt: skip
    assert by_module(artifact, "asked")["layers.0.down"] == ["--format-for '*.down=uint4-g64'"]
    (unmet,) = [entry for entry in artifact.manifest["declined"] if "asks for" in entry["what"]]
    assert unmet["module"] == "layers.1.down"
    assert not [e for e in artifact.manifest["declined"] if e["module"] == "emb" and "edge" in e["reason"]]


def test_a_budget_counts_the_formats_that_were_asked_for(model: Path, tmp_path: Path) -> None:
    artifact = export(
        model, tmp_path, format_for={"head": "int8-g32"}, formats=["int4", "int8"], budget={"bits": 4.6},
    )  # fmt: skip
    assert by_module(artifact, "format")["head"] == "int8-g32"
    sites = artifact.manifest["sites"]
    sizes = [np.prod(site["weight_shape"]) for site in sites]
    mean = sum(site["bits"] * size for site, size in zip(sites, sizes)) / sum(sizes)
    bound = artifact.manifest["budget"]["bits"]
    assert bound["spent"] == pytest.approx(mean, rel=1e-5)
    assert mean <= bound["bound"] == 4.6
    assert "scales not counted" in bound["counts"]


@pytest.mark.parametrize("kind", ["auto", "hadamard", "none"])
def test_a_transform_of_their_own(model: Path, tmp_path: Path, kind: str) -> None:
    wishes = {"*.down": "none", "layers.1.down": "hadamard"}
    artifact = export(model, tmp_path, transforms=kind, transform_for=wishes)
    made = by_module(artifact, "transform_in")
    assert made["layers.0.down"] == {"kind": "none", "online": False}
    assert made["layers.1.down"] == {"kind": "hadamard", "online": True}
    reasons = [e["reason"] for e in artifact.manifest["declined"] if e["module"] == "layers.0.down"]
    assert "--transform-for '*.down=none' leaves its input as it is" in reasons
    if kind != "auto":
        assert made["layers.0.up"]["kind"] == kind


def test_a_whole_space_takes_the_transform_of_one_reader(model: Path, tmp_path: Path) -> None:
    artifact = export(model, tmp_path, transforms="none", transform_for={"layers.0.up": "hadamard"})
    made = by_module(artifact, "transform_in")
    assert {made[name]["kind"] for name in ("layers.0.up", "layers.1.up", "head")} == {"hadamard"}
    assert not any(entry["online"] for entry in made.values())
    assert artifact.manifest["equivalence"]["rel_l2"] < 1e-5


def test_wishes_that_contradict_are_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(qc.InputError, match="hadamard for what reads .* share space"):
        export(model, tmp_path, transform_for={"layers.0.up": "hadamard", "layers.1.up": "none"})


@pytest.mark.parametrize(
    "wishes",
    [
        {"exclude": "layers.*.dwn"}, {"keep": ["layer.0.down"]}, {"format_for": {"hed": "int8-g32"}},
        {"transform_for": {"layers.0.down_": "none"}},
    ],
)  # fmt: skip
def test_a_pattern_that_fits_nothing_is_refused_with_names(model: Path, tmp_path: Path, wishes: dict) -> None:
    with pytest.raises(qc.InputError, match="fits no site and no module: the nearest are .*(down|head)"):
        export(model, tmp_path, **wishes)
    assert not list(tmp_path.iterdir())


def test_words_are_checked_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(qc.TargetError, match="cannot run format 'nvfp4'"):
        export(tmp_path / "none.onnx", tmp_path, format_for={"*": "nvfp4"})
    with pytest.raises(qc.InputError, match="unknown transforms 'hadmard'; .*the nearest: hadamard"):
        export(tmp_path / "none.onnx", tmp_path, transform_for={"*": "hadmard"})


def test_no_site_is_left(model: Path, tmp_path: Path) -> None:
    with pytest.raises(qc.InputError, match=r"no linear map .* excluded by --exclude '\*'"):
        export(model, tmp_path, exclude="*")
