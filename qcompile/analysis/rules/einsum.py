"""Einsum: letters in the result pass through, letters that are summed carry T and T⁻ᵀ."""

from __future__ import annotations

import string
from collections.abc import Sequence

import onnx_ir as ir

from qcompile.analysis.axes import Ref
from qcompile.analysis.rules.elementwise import gate, is_one
from qcompile.analysis.rules.linear import add_site, contract, weight_of
from qcompile.analysis.spaces import Analysis, rule
from qcompile.ir.graph import label
from qcompile.ir.required import operand, operands, rank_of
from qcompile.transforms.freedom import Freedom

__all__ = ["read_letters", "weight_letters"]


@rule("Einsum")
def einsum(analysis: Analysis, node: ir.Node) -> None:
    """Letters in the result pass through; letters that are summed carry T and T⁻ᵀ."""
    refs = [analysis.refs(value) for value in node.inputs]
    terms, output = _letters(node.attributes.get_string("equation").replace(" ", ""), [len(item) for item in refs])
    by_letter = [_by_letter(analysis, node, term, item) for term, item in zip(terms, refs, strict=True)]
    merged: dict[str, Ref] = {}
    for letter in sorted({letter for term in terms for letter in term}):
        found = [own[letter] for own in by_letter if letter in own]
        wide = [ref for ref in found if not is_one(analysis, ref)] or found[:1]
        merged[letter] = _merge(analysis, node, wide, letter not in output)
    analysis.set(node.outputs[0], [merged[letter] for letter in output])
    if all(len(set(term)) == len(term) for term in terms):
        _einsum_site(analysis, node, terms, output, by_letter)


def _by_letter(analysis: Analysis, node: ir.Node, term: str, refs: Sequence[Ref]) -> dict[str, Ref]:
    """An operand's axes by letter; a letter that occurs twice takes a diagonal."""
    own: dict[str, Ref] = {}
    for letter, ref in zip(term, refs, strict=True):
        own[letter] = gate(analysis, own[letter], ref, label(node)) if letter in own else ref
    return own


def _letters(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """The operands' and the result's axes as letters: dots spelled out, the result's letters if they are left out."""
    inputs, arrow, output = equation.partition("->")
    given = inputs.split(",")
    spare = [letter for letter in string.ascii_letters if letter not in equation]
    dots = [rank - len(term) + 3 if "..." in term else 0 for term, rank in zip(given, ranks, strict=True)]
    names = spare[: max(dots)]
    terms = [term.replace("...", "".join(names[len(names) - n :])) for term, n in zip(given, dots, strict=True)]
    if not arrow:
        once = sorted(letter for letter in set(inputs) if letter.isalpha() and inputs.count(letter) == 1)
        output = "..." + "".join(once)
    return terms, output.replace("...", "".join(names))


def _merge(analysis: Analysis, node: ir.Node, found: Sequence[Ref], summed: bool) -> Ref:
    """One letter: the product of all operands along it, or the sum of that product."""
    if summed and len(found) == 1:
        analysis.axes.constrain(found[0], Freedom.ORTHOGONAL_ONES, f"{label(node)} sums over it")
    last = found[-1] if summed and len(found) > 1 else None
    merged = found[0]
    for ref in found[1:] if last is None else found[1:-1]:
        merged = gate(analysis, merged, ref, label(node))
    if last is not None:
        contract(analysis, merged, last, label(node))
    return merged


def _einsum_site(
    analysis: Analysis, node: ir.Node, terms: list[str], output: str, by_letter: Sequence[dict[str, Ref]]
) -> None:
    """Record the product with a weight, if one of two operands is one."""
    found = weight_letters(node, terms, output)
    if found is not None:
        i, read, written = found
        refs = by_letter[1 - i][read], by_letter[i][written]
        axes = terms[i].index(read), terms[i].index(written)
        add_site(analysis, node, operand(node, i), operand(node, 1 - i), axes, refs)


def weight_letters(node: ir.Node, terms: Sequence[str], output: str) -> tuple[int, str, str] | None:
    """Which of two operands is a weight, and the letters that it contracts and writes.

    A weight may stack matrices along further letters; the last letters are the features.
    """
    values = operands(node)
    for i, (weight, other) in enumerate(zip(values, reversed(values), strict=True)):
        source = weight_of(weight) if len(terms) == 2 else None
        if source is None or other.const_value is not None:
            continue
        own = terms[i][len(terms[i]) - rank_of(source) + (weight is not source) :]
        summed = [c for c in own if c not in output and c in terms[1 - i]]
        written = [c for c in own if c in output and c not in terms[1 - i]]
        if summed and written:
            return i, summed[-1], written[-1]
    return None


def read_letters(node: ir.Node) -> tuple[list[str], str]:
    """The letters of an Einsum's operands and of its result, dots spelled out."""
    return _letters(node.attributes.get_string("equation").replace(" ", ""), [rank_of(v) for v in operands(node)])
