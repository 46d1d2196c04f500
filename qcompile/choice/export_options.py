"""The options of an export, and the check of their words before any work starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from qcompile.choice.branches import scheme_of
from qcompile.choice.kinds import KINDS
from qcompile.choice.splits import Auto, split_of
from qcompile.errors import InputError, unknown
from qcompile.group.group import ALONE, Group
from qcompile.learning.settings import learning_of
from qcompile.prices.profile_files import SHIPPED, profile_of
from qcompile.rounding.methods import method_of
from qcompile.run.memory_budget import Memory
from qcompile.run.reading import Reading
from qcompile.run.sources import DataLike
from qcompile.statistics.measures import check_measure
from qcompile.targets.scheme import Scheme
from qcompile.targets.target import Target

__all__ = ["CACHE_BUDGET", "UNITS", "Options", "check_options"]

#: The unit of a budget of caches.
CACHE_BUDGET = "cache"

#: What a budget may bound.
UNITS = {
    "bits": "mean bits of the codes of sites that are not left out, scales not counted",
    "bytes": "codes and scales of the same sites",
    "latency": "milliseconds of a run, predicted; without a profile, those in which the weights are read",
    CACHE_BUDGET: "bytes that one more token takes in all caches that are quantized",
    "bops": "mean bit operations of a product, of a row of every site: bits of the weight times bits of the input",
}

_UNCALIBRATED = "'{scheme}' has a static scale, which must be calibrated: give data with --calibration"


@dataclass(frozen=True)
class Options:
    """The wishes that a user may have of an export.

    Args:
        target: name of the target.
        budget: upper bounds by unit: ``bits`` (mean element bits per weight, without scales), ``bytes`` (stored),
            ``latency`` (milliseconds of a run, see ``profile`` and ``shape``).
        calibration: data in a form of ``run.sources``; without it random inputs.
        formats: names of the schemes to choose among; the target's default without them.
        transforms: one of ``kinds.KINDS``.
        method: as ``rounding.methods.method_of`` reads it.
        seed: of everything random.
        device: where torch computes: ``cpu`` or ``cuda``.
        evaluation: data to measure the loss on, in the same forms.
        tvm_target: another machine to compile for, as TVM describes machines.
        latency: whether the artifact and its source are timed.
        effort: whether the manifest says seconds by step and peaks of memory, which no two exports share.
        exclude: patterns of sites and modules that stay float.
        keep: patterns of those that stay float bit for bit: nothing folds into their weights either.
        format_for: schemes by pattern; the last that fits a site decides.
        transform_for: one of ``kinds.KINDS`` by pattern, likewise.
        reading: how data that are texts or images are read.
        memory: the bytes that activations may take.
        work: a folder for what another export may need again; no result depends on it.
        recipe: the name or the file of the recipe that some of the others come from.
        split: ways to split weights, as ``splits.split_of`` reads them, in order.
        sensitivity: one of ``measures.MEASURES``, where formats are assigned, or transforms chosen by data.
        group: the processes that share the work; no result depends on it.
        cache_format: how caches are stored, as ``Target.cache_formats`` reads it; ``float`` for as they are, or for
            ``auto`` if there is a budget of theirs.
        form: one of the target's forms, such as ``genai``.
        profile: what computing costs: ``shipped`` with the target, of this ``machine``, or the file of a profile.
        shape: sizes of open dimensions of the inputs, by name, for which times are predicted; by default those of the
            first batch of the data.
        learn: what is learned along gradients, as ``learning.settings.learning_of`` reads it; ``None`` for nothing.
    """

    target: str
    budget: Mapping[str, float] = field(default_factory=dict)
    calibration: DataLike | None = None
    formats: Sequence[str] = ()
    transforms: str = "auto"
    method: str = "gptq"
    seed: int = 0
    device: str = "cpu"
    evaluation: DataLike | None = None
    tvm_target: str | None = None
    latency: bool = False
    effort: bool = False
    exclude: Sequence[str] = ()
    keep: Sequence[str] = ()
    format_for: Mapping[str, str] = field(default_factory=dict)
    transform_for: Mapping[str, str] = field(default_factory=dict)
    reading: Reading = field(default_factory=Reading)
    memory: Memory = field(default_factory=Memory)
    work: Path | None = None
    recipe: str | None = None
    split: Sequence[str] = ()
    sensitivity: str = "errors"
    group: Group = ALONE
    cache_format: str = "float"
    form: str = "plain"
    learn: str | None = None
    profile: str = SHIPPED
    shape: Mapping[str, int] = field(default_factory=dict)

    @property
    def weight_budget(self) -> dict[str, float]:
        """The budgets of weights; caches share none of them, so that both are decided apart."""
        return {unit: bound for unit, bound in self.budget.items() if unit != CACHE_BUDGET}

    @property
    def cache_words(self) -> str:
        """The formats that caches may have."""
        return "auto" if CACHE_BUDGET in self.budget and self.cache_format == "float" else self.cache_format


def check_options(options: Options, target: Target, schemes: Sequence[Scheme]) -> None:
    """Refuse what cannot be done before any work starts.

    Raises:
        InputError: if a word is unknown, or a budget is.
    """
    words = [("transforms", word, KINDS) for word in (options.transforms, *options.transform_for.values())]
    method_of(options.method)
    check_measure(options.sensitivity)
    if options.learn is not None:
        learning_of(options.learn)
    for what, word, known in words:
        if word not in known:
            raise InputError(unknown(what, word, known))
    if options.device == "cuda" and not _has_cuda():
        raise InputError("torch finds no CUDA device here: use --device cpu")
    target.cache_formats(options.cache_words)
    if options.cache_words == "auto" and CACHE_BUDGET not in options.budget:
        raise InputError("cache format 'auto' needs a budget of bytes for each token: --budget cache=…")
    profile_of(target, options.profile)
    for scheme in schemes if target.form in target.constant_forms else ():
        if scheme.activation is not None and not scheme.static:
            named = f"'{scheme.activation.name}' has those of each row as it comes"
            raise InputError(f"form '{target.form}' holds constant scales, and {named}: take one such as int8-static")
    for unit, bound in options.budget.items():
        if unit not in UNITS:
            raise InputError(f"unknown budget '{unit}'; there are {', '.join(f'{u}= ({m})' for u, m in UNITS.items())}")
        if unit == "latency" and target.bandwidth is None:
            raise InputError(f"target '{target.name}' has no estimate of time: give a budget of bits or bytes")
        if bound <= 0:
            raise InputError(f"a budget of {unit}={bound:g} leaves nothing")
    for text in (*options.format_for.values(), *(fmt for word in options.split if (fmt := split_of(word).format))):
        scheme_of(target, text)
    if options.split and target.modules:
        raise InputError(f"target '{target.name}' writes modules as they are: --split would add products to them")
    if not options.weight_budget and any(isinstance(split_of(word), Auto) for word in options.split):
        raise InputError("split 'auto' needs a budget: what is computed apart always stores more")
    if options.calibration is None:
        texts = (*options.format_for.values(), target.edge)
        for scheme in (*schemes, *(scheme_of(target, text) for text in texts)):
            if scheme.static:
                raise InputError(_UNCALIBRATED.format(scheme=scheme.name))
    least = min(scheme.bits for scheme in schemes)
    if options.budget.get("bits", least) < least:
        raise InputError(f"a budget of {options.budget['bits']:g} bits is below the smallest format, {least:g} bits")


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()
