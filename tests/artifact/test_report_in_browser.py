"""The report and the page of a sweep in a browser: clicks, keys, search, sorting, narrow and dark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from browser import browser_page
from manifests import manifest, site

from qcompile.artifact.pages import render_comparison, render_front, render_report

SIZES = {"blocks.0.up": (1000, 200), "blocks.0.down": (3000, 500), "blocks.1.up": (1000, 200), "head": (5000, 1100)}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sites = [
        site("blocks.0.up", 0.01, 0.02), site("blocks.0.down", 0.03, 0.06), site("blocks.1.up", 0.1, 0.2),
        site("head", 0.0, format="nvfp4-4over6", activation="nvfp4-4over6"),
    ]  # fmt: skip
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(render_report(manifest(sites, SIZES, plain={"rel_l2": 0.2})))
    return path


def shown(page: Any) -> list[str]:
    """The modules of the sites that the table shows, from the top."""
    return page.locator("#sites tbody:visible button").all_inner_texts()


def overflow(page: Any) -> int:
    return page.evaluate("document.documentElement.scrollWidth - innerWidth")


def test_sites_are_searched_sorted_and_opened(report: Path) -> None:
    with browser_page(report) as page:
        page.fill("#find", "up blocks")
        assert shown(page) == ["blocks.0.up", "blocks.1.up"]
        assert page.inner_text("#count") == "2 of 4"
        page.fill("#find", "")
        page.locator("#sites th", has_text="t²").first.click()
        assert shown(page) == ["blocks.1.up", "blocks.0.down", "blocks.0.up", "head"]
        page.locator("#sites th", has_text="t²").first.press("Enter")
        assert shown(page) == ["head", "blocks.0.up", "blocks.0.down", "blocks.1.up"]
        row = page.locator("tbody[data-site='node_head']")
        assert not row.locator(".more").is_visible()
        row.locator("button").press("Enter")
        assert row.locator(".more").is_visible()
        assert row.locator("button").get_attribute("aria-expanded") == "true"
        row.locator("td").first.click()
        assert not row.locator(".more").is_visible()


def test_a_point_of_the_chart_shows_its_site(report: Path) -> None:
    with browser_page(report) as page:
        page.fill("#find", "head")
        page.locator("circle").nth(1).click()
        assert page.locator("tbody.marked").get_attribute("data-site") == "node_blocks.0.down"
        assert page.locator("tbody.marked .more").is_visible()
        page.locator("circle").nth(2).press("Enter")
        assert page.locator("tbody.marked").get_attribute("data-site") == "node_blocks.1.up"


def test_a_click_on_a_site_shows_how_its_input_is_spread(tmp_path: Path) -> None:
    spread = {"before": {"counts": [1] * 24, "peak": 3.0}, "after": {"counts": [2] * 24, "peak": 1.5}}
    m = manifest([site("up", 0.01), site("down", 0.01, input="y")], SIZES) | {"spreads": {"x": spread}}
    (tmp_path / "report.html").write_text(render_report(m))
    with browser_page(tmp_path / "report.html") as page:
        figures = page.locator("figure.spread")
        assert figures.count() == 1
        assert not figures.is_visible()
        page.locator("#sites button", has_text="up").click()
        assert figures.locator("polygon:visible").count() == 2
        assert "3.0 times its root mean square; behind its transform, 1.5 times" in figures.inner_text()


def test_long_names_wrap_behind_their_dots(tmp_path: Path) -> None:
    name = "encoder.layer_groups.0.attention.self.query_projection"
    m = manifest([site(name, 0.01)], {name: (10, 2)})
    (tmp_path / "report.html").write_text(render_report(m))
    with browser_page(tmp_path / "report.html", 390) as page:
        button = page.locator("#sites button")
        assert button.inner_text() == name
        parts = button.evaluate("""it => [...it.childNodes].filter(node => node.nodeType === 3).map(node => {
            const range = document.createRange(); range.selectNodeContents(node); return range.getClientRects().length;
        })""")
        assert len(parts) == 8
        assert set(parts) == {1}  # no part is on two lines


def test_every_symbol_of_the_heads_is_explained(report: Path) -> None:
    with browser_page(report) as page:
        explained = " ".join(page.locator("#words + dl dt").all_inner_texts())
        for symbol in (
            "t²",
            "α",
            "α·t²",
            "site",
            "format",
            "bits",
            "relative L2",
            "divergence",
            "loss",
            "space",
            "transform",
        ):
            assert symbol in explained
        assert page.locator("#sites th abbr[title]").count() == page.locator("#sites th abbr").count() >= 3


def test_modules_open_and_add_up_in_two_ways(report: Path) -> None:
    with browser_page(report) as page:
        places = page.locator("#by-place")
        assert places.locator("summary:visible").count() == 6
        places.locator("summary", has_text="blocks").first.click()
        assert places.locator("summary:visible").count() == 2
        page.get_by_role("button", name="by kind of layer").click()
        assert not places.is_visible()
        assert "blocks.*" in page.locator("#by-kind").inner_text()


@pytest.mark.parametrize("width, dark", [(1280, False), (1280, True), (390, False), (390, True), (768, False)])
def test_the_report_fits_any_screen(report: Path, width: int, dark: bool) -> None:
    with browser_page(report, width, dark=dark) as page:
        assert overflow(page) <= 0
        page.locator("#sites button").first.click()
        assert overflow(page) <= 0
        table, card = (page.locator(name).bounding_box() for name in ("#sites", "#sites >> xpath=.."))
        assert table["width"] <= card["width"]
        page.evaluate("scrollTo(0, 0)")
        bottom = page.locator(".answer .compare").last.bounding_box()
        assert bottom["y"] + bottom["height"] <= 860  # all answers are on the first screen


def test_a_point_of_the_front_marks_its_row(tmp_path: Path) -> None:
    points = [
        {"budget": {"bits": bits}, "spent": {"bits": bits, "bytes": 100 * bits}, "predicted_loss_delta": 1 / bits,
         "gap": 0.0, "formats": {"int4": 3}, "offline_transforms": 1, "online_transforms": 2}
        for bits in (4.0, 6.0, 8.0)
    ]  # fmt: skip
    (tmp_path / "front.html").write_text(render_front({"model": "m.onnx", "target": "cpu-int4"}, points))
    with browser_page(tmp_path / "front.html", 600) as page:
        page.locator("circle").nth(1).click()
        assert page.locator("tr.marked td").first.inner_text() == "bits=6"
        assert overflow(page) <= 0


def comparison(alike: bool) -> dict[str, Any]:
    """What ``compare`` finds for one prompt, after which both write the same or not."""
    loss = {"reference": 1.0, "other": 1.1, "difference": 0.1, "standard_error": 0.01}
    part = {"from": 0, "to": 15, "divergence": 0.1, "flips": 0.05, "positions": 16}
    prompt = {
        "prompt": 0, "divergence": 0.1, "worst_position": 3, "worst_divergence": 0.5, "flips": 1,
        "loss_difference": 0.1, "before": [1, 2], "wanted": [3, 4, 5], "made": [3, 4, 5 if alike else 6],
        "first_divergence": None if alike else 2,
    }  # fmt: skip
    return {
        "reference": "models/of/a/long/path/that_is_no_title/model.onnx", "other": "out/small", "output": "logits",
        "scores": True, "prompts": 1, "positions": 16,
        "divergence": {"mean": 0.1, "standard_error": 0.0, "median": 0.1, "p99": 0.5, "max": 0.5},
        "flips": {"count": 1, "share": 0.06, "confident": 0, "confident_positions": 4}, "loss": loss,
        "by_position": [part, part | {"from": 16, "to": 31, "divergence": 0.2}],
        "generation": {"tokens": 3, "prompts": 1, "diverged": int(not alike), "mean_agreeing": 2.0},
        "worst": [prompt],
    }  # fmt: skip


@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize("width, dark", [(1400, False), (390, True)])
def test_a_comparison_fits_any_screen_and_marks_what_differs(
    alike: bool, width: int, dark: bool, tmp_path: Path
) -> None:
    (tmp_path / "page.html").write_text(render_comparison(comparison(alike)))
    with browser_page(tmp_path / "page.html", width, dark=dark) as page:
        assert overflow(page) <= 0
        assert page.inner_text("h1") == "small beside model.onnx"
        assert page.locator("mark").all_inner_texts() == ([] if alike else ["5", "6"])
        first, second = (page.locator(".bar").nth(i).bounding_box()["width"] for i in (0, 1))
        assert second > 60
        assert first == pytest.approx(second / 2, rel=0.02)
