"""Sums at each site, over windows of rows and their gradients, that the cost of errors there follows from."""

from __future__ import annotations

import functools
import operator
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from qcompile.analysis.forms import Convolution, Linear, Lookup, Stack, read_site
from qcompile.analysis.matrices import weight_matrix
from qcompile.analysis.spaces import Site
from qcompile.errors import TargetError
from qcompile.ir.required import name_of
from qcompile.statistics.rows_of_sites import rows_read, rows_written
from qcompile.statistics.sensitivity import Curvature, Felt

if TYPE_CHECKING:
    import torch

__all__ = ["DRAWS", "Place", "Sent", "Sums", "place_of"]

#: Draws of the output's distribution for each batch. More batches teach more than more draws of one.
DRAWS = 1

#: Rows of each site that errors are weighed by. They are drawn by the size of the input and the gradient, so that few
#: are as good as all: on the shipped models 512 predict as well as 1024, and a little better than 256.
FELT_ROWS = 512


@dataclass
class Sums:
    """Addends of sums over batches, draws and windows, in order: one process adds up what several have found.

    Args:
        addends: by the name of the sum: ``seen`` Σ‖x‖², ``energy`` Σ‖xWᵀ‖², ``together`` Σ over windows of ‖Σ g xᵀ‖²,
            ``apart`` Σ‖g‖²‖x‖², ``through`` Σ‖Wᵀg‖²‖x‖²/d, ``joined`` the same with Wᵀg of all
            sites that read the input added up, ``separate`` the sum of their ``through``, ``units``: tokens, or batches
            where the metric is relative, ``shrunk`` Σ over windows of Σ g·z, times the same of all sites that read the
            input.
        by_row: of a table, ``together`` by row, ``[rows]`` for each draw.
        felt: inputs and gradients of some rows.
    """

    addends: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    by_row: list[torch.Tensor] = field(default_factory=list)
    felt: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)

    def add(self, name: str, addend: float) -> None:
        """Add to a sum."""
        self.addends[name].append(addend)

    def extend(self, others: Sums) -> None:
        """Add what was found after this."""
        for name, addends in others.addends.items():
            self.addends[name] += addends
        self.by_row += others.by_row
        self.felt += others.felt

    def of(self, name: str) -> float:
        """A sum, of addends as they came: ``sum`` would add otherwise in later versions of Python."""
        return functools.reduce(operator.add, self.addends[name], 0.0)


@dataclass
class Sent:
    """One draw's gradients as a site sends them back to its input.

    Args:
        gains: ``Σ g·z`` of each window, ``[windows]``.
        back: ``Wᵀg``, ``[rows, in]``.
        sizes: ``‖x‖²/d``, ``[rows]``.
    """

    gains: np.ndarray
    back: torch.Tensor
    sizes: torch.Tensor

    @property
    def through(self) -> float:
        """``Σ‖Wᵀg‖²‖x‖²/d``."""
        return float((self.back.square().sum(1) * self.sizes).sum())

    @staticmethod
    def joined(several: Sequence[Sent]) -> Sent:
        """All that sites which read one input send back to it."""
        gains, back = several[0].gains, several[0].back
        for sent in several[1:]:
            gains, back = gains + sent.gains, back + sent.back
        return Sent(gains, back, several[0].sizes)


@dataclass
class Place:
    """A site in the engine, and the sums that its curvature follows from."""

    site: Site
    form: Linear | Lookup | Convolution
    x: str
    y: str
    device: str
    sums: Sums = field(default_factory=Sums)
    kept: dict[str, torch.Tensor] | None = None

    @property
    def weight(self) -> torch.Tensor:
        """The weight ``[out, in]``, read anew where those of all sites together are too many to keep."""
        found = None if self.kept is None else self.kept.get(self.site.name)
        if found is None:
            found = weight_matrix(self.site, device=self.device).contiguous()
            if self.kept is not None:
                self.kept[self.site.name] = found
        return found

    def see(self, x: torch.Tensor, units: int) -> None:
        """Add what the site reads."""
        self.sums.add("units", units)
        if isinstance(self.form, Lookup):
            self.sums.add("energy", x.numel())
            return
        weight = self.weight
        for rows in rows_read(self.form, x):
            self.sums.add("seen", float(rows.square().sum()))
            self.sums.add("energy", float((rows @ weight.T).square().sum()))

    def add(self, x: torch.Tensor, g: torch.Tensor, count: int) -> Sent | None:
        """Add the gradient at the output for one draw of ``count``; of a table nothing is sent on."""
        import torch

        if isinstance(self.form, Lookup):
            entries = self.site.shape[1 - self.site.axis_out]
            rows, g = x.reshape(-1) % entries, g.reshape(-1, g.shape[-1]).float()
            sums = torch.zeros(entries, g.shape[1], device=g.device).index_add(0, rows, g)
            self.sums.by_row.append(sums.square().sum(1).cpu())
            self.sums.add("together", float(sums.square().sum()))
            self.sums.add("apart", float(g.square().sum()))
            return None
        weight = self.weight
        pairs = [*zip(rows_read(self.form, x), rows_written(self.form, g), strict=True)]
        self._draw(torch.cat([rows for rows, _ in pairs]), torch.cat([grads for _, grads in pairs]), FELT_ROWS // count)
        gains, sent, sizes = [], [], []
        for rows, grads in pairs:
            size = rows.square().sum(1) / rows.shape[1]
            self.sums.add("together", _together(grads, rows))
            self.sums.add("apart", float((grads.square().sum(1) * size).sum()) * rows.shape[1])
            back = grads @ weight
            gains.append(float((back * rows).sum()))
            sent.append(back)
            sizes.append(size)
        found = Sent(np.array(gains), torch.cat(sent), torch.cat(sizes))
        self.sums.add("through", found.through)
        return found

    def _draw(self, rows: torch.Tensor, grads: torch.Tensor, count: int) -> None:
        """Keep some rows, each as often as its part of ``Σ‖g‖²‖x‖²``, and lighter for it."""
        import torch

        mass = (grads.square().sum(1) * rows.square().sum(1)).double()
        if not mass.sum() > 0:
            return
        share = mass / mass.sum()
        at = (torch.arange(count, device=rows.device, dtype=torch.float64) + 0.5) / count
        chosen = torch.searchsorted(share.cumsum(0), at).clamp_max(len(rows) - 1)
        weighed = grads[chosen] / (count * share[chosen]).sqrt().float()[:, None]
        self.sums.felt.append((rows[chosen].cpu(), weighed.cpu()))

    def curvature(self) -> Curvature:
        """The coefficients, from the sums over all windows and draws."""
        import torch

        energy, seen, together, apart = (self.sums.of(name) for name in ("energy", "seen", "together", "apart"))
        count = DRAWS * max(self.sums.of("units"), 1)
        if isinstance(self.form, Lookup):  # relative to the energy of the table, as errors of tables are
            table = self.weight
            spread = float(table.square().sum()) / table.numel()
            rows = self.sums.by_row
            shares = np.asarray(sum(rows[1:], rows[0])) / max(together, 1e-30) if rows else None
            return Curvature(0.5 * together / count * spread, 0.0, together / max(apart, 1e-30), shares=shares)
        weight = self.weight
        width = weight.shape[1]
        by_weight = len(weight) * seen / energy
        by_input = float(weight.square().sum()) * seen / width / energy
        inputs, grads = ([pair[i] for pair in self.sums.felt] for i in (0, 1))
        felt = Felt(torch.cat(inputs), torch.cat(grads) * (0.5 / count) ** 0.5) if inputs else None
        separate = self.sums.of("separate")
        agreement = self.sums.of("joined") / separate if separate > 0 else 1.0
        return Curvature(
            0.5 * together / count / by_weight, 0.5 * self.sums.of("through") / count / by_input * agreement,
            together / max(apart, 1e-30), 0.5 * self.sums.of("shrunk") / count, felt=felt, agreement=agreement,
        )  # fmt: skip


def place_of(site: Site, device: str) -> Place | None:
    if site.nested:
        return None
    try:
        form = read_site(site.node)
    except TargetError:
        return None
    if isinstance(form, Stack) or (isinstance(form, Convolution) and form.patches.groups > 1):
        return None
    x = name_of(form.indices if isinstance(form, Lookup) else form.x)
    return Place(site, form, x, name_of(site.node.outputs[0]), device)


def _together(g: torch.Tensor, x: torch.Tensor) -> float:
    """``‖Σ g xᵀ‖²`` of rows ``[rows, out]`` and ``[rows, in]``, by what is cheaper: the matrix, or products of rows."""
    rows, out, width = len(g), g.shape[1], x.shape[1]
    if rows * (out + width) < out * width:
        return float(((g @ g.T) * (x @ x.T)).sum())
    return float((g.T @ x).square().sum())
