"""Every weight of the source as plain data: quantized, kept and why, or quantized before; and their shares in bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qcompile.artifact.phrases import KEPT, PACKED, QUANTIZABLE
from qcompile.ir.module_paths import module_of_parameter
from qcompile.notes import Declined
from qcompile.targets.eligible import WEIGHT

if TYPE_CHECKING:
    from qcompile.analysis.inventory import Weight
    from qcompile.analysis.spaces import Site
    from qcompile.formats import Quantized

__all__ = ["Stored", "unsited", "weight_entries", "weights_summary"]

#: By site, its format, its packed weight, and the bytes of that; ``None`` where it keeps its weight.
Stored = Callable[["Site"], "tuple[str, Quantized | None, float] | None"]

#: What is not done to sites that keep their weights.
_REASONS = (WEIGHT, "transforming and quantizing its weight")


def weight_entries(
    weights: Iterable[Weight], declined: Sequence[Declined], done: str, stored: Stored
) -> list[dict[str, Any]]:
    """One entry for each weight that is not small.

    Args:
        declined: has the reasons why sites keep their weights.
        done: the state of weights all of whose readers are sites that have a format.
        stored: the formats of sites.
    """
    said = {entry.site: entry.reason for entry in declined if entry.what in _REASONS}
    return [_entry(weight, said, done, stored) for weight in weights if not weight.small]


def _entry(weight: Weight, said: Mapping[str, str], done: str, stored: Stored) -> dict[str, Any]:
    pairs = [(site, stored(site)) for site in weight.sites]
    found = [each for _, each in pairs if each is not None]
    kept = [said.get(site.name, "its format is float") for site, each in pairs if each is None]
    kept += [] if weight.reason is None else [weight.reason]
    formats = ", ".join(dict.fromkeys(name for name, _, _ in found if name))
    status = PACKED if weight.packed is not None and not found else KEPT if kept else done
    after = _bytes_of(found) * weight.bytes / max(weight.parts, 1)
    reason = "; ".join(dict.fromkeys(kept)) if status == KEPT else None
    return {
        "name": weight.name,
        "module": ", ".join(_modules(weight)) or None,
        "kind": weight.kind,
        "shape": list(weight.shape),
        "dtype": weight.dtype,
        "bytes": weight.bytes,
        "readers": list(weight.readers),
        "sites": [site.name for site in weight.sites],
        "status": status,
        "format": {PACKED: weight.packed, done: formats or None}.get(status),
        "bytes_after": None if status == QUANTIZABLE else round(after + (0 if status == done else weight.held)),
        "reason": f"{formats} elsewhere, but {reason}" if formats and reason else reason,
    }


def _modules(weight: Weight) -> list[str]:
    """The modules of the sites that hold a weight; where none does, that of the parameter by its name."""
    found = [site.module for site in weight.sites] or [module_of_parameter(weight.name)]
    return list(dict.fromkeys(name for name in found if name is not None))


def _bytes_of(found: Sequence[tuple[str, Quantized | None, float]]) -> float:
    """Bytes of the packed weights that differ: those of equal content are stored once."""
    copies: list[tuple[Quantized | None, float]] = []
    for _, packed, size in found:
        if not any(_same(packed, other) for other, _ in copies):
            copies.append((packed, size))
    return sum(size for _, size in copies)


def _same(a: Quantized | None, b: Quantized | None) -> bool:
    if a is None or b is None or a is b:
        return a is b
    return a.format == b.format and a.codes.equal(b.codes) and a.scales.equal(b.scales)


def weights_summary(weights: Sequence[Weight], entries: Sequence[Mapping[str, Any]], done: str) -> dict[str, Any]:
    """Counts and bytes of each state, and of the small constants, which add up to all of the source's constants."""
    total = sum(weight.bytes for weight in weights)
    small = [weight for weight in weights if weight.small]
    counts, sizes = Counter(e["status"] for e in entries), Counter[str]()
    for entry in entries:
        sizes[entry["status"]] += entry["bytes"]
    states = {state: {"count": counts[state], "bytes": sizes[state]} for state in (done, PACKED, KEPT)}
    return {
        "bytes": total,
        **states,
        "small": {"count": len(small), "bytes": sum(weight.bytes for weight in small)},
        "share": round(sizes[done] / total, 4) if total else 0.0,
    }


def unsited(weights: Iterable[Weight]) -> list[Declined]:
    """Why weights that no site holds stay as they are, by the operators that read them."""
    plain = (weight for weight in weights if not weight.small and not weight.sites and weight.readers)
    found = (Declined(name, WEIGHT, weight.reason or "") for weight in plain for name in weight.readers)
    return list(dict.fromkeys(found))
