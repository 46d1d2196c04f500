"""The ranges of what sites read, in the basis that the graph has been brought to, where schemes have static scales."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial

import onnx_ir as ir

from qcompile.analysis.forms import Lookup, read_site
from qcompile.analysis.matrices import weight_matrix
from qcompile.analysis.patches import Patches
from qcompile.analysis.siblings import Siblings
from qcompile.analysis.spaces import Site
from qcompile.formats.format import Format
from qcompile.ir.required import name_of
from qcompile.notes import Decline, Progress
from qcompile.run.data import Data
from qcompile.run.memory_budget import Memory
from qcompile.statistics.ranges import Calibrated, Wanted, learn_ranges
from qcompile.targets.eligible import WEIGHT
from qcompile.targets.scheme import Scheme

__all__ = ["site_ranges"]

#: Rows of each weight by which calibrators are compared.
WEIGHT_ROWS = 64


def site_ranges(
    model: ir.Model, groups: Sequence[Siblings], schemes: Mapping[str, Scheme], data: Data | None, decline: Decline,
    *, device: str = "cpu", memory: Memory | None = None, progress: Progress | None = None,
) -> dict[str, Calibrated]:  # fmt: skip
    """Learn a range for each value that sites read in a static format; siblings share it.

    Args:
        model: the float graph.
        groups: the sites.
        schemes: by site name.
        data: to learn from.
        decline: told of sites that get none, which keep their weights.

    Returns:
        by site name.
    """
    readers: dict[tuple[str, Format], list[Site]] = defaultdict(list)
    axes: dict[str, int] = {}
    patches: dict[str, Patches | None] = {}
    for group in groups:
        for site in group.sites:
            fmt = schemes[site.name].activation
            if fmt is None or not fmt.static:
                continue
            form = read_site(site.node)
            if group.nested or isinstance(form, Lookup):
                reason = "it stands in the body of another operator, whose values are not calibrated for static scales"
                decline(site.name, WEIGHT, reason)
                continue
            readers[name_of(form.x), fmt].append(site)
            axes[name_of(form.x)], patches[site.name] = group.axis, group.patches
    if not readers or data is None:
        return {}
    found: dict[str, Calibrated] = {}
    for fmt in dict.fromkeys(fmt for _, fmt in readers):
        wanted = {
            name: Wanted(
                fmt,
                axes[name],
                [partial(weight_matrix, site, WEIGHT_ROWS) for site in sites],
                [patches[site.name] for site in sites],
            )
            for (name, own), sites in readers.items()
            if own is fmt
        }
        learned = learn_ranges(model, wanted, data, device=device, memory=memory, decline=decline, progress=progress)
        for name in wanted:
            for site in readers[name, fmt]:
                if name in learned:
                    found[site.name] = learned[name]
                else:
                    decline(site.name, WEIGHT, f"{data.about} never reaches it, so that it has no static scale")
    return found
