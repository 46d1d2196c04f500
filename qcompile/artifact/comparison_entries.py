"""A comparison of two models as plain values: the JSON of ``qcompile compare``, which table and page are made from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from qcompile.checks.behaviour import Behaviour, Prompt
from qcompile.run.compare import number

__all__ = ["comparison_entries"]

#: Prompts that are described one by one.
SHOWN = 32

#: Tokens in front of what is generated that are shown.
CONTEXT = 16


def comparison_entries(
    found: Behaviour, names: Sequence[str], tokens: Sequence[np.ndarray] = (),
    text: Callable[[Sequence[int]], str] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """All that is said of two models beside each other.

    Args:
        found: what was measured.
        names: of the reference and of the other.
        tokens: of each prompt, in the order of the data.
        text: the tokens as text, if there is a tokenizer.
    """
    divergence = np.concatenate([prompt.divergence for prompt in found.prompts])
    means = np.array([prompt.divergence.mean() for prompt in found.prompts])
    error = means.std(ddof=1) / np.sqrt(len(means)) if len(means) > 1 else None
    return {
        "reference": names[0], "other": names[1], "output": found.output, "scores": found.scores,
        "prompts": len(found.prompts), "positions": divergence.size,
        "divergence": {
            "mean": number(divergence.mean()), "standard_error": number(error),
            "median": number(np.median(divergence)), "p99": number(np.quantile(divergence, 0.99)),
            "max": number(divergence.max()),
        },
        "flips": _flips(found) if found.scores else None,
        "loss": _losses(found.prompts),
        "by_position": [
            {"from": b.start, "to": b.stop - 1, "divergence": number(b.divergence), "flips": number(b.flips),
             "positions": b.positions}
            for b in found.buckets()
        ],
        "generation": _generation(found),
        "worst": [_prompt(prompt, found, tokens, text) for prompt in found.worst[:SHOWN]],
    }  # fmt: skip


def _flips(found: Behaviour) -> dict[str, Any]:
    flips, confident = (np.concatenate([getattr(p, key) for p in found.prompts]) for key in ("flips", "confident"))
    return {"count": int(flips.sum()), "share": number(flips.mean()), "confident": int((flips & confident).sum()),
            "confident_positions": int(confident.sum())}  # fmt: skip


def _losses(prompts: Sequence[Prompt]) -> dict[str, Any] | None:
    losses = np.array([prompt.losses for prompt in prompts if prompt.losses])
    if not losses.size:
        return None
    more = losses[:, 1] - losses[:, 0]
    error = more.std(ddof=1) / np.sqrt(len(more)) if len(more) > 1 else None
    return {"reference": number(losses[:, 0].mean()), "other": number(losses[:, 1].mean()),
            "difference": number(more.mean()), "standard_error": number(error)}  # fmt: skip


def _generation(found: Behaviour) -> dict[str, Any] | None:
    if not found.generated:
        return None
    first = [prompt.first_divergence for prompt in found.prompts]
    diverged = [place for place in first if place is not None]
    agreeing = [found.generated if place is None else place for place in first]
    return {
        "tokens": found.generated, "read": found.read, "prompts": len(first), "diverged": len(diverged),
        "earliest": min(diverged, default=None), "mean_agreeing": number(float(np.mean(agreeing))),
        "median_agreeing": number(float(np.median(agreeing))),
    }  # fmt: skip


def _prompt(
    prompt: Prompt, found: Behaviour, tokens: Sequence[np.ndarray], text: Callable[[Sequence[int]], str] | None
) -> dict[str, Any]:  # fmt: skip
    place = int(prompt.divergence.argmax())
    entry: dict[str, Any] = {
        "prompt": prompt.number, "divergence": number(prompt.divergence.mean()),
        "worst_position": place, "worst_divergence": number(prompt.divergence[place]),
        "flips": int(prompt.flips.sum()) if found.scores else None,
        "loss_difference": number(prompt.losses[1] - prompt.losses[0]) if prompt.losses else None,
    }  # fmt: skip
    if not found.generated:
        return entry
    at, before = prompt.first_divergence, tokens[prompt.number][: found.read][-CONTEXT:]
    entry |= {"first_divergence": at, "before": before.tolist(), "wanted": prompt.wanted.tolist(),
              "made": prompt.made.tolist()}  # fmt: skip
    if text is not None:
        split = found.generated if at is None else at
        parts = {"before": before, "same": prompt.wanted[:split], "wanted": prompt.wanted[split:],
                 "made": prompt.made[split:]}  # fmt: skip
        entry["text"] = {name: text(ids.tolist()) for name, ids in parts.items()}
    return entry
