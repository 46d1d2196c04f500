"""The page of a graph in a browser: groups, search, keys, two graphs side by side, large, narrow and dark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from browser import browser_page
from onnx import TensorProto, helper, numpy_helper

import qcompile as qc
from qcompile.inspection import inspect_files


def write_blocks(path: Path, blocks: int, between: int, named: bool = True) -> Path:
    """Blocks of two maps with elementwise operators between; names say the modules, or nothing does."""
    rng, nodes, stored, x = np.random.default_rng(0), [], [], "x"

    def node(op: str, reads: list[str], module: str) -> str:
        out = f"v{len(nodes)}"
        name = f"/{module}/{op}" if named else out
        nodes.append(helper.make_node(op, reads, [out], name=f"{name}_{len(nodes)}"))
        return out

    for i in range(blocks):
        weights = []
        for _ in range(2):
            weights.append(f"w{len(stored)}")
            stored.append(numpy_helper.from_array((rng.standard_normal((64, 64)) / 8).astype(np.float32), weights[-1]))
        h = node("MatMul", [x, weights[0]], f"layers/{i}/up")
        for _ in range(between):
            h = node("Sigmoid", [h], f"layers/{i}/act")
        x = node("Add", [x, node("MatMul", [h, weights[1]], f"layers/{i}/down")], f"layers/{i}")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 64]) for name in ("x", x)]
    graph = helper.make_graph(nodes, "blocks", ends[:1], ends[1:], stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pages")


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    model = write_blocks(folder / "model.onnx", 40, 2)
    inspect_files(str(model), html=folder / "model.html")
    return folder / "model.html"


@pytest.fixture(scope="module")
def artifact(folder: Path) -> Path:
    model = write_blocks(folder / "small.onnx", 3, 2)
    qc.export(str(model), "blackwell-fp4", folder / "artifact", method="rtn", transforms="wush")
    inspect_files(str(folder / "artifact"), html=folder / "artifact.html")
    return folder / "artifact.html"


def shown(page: Any, graph: int = 0) -> list[str]:
    """The names of the groups and operators that a graph shows, in the order of the graph."""
    return page.evaluate(f"graphs[{graph}].visible.map(item => item.group?.label ?? item.node.op)")


def selected(page: Any, graph: int = 0) -> str | None:
    return page.evaluate(f"views[{graph}].selected && (views[{graph}].selected.label ?? views[{graph}].selected.name)")


def click(page: Any, name: str, graph: int = 0, twice: bool = False) -> None:
    """Click what has that label or operator's name, where it is painted."""
    place = page.evaluate(
        """([graph, name]) => {
            const view = views[graph], { x, y, width, height } = view.size();
            const item = view.graph.visible.find(item => (item.group?.label ?? item.node.name) === name);
            return [x + width / 2 + (item.px - view.x) * view.zoom, y + height / 2 + (item.py - view.y) * view.zoom];
        }""",
        [graph, name],
    )
    (page.mouse.dblclick if twice else page.mouse.click)(*place)


def test_a_graph_opens_collapsed_and_groups_open(model: Path) -> None:
    with browser_page(model) as page:
        assert shown(page)[:4] == ["input", "Boundary", "0", "1"]
        assert len(shown(page)) == 44
        click(page, "1")
        assert selected(page) == "1"
        assert "2 x MatMul" in page.inner_text("#detail")
        page.get_by_role("button", name="open", exact=True).click()
        assert shown(page)[3:7] == ["MatMul", "act", "MatMul", "Add"]
        page.keyboard.press("Escape")
        click(page, "act", twice=True)
        assert shown(page)[4:6] == ["Sigmoid", "Sigmoid"]
        page.click("#fold")
        assert len(shown(page)) == 44


def write_side(path: Path) -> Path:
    """Two modules in a row, each of which reads a chain that starts at an input of its own, last in the graph."""
    text = """<ir_version: 9, opset_import: ["" : 18]>
    g (float[4,64] x, float[4,64] y, float[4,64] z) => (float[4,64] o) {
      a0 = Relu(x) a1 = Sigmoid(a0) a2 = Relu(a1) a3 = Sigmoid(a2) y0 = Abs(y) y1 = Neg(y0) a4 = Add(a3, y1)
      b0 = Relu(a4) b1 = Sigmoid(b0) b2 = Relu(b1) b3 = Sigmoid(b2) z0 = Abs(z) z1 = Neg(z0) o = Add(b3, z1)
    }"""
    model = onnx.parser.parse_model(text)
    for node in model.graph.node:
        module = {"a": "first", "y": "first", "z": "side"}.get(node.output[0][0], "second")
        node.name = f"/{module}/{node.output[0]}"
    onnx.save(model, path)
    return path


def test_what_is_read_late_stands_near_its_reader_and_edges_lead_down(tmp_path: Path) -> None:
    inspect_files(str(write_side(tmp_path / "side.onnx")), html=tmp_path / "side.html")
    layers = "Object.fromEntries(graphs[0].visible.map(item => [item.group?.label ?? item.node.name, item.layer]))"
    with browser_page(tmp_path / "side.html") as page:
        page.evaluate("$('unfold').click()")
        opened = page.evaluate(layers)
        assert opened["/side/z0"] + 1 == opened["/side/z1"] == opened["/second/o"] - 1
        assert page.evaluate("graphs[0].links.every(({ a, b }) => a.layer < b.layer)")
        page.evaluate("[...graphs[0].groups.values()].forEach(group => toggle(group))")
        assert page.evaluate(layers) == {"x": 0, "y": 0, "z": 0, "first": 1, "side": 1, "second": 2, "o": 3}
        assert page.evaluate("graphs[0].links.every(({ a, b }) => a.layer < b.layer)")


def test_an_open_group_is_shown_though_its_first_operator_is_left_out(tmp_path: Path) -> None:
    text = """<ir_version: 9, opset_import: ["" : 18]>
    g (float[1,64] x, float[n,64] y) => (float[n,64] o) { s = Shape(y) a = Relu(x) b = Expand(a, s) o = Abs(b) }"""
    model = onnx.parser.parse_model(text)
    for node in model.graph.node:
        node.name = f"/{'last' if node.output[0] == 'o' else 'first'}/{node.output[0]}"
    onnx.save(model, tmp_path / "model.onnx")
    inspect_files(str(tmp_path / "model.onnx"), html=tmp_path / "page.html")
    with browser_page(tmp_path / "page.html") as page:
        assert "Shape" not in shown(page)  # computes a shape, and is the first of its group
        page.locator("#list .row", has_text="first").click()
        place = page.evaluate(
            "graphs[0].visible.filter(item => item.node?.name === '/first/a').map(item => [item.px, item.py])"
        )
        assert page.evaluate("[views[0].x, views[0].y]") == place[0]


def test_operators_say_their_shapes_and_attributes(model: Path) -> None:
    with browser_page(model) as page:
        page.evaluate("goTo('/layers/3/up/MatMul_15')")
        said = page.inner_text("#detail")
        for words in ("MatMul /layers/3/up/MatMul_15", "n×64", "w6 64×64 float constant", "layers.3.up"):
            assert words in said.replace("\n", " ")


def test_search_lists_hits_and_steps_through_them(model: Path) -> None:
    with browser_page(model) as page:
        page.keyboard.press("/")
        page.keyboard.type("sigmoid layers.7.act")
        page.wait_for_function("document.getElementById('hits').textContent === '2'")
        assert page.locator("#list .row").count() == 2
        assert [page.get_attribute(f"nav button[data-tab={tab}]", "aria-pressed") for tab in ("nodes", "modules")] == [
            "true", "false",
        ]  # fmt: skip
        page.keyboard.press("Enter")
        first = selected(page)
        assert page.inner_text("#hits") == "1 of 2"
        page.click("#next")
        assert selected(page) != first
        page.click("#next")
        assert selected(page) == first  # around
        assert shown(page).count("Sigmoid") == 2  # their group was opened, no other
        page.locator("#find").press("Escape")
        assert page.inner_text("#hits") == ""


def test_keys_move_along_edges(model: Path) -> None:
    with browser_page(model) as page:
        page.locator("canvas").focus()
        for key, wanted in (
            ("ArrowDown", "x"),
            ("ArrowDown", "x_boundary"),
            ("ArrowDown", "0"),
            ("ArrowDown", "1"),
            ("ArrowUp", "0"),
        ):
            page.keyboard.press(key)
            assert selected(page) == wanted
        page.keyboard.press("Enter")
        assert shown(page)[2] == "MatMul"
        page.keyboard.press("Escape")
        assert selected(page) is None


def test_the_artifact_stands_beside_its_source(artifact: Path) -> None:
    with browser_page(artifact, 1500) as page:
        assert page.locator("section .title").all_inner_texts() == ["source", "artifact"]
        page.click("#unfold")
        page.evaluate("goTo('/layers/1/up/MatMul_5')")
        assert selected(page, 0) == selected(page, 1) == "/layers/1/up/MatMul_5"
        assert "quantized: its weight is stored in a format" in page.inner_text("#detail")
        assert page.inner_text("header .about").startswith("17 → 35 operators · 6 sites")
        states = page.evaluate(
            "graphs.map(g => [...new Set(g.nodes.filter(n => n.state === 'inserted').map(n => n.op))])"
        )
        assert states[0] == []
        assert any(op.startswith("Transform") for op in states[1])
        assert any(op.startswith("Quantize") for op in states[1])
        page.evaluate("toggle(graphs[1].groups.get('layers/2'))")
        assert "2" in shown(page, 0)
        page.locator("main .states").evaluate("it => it.hidden = true")
        page.click("#fit")
        click(page, "2", 1)
        assert selected(page, 0) == selected(page, 1) == "2"


def test_an_artifact_without_its_source_is_drawn_alone(artifact: Path, folder: Path, tmp_path: Path) -> None:
    (folder / "small.onnx").rename(tmp_path / "away.onnx")
    try:
        inspect_files(str(folder / "artifact"), html=tmp_path / "alone.html")
    finally:
        (tmp_path / "away.onnx").rename(folder / "small.onnx")
    with browser_page(tmp_path / "alone.html") as page:
        assert page.locator("section").count() == 1
        assert "is not here, or was changed" in page.inner_text(".missing")


@pytest.mark.parametrize("named", [True, False])
def test_five_thousand_operators_open_collapsed(tmp_path: Path, named: bool) -> None:
    model = write_blocks(tmp_path / "large.onnx", 125, 37, named)
    inspect_files(str(model), html=tmp_path / "large.html")
    with browser_page(tmp_path / "large.html") as page:
        assert page.evaluate("graphs[0].nodes.length") >= 5000
        assert len(shown(page)) <= 8
        page.evaluate("toggle(graphs[0].visible.find(item => item.group).group)")
        assert 125 <= len(shown(page)) <= 135
        took = page.evaluate(
            "(() => { const t = performance.now(); $('unfold').click(); return performance.now() - t; })()"
        )
        assert len(shown(page)) >= 5000
        assert took < 5000


@pytest.mark.parametrize("width, height, dark", [(390, 780, False), (390, 780, True), (1280, 800, True)])
def test_graphs_fit_any_screen(model: Path, artifact: Path, width: int, height: int, dark: bool) -> None:
    for path in (model, artifact):
        with browser_page(path, width, height, dark) as page:
            sizes = "[document.documentElement.scrollWidth, document.documentElement.scrollHeight]"
            assert page.evaluate(sizes) == [width, height]
            stage, side = (page.locator(name).first.bounding_box() for name in ("section", "aside"))
            assert min(stage["width"], side["width"]) >= 180
            assert min(stage["height"], side["height"]) >= 200
            assert page.locator("#find").is_visible()
            assert page.evaluate("document.querySelector('nav').scrollWidth <= innerWidth")  # no list is out of sight
            page.locator("#list .row").first.click()
            assert page.locator("#detail b").first.is_visible()
