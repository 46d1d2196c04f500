"""The choice against simpler ones, tried out on sequences that nothing was fitted on, before anything is rounded."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np

from qcompile.analysis.spaces import Analysis
from qcompile.choice.correction import Correction
from qcompile.choice.decision import Posed
from qcompile.choice.placement import Placement, total_transform
from qcompile.choice.question import rows_transform
from qcompile.choice.scoring import site_loss
from qcompile.choice.selection import Choice
from qcompile.choice.trial import Contest, Trial
from qcompile.errors import QCompileError
from qcompile.group.group import ALONE, Group
from qcompile.ir.tensors import EAGER_BYTES, total_bytes
from qcompile.notes import CONTEST, Decline
from qcompile.run.data import Data
from qcompile.statistics.evidence import errs_less
from qcompile.targets.scheme import Scheme

__all__ = ["contest"]

#: The choice, in what is said of a contest.
CHOSEN, PLAIN = "chosen", "chosen formats, no transforms"

#: How sure it must be that a simpler choice diverges less, before it is taken.
DOUBT = 0.75


def contest(
    analysis: Analysis, choice: Choice, data: Data, logits: Collection[str], device: str, decline: Decline,
    group: Group = ALONE,
) -> Choice:  # fmt: skip
    """The choice, or the simpler one that clearly diverges less: one format everywhere, or no transforms.

    Args:
        choice: where formats were assigned under budgets; ``choice.uniform`` are the formats that meet them alone.
        data: of which sequences are held out.
        logits: names of the outputs that are scores over one vocabulary.
        decline: told why it was not tried, and what was taken instead.
        group: the processes that share the sequences.
    """
    if choice.assignment is None or data.random:
        return choice
    if total_bytes(analysis.model) >= EAGER_BYTES:
        decline("*", CONTEST, "the model is too large for all that is tried to be kept beside it")
        return choice
    options = _options(choice)
    if len(options) < 2 or not data.held_out:
        if not data.held_out:
            decline("*", CONTEST, data.too_few)
        return choice
    try:
        errors = _tried(analysis, choice, options, data.unlearned, logits, device, group)
    except QCompileError as error:
        decline("*", CONTEST, str(error))
        return choice
    ours, kept = errors[CHOSEN], CHOSEN
    for name in sorted(errors, key=lambda name: float(errors[name].sum())):
        if name != CHOSEN and errs_less(errors[name], ours, DOUBT):
            kept = name
            break
    apart = {name: _apart(found, errors[kept]) for name, found in errors.items() if name != kept}
    means = {name: float(found.mean()) for name, found in errors.items()}
    predicted = {} if choice.posed is None else _predicted(choice, choice.posed, options)
    correction = Correction.fitted([(predicted[name], means[name]) for name in predicted])
    outcome = Contest(means, apart, kept, len(ours), predicted, correction)
    if kept != CHOSEN:
        said = f"on {len(ours)} sequences that nothing was fitted on, '{kept}' diverges less: "
        decline("*", CONTEST, said + f"{errors[kept].mean():.3g} < {ours.mean():.3g}")
    schemes, placement = options[kept]
    return replace(choice, schemes=dict(schemes), placement=placement, contest=outcome)


def _apart(found: np.ndarray, kept: np.ndarray) -> float:
    """The difference of two means in units of its standard error."""
    more = found - kept
    error = more.std(ddof=1) / np.sqrt(len(more)) if len(more) > 1 else 0.0
    return float(more.mean() / error) if error > 0 else 0.0


def _options(choice: Choice) -> dict[str, tuple[Mapping[str, Scheme], Placement]]:
    """All that is compared by name: schemes by site, and transforms."""
    found: dict[str, tuple[Mapping[str, Scheme], Placement]] = {CHOSEN: (choice.schemes, choice.placement)}
    if not choice.placement.plain:
        found[PLAIN] = (choice.schemes, Placement({}, {}))
    for name, schemes in choice.uniform.items():
        if schemes != choice.schemes:
            found[f"{name} everywhere"] = (schemes, choice.placement)
    return found


def _predicted(
    choice: Choice, posed: Posed, options: Mapping[str, tuple[Mapping[str, Scheme], Placement]]
) -> dict[str, float]:
    """The divergences that were predicted, by name, with weights rounded to nearest as they are when it is tried."""
    asked = posed.graph.asked
    probes = {item: posed.graph.online.probes[item].nearest for item in asked.schemes if not item.nested}
    found = {}
    for name, (schemes, placement) in options.items():
        transforms = {item: total_transform(posed.graph.analysis, item, placement) for item in probes}
        losses = [
            own.error([schemes[site.name] for site in item.sites], transforms[item]) for item, own in probes.items()
        ]
        for table in asked.tables:
            turned = rows_transform(posed.graph.analysis, table.site, placement.offline)
            losses.append(site_loss(table.probe, schemes[table.site.name], turned))
        found[name] = math.fsum(losses)
    return found


def _tried(
    analysis: Analysis, choice: Choice, options: Mapping[str, tuple[Mapping[str, Scheme], Placement]], data: Data,
    logits: Collection[str], device: str, group: Group,
) -> dict[str, np.ndarray]:  # fmt: skip
    """The divergence on each batch, by name."""
    trial = Trial(analysis.model, choice.siblings, choice.tables, data, logits, device, group)
    found = {}
    for name, (schemes, placement) in options.items():
        transforms = {group.name: total_transform(analysis, group, placement) for group in choice.siblings}
        found[name] = trial.divergences(schemes, transforms)
    return found
