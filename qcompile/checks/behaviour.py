"""Changes that a user notices: two models beside each other, position by position, prompt by prompt.

One of them is the reference, most often the float model. Divergences are in nats: KL(reference || other), of what both
say of the next token; a *flip* is a position where they find another token most likely.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.special import log_softmax

from qcompile.errors import InputError
from qcompile.run.sequences import tensors

__all__ = [
    "Behaviour", "Bucket", "Prompt", "behaviour", "compare_scores", "find_scores", "first_difference", "token_input",
]  # fmt: skip

#: Numbers that are exponentiated at a time.
_BLOCK = 1 << 22

#: Parts of a text that positions are summed up by.
BUCKETS = 16

#: A flip is of a confident position where the reference gives its token at least this probability.
CONFIDENT = 0.5


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    Args:
        number: its place in the data.
        divergence: at each position.
        flips: whether the likeliest token is another, at each position; empty where outputs are no scores.
        confident: whether the reference is confident, at each position.
        losses: of the reference and of the other, mean over next tokens; empty where there are none.
        wanted: the tokens that the reference generates, empty where none are generated.
        made: those of the other.
    """

    number: int
    divergence: np.ndarray
    flips: np.ndarray
    confident: np.ndarray
    losses: tuple[float, ...] = ()
    wanted: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    made: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def first_divergence(self) -> int | None:
        """The number of generated tokens that agree before one does not; ``None`` where all agree."""
        return first_difference(self.wanted, self.made)


@dataclass(frozen=True)
class Bucket:
    """Positions ``start`` to ``stop - 1`` of all prompts: mean divergence, share of flips, their number."""

    start: int
    stop: int
    divergence: float
    flips: float
    positions: int


@dataclass(frozen=True)
class Behaviour:
    """Two models beside each other.

    Args:
        output: the output that was compared.
        scores: whether it holds scores; divergences are half the relative squared errors else.
        prompts: in the order of the data.
        generated: tokens that were generated behind each prompt, and before that read.
    """

    output: str
    scores: bool
    prompts: Sequence[Prompt]
    generated: int = 0
    read: int = 0

    @property
    def worst(self) -> list[Prompt]:
        """Prompts by mean divergence, the largest first."""
        return sorted(self.prompts, key=lambda prompt: (-float(prompt.divergence.mean()), prompt.number))

    def buckets(self) -> list[Bucket]:
        """Positions of all prompts, summed up in parts of even length."""
        length = max(len(prompt.divergence) for prompt in self.prompts)
        edges = np.unique(np.linspace(0, length, min(BUCKETS, length) + 1).round().astype(int)).tolist()
        return [self._bucket(start, stop) for start, stop in zip(edges, edges[1:], strict=False)]

    def _bucket(self, start: int, stop: int) -> Bucket:
        found = np.concatenate([prompt.divergence[start:stop] for prompt in self.prompts])
        flips = np.concatenate([prompt.flips[start:stop] for prompt in self.prompts])
        return Bucket(start, stop, float(found.mean()), float(flips.mean()) if flips.size else 0.0, found.size)


def behaviour(
    output: str, scores: bool, batches: Iterator[tuple[Mapping[str, Any], Any, Any]], tokens: str | None
) -> Behaviour:  # fmt: skip
    """Compare the outputs of two models on the same inputs.

    Args:
        output: the output that is compared.
        scores: whether it holds scores along its last axis.
        batches: the inputs, and that output of the reference and of the other, ``[batch, ..., scores]``.
        tokens: the input whose next elements the scores predict, if any.

    Raises:
        InputError: if shapes differ, or one holds NaN.
    """
    prompts: list[Prompt] = []
    for inputs, want, have in batches:
        want, have = np.asarray(want), np.asarray(have)
        if want.shape != have.shape:
            raise InputError(
                f"output '{output}' is {list(want.shape)} in one model and {list(have.shape)} in the other"
            )
        if np.isnan(want).any() or np.isnan(have).any():
            raise InputError(
                f"output '{output}' holds NaN in {'the reference' if np.isnan(want).any() else 'the other'}"
            )
        for row in range(len(want)):
            first, second = (side[row].reshape(-1, side.shape[-1]) for side in (want, have))
            following = None if tokens is None else np.asarray(inputs[tokens])[row]
            prompts.append(_prompt(len(prompts), first, second, scores, following))
    if not prompts:
        raise InputError("there are no inputs to compare on")
    return Behaviour(output, scores, prompts)


def _prompt(number: int, want: np.ndarray, have: np.ndarray, scores: bool, tokens: np.ndarray | None) -> Prompt:
    if not scores:
        none = np.zeros(0, bool)
        return Prompt(number, _squared(want, have), none, none)
    parts = [compare_scores(*pair) for pair in _blocks(want, have)]
    divergence, flips, confident = (np.concatenate(values) for values in zip(*parts, strict=True))
    losses: tuple[float, ...] = ()
    if tokens is not None and len(tokens) > 1:
        losses = tuple(_loss(side, tokens) for side in (want, have))
    return Prompt(number, divergence, flips, confident, losses)


def _blocks(want: np.ndarray, have: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    step = max(1, _BLOCK // want.shape[-1])
    yield from ((want[at : at + step], have[at : at + step]) for at in range(0, len(want), step))


def compare_scores(want: np.ndarray, have: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """KL divergences in nats, flips, and whether the reference is confident, of scores ``[positions, scores]``."""
    log_p, log_q = (log_softmax(side.astype(np.float64), -1) for side in (want, have))
    p = np.exp(log_p)
    apart = np.subtract(log_p, log_q, out=np.zeros_like(p), where=p > 0)
    divergence = np.einsum("ij,ij->i", p, apart)
    flips = want.argmax(-1) != have.argmax(-1)
    return np.maximum(divergence, 0.0), flips, p.max(-1) >= CONFIDENT


def _loss(scores: np.ndarray, tokens: np.ndarray) -> float:
    """Mean cross-entropy of next tokens, in nats."""
    following, total, at = np.asarray(tokens)[1:], 0.0, 0
    for block, _ in _blocks(scores[:-1], scores[:-1]):
        picked = log_softmax(block.astype(np.float64), -1)[np.arange(len(block)), following[at : at + len(block)]]
        total, at = total - float(picked.sum()), at + len(block)
    return total / len(following)


def _squared(want: np.ndarray, have: np.ndarray) -> np.ndarray:
    """Half the squared error of each position, relative to the mean square of all of the reference."""
    mean = float(np.square(want, dtype=np.float64).sum(-1).mean())
    return 0.5 * np.square(np.subtract(have, want, dtype=np.float64)).sum(-1) / max(mean, 1e-30)


def find_scores(outputs: Mapping[str, Any], wanted: str | None, inputs: Mapping[str, Any]) -> tuple[str, bool]:
    """The output that is compared, and whether it holds scores: one that scores tokens of an input, else the first.

    Args:
        outputs: of the reference, for ``inputs``.
        wanted: the name of an output that holds scores, if the user says it.
        inputs: among which are the tokens.

    Raises:
        InputError: if there is no such output, or none that holds floating-point numbers with an axis of rows.
    """
    found = {n: v for n, v in tensors(outputs).items() if np.issubdtype(v.dtype, np.floating) and v.ndim}
    if wanted is not None:
        if wanted not in found:
            raise InputError(f"there is no output '{wanted}' of floating-point numbers: there is {', '.join(found)}")
        return wanted, True
    for name, value in found.items():
        if token_input(inputs, value) is not None:
            return name, True
    if not found:
        raise InputError("the models have no output of floating-point numbers to compare")
    return next(iter(found)), False


def token_input(inputs: Mapping[str, Any], scores: np.ndarray) -> str | None:
    """The input ``[batch, length]`` of integers whose next elements scores ``[batch, length, tokens]`` predict."""
    for name, value in tensors(inputs).items():
        whole = np.issubdtype(value.dtype, np.integer) and value.ndim == 2 and value.shape == scores.shape[:-1]
        if whole and value.size and scores.ndim == 3 and 0 <= value.min() <= value.max() < scores.shape[-1]:
            return name
    return None


def first_difference(wanted: np.ndarray, made: np.ndarray) -> int | None:
    """The first place at which two rows of tokens differ; ``None`` where they are equal."""
    different = np.flatnonzero(wanted != made)
    return int(different[0]) if different.size else None
