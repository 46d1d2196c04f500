"""Pages for people: one HTML file each, which needs no network and is the same for the same content."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from qcompile.artifact.answers import ON, answers, loss_bars
from qcompile.artifact.charts import front_chart, outline, prediction_chart
from qcompile.artifact.phrases import format_name, human_bytes, scientific
from qcompile.artifact.shares import by_kind, by_place, opened

if TYPE_CHECKING:
    import jinja2
    import markupsafe

__all__ = ["render_comparison", "render_front", "render_inspection", "render_report", "template"]

#: The error that is added up over modules, by its key: the first that all sites of a manifest have.
WEIGHED = {
    "predicted_delta": "the predicted loss, α·t²",
    "t2": "t², summed alike over sites, for it was not measured what errors cost",
}


#: Columns of the table of sites that stand there only if a site has them: key, meaning, head.
KNOWN = (
    ("measured_t2", "the same, measured on the first batch", "measured"),
    ("predicted_delta", "predicted growth of the loss", "α·t²"),
)


def render_report(manifest: Mapping[str, Any]) -> str:
    """The report of an artifact as HTML."""
    sites = manifest["sites"]
    formats = Counter(format_name(site) for site in sites).most_common()
    colors = {name: i for i, (name, _) in enumerate(formats)}
    left = defaultdict(list)
    for entry in manifest["declined"]:
        left[entry["site"]].append(entry)
    weighed = next((key for key in WEIGHED if any(site[key] for site in sites)), "t2")
    trees = [("by-place", by_place(manifest, weighed)), ("by-kind", by_kind(manifest, weighed))]
    quantization = manifest["quantization"]
    return template("report.html").render(
        m=manifest, formats=formats, colors=colors, left=left, answers=answers(manifest),
        predictions=prediction_chart(sites, colors), loss=loss_bars(quantization),
        on=ON.get(quantization.get("evaluated_on", ""), "the data"), weighed=WEIGHED[weighed],
        spreads={site["name"]: _spread_of(site, manifest.get("spreads", {})) for site in sites},
        known=[column for column in KNOWN if any(site.get(column[0]) is not None for site in sites)],
        shares=[(name, tree, opened(tree)) for name, tree in trees],
    )  # fmt: skip


def _spread_of(site: Mapping[str, Any], spreads: Mapping[str, Any]) -> Any:
    """The spread of a site's input; of a convolution, that of its patches, if all that read the value have those."""
    name = str(site.get("input"))
    found = [spread for key, spread in spreads.items() if key == name or key.startswith(f"{name} in patches ")]
    return spreads.get(name) or (found[0] if len(found) == 1 else None)


def render_front(asked: Mapping[str, Any], points: Sequence[Mapping[str, Any]]) -> str:
    """The Pareto front of a sweep as HTML.

    Args:
        asked: ``model``, ``target`` and other options in words, by name.
        points: as ``qcompile sweep --json`` has them.
    """
    units = [unit for unit in ("bits", "bytes") if any(unit in point.get("spent", ()) for point in points)]
    charts = [(unit, chart) for unit in units if (chart := front_chart(points, unit)) is not None]
    return template("front.html").render(asked=asked, points=points, charts=charts)


def render_inspection(
    found: Mapping[str, Any], graphs: Sequence[Mapping[str, Any]], missing: Sequence[str] = ()
) -> str:  # fmt: skip
    """The drawing of a graph, or of two side by side, with spaces, sites and reasons as HTML.

    Args:
        found: the result of ``inspect``.
        graphs: results of ``drawing``: that of a model alone, or that of a source before that of its artifact.
        missing: what is not drawn, and why.
    """
    return template("inspect.html").render(found=found, graphs=graphs, missing=missing)


def render_comparison(found: Mapping[str, Any]) -> str:
    """Two models beside each other as HTML, from the result of ``compare``."""
    from qcompile import __version__

    return template("compare.html").render(c=found, version=__version__)


def _parted(name: str) -> markupsafe.Markup:
    """A long name that may wrap behind its dots, strokes and underscores, and within a word nowhere."""
    import markupsafe

    return markupsafe.Markup(re.sub(r"(?<=[._/])(?=[^._/])", "<wbr>", str(markupsafe.escape(name))))


@cache
def template(name: str) -> jinja2.Template:
    """A page, compiled at its first use."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("qcompile.artifact"), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters |= {
        "bytes": human_bytes,
        "scientific": scientific,
        "format_name": format_name,
        "outline": outline,
        "parted": _parted,
    }
    return environment.get_template(name)
