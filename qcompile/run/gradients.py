"""Gradients of a graph of any size: section by section, from the last to the first, each run once more for them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from qcompile.run.executor import Hook, Section
from qcompile.run.stream import Stream

__all__ = ["gradients"]


def gradients(
    stream: Stream, given: Mapping[str, Any], watched: Collection[str], read: Collection[str],
    scores: Callable[[Mapping[str, Tensor]], Sequence[Tensor]],
) -> Iterator[tuple[dict[str, Tensor], Collection[str], list[dict[str, Tensor]]]]:  # fmt: skip
    """Values of a graph, and the gradients of some scores at others, section by section from the end.

    Args:
        stream: the graph; its engine offers hooks at all that is watched or read.
        given: inputs by name.
        watched: names of values at which gradients are wanted.
        read: names of values that are wanted beside, of the section in which they are read too.
        scores: numbers of the outputs by name, each with gradients of its own; if one has none, nothing is yielded.

    Yields:
        the values by name, which of those that are watched the section makes, and for each score the gradients by name,
        where it depends on them.
    """
    engine, last = stream.engine, len(stream.sections) - 1
    with stream.shelf() as shelf:
        variables = engine.arguments(given)
        if last:
            for index, _ in enumerate(stream.walk()):
                shelf.put(index, dict(variables))
                if index < last:
                    with torch.no_grad():
                        variables = stream.after(index, variables)
        else:
            shelf.put(0, variables)
        flows: list[dict[str, Tensor]] = []  # by score, gradients at the variables behind the section
        for place, section in enumerate(stream.walk(backwards=True)):
            step = _Step(stream, section, shelf.take(last - place), watched, read)
            goals = None
            if not place:
                goals = list(scores(engine.results({**step.before, **step.made})))
                if not all(goal.requires_grad for goal in goals):
                    return
                flows = [{} for _ in goals]
            found = [
                step.flow(flow, None if goals is None else goals[i], i + 1 < len(flows)) for i, flow in enumerate(flows)
            ]
            yield step.values(engine.variable, read), step.nudges.keys(), [own for _, own in found]
            flows = [flow for flow, _ in found]


class _Step:
    """One section, run for gradients at what is before it and at what is watched in it."""

    def __init__(
        self, stream: Stream, section: Section, variables: Mapping[str, Any], watched: Collection[str],
        read: Collection[str],
    ) -> None:  # fmt: skip
        self.before = {
            name: value.detach().requires_grad_() if _differentiable(value) else value
            for name, value in variables.items()
        }
        self.seen: dict[str, Tensor] = {}
        self.nudges: dict[str, Tensor] = {}
        hooks = {name: self._hook(name, name in watched, name in read) for name in section.hooked}
        self.made = stream.engine.step(section, self.before, hooks)
        self._leaves = {name: value for name, value in self.before.items() if _differentiable(value)}

    def _hook(self, name: str, watched: bool, read: bool) -> Hook:
        def hook(value: Tensor) -> Tensor:
            if watched:
                self.nudges[name] = torch.zeros_like(value, requires_grad=True)
                value = value + self.nudges[name]
            if read:
                self.seen[name] = value.detach()
            return value

        return hook

    def values(self, variable_of: Callable[[str], str], read: Collection[str]) -> dict[str, Tensor]:
        """Values that are read: those made here, and those from before."""
        from_before = {name: self.before[variable] for name in read if (variable := variable_of(name)) in self.before}
        return {name: value.detach() for name, value in from_before.items()} | self.seen

    def flow(
        self, behind: Mapping[str, Tensor], goal: Tensor | None, again: bool
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Gradients at the variables before, and at what is watched, of those behind, or of a score."""
        ends = [goal] if goal is not None else [self.made[name] for name in behind if name in self.made]
        start = None if goal is not None else [behind[name] for name in behind if name in self.made]
        wanted = {**self._leaves, **{f"watched {name}": nudge for name, nudge in self.nudges.items()}}
        pairs = [(end, None if start is None else start[i]) for i, end in enumerate(ends) if end.requires_grad]
        found: Sequence[Tensor | None] = [None] * len(wanted)
        if pairs and wanted:
            found = torch.autograd.grad(
                [end for end, _ in pairs], list(wanted.values()), None if start is None else [own for _, own in pairs],
                retain_graph=again, allow_unused=True,
            )  # fmt: skip
        by_name = {name: value for name, value in zip(wanted, found, strict=True) if value is not None}
        at_watched = {name: by_name[f"watched {name}"] for name in self.nudges if f"watched {name}" in by_name}
        before = {name: value for name, value in by_name.items() if name in self._leaves}
        for name, value in behind.items():
            if name not in self.made:  # it passed by
                before[name] = before[name] + value if name in before else value
        return before, at_watched


def _differentiable(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
