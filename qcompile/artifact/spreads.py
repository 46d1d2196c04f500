"""How the inputs of sites are spread, before and after their transforms: what transforms are for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from qcompile.run.compare import number

if TYPE_CHECKING:
    from qcompile.analysis.siblings import Siblings
    from qcompile.statistics.collected import Statistics
    from qcompile.transforms import Transform

__all__ = ["HALVES", "spread_entries"]

#: Bins are half octaves of ``|x| / rms``, from this many below one to as many above; the outer ones are open.
HALVES = 12

#: Rows of the sample that are looked at.
ROWS = 256


def spread_entries(
    siblings: Iterable[Siblings], statistics: Mapping[str, Statistics], total: Callable[[Siblings], Transform | None]
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """By value that sites read, the spread of a sample of its rows, and of what their transform makes of them.

    Args:
        total: the transform of a value's readers.

    Returns:
        ``before``, and ``after`` where there is a transform: ``counts``, of ``|x|`` over the root mean square of all,
        and ``peak``, the mean over rows of the largest over the root mean square of the row.
    """
    import torch

    found = {}
    for group in siblings:
        if (known := statistics.get(group.name)) is None or not known.sample.size:
            continue
        transform, rows = total(group), torch.from_numpy(np.ascontiguousarray(known.sample[:ROWS])).double()
        found[group.name] = {"before": _spread(rows.numpy())}
        if transform is not None and transform.kind != "identity" and not rows.shape[-1] % transform.size:
            turned = transform.apply(rows.reshape(-1, transform.size)).reshape(rows.shape)
            found[group.name]["after"] = _spread(turned.numpy())
    return found


def _spread(rows: np.ndarray) -> dict[str, Any]:
    sizes = np.abs(rows)
    whole, own = np.sqrt(np.mean(rows**2)), np.sqrt(np.mean(rows**2, axis=-1))
    places = np.floor(2 * np.log2(np.maximum(sizes, 1e-300) / max(whole, 1e-300))) + HALVES
    counts = np.bincount(np.clip(places, 0, 2 * HALVES - 1).astype(int).ravel(), minlength=2 * HALVES)
    peak = np.mean(sizes.max(-1)[own > 0] / own[own > 0]) if (own > 0).any() else 0.0
    return {"counts": counts.tolist(), "peak": number(float(peak))}
