"""Writes docs/rules.md: every commutation rule, every operator without one, and the freedoms that tests hold it to.

PYTHONPATH=.:tests/support python docs/list_rules.py
"""

from __future__ import annotations

import itertools
from pathlib import Path

import onnx.defs

import qcompile.analysis.rules  # noqa: F401  (registers the rules)
from qcompile.analysis.spaces import RULES

PAGE = Path(__file__).parent / "rules.md"

#: Operators of ONNX that have no rule, with what they do to the axes of what they read.
WITHOUT = {
    "optional values, strings, and sequences that begin empty or are mapped are not followed": (
        "Optional OptionalGetElement OptionalHasElement RegexFullMatch SequenceEmpty SequenceMap StringConcat "
        "StringNormalizer StringSplit TfIdfVectorizer ImageDecoder"
    ),
    "what they do depends on places along every axis, or on the whole": (
        "AffineGrid BlackmanWindow Compress DFT Det HammingWindow HannWindow MaxUnpool MelWeightMatrix "
        "NonMaxSuppression ReverseSequence STFT Unique"
    ),
    "random numbers are drawn for each element": "Bernoulli Multinomial",
    "losses read labels by place": "NegativeLogLikelihoodLoss SoftmaxCrossEntropyLoss",
    "products of integers: their weights cannot be transformed without being rounded again": (
        "ConvInteger MatMulInteger QLinearConv QLinearMatMul"
    ),
    "constants are lifted to initializers before the analysis": "Constant",
}

#: Domains of which no operator has a rule.
DOMAINS = {
    "ai.onnx.ml": "trees, encoders and other classical models",
    "ai.onnx.preview": "attention whose score is a graph of its own",
    "ai.onnx.preview.training": "optimizers",
}

LETTERS = {
    "G": "any invertible matrix", "O": "any rotation", "1": "rotations that keep the vector of ones",
    "M": "permutations and scales", "+": "permutations and positive scales", "S": "permutations and signs",
    "P": "permutations", "D": "scales", "d": "positive scales", "s": "signs", "N": "none",
}  # fmt: skip


def page() -> str:
    """The page as it should be."""
    return "\n".join([*_head(), *_rules(), *_others(), *_cases(), ""])


def _head() -> list[str]:
    return [
        "# Commutation rules",
        "",
        "The operators that have a rule, and how each treats the axes of what it reads. Made by "
        "`python docs/list_rules.py`; `tests/analysis/rules` holds the analysis to every line.",
        "An operator that is not here takes all freedom from what it reads and writes, and is named in the report.",
        "",
    ]


def _rules() -> list[str]:
    found = sorted(((rule.__module__.rpartition(".")[2], rule.__doc__ or "", key) for key, rule in RULES.items()))
    lines = []
    for file, entries in itertools.groupby(found, key=lambda item: item[0]):
        lines += [f"## {file.replace('_', ' ').capitalize()}", "", "| operators | rule |", "|---|---|"]
        for text, group in itertools.groupby(entries, key=lambda item: item[1]):
            names = ", ".join(f"`{domain}.{op}`" if domain else f"`{op}`" for _, _, (domain, op) in group)
            lines.append(f"| {names} | {_first(text)} |")
        lines.append("")
    return lines


def _first(text: str) -> str:
    return text.strip().split("\n\n")[0].replace("\n", " ").replace("|", "\\|") or "acts on each element"


def _others() -> list[str]:
    lines = ["## Operators without a rule", "", "| operators | why |", "|---|---|"]
    lines += [f"| {', '.join(f'`{op}`' for op in ops.split())} | {why} |" for why, ops in WITHOUT.items()]
    lines += [f"| all of `{domain}` | {why} |" for domain, why in DOMAINS.items()]
    return [*lines, ""]


def _cases() -> list[str]:
    from rule_tables import CASES

    lines = [
        "## Tested cases",
        "",
        "The freedom of each axis of `h`; `x*y` are factors of an axis and `x¦y` its segments.",
        "",
        *(f"- **{letter}**: {meaning}" for letter, meaning in LETTERS.items()),
        "",
        "| | operators | axes |",
        "|---|---|---|",
    ]
    for case in CASES:
        body = "; ".join(line.strip() for line in case.body.split("\n"))
        lines.append(f"| {case.name} | `{body}` | `{case.freedom.replace('|', '¦')}` |")
    return lines


def unsorted() -> list[str]:
    """Operators of ONNX, in any opset, that neither have a rule nor are listed without one."""
    listed = {op for ops in WITHOUT.values() for op in ops.split()}
    schemas = {(schema.domain, schema.name) for schema in onnx.defs.get_all_schemas_with_history()}
    return sorted(f"{d}.{op}" for d, op in schemas - set(RULES) if d not in DOMAINS and op not in listed)


if __name__ == "__main__":
    PAGE.write_text(page())
