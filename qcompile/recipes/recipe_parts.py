"""The parts of recipes: the words that each takes, and the options of an export that they mean."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from qcompile.analysis.named_sites import KIND, SITE_KINDS
from qcompile.choice.export_options import UNITS
from qcompile.choice.kinds import KINDS
from qcompile.choice.splits import split_of
from qcompile.errors import InputError, unknown
from qcompile.formats.catalogue import EXTENDED_FORMATS, FORMATS, get_format
from qcompile.learning.settings import learning_of
from qcompile.rounding.methods import method_of
from qcompile.statistics.measures import check_measure
from qcompile.targets.scheme import Scheme
from qcompile.words import spelled

__all__ = ["LACKING", "PARTS", "Part", "options_of_part"]

#: Parts that methods of papers have and that no target runs.
LACKING = (
    "attention", "cache", "calibrate", "integer", "objective", "report", "scale", "schedule", "smooth",
)  # fmt: skip


@dataclass(frozen=True)
class Part:
    """A part of recipes.

    Args:
        does: what it is, for the documentation.
        example: words that it takes.
        read: the options that its words mean; ``weights`` and ``acts`` become formats together.
    """

    does: str
    example: str
    read: Callable[[Mapping[str, Any]], dict[str, Any]]


def options_of_part(part: str, words: Mapping[str, Any]) -> dict[str, Any]:
    """The options that the words of a part mean.

    Raises:
        InputError: if a word is unknown, or has a value of another kind.
    """
    try:
        return PARTS[part].read(words)
    except InputError as error:
        raise InputError(f"part '{part}': {error}") from error


def _transform(words: Mapping[str, Any]) -> dict[str, Any]:
    _known(words, ("kind",))
    kind = _text(words, "kind")
    if kind not in KINDS:
        raise InputError(unknown("transforms", kind, KINDS))
    return {"transforms": kind}


def _weights(words: Mapping[str, Any]) -> dict[str, Any]:
    _known(words, ("format",))
    return {"weights": _formats(words)}


def _acts(words: Mapping[str, Any]) -> dict[str, Any]:
    _known(words, ("format", "range"))
    if words.get("range", "dynamic") != "dynamic":
        raise InputError(f"range is 'dynamic': no target has scales that are fixed beforehand, '{words['range']}'")
    return {"acts": _formats(words)}


def _formats(words: Mapping[str, Any]) -> list[str]:
    """The formats that were named; a family's name means the target's own format of it."""
    given = words.get("format")
    names = [name for name in (given if isinstance(given, list) else [given]) if isinstance(name, str)]
    if not names or (isinstance(given, list) and len(names) < len(given)):
        raise InputError("format must be a name, or a list of names")
    for name in names:
        if not any(known.startswith(f"{name}-") for known in (*FORMATS, *EXTENDED_FORMATS)):
            get_format(name)
    return names


def _rounding(words: Mapping[str, Any]) -> dict[str, Any]:
    options = {key: value for key, value in words.items() if key != "kind"}
    return {"method": str(method_of(spelled(_text(words, "kind"), options)))}


def _sites(words: Mapping[str, Any]) -> dict[str, Any]:
    _known(words, SITE_KINDS)
    for kind, name in words.items():
        if name != "float":
            Scheme.parse(_text(words, kind))
    return {"format_for": {f"{KIND}{kind}": name for kind, name in words.items()}}


def _split(words: Mapping[str, Any]) -> dict[str, Any]:
    options = {key: value for key, value in words.items() if key != "kind"}
    return {"split": (str(split_of(spelled(_text(words, "kind"), options))),)}


def _branch(words: Mapping[str, Any]) -> dict[str, Any]:
    return {"split": (str(split_of(spelled("branch", words))),)}


def _assign(words: Mapping[str, Any]) -> dict[str, Any]:
    _known(words, (*UNITS, "sensitivity"))
    found: dict[str, Any] = {}
    if "sensitivity" in words:
        check_measure(_text(words, "sensitivity"))
        found["sensitivity"] = words["sensitivity"]
    bounds = {unit: bound for unit, bound in words.items() if unit != "sensitivity"}
    for unit, bound in bounds.items():
        if isinstance(bound, bool) or not isinstance(bound, int | float) or bound <= 0:
            raise InputError(f"{unit} must be a number above 0, not {bound!r}")
    return found | ({"budget": {unit: float(bound) for unit, bound in bounds.items()}} if bounds else {})


def _learn(words: Mapping[str, Any]) -> dict[str, Any]:
    options = {key: value for key, value in words.items() if key != "kind"}
    return {"learn": str(learning_of(spelled(_text(words, "kind"), options)))}


def _known(words: Mapping[str, Any], known: Iterable[str]) -> None:
    for word in words:
        if word not in known:
            raise InputError(unknown("word", word, known))


def _text(words: Mapping[str, Any], word: str) -> str:
    if not isinstance(words.get(word), str):
        raise InputError(f"{word} must be a name")
    return str(words[word])


PARTS: dict[str, Part] = {
    "transform": Part("how transforms are chosen: `--transforms`", 'kind = "hadamard"', _transform),
    "weights": Part("the format of weights, or those to choose among: `--formats`", 'format = "int4-g64"', _weights),
    "acts": Part(
        "the format of activations, for all formats of weights or for each: `--formats`",
        'format = "int4-channel", range = "dynamic"', _acts,
    ),
    "sites": Part("the formats of kinds of sites: `--format-for kind:edge=int8-g32`", 'edge = "float"', _sites),
    "rounding": Part("how weights are rounded, with the method's options: `--method`", 'kind = "gptq"', _rounding),
    "learn": Part("what is learned along gradients: `--learn`", 'kind = "transforms", steps = 200', _learn),
    "split": Part(
        "columns of weights that are computed apart, in a format of their own: `--split`",
        'kind = "columns", count = 128, format = "int8-channel"', _split,
    ),
    "branch": Part("a branch of low rank beside each weight: `--split`", "rank = 32", _branch),
    "assign": Part(
        "upper bounds under which formats are assigned, and what errors cost then: `--budget`, `--sensitivity`",
        'bits = 4.25, sensitivity = "noise"', _assign,
    ),
}  # fmt: skip
