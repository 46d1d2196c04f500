"""Questions to a model or an artifact that is there: ``qcompile inspect`` and ``qcompile verify``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from qcompile.analysis.cache_sites import CacheSite, cache_sites
from qcompile.artifact.artifact import Artifact, is_artifact
from qcompile.artifact.drawing import analyzed_spaces, drawing, named_spaces
from qcompile.artifact.entries import (
    declined_entries,
    obstacles,
    product_entries,
    site_entry,
    space_entries,
    ties,
    with_modules,
)
from qcompile.artifact.pages import render_inspection
from qcompile.artifact.phrases import QUANTIZABLE
from qcompile.artifact.weight_entries import unsited, weight_entries, weights_summary
from qcompile.checks.equivalence import observe_source
from qcompile.checks.losses import each
from qcompile.compiler import prepare
from qcompile.errors import InputError
from qcompile.ir.capture import begin_capture
from qcompile.ir.files import write_json, write_text
from qcompile.ir.graph import node_name
from qcompile.ir.required import name_of
from qcompile.run.data import load_data
from qcompile.run.reading import Reading
from qcompile.stages import float_model
from qcompile.targets.cache_plans import cache_plans_in, with_float_caches
from qcompile.targets.eligible import quantizable

if TYPE_CHECKING:
    from qcompile.analysis.spaces import Site
    from qcompile.checks.losses import Measured
    from qcompile.ir.capture import Source
    from qcompile.notes import Progress
    from qcompile.run.sources import DataLike
    from qcompile.stages import Prepared

__all__ = ["describe", "inspect", "inspect_artifact", "inspect_files", "verify"]

#: The file of an artifact that holds its graph, where it is one of ONNX.
GRAPH = "model.onnx"

#: What an artifact's manifest has in common with the inspection of a model.
SHARED = (
    "qcompile", "source", "target", "seed", "spaces", "sites", "caches", "products", "weights", "weights_summary",
    "declined", "online_transforms",
)  # fmt: skip


def inspect(model: Any, progress: Progress | None = None, **capture_options: Any) -> dict[str, Any]:
    """Spaces, sites and reasons of a model or an artifact, with the keys of a manifest.

    Args:
        model: anything that ``capture`` takes, or the folder of an artifact.
        progress: called with a step, the part of it that is done, and the whole.
        capture_options: as for ``capture``.

    Raises:
        QCompileError: if it cannot be read.
    """
    if isinstance(model, str | Path) and is_artifact(model):
        return inspect_artifact(model)
    return describe(prepare(model, progress, **capture_options))


def inspect_artifact(folder: str | Path) -> dict[str, Any]:
    """The keys of an artifact's manifest that the inspection of a model has too."""
    manifest = Artifact.open(folder).manifest
    return {key: manifest[key] for key in SHARED if key in manifest}


def describe(prepared: Prepared) -> dict[str, Any]:
    """Spaces, sites and reasons of a prepared model, with the keys of a manifest."""
    from qcompile import __version__

    analysis = prepared.analysis
    chosen, declined = quantizable(analysis)
    quantized = {site.name for site in chosen}
    caches, left = cache_sites(prepared.model)
    found = [*prepared.state.declined, *declined, *unsited(prepared.weights), *left]

    def stored(site: Site) -> tuple[str, None, float] | None:
        return ("", None, 0.0) if site.name in quantized else None

    weights = weight_entries(prepared.weights, found, QUANTIZABLE, stored)
    tied = ties(analysis.sites)
    sites = [site_entry(analysis, site, tied[site.name]) for site in analysis.sites]
    return {
        "qcompile": __version__,
        "source": {"path": prepared.source.path, "sha256": prepared.source.sha256, "bytes": prepared.source.bytes},
        "graph": {"nodes": len(prepared.model.graph), "operators": _operators(prepared)},
        "spaces": space_entries(analysis),
        "sites": [entry | {"quantizable": entry["name"] in quantized} for entry in sites],
        "caches": [_cache(site) for site in caches],
        "products": product_entries(prepared.products),
        "weights": weights,
        "weights_summary": weights_summary(prepared.weights, weights, QUANTIZABLE),
        "declined": with_modules(analysis, declined_entries(found) + obstacles(analysis, analysis.sites)),
    }


def _cache(site: CacheSite) -> dict[str, Any]:
    """A cache that may be quantized, with keys of a manifest."""
    return {
        "past": site.name, "present": name_of(site.pair.present), "kind": site.kind, "role": site.role,
        "heads": site.heads, "features": site.features, "reader": node_name(site.reader),
        "float_bytes_per_token": 4 * site.heads * site.features,
    }  # fmt: skip


def _operators(prepared: Prepared) -> dict[str, int]:
    found: dict[str, int] = {}
    for node in prepared.model.graph:
        found[node.op_type] = found.get(node.op_type, 0) + 1
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def inspect_files(
    model: str, html: Path | None = None, json_file: Path | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Inspect a model or an artifact; write the result as a page, as JSON (``-`` prints it), or both.

    The page of a model draws its graph; that of an artifact its ONNX file beside its source, where these are there.
    """
    if is_artifact(model):
        found = inspect_artifact(model)
        page = partial(_compared, found, Artifact.open(model))
    else:
        prepared = prepare(model, progress)
        found = describe(prepared)
        page = partial(_drawn, found, prepared)
    if html is not None:
        write_text(html, page())
    if json_file is not None:
        write_json(json_file, found)
    return found


def _drawn(found: dict[str, Any], prepared: Prepared) -> str:
    spaces = analyzed_spaces(prepared.analysis, found["spaces"])
    return render_inspection(found, [drawing("prepared", prepared.model.graph, spaces, found)])


def _compared(found: dict[str, Any], artifact: Artifact) -> str:
    """The source's graph beside that of an artifact, whose operators keep the names that they had."""
    spaces, missing = named_spaces(found["spaces"]), []
    graphs = []
    source = _matching(artifact)
    if source is None:
        missing.append(
            f"the source '{found['source']['path']}' is not here, or was changed: the artifact is drawn alone"
        )
    else:
        graphs.append(drawing("source", source.model.graph, spaces, found))
    if GRAPH in artifact.manifest["files"]:
        modules = {} if source is None else _modules(graphs[0])
        graphs.append(drawing("artifact", ir.load(artifact.folder / GRAPH).graph, spaces, found, modules))
    else:
        missing.append(f"the artifact has no {GRAPH}: what was rewritten is drawn nowhere, the lists say it")
    return render_inspection(found, graphs, missing)


def _matching(artifact: Artifact) -> Source | None:
    """The source of an artifact, if it is there and as it was."""
    stated = artifact.manifest["source"]
    sources = (_captured_as(path, stated) for path in artifact.sources())
    return next((source for source in sources if source.sha256 == stated["sha256"]), None)


def _modules(drawn: Mapping[str, Any]) -> dict[str, str]:
    """By name of an operator and of what it gives, the module that it stands in, as far as a drawing found it out."""
    named = [(node, ".".join(node["path"])) for node in drawn["nodes"] if node["path"]]
    found = {name: path for node, path in named for name, *_ in node["gives"]}
    return found | {node["name"]: path for node, path in named}


def verify(
    artifact_folder: str | Path, against: str | Path | None = None, inputs: DataLike | None = None, *,
    tokenizer: str | Path | None = None, window: int | None = None, preprocessing: str | Path | None = None,
) -> Measured:  # fmt: skip
    """Measure an artifact against its source model again.

    Args:
        against: the source model; by default the path that the manifest names.
        inputs: data to measure on, in the forms that ``export`` takes; random inputs without it.
        tokenizer, window, preprocessing: how such data is read; by default as the export read its own.

    Raises:
        InputError: if the source is missing, or if the artifact was made from another one.
    """
    artifact = Artifact.open(artifact_folder)
    stated = artifact.manifest["source"]
    prepared = prepare(_source_of(artifact) if against is None else _captured_as(against, stated))
    if prepared.source.sha256 != stated["sha256"]:
        raise InputError(f"'{prepared.source.path}' is not the model that '{artifact_folder}' was made from")
    asked = artifact.manifest["options"]
    reading = Reading(
        tokenizer or asked.get("tokenizer"), window or asked.get("window"), preprocessing or asked.get("preprocessing")
    )
    data = load_data(inputs, prepared.model, option="--evaluation", reading=reading)
    observed = observe_source(prepared.source, data)
    run = with_float_caches(artifact.load(), cache_plans_in(artifact.manifest, artifact.folder))
    return float_model(replace(prepared, observed=observed), "cpu").measure(each(run), observed.data)


def _captured_as(path: str | Path, stated: Mapping[str, Any]) -> Source:
    """A model, captured as that which a manifest states was."""
    return begin_capture(path, cache=stated.get("cache"), part=stated.get("part"))


def _source_of(artifact: Artifact) -> Source:
    """The model that an artifact was made from; a relative path is from where the export ran, which may be elsewhere.

    Raises:
        InputError: if it is not there any more.
    """
    stated, present = artifact.manifest["source"], artifact.sources()
    if not present:
        raise InputError(f"there is no file '{stated['path']}': name the model of '{artifact.folder}' with --against")
    sources = (_captured_as(path, stated) for path in present)
    first = next(sources)
    return next((source for source in chain([first], sources) if source.sha256 == stated["sha256"]), first)
