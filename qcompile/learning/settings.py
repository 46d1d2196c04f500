"""The wish to learn, as ``--learn`` and recipes write it."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields

from qcompile.errors import InputError
from qcompile.words import options_given, spelled, split_words

__all__ = ["PARTS", "Learning", "Schedule", "learning_of"]

#: What can be learned, in the order in which it is, and what it is.
PARTS = {
    "transforms": "matrices of the freedoms and scales of norms, before weights are rounded",
    "codes": "codes within reach of those that rounding found, scales, biases and norms, for the whole model at once",
}


@dataclass(frozen=True)
class Schedule:
    """How long one part is learned, and how fast.

    Args:
        steps: gradients that are followed.
        minutes: wall time that it takes at most, the rate falling with it; 0 for any. Such exports differ.
        rate: the first step's size relative to the part's own; the last is near zero, by a cosine.
        batch: sequences of one gradient; 0 for as many as make about 2,048 rows, a tenth at most.
    """

    steps: int = 200
    minutes: float = 0.0
    rate: float = 1.0
    batch: int = 0


@dataclass(frozen=True)
class Learning:
    """The parts that are learned.

    Args:
        parts: schedules by the words of ``PARTS``.
    """

    parts: dict[str, Schedule] = field(default_factory=dict)

    def __str__(self) -> str:
        defaults = {f.name: f.default for f in fields(Schedule)}
        return ",".join(
            spelled(part, {name: value for name, value in vars(own).items() if value != defaults[name]})
            for part, own in self.parts.items()
        )


def learning_of(text: str) -> Learning:
    """The parts of a text such as ``transforms,codes{steps=400}``, ``all`` or ``minutes=5``, which is for all.

    Raises:
        InputError: if a word or an option is unknown, or a number makes no sense.
    """
    words = split_words(text if "{" in text or "=" not in text else f"all{{{text}}}")
    if not words:
        raise InputError(f"'{text}' says not what to learn; write all, transforms, codes{{steps=400}} or minutes=5")
    found: dict[str, Schedule] = {}
    known = {f.name: f.default for f in fields(Schedule) if f.default is not MISSING}
    for word, given in words:
        if word not in ("all", *PARTS):
            raise InputError(f"nothing to learn is called '{word}'; there are all, {', '.join(PARTS)}")
        schedule = Schedule(**options_given(f"--learn {word}", known, given))
        if schedule.steps < 1 or schedule.minutes < 0 or schedule.rate <= 0 or schedule.batch < 0:
            raise InputError(f"--learn {word} takes steps of 1 or more, a rate above 0, and no negative number")
        found |= dict.fromkeys(PARTS if word == "all" else [word], schedule)
    return Learning({part: found[part] for part in PARTS if part in found})
