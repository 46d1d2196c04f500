"""The ways to round a weight, by name: what each learns from, and what it falls back on where data does not bear it."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from qcompile.errors import InputError, unknown
from qcompile.notes import OF_EACH
from qcompile.rounding.defaults import LEAST_DAMPING, SHIFT
from qcompile.words import options_given, spelled, split_words

if TYPE_CHECKING:
    import torch

    from qcompile.formats import Format, Quantized, Scales
    from qcompile.rounding.moments import InputMoments

__all__ = ["METHODS", "TITLES", "Gptq", "Method", "Rtn", "Search", "method_of"]


@dataclass(frozen=True)
class Method:
    """Round to nearest; the others are made of it, and have options as fields.

    A method is written as its name, with options that differ from their defaults in braces: ``gptq{shift=1}``.
    """

    #: On command lines and in recipes.
    name: ClassVar[str] = "rtn"
    #: In which it is declined.
    title: ClassVar[str] = "rounding to nearest"
    #: Whether data can teach it anything.
    learns: ClassVar[bool] = False
    #: Whether it learns from the input that a site really gets, from those rounded before, and so in order.
    walks: ClassVar[bool] = False
    #: In comparisons, the names of ``learned`` and ``plain``.
    sides: ClassVar[tuple[str, str]] = "", "nearest"
    #: What becomes of a weight for which nothing is learned.
    otherwise: ClassVar[str] = "rounded to nearest"

    def __str__(self) -> str:
        changed = {f.name: value for f in fields(self) if (value := getattr(self, f.name)) != f.default}
        return spelled(self.name, changed)

    @property
    def least_damping(self) -> float | None:
        """The damping of second moments that needs no mention; ``None`` where none is damped."""
        return None

    def plain(self, weight: torch.Tensor, fmt: Format, tensor_scale: torch.Tensor | None = None) -> Quantized:
        """A weight ``[out, in]`` as it is rounded without data; a second-level scale may be given."""
        from qcompile.formats import quantize

        return quantize(weight, fmt, tensor_scale=tensor_scale)

    def learned(
        self, weight: torch.Tensor, fmt: Format, moments: InputMoments, tensor_scale: torch.Tensor | None = None
    ) -> Quantized:
        """The same by what is known of its input; a second-level scale may be given."""
        from qcompile.formats import quantize

        return quantize(weight, fmt, tensor_scale=tensor_scale)

    def with_scales(
        self, fmt: Format, moments: InputMoments | None, weight: torch.Tensor, scales: Scales, together: int
    ) -> Quantized:  # fmt: skip
        """A weight with given scales, by what is known of its input if that is given and the method takes it in.

        Args:
            together: the bound of two neighbouring codes, for methods that make up for it.
        """
        from qcompile.formats import quantize

        return quantize(weight, fmt, scales=scales)

    @property
    def judges(self) -> slice:
        """The held-out sequences that say whether what was learned is taken: those that it was not chosen by."""
        return slice(None)


class Rtn(Method):
    """Round to nearest, with scales by the format's rule."""


@dataclass(frozen=True)
class Search(Method):
    """Search each group's scale for the least squared error, weighted by the energy of the features.

    Args:
        reach: codes tried on either side of an 8-bit float scale, of which 8 double it; 0 is two below to six above.
        rounds: times that the least-squares scale of the codes is tried after these.
        macro: scales of the whole weight that are tried within an octave, in formats that store one.
    """

    reach: int = 0
    rounds: int = 0
    macro: int = 1
    name: ClassVar[str] = "search"
    title: ClassVar[str] = "weighted search"
    learns: ClassVar[bool] = True
    sides: ClassVar[tuple[str, str]] = "weighted search", "search"
    otherwise: ClassVar[str] = "rounded with scales that are best for the weight alone"

    def plain(self, weight: torch.Tensor, fmt: Format, tensor_scale: torch.Tensor | None = None) -> Quantized:
        """Scales for the weight alone."""
        return self._searched(weight, fmt, None, tensor_scale)

    def learned(
        self, weight: torch.Tensor, fmt: Format, moments: InputMoments, tensor_scale: torch.Tensor | None = None
    ) -> Quantized:
        """Scales for the features that count."""
        return self._searched(weight, fmt, moments.importance, tensor_scale)

    def _searched(
        self, weight: torch.Tensor, fmt: Format, importance: torch.Tensor | None, tensor_scale: torch.Tensor | None
    ) -> Quantized:
        from qcompile.formats import quantize, search_scales
        from qcompile.formats.search import total_error
        from qcompile.formats.tensor_scale import default_tensor_scale

        search = partial(search_scales, weight, fmt, weight=importance, rounds=self.rounds)
        if self.reach:
            search = partial(search, neighbours=[*range(1, self.reach + 1), *range(-1, -self.reach - 1, -1)])
        usual = default_tensor_scale(weight, fmt)
        if tensor_scale is not None or usual is None:
            return quantize(weight, fmt, scales=search(tensor_scale=tensor_scale))
        found = [search(tensor_scale=usual * 2 ** (k / self.macro)) for k in range(max(self.macro, 1))]
        best = min(found, key=lambda scales: total_error(weight, fmt, -1, scales, importance))
        return quantize(weight, fmt, scales=best)


class _ByMoment(Method):
    """Learn from the second moment of the input that a site really gets, damped."""

    sides: ClassVar[tuple[str, str]]
    learns: ClassVar[bool] = True
    walks: ClassVar[bool] = True
    damping: float

    @property
    def least_damping(self) -> float:
        """The damping that was asked for."""
        return self.damping


@dataclass(frozen=True)
class Gptq(_ByMoment):
    """Round columns in order, each making up for what those before it lost.

    Args:
        shift: how much of the way a weight is moved towards the one that makes of the quantized graph's input what the
            weight made of the exact one: 0 is GPTQ, 1 the whole least-squares estimate.
        damping: multiple of the mean of the second moment's diagonal that is added to it; few rows need more.
        tune: whether a tenth of it and five times it are tried as well, for the least error on every other sequence of
            those held out; the others judge.
        lean: the power with which features count in the search for scales that those before them say little of, as
            LeanQuant has it (its own is 4, and 1 lost least where we looked); with 0 each counts by its energy.
    """

    shift: float = SHIFT
    damping: float = LEAST_DAMPING
    tune: bool = False
    lean: float = 0.0
    name: ClassVar[str] = "gptq"
    title: ClassVar[str] = "GPTQ"
    sides: ClassVar[tuple[str, str]] = "gptq", "nearest"

    def learned(
        self, weight: torch.Tensor, fmt: Format, moments: InputMoments, tensor_scale: torch.Tensor | None = None
    ) -> Quantized:
        """By the second moment of the input."""
        several = [self.damping * factor for factor in ((0.1, 1.0, 5.0) if self.tune else (1.0,))]
        learn = partial(moments.learn, weight, fmt, tensor_scale, self.shift, lean=self.lean)
        found = [learn(damping=damping).quantized for damping in several]
        return found[0] if len(found) == 1 else min(found, key=lambda q: float(moments.errors(weight, q)[::2].sum()))

    def with_scales(
        self, fmt: Format, moments: InputMoments | None, weight: torch.Tensor, scales: Scales, together: int
    ) -> Quantized:  # fmt: skip
        """The same with given scales, within that bound of neighbours."""
        if moments is None:
            return super().with_scales(fmt, moments, weight, scales, together)
        return moments.learn(weight, fmt, None, self.shift, self.damping, scales=scales, together=together).quantized

    @property
    def judges(self) -> slice:
        """Every other sequence, if the rest has chosen a damping."""
        return slice(1, None, 2) if self.tune else slice(None)


@dataclass(frozen=True)
class Comq(_ByMoment):
    """Visit codes and scales in turn, each taking the best value that it can have, given the others.

    Args:
        sweeps: times that all are visited.
        shift: as for ``gptq``.
        damping: as for ``gptq``.
    """

    sweeps: int = 4
    shift: float = SHIFT
    damping: float = LEAST_DAMPING
    name: ClassVar[str] = "comq"
    title: ClassVar[str] = "COMQ"
    sides: ClassVar[tuple[str, str]] = "comq", "nearest"

    def learned(
        self, weight: torch.Tensor, fmt: Format, moments: InputMoments, tensor_scale: torch.Tensor | None = None
    ) -> Quantized:
        """By the second moment of the input."""
        from qcompile.rounding.comq import comq

        goal, moment = moments.goal(weight, self.shift, self.damping), moments.damped(self.damping)
        return comq(goal, moment, fmt, sweeps=self.sweeps, tensor_scale=tensor_scale)


METHODS: dict[str, type[Method]] = {method.name: method for method in (Gptq, Comq, Search, Rtn)}

#: The words in which they are declined where data does not bear them.
TITLES = frozenset(title + of for title in (m.title for m in METHODS.values() if m.learns) for of in ("", OF_EACH))


def method_of(text: str) -> Method:
    """The method that a word means, such as ``gptq{shift=1}``.

    Raises:
        InputError: if there is none of that name, or it takes no such option.
    """
    words = split_words(text)
    if words is None or len(words) != 1:
        raise InputError(f"'{text}' is no method, such as {', '.join(METHODS)} or gptq{{shift=1}}")
    ((name, given),) = words
    if name not in METHODS:
        raise InputError(unknown("method", name, METHODS))
    known = {field.name: field.default for field in fields(METHODS[name]) if field.default is not MISSING}
    return METHODS[name](**options_given(f"method '{name}'", known, given))
