"""Wishes that a user has of single sites: which are left out, and the format and the transform of others."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from qcompile.analysis.named_sites import sites_of
from qcompile.analysis.patches import is_convolution
from qcompile.analysis.spaces import KEPT, Site
from qcompile.choice.branches import scheme_of, within
from qcompile.choice.splits import SPLIT, split_of
from qcompile.errors import InputError
from qcompile.targets.eligible import WEIGHT
from qcompile.targets.scheme import Scheme

if TYPE_CHECKING:
    from qcompile.analysis.siblings import Siblings
    from qcompile.notes import Decline
    from qcompile.targets.target import Target

__all__ = ["Wishes", "wishes_of"]


@dataclass(frozen=True)
class Wishes:
    """Wishes by the name of the site; the last pattern that fits a site decides.

    Args:
        left_out: why a site keeps its float weight.
        schemes: formats.
        kinds: ways to choose its transform, of ``choice.kinds.KINDS``.
        weights: sites whose input their target does not round, whatever their format says of it.
        separable: sites that may have a branch beside them, where schemes with one compete.
        said: the options as they were given, for the manifest.
    """

    left_out: Mapping[str, str] = field(default_factory=dict)
    schemes: Mapping[str, Scheme] = field(default_factory=dict)
    kinds: Mapping[str, str] = field(default_factory=dict)
    weights: Collection[str] = ()
    separable: Collection[str] = ()
    said: Mapping[str, list[str]] = field(default_factory=dict)

    def allowed(self, sites: Sequence[Site], decline: Decline) -> list[Site]:
        """The sites that are not left out; the others are declined, and so are wishes about any that is not here."""
        for site in sites:
            if site.name in self.left_out:
                decline(site.name, WEIGHT, self.left_out[site.name])
        allowed = [site for site in sites if site.name not in self.left_out]
        for name in [name for name in self.said if name not in {site.name for site in allowed}]:
            decline(name, f"what {' and '.join(self.said[name])} asks for", "its weight is not quantized")
        return allowed

    def decline_inputs(self, sites: Sequence[Site], schemes: Sequence[Scheme], decline: Decline) -> None:
        """Say of sites whose input is not rounded that it is not, where a scheme asks for it."""
        for site in sites:
            asked = [self.schemes[site.name]] if site.name in self.schemes else schemes
            if site.name in self.weights and any(scheme.activation is not None for scheme in asked):
                decline(site.name, "quantizing its input", "its target computes convolutions with float inputs")

    def scheme(self, site: Site, default: Scheme) -> Scheme:
        """The scheme of a site, ``default`` without a wish."""
        found = within(self.schemes.get(site.name, default), site, self.separable)
        return replace(found, activation=None) if site.name in self.weights else found

    def shared(self, group: Siblings, default: Scheme) -> Scheme:
        """The scheme by which a transform is chosen for siblings: the first that quantizes."""
        found = [self.scheme(site, default) for site in group.sites]
        return next((scheme for scheme in found if scheme.weight is not None), found[0])

    def kind(self, group: Siblings) -> str | None:
        """The way to choose the transform of siblings, which share one; ``None`` without a wish.

        Raises:
            InputError: if wishes of theirs differ.
        """
        found = {self.kinds[site.name]: site.name for site in group.sites if site.name in self.kinds}
        if len(found) > 1:
            said = " and ".join(f"'{name}' {kind}" for kind, name in found.items())
            raise InputError(f"--transform-for gives {said}, but both read '{group.name}' and share its transform")
        return next(iter(found), None)

    def kinds_of(self, groups: Iterable[Siblings]) -> dict[Siblings, str]:
        """The kinds of the groups that have wishes."""
        return {group: kind for group in groups if (kind := self.kind(group)) is not None}


def wishes_of(
    sites: Sequence[Site], target: Target, exclude: Sequence[str], format_for: Mapping[str, str],
    transform_for: Mapping[str, str],
) -> Wishes:  # fmt: skip
    """The wishes of a user about the sites of a graph, those that passes marked as kept or split off among them.

    Args:
        exclude: patterns of sites that stay float.
        format_for: formats by pattern.
        transform_for: ways to choose a transform by pattern.

    Raises:
        InputError: if a pattern means none of the sites.
        TargetError: if the target does not run a format.
    """
    said: dict[str, list[str]] = {}
    kept = {site.name: site.node.metadata_props[KEPT] for site in sites if KEPT in site.node.metadata_props}
    left_out = {name: f"kept by --keep '{pattern}'" for name, pattern in kept.items()}
    for pattern in exclude:
        reason = f"excluded by --exclude '{pattern}'"
        left_out = {site.name: reason for site in sites_of(pattern, sites, "--exclude")} | left_out
    beside = {site.name: site.node.metadata_props[SPLIT] for site in sites if SPLIT in site.node.metadata_props}
    said |= {name: [f"--split '{word}'"] for name, word in beside.items()}
    schemes = {name: split_of(word).format for name, word in beside.items()}
    schemes |= _last(format_for, sites, "--format-for", said)
    kinds = _last(transform_for, sites, "--transform-for", said)
    weights = {site.name for site in sites if target.convolutions == "weights" and is_convolution(site.node)}
    return Wishes(
        left_out, {name: scheme_of(target, text) for name, text in schemes.items()}, kinds, weights, said=said
    )


def _last(
    wanted: Mapping[str, str], sites: Sequence[Site], option: str, said: dict[str, list[str]]
) -> dict[str, str]:  # fmt: skip
    """By site, what the last pattern that fits it gives."""
    found: dict[str, tuple[str, str]] = {}
    for pattern, word in wanted.items():
        found |= {site.name: (pattern, word) for site in sites_of(pattern, sites, option)}
    for name, (pattern, word) in found.items():
        said.setdefault(name, []).append(f"{option} '{pattern}={word}'")
    return {name: word for name, (_, word) in found.items()}
