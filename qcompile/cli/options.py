"""The options that commands share, and the words that some take."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from qcompile.cli.config import use_config
from qcompile.cli.logs import log_to_file, log_to_terminal
from qcompile.errors import InputError

__all__ = [
    "Budget", "Cache", "CacheFormat", "Calibration", "Config", "Device", "Devices", "Effort", "Evaluation", "Exclude",
    "Folder", "Form", "FormatFor", "Formats", "Json", "Keep", "Learn", "LogFile", "Memory", "Method", "Model",
    "Overwrite", "Part", "Preprocessing", "Provider", "Quiet", "Recipe", "Seed", "Sensitivity", "Split", "Target",
    "Tokenizer", "TransformFor", "Transforms", "TvmTarget", "Verbose", "Window", "Work",
]  # fmt: skip


class Transforms(StrEnum):
    """Ways to choose transforms; the words of ``qcompile.choice.kinds.KINDS``."""

    auto = "auto"
    none = "none"
    hadamard = "hadamard"
    block = "block"
    two_block = "two-block"
    regular = "regular"
    dct = "dct"
    haar = "haar"
    matched = "matched"
    klt = "klt"
    duquant = "duquant"
    duquant_pp = "duquant-pp"
    kronecker = "kronecker"
    wush = "wush"
    wush_shared = "wush-shared"
    diagonal = "diagonal"
    permutation = "permutation"
    zigzag = "zigzag"


class Device(StrEnum):
    """Devices on which torch computes."""

    cpu = "cpu"
    cuda = "cuda"


def complete_targets(incomplete: str) -> list[str]:
    """The names of targets that begin so, for the shell."""
    from qcompile.targets.registry import targets

    return sorted(name for name in targets() if name.startswith(incomplete))


def complete_formats(incomplete: str) -> list[str]:
    """The formats of all targets that begin so, for the shell."""
    from qcompile.targets.registry import targets

    schemes = {name for target in targets().values() for name in target.schemes if name != "*"}
    return sorted(name for name in schemes if name.startswith(incomplete))


def complete_recipes(incomplete: str) -> list[str]:
    """The names of recipes that begin so, for the shell."""
    from qcompile.recipes.recipe import all_recipes

    return sorted(name for name in all_recipes() if name.startswith(incomplete))


def known_method(word: str | None) -> str | None:
    """A method of rounding, refused here if there is none of that name, or it takes no such option."""
    from qcompile.rounding.methods import method_of

    if word is not None:
        try:
            method_of(word)
        except InputError as error:
            raise typer.BadParameter(str(error)) from error
    return word


Target = Annotated[
    str, typer.Option(autocompletion=complete_targets, help="A name that `qcompile targets` lists.")
]  # fmt: skip
Budget = Annotated[
    list[str] | None,
    typer.Option(
        help="bits=4.25 (mean of codes, no scales), bytes=80e6, latency=2ms (of a run), bops=32 (W4A8), "
        "cache=9600 (per token)."
    ),
]
Calibration = Annotated[
    Path | None, typer.Option(help="An .npz, .npy, .safetensors or .txt file, a folder of them, or of images.")
]
Evaluation = Annotated[Path | None, typer.Option(help="The same, to measure the loss on.")]
Tokenizer = Annotated[Path | None, typer.Option(help="The folder of the tokenizer, where data is a .txt file.")]
Window = Annotated[
    int | None, typer.Option(min=2, help="Tokens in a row of a text; by default the model's length, or 512.")
]
Preprocessing = Annotated[
    Path | None, typer.Option(help="Where preprocessor_config.json is; by default beside the images.")
]
Formats = Annotated[
    list[str] | None,
    typer.Option(autocompletion=complete_formats, help="To choose among: a,b; int4 is the target's own, int4-g32."),
]
Exclude = Annotated[
    list[str] | None, typer.Option(metavar="PATTERN", help="Leave sites float, by name or module: '*.down_proj'.")
]
Keep = Annotated[
    list[str] | None,
    typer.Option(metavar="PATTERN", help="Leave them float bit for bit: nothing folds into their weights either."),
]
FormatFor = Annotated[
    list[str] | None, typer.Option(metavar="PATTERN=FORMAT", help="The format of sites; the last that fits counts.")
]
TransformFor = Annotated[
    list[str] | None, typer.Option(metavar="PATTERN=TRANSFORM", help="How the transform of their input is chosen.")
]
Memory = Annotated[
    list[str] | None, typer.Option(metavar="PLACE=BYTES", help="For activations: device=40GB, host=32GB; else half.")
]
Effort = Annotated[
    bool, typer.Option("--effort", help="Put seconds by step and peak memory into the manifest, too: no two are alike.")
]
Work = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Keep here what another export may need again, or this one if killed."),
]
Devices = Annotated[
    int, typer.Option(metavar="N", help="Processes here that share the work; under torchrun, those that it started.")
]
Method = Annotated[
    str | None,
    typer.Option(
        callback=known_method,
        help="How weights are rounded: gptq, by default, comq, search or rtn; with options as in 'gptq{shift=1}'.",
    ),
]
Recipe = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE", autocompletion=complete_recipes,
        help="A published method, by a name that `qcompile recipes` lists or as a .toml file of its parts.",
    ),
]  # fmt: skip
Sensitivity = Annotated[
    str | None,
    typer.Option(
        metavar="WORD",
        help="What errors cost where formats or transforms are chosen: errors, traces, eigenvalues, noise or even.",
    ),
]
Split = Annotated[
    list[str] | None,
    typer.Option(
        metavar="WORD", help="Compute parts of weights apart: 'columns{count=64,format=int8}', 'branch{rank=32}'."
    ),
]
Learn = Annotated[
    str | None,
    typer.Option(
        metavar="WORDS",
        help="Learn along gradients of the whole model: all, 'transforms,codes{steps=400}', or minutes=5 for all.",
    ),
]
Shape = Annotated[
    list[str] | None,
    typer.Option(
        metavar="DIMENSION=SIZE", help="Predict times at these sizes of open dimensions: batch=1; else the data's."
    ),
]
Profile = Annotated[
    str,
    typer.Option(
        metavar="WORD|FILE",
        help="What computing costs: shipped, machine (as `qcompile profile` measured it here), none, or a file.",
    ),
]  # fmt: skip
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an artifact that is at the folder.")]
TvmTarget = Annotated[
    str | None, typer.Option(help="Another machine to compile for: 'llvm -mtriple=aarch64-linux-gnu'.")
]
Provider = Annotated[
    str | None, typer.Option(help="Where onnxruntime computes: cpu, cuda, tensorrt, ...; by default cpu.")
]
_MODELS = "An .onnx file (external data beside it), a .pt2 file, or a folder of Hugging Face."
Model = Annotated[str, typer.Argument(metavar="MODEL", help=_MODELS)]
Cache = Annotated[
    bool | None,
    typer.Option("--cache/--no-cache", help="Whether the decoder of a folder takes its cache; where it can, else."),
]
CacheFormat = Annotated[
    str,
    typer.Option(
        metavar="FORMATS",
        help="Of a decoder's caches: int8, fp8, nvfp4, uint2-g32{recent=64}, …, several with commas, or float.",
    ),
]
Form = Annotated[
    str,
    typer.Option(
        help="plain; genai, a folder that onnxruntime-genai runs; qonnx or tensorrt, a file for these beside the graph."
    ),
]
Part = Annotated[
    str | None,
    typer.Option(help="One graph of an encoder-decoder's folder: encoder, decoder, decoder_with_past; else all three."),
]
Folder = Annotated[str, typer.Argument(metavar="ARTIFACT", help="The folder that an export wrote.")]
Seed = Annotated[int, typer.Option(min=0, help="Of everything random.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, and no tables.")]
Json = Annotated[Path | None, typer.Option("--json", help="Write the summary as JSON; - prints it, and no tables.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", callback=log_to_terminal, is_eager=True, help="Log to the standard error.")
]
LogFile = Annotated[
    Path | None, typer.Option(callback=log_to_file, is_eager=True, help="Log into this file, behind what it holds.")
]
Config = Annotated[
    Path | None,
    typer.Option(
        callback=use_config, is_eager=True,
        help="A .toml file with options as keys, or an artifact's manifest.json; the command line wins.",
    ),
]  # fmt: skip
