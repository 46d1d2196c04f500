"""The target: data that each backend declares in its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from qcompile.errors import TargetError, nearest
from qcompile.formats.cache_format import CacheFormat
from qcompile.formats.cache_words import AUTO_CACHES, parse_cache_formats
from qcompile.targets.scheme import Scheme

__all__ = ["Target"]


@dataclass(frozen=True)
class Target:
    """A destination of exports.

    Args:
        name: as on the command line.
        summary: one line for ``qcompile targets``.
        backends: the folders under ``backends`` that lower to it. The first makes the artifact; further ones add their
            files to the same folder. If the extra of one is missing, the manifest says so.
        schemes: names of the schemes that it can run. A user who names a weight format alone, or the beginning of one
            (``int4``), gets the default if that fits, else the first that does. ``("*",)`` means every format.
        default: the scheme of sites when no formats are asked for.
        edge: the scheme of sites at the edges of the model: embedding tables, and sites that write an output.
        plain: the scheme of the yardstick, rounding to nearest without transforms; ``default`` if none is named.
        transform_price: the gain in error that an online transform must bring, per fraction of its sites' arithmetic
            that it costs: 1 if it fuses with the quantization of activations, more if it is a pass of its own over
            memory.
        aliases: other names.
        runs_here: whether an artifact runs on any machine at a useful speed; otherwise the reference interpreter runs
            for it what the engine cannot.
        emulated: whether its formats are emulated here, so that the time of an artifact says nothing of its hardware.
        profile: the name of the shipped profile that says what computing costs; ``None`` where none was measured.
        runs_in: the packages whose versions its times depend on.
        bandwidth: bytes of weights read in a second, an estimate for budgets of latency; ``None`` without one.
        stacks: whether it computes sites whose weight is a stack of matrices, such as batched or looked-up experts:
            ``"none"``, ``"matrices"`` (those that are a product for each matrix, see ``stacks.Experts``), ``"all"``.
        convolutions: what it computes of convolutions that are more than a product with a matrix at each place:
            ``"none"``, ``"weights"`` (with weights in codes and inputs in float, the products at each place too),
            ``"all"`` (with both in codes).
        bodies: whether it computes sites in the bodies of If, Loop and Scan.
        ties: whether an embedding table and a head lie in memory alike, so that those that are equal are stored once.
        modules: whether it writes parameters back to the modules that they came from: passes that add or part
            operators are left out then, weights of ``torch.nn.Linear`` alone are quantized, and siblings share a tensor
            scale.
        online: the transforms that may stay in the graph: any; those with one matrix for all blocks (``"shared"``);
            these only where a user names a kind (``"asked"``): common readers of the artifact leave them out; none.
        channels: whether they may in front of convolutions, between transposes.
        static: which values have static ranges where a scheme has one: those that sites read and convolutions hand on
            (``"sites"``), or all.
        operators: the operators that it computes of quantized values, where it has no floats to compute others in.
        neighbours: the most that two 8-bit codes of a weight that are neighbours and have one sign are together, where
            inputs are bytes too: x86 without VNNI adds such products by twos, in 16 bits. ``None`` for any.
        caches: the scales of caches where only their bits are asked for, ``token`` or ``channel``; ``None`` for a
            target that leaves caches as they are.
        fused_caches: whether it has an operator that computes attention on packed caches.
        forms: the forms in which its artifacts can be written, the usual first.
        form: the one of these that was asked for.
        constant_forms: those that hold no scales but constants: inputs have static ranges in them, or stay as they are.
        in_forms: by form, the fields above that differ in it.
        tables: whether it computes embedding tables.
        refusals: why it cannot run schemes that one may look for, by the beginning of their names.
        oldest: the version of the standard operators that schemes need, by the beginning of their names.
        options: constants that the backend's lowering reads.
    """

    name: str
    summary: str
    backends: tuple[str, ...]
    schemes: tuple[str, ...]
    default: str
    edge: str = "float"
    plain: str | None = None
    transform_price: float = 1.0
    aliases: tuple[str, ...] = ()
    runs_here: bool = True
    emulated: bool = False
    profile: str | None = None
    runs_in: tuple[str, ...] = ()
    bandwidth: float | None = None
    stacks: Literal["none", "matrices", "all"] = "none"
    convolutions: Literal["none", "weights", "all"] = "none"
    bodies: bool = False
    ties: bool = False
    modules: bool = False
    online: Literal["any", "shared", "asked", "none"] = "any"
    channels: bool = False
    static: Literal["sites", "all"] = "sites"
    operators: frozenset[str] | None = None
    neighbours: int | None = None
    caches: str | None = None
    fused_caches: bool = False
    forms: tuple[str, ...] = ("plain",)
    form: str = "plain"
    constant_forms: tuple[str, ...] = ()
    in_forms: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tables: bool = True
    refusals: Mapping[str, str] = field(default_factory=dict)
    oldest: Mapping[str, int] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that the data fit each other.

        Raises:
            TargetError: if it has no backend, or if a scheme that it falls back on is none that it runs.
            InputError: if a scheme has a format that there is not.
        """
        if not self.backends:
            raise TargetError(f"target '{self.name}' names no backend")
        for name in self.schemes:
            if name != "*" and Scheme.parse(name).name != name:
                raise TargetError(f"target '{self.name}': scheme '{name}' is called '{Scheme.parse(name).name}'")
        for name in (self.default, self.edge, self.plain or self.default):
            if self.scheme(name).name != name:
                raise TargetError(f"target '{self.name}' falls back on '{name}', which is none of its schemes")

    def scheme(self, text: str) -> Scheme:
        """The scheme that a name means on this target: its own variant of a format, ``int4-g32`` for ``int4``.

        Raises:
            TargetError: if the target cannot run it.
            InputError: if there is no such format.
        """
        if text == "float" or text in self.schemes:
            return Scheme.parse(text)
        for name in self.schemes:
            if name.partition("/")[0] == text:
                return Scheme.parse(name)
        for name in (self.default, self.edge, *self.schemes):
            if name.startswith(f"{text}-"):
                return Scheme.parse(name)
        if "*" in self.schemes:
            return Scheme.parse(text)
        near = nearest(text, self.schemes)
        said = f" (the nearest: {', '.join(near)})" if near else ""
        why = next((f": {why}" for start, why in self.refusals.items() if text.startswith(start)), said)
        within = "" if self.form == "plain" else f" in form '{self.form}'"
        raise TargetError(
            f"target '{self.name}'{within} cannot run format '{text}'{why}; it runs {', '.join(self.schemes)}"
        )

    def version_for(self, scheme: Scheme) -> int:
        """The version of the standard operators that a scheme needs in its artifacts; 0 where any will do."""
        return max((version for start, version in self.oldest.items() if scheme.name.startswith(start)), default=0)

    def cache_formats(self, words: str) -> list[CacheFormat]:
        """The formats of caches that names mean on this target; none for ``float``.

        Args:
            words: with commas between them; ``auto`` for all that a budget is best met with.

        Raises:
            TargetError: if the target leaves caches as they are.
            InputError: if there is no such format.
        """
        if words == "float":
            return []
        if self.caches is None:
            raise TargetError(f"target '{self.name}' cannot quantize caches: take cpu-int4, cpu-int8 or reference")
        return parse_cache_formats(",".join(AUTO_CACHES) if words == "auto" else words, self.caches)

    def in_form(self, form: str) -> Target:
        """The target that writes another form of its artifacts.

        Raises:
            TargetError: if it has no such form.
        """
        if form not in self.forms:
            raise TargetError(f"target '{self.name}' has no form '{form}': it writes {', '.join(self.forms)}")
        return replace(self, form=form, **self.in_forms.get(form, {}))

    def beside(self, along: Sequence[Path]) -> Target:
        """The target for an artifact that takes those files along, which forms may read settings from."""
        return replace(self, options={**self.options, "along": along}) if self.form != "plain" else self

    def on_machine(self, description: str) -> Target:
        """The target for another machine, which its backend reads from ``options["machine"]``.

        Raises:
            TargetError: if the backend compiles for no machine in particular.
        """
        if "machine" not in self.options:
            raise TargetError(f"target '{self.name}' is not compiled by TVM: --tvm-target means nothing for it")
        return replace(self, runs_here=False, options={**self.options, "machine": description})
