"""What pages say is what manifests hold: answers, sums over modules, charts."""

from __future__ import annotations

import math

import numpy as np
import pytest
from manifests import manifest, site

from qcompile.artifact.answers import answers, loss_bars
from qcompile.artifact.charts import Axis, front_chart, prediction_chart
from qcompile.artifact.pages import render_front, render_report
from qcompile.artifact.shares import by_kind, by_place, opened

SITES = [
    site("blocks.0.up", 0.01, 0.02), site("blocks.0.down", 0.03, 0.06), site("blocks.1.up", 0.1, 0.2), site("head", 0.0)
]  # fmt: skip
SIZES = {"blocks.0.up": (1000, 200), "blocks.0.down": (3000, 500), "blocks.1.up": (1000, 200), "head": (5000, 1100)}
PLAIN = {"plain": {"rel_l2": 0.2, "divergence": None}}
LOSSES = {"float": 1.0, "round_to_nearest": 1.4, "quantized": 1.1}


def test_sizes_are_compared() -> None:
    small, fast, _ = answers(manifest(SITES, SIZES))
    assert (small.answer, small.of) == ("5.00x", "smaller")
    assert [(bar.name, bar.value, bar.share, bar.own) for bar in small.bars] == [
        ("source", "10 kB", 1.0, False), ("this artifact", "2 kB", 0.2, True),
    ]  # fmt: skip
    assert fast.answer == "5.00x"
    assert any("times differ from run to run" in note for note in fast.notes)


def test_tables_are_not_read_as_a_whole() -> None:
    sites = [*SITES[:3], site("head", 0.0, op="Gather")]
    assert answers(manifest(sites, SIZES))[1].bars[0].value == "5 kB"


@pytest.mark.parametrize(
    "given, answer, note",
    [
        (PLAIN, "0.05", "75 % of what rounding to nearest without transforms loses is gone"),
        ({"plain": {"rel_l2": 0.04}}, "0.05", "25 % more than rounding to nearest loses"),
        ({}, "0.05", "plain rounding was not measured beside it"),
        ({"loss": LOSSES}, "+0.1", "75 % of what rounding to nearest without transforms loses is gone"),
        ({"loss": LOSSES | {"round_to_nearest": 0.9}}, "+0.1", "rounding to nearest loses nothing here"),
    ],
)
def test_closeness_is_beside_plain_rounding(given: dict, answer: str, note: str) -> None:
    close = answers(manifest(SITES, SIZES, **given))[2]
    assert (close.answer, close.notes[0]) == (answer, note)


def test_bars_of_losses_are_of_differences_from_float() -> None:
    m = manifest(SITES, SIZES, loss=LOSSES, predicted_loss_delta=0.2, loss_standard_error=0.01)
    found = {bar.name: bar.share for bar in loss_bars(m["quantization"])}
    assert found == pytest.approx({"plain rounding": 1.0, "predicted": 0.5, "this artifact": 0.25})
    assert loss_bars(manifest(SITES, SIZES)["quantization"]) == []


def test_bytes_and_errors_add_up_over_modules() -> None:
    top = by_place(manifest(SITES, SIZES), "t2")
    assert (top.sites, top.before, top.after, top.error) == (4, 10000, 2000, pytest.approx(0.14))
    blocks, head = top.parts
    assert (blocks.name, blocks.before, blocks.error) == ("blocks", 5000, pytest.approx(0.14))
    assert [part.name for part in blocks.parts] == ["0", "1.up"]  # a chain of one is one row
    assert (head.name, head.sites, head.parts) == ("head", 1, [])


def test_layers_of_one_kind_add_up() -> None:
    blocks = by_kind(manifest(SITES, SIZES), "t2").parts[0]
    assert blocks.name == "blocks.*"
    assert {part.name: (part.sites, part.before) for part in blocks.parts} == {"up": (2, 2000), "down": (1, 3000)}


def test_as_much_is_open_as_fits() -> None:
    assert opened(by_place(manifest(SITES, SIZES), "t2")) == 2
    many = [site(f"a.{i}.{j}", 0.1) for i in range(20) for j in range(20)]
    assert opened(by_place(manifest(many, {}), "t2")) == 1  # the 20 modules, and not the 400 in them


def test_points_lie_where_predictions_and_measurements_are() -> None:
    chart = prediction_chart(SITES, {"int4-g32": 0})
    assert chart is not None
    assert chart.fit is not None
    assert (chart.fit.slope, chart.fit.r2, chart.fit.factor) == pytest.approx((1.0, 1.0, 2.0))
    assert [spot.of for spot in chart.spots] == ["node_blocks.0.up", "node_blocks.0.down", "node_blocks.1.up"]
    across = np.diff([spot.x for spot in chart.spots]) / np.diff(np.log([0.01, 0.03, 0.1]))
    assert np.ptp(across) < 0.1
    assert all(a.y > b.y for a, b in zip(chart.spots, chart.spots[1:]))  # more is further up
    assert prediction_chart(SITES[:1], {"int4-g32": 0}) is None


@pytest.mark.parametrize("low, high, logarithmic", [(3.5, 8.0, False), (1e-6, 1e-2, True), (0.011, 0.04, True)])
def test_axes_have_a_few_lines_at_round_numbers(low: float, high: float, logarithmic: bool) -> None:
    axis = Axis.of("t", [low, high], 100.0, logarithmic)
    assert 2 <= len(axis.lines) <= 12
    assert all(0 <= place <= 100 for place, _ in axis.lines)
    numbers = [float(said) for _, said in axis.lines]
    assert all(math.isclose(number, float(f"{number:.1g}")) or number == int(number) for number in numbers)
    assert [place for place, _ in axis.lines] == sorted(place for place, _ in axis.lines)


def point(bits: float, loss: float) -> dict:
    spent = {"bits": bits, "bytes": 100 * bits}
    return {"budget": {"bits": bits}, "spent": spent, "predicted_loss_delta": loss, "gap": 0.0,
            "formats": {"int4": 3}, "offline_transforms": 1, "online_transforms": 2}  # fmt: skip


def test_the_front_goes_down() -> None:
    points = [point(4, 0.1), {"budget": {"bits": 3}, "missed": "too <little>"}, point(8, 0.001), point(6, 0.01)]
    chart = front_chart(points, "bits")
    assert chart is not None
    assert [spot.of for spot in chart.spots] == ["0", "3", "2"]
    assert chart.y.logarithmic
    assert [y for _, y in chart.line] == sorted(y for _, y in chart.line)
    page = render_front({"model": "m.onnx", "target": "cpu-int4"}, points)
    assert page.count("<circle") == 6
    assert "too &lt;little&gt;" in page
    assert "<circle" not in render_front({"model": "m.onnx", "target": "cpu-int4"}, points[:2])


def test_a_report_says_where_the_error_is_and_what_was_left_alone() -> None:
    m = manifest(SITES, SIZES, **PLAIN)
    m["declined"] = [{"site": "node_head", "module": "head", "what": "rotating its input", "reason": "a <b> forbids"}]
    page = render_report(m)
    assert "Measured is 2.00 times predicted" in page
    assert page.count("a &lt;b&gt; forbids") == 2  # at the site, and in the list
    assert render_report(m) == page


def test_columns_that_no_site_has_are_left_out() -> None:
    assert ">α·t²</abbr></th>" not in (page := render_report(manifest(SITES, SIZES)))
    assert ">measured</abbr></th>" in page
    costly = [site("head", 0.01, predicted_delta=0.2)]
    assert ">α·t²</abbr></th>" in (page := render_report(manifest(costly, {"head": (5000, 1100)})))
    assert ">measured</abbr></th>" not in page


def test_a_convolutions_histogram_is_that_of_its_patches() -> None:
    spread = {"before": {"counts": [1] * 24, "peak": 3.0}}
    m = manifest(SITES, SIZES) | {"spreads": {"x in patches 3x3": spread, "y in patches 3x3": spread}}
    assert render_report(m).count('<figure class="spread">') == len(SITES)
    m["spreads"]["x in patches 1x1"] = spread  # not known which of the two a site reads
    assert '<figure class="spread">' not in render_report(m)
