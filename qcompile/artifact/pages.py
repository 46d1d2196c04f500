"""Pages for people: one HTML file each, which needs no network and is the same for the same content."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jinja2

__all__ = [
    "KEPT", "PACKED", "QUANTIZABLE", "QUANTIZED",
    "format_name", "human_bytes", "named_losses", "render_comparison", "render_inspection", "render_report",
    "scientific", "template", "times_smaller",
]  # fmt: skip

#: The states of a weight: in an artifact; in a model that is inspected; in both.
QUANTIZED, QUANTIZABLE, KEPT, PACKED = "quantized", "quantizable", "kept", "already quantized"

#: How losses are called, in the order in which they are shown.
LOSSES = {"float": "float", "round_to_nearest": "round-to-nearest", "quantized": "this artifact"}

#: Width and height of a bar chart, in its own units.
CHART = (1000.0, 180.0)


def render_report(manifest: Mapping[str, Any]) -> str:
    """The report of an artifact as HTML."""
    sites = manifest["sites"]
    formats = Counter(format_name(site) for site in sites).most_common()
    colors = {name: i for i, (name, _) in enumerate(formats)}
    charts = [
        ("Predicted output error of each site (t²)", bars(sites, "t2", colors)),
        ("Predicted loss increase of each site (α·t²)", bars(sites, "predicted_delta", colors)),
    ]
    losses = named_losses(manifest["quantization"]["loss"])
    return template("report.html").render(
        m=manifest, formats=formats, colors=colors, charts=[c for c in charts if c[1]], losses=losses
    )


def render_inspection(found: Mapping[str, Any], graph: Mapping[str, Any]) -> str:
    """The drawing of a graph with its spaces, sites and reasons as HTML.

    Args:
        found: the result of ``inspect``.
        graph: the result of ``drawing``.
    """
    return template("inspect.html").render(found=found, graph=graph)


def render_comparison(found: Mapping[str, Any]) -> str:
    """Two models beside each other as HTML, from the result of ``compare``."""
    from qcompile import __version__

    return template("compare.html").render(c=found, version=__version__)


@cache
def template(name: str) -> jinja2.Template:
    """A page, compiled at its first use."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("qcompile.artifact"), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters |= {"bytes": human_bytes, "scientific": scientific, "format_name": format_name}
    environment.globals["times_smaller"] = times_smaller
    return environment.get_template(name)


# -- words and numbers -----------------------------------------------------------------------------------------------


def format_name(site: Mapping[str, Any]) -> str:
    """The formats of a site in a word: ``nvfp4/nvfp4``, ``int4-g32``, ``float``."""
    return site["format"] + (f"/{site['activation']}" if site["activation"] else "")


def human_bytes(count: float) -> str:
    """A number of bytes for people: ``9.2 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def times_smaller(source: float, made: float) -> str:
    """A size compared with that of the source: ``3.92x smaller``, ``1.10x larger``."""
    smaller = made <= source
    ratio = source / max(made, 1) if smaller else made / max(source, 1)
    return f"{ratio:.2f}x {'smaller' if smaller else 'larger'}"


def scientific(value: float | None) -> str:
    """A small number in few characters; a dash for none."""
    return "–" if value is None else f"{value:.3g}"


def named_losses(losses: Mapping[str, float]) -> list[tuple[str, float]]:
    """Losses with their names for people, the float model's first."""
    order = list(LOSSES)
    known = sorted(losses, key=lambda name: order.index(name) if name in order else len(order))
    return [(LOSSES.get(name, name), losses[name]) for name in known]


# -- charts ----------------------------------------------------------------------------------------------------------


def bars(sites: Sequence[Mapping[str, Any]], key: str, colors: Mapping[str, int]) -> list[dict[str, Any]]:
    """One bar for each site that has the number, in the order of the graph, as rectangles of a chart."""
    shown = [site for site in sites if site[key] is not None]
    top = max((site[key] for site in shown), default=0.0)
    if top <= 0:
        return []
    step = CHART[0] / len(shown)
    return [
        {
            "x": round(i * step, 2),
            "width": round(step * 0.84, 2),
            "height": round(max(site[key], 0.0) / top * CHART[1], 2),
            "color": colors[format_name(site)],
            "title": f"{site['name']}{_of(site)}: {scientific(site[key])} ({format_name(site)})",
        }
        for i, site in enumerate(shown)
    ]


def _of(site: Mapping[str, Any]) -> str:
    """The module of a site behind its name; artifacts of earlier versions do not say it."""
    return f" ({site['module']})" if site.get("module") else ""
