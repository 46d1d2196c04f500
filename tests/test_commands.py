"""Commands and Python of README and docs run as they are printed, on small models, or say why they do not.

Pages are read from the top, in a folder that holds the files that they speak of; tutorials have a test of their own.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cached_decoder import cached_decoder, prompts
from commands import done
from onnx import numpy_helper
from typer.main import get_command

from qcompile.cli.commands import app

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", ROOT / "examples" / "zoo" / "README.md"]
PAGES += sorted(page for page in (ROOT / "docs").rglob("*.md") if page.parent.name != "tutorials")

#: Fenced blocks, with their language, and indented ones, behind an empty line.
BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$|(?<=\n\n)((?: {4}[^\n]*\n|\n(?= {4}))+)", re.MULTILINE | re.DOTALL)

#: First words of commands; lines of other blocks are drawings, data, or what programs print.
PROGRAMS = re.compile(
    r"(?:[A-Z_]+=\S+ )*(?:qcompile|python3?|pip|pytest|torchrun|git|tar|for|chmod|\.ci/\w+|\.)(?: |$)"
)

#: Parts of commands and of blocks that do not run here, with the reason.
APART = {
    "pip ": "installs packages: .ci/run does that",
    "python3 -m venv": "makes an environment, as .ci/run does; tests/test_packaging.py runs what follows in README",
    ". .venv/bin/activate": "the environment is there",
    "pytest": "runs tests, this one among them",
    ".ci/": "runs tests",
    "git diff": "shows what an edit changed",
    "tar ": "unpacks packages of others, for a GPU",
    "for wheel": "unpacks packages of others, for a GPU",
    "chmod": "unpacks packages of others, for a GPU",
    "python benchmarks/": "measures for minutes or hours",
    "tests/mutate_rules.py": "breaks the source for an hour",
    "python corpus.py": "reads the sources of Python for a training of hours",
    "python train_": "trains for hours",
    "python export.py": "needs what was trained",
    "python examples/zoo/export.py": "writes what tests/support/shipped.py has it write for tests",
    "python evaluate.py": "judges the shipped models for minutes: test_zoo",
    "--device cuda": "needs GPUs",
    "torchrun": "needs GPUs",
    "qcompile profile": "measures this machine, and writes into the user's cache",
    "--profile ": "needs what was measured",
    "canonicalize,drop-casts": "names the pass that readers write on that page",
    "import onnxruntime_genai": "needs the extra genai: tests/backends/ort/test_genai.py",
    "ORTModelFor": "needs optimum, which no extra brings",
    "import model  #": "needs a GPU: tests/backends/gpu",
    "VirtualMachine": "the loader that tests/backends/relax/test_lowering.py runs",
    "class Stack": "is what a model wrote",
    "def read_lines": "is what a model wrote",
    "class DropCasts": "is a part of a module, whose imports are not printed",
    '@rule("Softcap"': "would register a rule for all tests of this process",
}

#: Pages whose commands take too long for every run.
SLOW = {"checkpoints.md", "modules.md"}

#: Modules that pages need beside the basis.
NEEDS = {
    "checkpoints.md": ("transformers", "tokenizers", "compressed_tensors", "gguf"),
    "modules.md": ("transformers", "tokenizers"),
}
NEEDS |= {"caches.md": ("transformers", "tokenizers"), "tvm.md": ("tvm",)}


@dataclass(frozen=True)
class Step:
    """A command of the shell in one line, or a block of Python."""

    kind: str
    text: str

    @property
    def apart(self) -> str | None:
        """The part for which it does not run."""
        return next((part for part in APART if part in self.text), None)


def steps(page: Path) -> Iterator[Step]:
    """All that a page has its readers run."""
    for language, fenced, indented in BLOCK.findall("\n\n" + page.read_text()):
        text = fenced or re.sub("^ {4}", "", indented, flags=re.MULTILINE)
        if language == "python" or re.match(r"(?:from|import) \w", text):
            yield Step("python", text)
        elif language in ("", "sh"):
            lines = [line.partition("   #")[0].strip() for line in text.splitlines() if PROGRAMS.match(line)]
            yield from (Step("sh", line) for line in lines)


def options(command: Any) -> set[str]:
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_and_options_are_there(page: Path) -> None:
    """Wherever they are named, in sentences too."""
    known = get_command(app).commands
    found = re.findall(r"(?<![\w./-])qcompile ([a-z]+)((?: (?!&&)[^\s`]+)*)", page.read_text())
    called = [(name, rest) for name, rest in found if name in known]
    unknown = [
        (name, option)
        for name, rest in called
        for option in re.findall(r"(?<= )--[a-z-]+", rest)
        if option not in options(known[name]) and option != "--help"
    ]
    assert unknown == []
    commands = [step.text for step in steps(page) if step.text.startswith("qcompile ")]
    assert [text for text in commands if text.split()[1] not in {*known, "--version"}] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_scripts_have_the_options_that_pages_give_them(page: Path) -> None:
    """Wherever they are named: those that measure for hours run in no test."""
    called = re.findall(r"\b((?:benchmarks|examples|docs)/[\w/]+\.py)((?: (?!&&)[^\s`|]+)*)", page.read_text())
    unknown = [
        (script, option)
        for script, rest in called
        for option in re.findall(r"(?<= )--[a-z-]+", rest)
        if f'"{option}"' not in (ROOT / script).read_text()
    ]
    assert unknown == []


def test_every_exception_is_one() -> None:
    text = "\n".join(step.text for page in PAGES for step in steps(page))
    assert [part for part in APART if part not in text] == []


def network(path: Path, tokens: bool = True) -> None:
    """A model of two mixtures of experts and a head, on tokens or, without a table, on numbers."""
    given, first = "int64[batch,length] input_ids", "Gather(table, input_ids)"
    if not tokens:
        given, first = "float[batch,length,64] numbers", "Identity(numbers)"
    graph = f"""<ir_version: 11, opset_import: ["" : 23]>
    g ({given}) => (float[batch,length,64] logits) {{
      x = {first}
      a = MatMul(x, w0)  b = MatMul(x, w1)  c = Add(a, b)  d = Relu(c)
      y = MatMul(d, w2)
      logits = MatMul(y, w3)
    }}"""
    model = onnx.parser.parse_model(graph)
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal((64, 64)) / 8 for name in ("table", "w0", "w1", "w2", "w3")[not tokens :]}
    model.graph.initializer.extend(numpy_helper.from_array(a.astype(np.float32), name) for name, a in arrays.items())
    names = ["embedding", "mlp.experts.0.up", "mlp.experts.1.up", "sum", "relu", "mlp.down", "lm_head"]
    for node, name in zip(model.graph.node, names, strict=True):
        node.name = name
    onnx.save(model, path)


def folder(path: Path) -> None:
    """A Llama of Hugging Face."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.LlamaConfig(vocab_size=256, num_key_value_heads=2, max_position_embeddings=512, **sizes)
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    letters = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made = Tokenizer(models.BPE(vocab=letters, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    transformers.PreTrainedTokenizerFast(tokenizer_object=made).save_pretrained(path)


def images() -> dict[str, Any]:
    """A module that reads images, for docs/modules.md."""
    import torch

    torch.manual_seed(0)

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = torch.nn.Linear(64, 64), torch.nn.Linear(64, 10)

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(pixel_values.flatten(1)).relu())

    return {"module": Model().eval(), "images": torch.randn(2, 1, 8, 8)}


def engine() -> dict[str, Any]:
    """A graph with a value in the middle, for docs/engine.md."""
    import onnx_ir as ir
    import torch

    made = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 21]>
        g (int64[2,3] input_ids) => (float[2,3,4] logits) {
          hidden = Gather(table, input_ids)
          logits = Relu(hidden)
        }"""
    )
    made.graph.initializer.append(numpy_helper.from_array(np.arange(20, dtype=np.float32).reshape(5, 4), "table"))
    model = ir.from_proto(made)
    return {"model": model, "ids": torch.ones(2, 3, dtype=torch.int64), "noise": 0.1, "torch": torch}


def formats() -> dict[str, Any]:
    import torch

    return {"weight": torch.randn(8, 64)}


#: What blocks of Python find on a page, by its name.
GIVEN: dict[str, Callable[[], dict[str, Any]]] = {
    "README.md": lambda: {"ids": np.zeros((1, 16), np.int64)}, "modules.md": images, "engine.md": engine,
    "formats.md": formats,
}  # fmt: skip


def staged(page: Path, stage: Path) -> None:
    """The files that pages speak of."""
    rng = np.random.default_rng(1)
    tokens = page.name != "static.md"  # whose integers alone have no table
    network(stage / "model.onnx", tokens)
    given = {"input_ids": rng.integers(0, 48, (16, 16))}
    if not tokens:
        given = {"numbers": rng.standard_normal((16, 16, 64)).astype(np.float32)}
    for name in ("tokens", "data", "calib", "evaluation"):
        np.savez(stage / f"{name}.npz", **given)
    if page.name == "caches.md":
        cached_decoder(stage / "decoder.onnx")
        np.savez(stage / "tokens.npz", **prompts(16, 16))
    if "path/to/folder" in page.read_text():
        folder(stage / "path" / "to" / "folder")
        (stage / "texts.txt").write_text((ROOT / "README.md").read_text()[:8192])


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.relative_to(ROOT).as_posix(), marks=[pytest.mark.slow] * (page.name in SLOW))
        for page in PAGES
        if any(step.apart is None for step in steps(page))
    ],
)
def test_they_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in NEEDS.get(page.name, ()):
        pytest.importorskip(module)
    monkeypatch.chdir(tmp_path)
    staged(page, tmp_path)
    known = GIVEN[page.name]() if page.name in GIVEN else {}
    for step in steps(page):
        if step.apart is not None:
            continue
        if step.kind == "python":
            exec(compile(step.text, page.name, "exec"), known)
        else:
            for made in tmp_path.glob("model.*-*"):  # commands that are alternatives write where the one before did
                shutil.rmtree(made)
            with contextlib.chdir(tmp_path):
                done(*shlex.split(step.text)[1:])
