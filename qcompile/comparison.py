"""Two models or artifacts beside each other, on the same inputs: ``qcompile compare``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from qcompile.artifact.artifact import Artifact, is_artifact
from qcompile.artifact.comparison_entries import comparison_entries
from qcompile.artifact.pages import render_comparison
from qcompile.checks.behaviour import Behaviour, behaviour, find_scores, token_input
from qcompile.checks.equivalence import source_session
from qcompile.errors import InputError
from qcompile.ir.cache_pairs import cache_pairs
from qcompile.ir.capture import begin_capture
from qcompile.ir.files import write_text
from qcompile.ir.required import name_of
from qcompile.run.data import accepted, load_data
from qcompile.run.generation import Decoder, greedy, shortened
from qcompile.run.reading import Reading
from qcompile.run.sources import input_values
from qcompile.run.text_files import text_of

if TYPE_CHECKING:
    from qcompile.notes import Progress
    from qcompile.run.session import Run
    from qcompile.run.sources import DataLike

__all__ = ["compare", "compare_files"]

#: The graph of an artifact, where it has one that says what it takes.
GRAPH = "model.onnx"


@dataclass(frozen=True)
class _Side:
    """One of the two: what it is called, how it runs, and a graph that states its inputs."""

    name: str
    run: Run
    model: ir.Model

    @staticmethod
    def of(model: Any) -> _Side:
        if not (isinstance(model, str | Path) and is_artifact(model)):
            source = begin_capture(model)
            return _Side(str(model) if isinstance(model, str | Path) else source.path, source_session(source).run,
                         source.model)  # fmt: skip
        artifact, own = Artifact.open(model), Path(model) / GRAPH
        places = [own] if own.is_file() else artifact.sources()
        if not places:
            raise InputError(f"'{model}' has no graph in ONNX, and its source is not there: what it takes is not known")
        return _Side(str(model), artifact.load(), begin_capture(places[0]).model)

    def feeds(self, inputs: Mapping[str, Any], others: Mapping[str, ir.Value]) -> dict[str, Any]:
        """The inputs as this side takes them; pasts that it holds in another form than the other side are empty."""
        own, pasts = {name_of(value): value for value in input_values(self.model)}, _pasts(self.model)
        feeds = {name: value for name, value in inputs.items() if name in own or name not in others}
        rows = len(next(iter(inputs.values())))
        for name, value in pasts.items():
            given = feeds.get(name)
            if given is None or (value.dtype is not None and given.dtype != value.dtype.numpy()):
                feeds[name] = _empty(value, rows)
        return feeds


def _pasts(model: ir.Model) -> dict[str, ir.Value]:
    return {name_of(pair.past): pair.past for pair in cache_pairs(model)}


def _empty(value: ir.Value, rows: int) -> np.ndarray:
    """A past of nothing: open axes behind the first are empty."""
    if value.shape is None or value.dtype is None:
        raise InputError(f"the shape of '{value.name}' is not known, so it cannot be made: give it with --inputs")
    first, *rest = value.shape
    dims = [first if isinstance(first, int) else rows, *(dim if isinstance(dim, int) else 0 for dim in rest)]
    return np.zeros(dims, value.dtype.numpy())


def compare(
    reference: Any, other: Any, inputs: DataLike | None = None, *, scores: str | None = None, generate: int = 32,
    tokenizer: str | Path | None = None, window: int | None = None, preprocessing: str | Path | None = None,
    seed: int = 0, progress: Progress | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Compare the behaviour of two models, or artifacts of them.

    Args:
        reference: what the other is compared with, most often the float model: anything that ``capture`` takes, or the
            folder of an artifact.
        other: likewise; it takes the same inputs, but caches may be of another type.
        inputs: in the forms that ``export`` takes data in; random inputs without.
        scores: the output that holds scores; by default one that scores the tokens of an input, if any does.
        generate: tokens that both generate behind each prompt, which is what is left of a row without so many; 0 for
            none.
        tokenizer: the folder of the tokenizer: of texts, and to show tokens as text.
        window, preprocessing: how data is read, as for ``export``.
        seed: of random inputs.
        progress: called with a step, the part of it that is done, and the whole.

    Returns:
        The keys that ``docs/compare.md`` describes.

    Raises:
        InputError: if they take other inputs, or have other outputs.
    """
    sides = _Side.of(reference), _Side.of(other)
    reading = Reading(tokenizer, window, preprocessing)
    data = load_data(inputs, sides[0].model, seed=seed, option="--inputs", reading=reading)
    data, outputs = accepted(sides[0].model, data, sides[0].run, seed)
    pasts = _pasts(sides[0].model)
    output, scored = find_scores(outputs, scores, data.batches[0])
    tokens = token_input(data.batches[0], np.asarray(outputs[output])) if scored else None
    if tokens is None and generate and scored:
        generate = 0
    tell = _Telling(progress, len(data.batches) * (2 if tokens and generate else 1))
    found = behaviour(output, scored, _both(sides, data.batches, output, pasts, tell), tokens)
    if tokens is None or not generate:
        return comparison_entries(found, [side.name for side in sides])
    found = _with_generation(found, sides, data.batches, tokens, generate, pasts, tell)
    rows = [row for batch in data.batches for row in batch[tokens]]
    text = None if tokenizer is None else text_of(tokenizer)
    return comparison_entries(found, [side.name for side in sides], rows, text)


class _Telling:
    """Counts batches for the progress."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def __call__(self) -> None:
        self._done += 1
        if self._progress is not None:
            self._progress("comparing", self._done, self._total)


def _both(
    sides: Sequence[_Side], batches: Sequence[Mapping[str, Any]], output: str, pasts: Mapping[str, ir.Value],
    tell: _Telling,
) -> Iterator[tuple[Mapping[str, Any], Any, Any]]:  # fmt: skip
    for batch in batches:
        want, have = (side.run(side.feeds(batch, pasts)) for side in sides)
        if output not in have and len(have) != len(want):
            raise InputError(f"'{sides[1].name}' has no output '{output}': it has {', '.join(have)}")
        same = have[output] if output in have else list(have.values())[list(want).index(output)]
        yield batch, want[output], same
        tell()


def _with_generation(
    found: Behaviour, sides: Sequence[_Side], batches: Sequence[Mapping[str, Any]], tokens: str, count: int,
    pasts: Mapping[str, ir.Value], tell: _Telling,
) -> Behaviour:  # fmt: skip
    """The same with what both sides generate behind each prompt."""
    length = min(batch[tokens].shape[-1] for batch in batches)
    count = min(count, length - 2)
    if count < 1:
        raise InputError(f"prompts of {length} tokens leave none to generate: --generate 0")
    made: list[list[np.ndarray]] = [[], []]
    for batch in batches:
        for side, rows in zip(sides, made, strict=True):
            feeds = side.feeds(batch, pasts)
            decoder = Decoder.of(side.model, tokens, _logits(side, found.output, sides[0]))
            prompt = feeds if decoder.fixed else shortened(feeds, decoder, length - count)
            rows += list(greedy(side.run, decoder, prompt, count))
        tell()
    written = zip(found.prompts, *made, strict=True)
    prompts = [replace(prompt, wanted=wanted, made=other) for prompt, wanted, other in written]
    return replace(found, prompts=prompts, generated=count, read=length - count)


def _logits(side: _Side, output: str, reference: _Side) -> str:
    """The name that a side has for an output of the reference."""
    own, theirs = ([name_of(value) for value in s.model.graph.outputs] for s in (side, reference))
    return output if output in own else own[theirs.index(output)]


def compare_files(
    reference: str, other: str, inputs: Path | None = None, html: Path | None = None, **options: Any
) -> dict[str, Any]:
    """Compare two models, and write a page where one is named; options as for ``compare``."""
    found = compare(reference, other, inputs, **options)
    if html is not None:
        write_text(html, render_comparison(found))
    return found
