"""Names of cache formats, as command lines and manifests have them."""

from __future__ import annotations

import re
from dataclasses import replace

from qcompile.errors import InputError
from qcompile.formats.cache_format import FLOAT_BITS, CacheFormat
from qcompile.formats.float_caches import BLOCKS, FloatCacheFormat, fp8_format
from qcompile.formats.unit_caches import UnitCacheFormat
from qcompile.words import options_given, spelled, split_words

__all__ = ["AUTO_CACHES", "parse_cache_format", "parse_cache_formats"]

#: Formats that ``auto`` means: at each size, that of which attention errs least on the language models that were tried.
AUTO_CACHES = ("int8-token", "uint5+3-g32", "uint4-g32", "uint4-token", "uint2-g32", "uint2-token")

_GROUPS = (16, 32, 64, 128)

_INTEGERS = re.compile(r"(u?)int([248]|5\+3)-(tensor|channel|token|g(\d+))")
_FP8 = re.compile(r"fp8-(tensor|channel|token|g(\d+))")
_UNITS = re.compile(r"(eden|turboquant)([124])")

#: Tokens that stay float32, by option.
_KEPT = {"recent": 0, "first": 0}


def parse_cache_formats(words: str, default: str = "token") -> list[CacheFormat]:
    """The formats of names with commas between them, as ``parse_cache_format`` reads each."""
    found = split_words(words)
    if not found:
        raise _unknown(words)
    return [_with_options(name, options, default) for name, options in found]


def parse_cache_format(word: str, default: str = "token") -> CacheFormat:
    """The format of a name; ``int4``, ``uint4`` and ``fp8`` alone get the scales that are named as the default.

    Raises:
        InputError: if there is none of that name.
    """
    found = parse_cache_formats(word, default)
    if len(found) != 1:
        raise _unknown(word)
    return found[0]


def _with_options(word: str, options: dict[str, str], default: str) -> CacheFormat:
    fmt = _named(word, default)
    given = options_given(f"cache format '{word}'", _KEPT, options)
    if min(given.values(), default=0) < 0:
        raise InputError(f"cache format '{word}' keeps no negative number of tokens: {spelled(word, given)}")
    if fmt.plain and given:
        raise InputError(f"cache format '{word}' keeps all tokens: it has no options")
    kept = {option: count for option, count in given.items() if count}
    return replace(fmt, name=spelled(fmt.name, kept), **kept) if kept else fmt


def _named(word: str, default: str) -> CacheFormat:
    if word == "float32":
        return CacheFormat(word, FLOAT_BITS, None)
    if (blocks := BLOCKS.get(word)) is not None:
        static = "tensor" if blocks.tensor_scale else None
        return FloatCacheFormat(word, blocks.bits, static, blocks.group, blocks=blocks)
    if (unit := _UNITS.fullmatch(word)) is not None:
        return UnitCacheFormat(word, int(unit[2]), None, nearest=unit[1] == "eden")
    full = f"{word}-{default if not word.startswith('u') else 'token'}" if re.fullmatch(r"u?int\d+|fp8", word) else word
    if (small := _FP8.fullmatch(full)) is not None and (small[2] is None or int(small[2]) in _GROUPS):
        group, static = int(small[2]) if small[2] else None, small[1] if small[1] in ("tensor", "channel") else None
        return FloatCacheFormat(full, 8, static, group, blocks=fp8_format(group))
    return _integers(word, full)


def _integers(word: str, full: str) -> CacheFormat:
    found = _INTEGERS.fullmatch(full)
    group = int(found[4]) if found and found[4] else None
    static = found[3] if found and found[3] in ("tensor", "channel") else None
    apart = found is not None and "+" in found[2]
    if (
        found is None or (group is not None and group not in _GROUPS) or (static and found[1])
        or (apart and not (found[1] and group))
    ):  # fmt: skip
        raise _unknown(word)
    first, second = map(int, found[2].split("+")) if apart else (int(found[2]),) * 2
    halves = (first, second) if apart else None
    return CacheFormat(full, (first + second) // 2, static, group, offset=bool(found[1]), halves=halves)


def _unknown(word: str) -> InputError:
    return InputError(
        f"unknown cache format '{word}'; there are int2, int4, int8 and fp8 with -tensor, -channel, -token or -gN (N "
        f"of {', '.join(map(str, _GROUPS))}), uint2, uint4 and uint8 with -token or -gN, uint5+3 with -gN, "
        f"{', '.join(BLOCKS)}, eden1, eden2, eden4, turboquant1, turboquant2, turboquant4, float32, and float"
    )
