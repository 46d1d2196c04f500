"""Turn trained weights into the files that ship: one ONNX file a model, inputs to calibrate and evaluate.

    python export.py language_model --weights language_model.safetensors
    python export.py mamba --weights mamba.safetensors
    python export.py dit --weights dit.safetensors             # and unet
    python export.py resnet --weights resnet.safetensors
    python export.py language_model_cached --weights language_model.onnx --folder ELSEWHERE
    python export.py mamba_stateful --weights mamba.onnx --folder ELSEWHERE

The last two take keys and values, or states, of what was before and return those behind it; they have the weights of
models that ship, so they do not.
Mamba's selective scan is qcompile's: one node, with a function of standard operators for runtimes that know no better.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch import nn

import corpus
import digits
import qcompile
from classifiers import CLASSIFIERS
from dit import DiT
from language_model import LanguageModel
from mamba import Mamba
from qcompile.ir.state_space import selective_scan
from qcompile.ir.state_space_export import add_bodies, translations
from unet import UNet
from weights import name_initializers, restore

__all__ = [
    "export_cached", "export_classifier", "export_diffusion", "export_language_model", "export_mamba",
    "export_stateful",
]  # fmt: skip

DIFFUSION = {"dit": DiT, "unet": UNet}
HERE = Path(__file__).parent
LIMIT = 10_000_000
"""Bytes an ONNX file may have, so that it can live in the repository."""

CALIBRATION_ROWS = 96
EVALUATION_ROWS = 64
LENGTH = 256
DIFFUSION_ROWS = 512
CLASSIFIER_ROWS = 512


def _tidy(path: Path, parameters: dict[str, torch.Tensor]) -> None:
    """Name the weights and drop the exporter's notes (stack traces), a few hundred bytes a node."""
    model = onnx.load(path)
    name_initializers(model.graph, parameters)
    for item in [*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output]:
        del item.metadata_props[:]
        item.doc_string = ""
    del model.graph.metadata_props[:]
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def _export(
    model: nn.Module,
    example: dict[str, np.ndarray],
    path: Path,
    output: str,
    shapes: dict[str, dict],
    opset: int,
) -> None:
    """Export, tidy, and compare with torch on the example inputs."""
    import onnxruntime

    tensors = {name: torch.from_numpy(value) for name, value in example.items()}
    program = torch.onnx.export(
        model.eval(),
        kwargs=tensors,
        dynamo=True,
        opset_version=opset,
        dynamic_shapes=shapes,
        input_names=list(example),
        output_names=[output],
        custom_translation_table=translations(),
    )
    add_bodies(program.model)
    program.save(path, external_data=False)
    _tidy(path, model.state_dict())
    size = path.stat().st_size
    if size >= LIMIT:
        raise RuntimeError(f"{path} has {size:,} bytes; {LIMIT:,} is the limit")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for rows in (1, 3):  # neither is the number of rows it was exported with
        some = {name: value[:rows] for name, value in example.items()}
        (found,) = session.run([output], some)
        with torch.no_grad():
            expected = model(*(torch.from_numpy(value) for value in some.values())).numpy()
        error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
        print(f"{path.name}: {size:,} bytes, {rows} rows, relative L2 to torch {error:.1e}")


def export_language_model(weights: Path, folder: Path, saved_corpus: Path | None, opset: int = 23) -> None:
    """Write language_model.onnx and the windows to calibrate (learned) and evaluate (held out) it."""
    text = corpus.load(saved_corpus)
    calibration = corpus.windows(text["train"], CALIBRATION_ROWS, LENGTH)
    evaluation = corpus.windows(text["held_out"], EVALUATION_ROWS, LENGTH)
    np.savez_compressed(folder / "language_model_calibration.npz", input_ids=calibration)
    np.savez_compressed(folder / "language_model_evaluation.npz", input_ids=evaluation)
    dynamic = {"input_ids": {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", min=2)}}
    model = restore(LanguageModel(), weights)
    example = {"input_ids": evaluation[:5, :48]}
    _export(model, example, folder / "language_model.onnx", "logits", dynamic, opset)


def export_cached(weights: Path, folder: Path, saved_corpus: Path | None = None, opset: int = 23) -> None:
    """Write language_model_cached.onnx, whose caches are called as Hugging Face calls them."""
    model = restore(LanguageModel(), weights).eval()
    size = (2, model.shape.key_value_heads, 5, model.shape.head_size)
    layers = range(model.shape.layers)
    past = {str(layer): {part: torch.randn(size) for part in ("key", "value")} for layer in layers}
    example = {"input_ids": torch.zeros(2, 8, dtype=torch.int64), "past_key_values": past}
    captured = qcompile.capture(model, example)
    ir.save(captured.model, folder / "language_model_cached.onnx")


def export_stateful(weights: Path, folder: Path, saved_corpus: Path | None = None, opset: int = 23) -> None:
    """Write mamba_stateful.onnx: to read one token more costs one step of each layer."""
    model = restore(Mamba(scan=selective_scan), weights).eval()
    example = {"input_ids": torch.zeros(2, 8, dtype=torch.int64), "past": model.start(2)}
    captured = qcompile.capture(model, example)
    ir.save(captured.model, folder / "mamba_stateful.onnx")


def export_mamba(weights: Path, folder: Path, saved_corpus: Path | None, opset: int = 23) -> None:
    """Write mamba.onnx; it reads the language model's windows."""
    with np.load(folder / "language_model_evaluation.npz") as saved:
        example = {"input_ids": saved["input_ids"][:5, :48]}
    dynamic = {"input_ids": {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", min=2)}}
    model = restore(Mamba(scan=selective_scan), weights)
    _export(model, example, folder / "mamba.onnx", "logits", dynamic, opset)


def export_diffusion(name: str, weights: Path, folder: Path, saved_corpus: Path | None, opset: int = 23) -> None:
    """Write the diffusion model of that name, and points of its path over all times, learned and held out."""
    train, held_out = digits.load()
    calibration, _ = digits.noisy_batch(train, DIFFUSION_ROWS, seed=2)
    evaluation, _ = digits.noisy_batch(held_out, DIFFUSION_ROWS, seed=3)
    np.savez_compressed(folder / "dit_calibration.npz", **calibration)
    np.savez_compressed(folder / "dit_evaluation.npz", **evaluation)
    batch = {0: torch.export.Dim("batch")}
    example = {name: value[:5] for name, value in evaluation.items()}
    model = restore(DIFFUSION[name](), weights)
    _export(model, example, folder / f"{name}.onnx", "velocity", {"x": batch, "t": batch, "y": batch}, opset)


def export_classifier(name: str, weights: Path, folder: Path, saved_corpus: Path | None, opset: int = 23) -> None:
    """Write the classifier of that name, images to calibrate (learned) and evaluate (held out) it, and their labels."""
    train, held_out = digits.load()
    images = digits.enlarged(held_out.images)
    np.savez_compressed(folder / "classifier_calibration.npz", x=digits.enlarged(train.images[:CLASSIFIER_ROWS]))
    np.savez_compressed(folder / "classifier_evaluation.npz", x=images)
    np.savez_compressed(folder / "classifier_labels.npz", labels=held_out.labels.astype(np.uint8))
    shapes = {"x": {0: torch.export.Dim("batch")}}
    model = restore(CLASSIFIERS[name](), weights)
    _export(model, {"x": images[:5]}, folder / f"{name}.onnx", "scores", shapes, opset)


def main() -> None:
    """Export one model of the zoo."""
    exporters = {"language_model": export_language_model, "mamba": export_mamba}
    exporters |= {"language_model_cached": export_cached, "mamba_stateful": export_stateful}
    exporters |= {name: partial(export_diffusion, name) for name in DIFFUSION}
    exporters |= {name: partial(export_classifier, name) for name in CLASSIFIERS}
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("model", choices=exporters)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--folder", type=Path, default=HERE)
    parser.add_argument("--corpus", type=Path, help="a file made by corpus.py; default: this Python's library")
    parser.add_argument("--opset", type=int, default=23)
    options = parser.parse_args()
    exporters[options.model](options.weights, options.folder, options.corpus, options.opset)


if __name__ == "__main__":
    main()
