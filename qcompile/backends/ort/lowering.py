"""Writes a planned graph for onnxruntime."""

from __future__ import annotations

import os
from collections.abc import Collection, Hashable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import onnx_ir as ir

from qcompile.analysis.forms import read_site
from qcompile.backends.ort import emulation, qdq, tensorrt
from qcompile.backends.ort.compact import compact, say_once
from qcompile.backends.ort.emitter import Emitter, Parts
from qcompile.backends.ort.genai import check_caches, write_genai
from qcompile.backends.ort.integer_only.integer_graph import rewrite
from qcompile.backends.ort.integer_only.integer_operators import OPERATORS
from qcompile.backends.ort.kernels import Kernel, choose
from qcompile.backends.ort.packed_caches import lower_caches
from qcompile.backends.ort.qonnx import write_qonnx
from qcompile.backends.ort.spelling import drop_notes, halve_matrices, share_vectors, spell
from qcompile.errors import InputError
from qcompile.ir.functions import opset
from qcompile.ir.graph import node_name
from qcompile.targets.cache_plans import write_bases
from qcompile.targets.plans import Plan, planned, ranged
from qcompile.targets.registry import Lowered
from qcompile.targets.split_stacks import Unrolled, splittable, unroll
from qcompile.targets.target import Target
from qcompile.threads import threads

__all__ = ["lower", "rounds_input_to"]

#: The forms for onnxruntime-genai and for readers of QONNX, among a target's forms.
GENAI, QONNX = "genai", "qonnx"

FILE, DATA = "model.onnx", "model.onnx.data"

#: Weights of more bytes than this in all are written beside the graph, from where they are memory-mapped.
INLINE_BYTES = 64 << 20
_OLDEST = 13  # axes of Squeeze, Unsqueeze and ReduceSum became inputs
_FUNCTIONS = 8  # the version of the file format that holds functions


def lower(model: ir.Model, target: Target, folder: Path) -> Lowered:
    """Rewrite each planned site and cache in place and save the graph.

    Args:
        model: the graph; it is edited.
        target: whose ``options["kernels"]`` name the kernels that may be used, in order of preference.
        folder: exists; gets ``model.onnx`` and, if the weights are large, ``model.onnx.data``.

    Raises:
        InputError: if the graph's operators are older than version 13.
        TargetError: if no kernel of the target computes a site.
    """
    kernels = target.options["kernels"]
    _check(model, kernels)
    along = (write_qonnx(model, folder),) if target.form == QONNX else ()
    if target.form == qdq.TENSORRT:
        along = (_write_tensorrt(model.clone(), target, folder),)
    unrolled = unroll(model, routed=True) if target.options.get("unrolls") else Unrolled({})
    shown = {value.name for graph in model.graphs() for node in graph for value in node.outputs}
    emitter = Emitter(model, replace(target, form="plain"))
    said = _lower_sites(emitter, kernels)
    caches = lower_caches(model)
    if target.options.get("integers"):
        rewrite(emitter, OPERATORS)
    if not target.emulated:
        spell(emitter, model)
    share_vectors(model)
    halve_matrices(model)
    drop_notes(model)
    model.ir_version = max(model.ir_version or 0, _FUNCTIONS)
    files = (*_save(model, folder, shown), *along, *write_bases(caches, folder))
    if target.form == GENAI:
        check_caches(caches)
        files = (*files, write_genai(model, folder, target.options.get("along", ())))
    return Lowered(files, unrolled.joined(said))


def _write_tensorrt(model: ir.Model, target: Target, folder: Path) -> str:
    """Write the planned graph as TensorRT reads it; return the name of the file."""
    _lower_sites(Emitter(model, target), target.options["tensorrt"])
    drop_notes(model)
    return tensorrt.write(model, folder)


def _lower_sites(emitter: Emitter, kernels: tuple[str, ...]) -> dict[str, Mapping[str, Any]]:
    """Rewrite each planned site by the first of the kernels that takes it; what is to be said of each."""
    sites = planned(emitter.model)
    chosen = [choose(node, plan, kernels) for node, plan in sites]
    _round_results(emitter, emitter.model, kernels)
    with threads(os.cpu_count() or 1) as beside:
        once: dict[Hashable, Future[Parts]] = {}  # sites that share a weight share what is packed of it
        packed = []
        for (_, plan), kernel in zip(sites, chosen, strict=True):
            key = (kernel.pack, id(plan.weight))
            packed.append(once.get(key) or once.setdefault(key, beside.submit(kernel.pack, plan.weight)))
        work = zip(sites, chosen, packed, strict=True)
        return {node_name(n): _lower_site(emitter, n, plan, kernel, parts) for (n, plan), kernel, parts in work}


def rounds_input_to(node: ir.Node, plan: Plan, target: Target) -> str | None:
    """The format to which a planned site's kernel will round its input by itself."""
    split = "unrolls" in target.options and splittable(read_site(node)) is not None
    kernel = choose(node, plan, target.options["kernels"], split=split)
    return None if kernel.rounds is None else kernel.rounds(plan.weight.format, target)


def _check(model: ir.Model, kernels: tuple[str, ...]) -> None:
    """Refuse what cannot be lowered, before any edit."""
    sites = planned(model)
    if sites and opset(model) < _OLDEST:
        raise InputError(f"lowering: the graph uses operators of version {opset(model)}; {_OLDEST} or later is needed")
    for node, plan in sites:
        choose(node, plan, kernels)


def _round_results(emitter: Emitter, model: ir.Model, kernels: tuple[str, ...]) -> None:
    """Let all that reads a result which has a static range read it in that; sites in the same one round it no more."""
    in_range = qdq.quantized if "qdq" in kernels else emulation.in_range
    for node, within in ranged(model):
        emitter.at(node)
        anchor = emitter.anchor(node)
        made = in_range(emitter, anchor, node.outputs[0], within)
        emitter.replace(anchor, made)
        emitter.shared(("range", made, within), partial(_same, made))


def _same(value: ir.Value) -> ir.Value:
    return value


def _lower_site(emitter: Emitter, node: ir.Node, plan: Plan, kernel: Kernel, parts: Future[Parts]) -> Mapping[str, Any]:
    emitter.at(node)
    value, notes = kernel.emit(emitter, kernel.form_of(node), plan, parts.result())
    emitter.replace(node, value)
    return {"kernel": kernel.about, "stored_bytes": emitter.stored, **notes}


def _save(model: ir.Model, folder: Path, shown: Collection[str | None]) -> tuple[str, ...]:
    model = model.clone()
    say_once(model)
    constants = [value.const_value for value in model.graph.initializers.values()]
    if sum(tensor.nbytes for tensor in constants if tensor is not None) <= INLINE_BYTES:
        model = ir.external_data.load_to_model(model)
        compact(model, shown)
        ir.save(model, folder / FILE)
        return (FILE,)
    ir.save(model, folder / FILE, external_data=DATA)
    light = ir.load(folder / FILE)  # whose weights are names of places in the other file
    compact(light, shown)
    ir.save(light, folder / FILE)
    return (FILE, DATA)
