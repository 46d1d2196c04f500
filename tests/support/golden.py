"""Golden files of passes: cases of a graph and what a pass makes of it, both in ONNX's textual syntax.

    === title
    pass: name{option=value}      if it is to have options, or others in front of it
    graph; declared values that no operator makes are random constants
    --- becomes, or --- stays, or --- refused
    graph, or nothing, or the sentence
    --- plans
    operator: its scheme, one a line
    --- declined
    site: what was not done: why, one a line

Lines before the first case say what the pass does, and what it cannot refuse.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import changes
import numpy as np
import onnx_ir as ir

from qcompile.analysis.analyze import analyze
from qcompile.analysis.siblings import Siblings, siblings_of
from qcompile.analysis.spaces import Analysis
from qcompile.choice.placement import Placement
from qcompile.choice.scoring import probes_of
from qcompile.choice.splits import Branch, Columns, Flatten
from qcompile.choice.transforms import place
from qcompile.passes.index import parse_passes
from qcompile.passes.pipeline import Pass
from qcompile.passes.quantize import Quantize
from qcompile.passes.rotate import Rotate
from qcompile.passes.split_branches import SplitBranches
from qcompile.passes.split_columns import SplitColumns
from qcompile.passes.split_features import SplitFeatures
from qcompile.statistics.collected import Statistics
from qcompile.targets.scheme import Scheme

__all__ = ["FOLDER", "Case", "cases", "save"]

FOLDER = Path(__file__).parent.parent / "golden"

_SECTION = re.compile(r"^--- (\w+)\n", re.M)

#: Makes of a graph in the syntax of ``qcompile rotate`` the pass that places transforms of that kind.
_ROTATE = re.compile(r"rotate\{transforms=(\w+)\}")

#: Makes of a graph the pass that rounds every site to one scheme, without data.
_QUANTIZE = re.compile(r"quantize\{scheme=([\w/-]+),method=(\w+)\}")

#: Makes of a graph a pass that splits sites which read its inputs, whose first feature is the loudest by eight times.
_SPLIT = re.compile(r"split-(columns|features|branches)\{(\w+)=(\d+)\}")

_SPLITS = {
    "columns": (SplitColumns, Columns),
    "features": (SplitFeatures, Flatten),
    "branches": (SplitBranches, Branch),
}


@dataclass(frozen=True)
class Case:
    """One case of a golden file."""

    file: str
    title: str
    step: str
    graph: str
    sections: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.file}: {self.title}"

    def model(self) -> ir.Model:
        """The graph, its random constants drawn."""
        return changes.parse(self.graph)

    def make(self, model: ir.Model) -> Pass:
        """The pass, behind others if it is to have any; ``rotate`` and ``quantize`` are made for the graph."""
        quantize = _QUANTIZE.fullmatch(self.step)
        if quantize is not None:
            return _quantize(model, *quantize.groups())
        split = _SPLIT.fullmatch(self.step)
        if split is not None:
            return _split(model, *split.groups())
        found = _ROTATE.fullmatch(self.step)
        if found is None:
            return parse_passes(self.step)
        analysis = analyze(model)
        siblings = siblings_of(analysis.sites)
        return Rotate(analysis, tuple(siblings), _placement(analysis, siblings, found[1]))

    def again(self, model: ir.Model) -> Pass:
        """The pass alone for a second application; for ``rotate`` nothing is left to be placed."""
        if _ROTATE.fullmatch(self.step):
            return Rotate(analyze(model), (), Placement({}, {}))
        if _QUANTIZE.fullmatch(self.step) or _SPLIT.fullmatch(self.step):
            return self.make(model)
        return parse_passes(self.step).passes[-1]

    def text(self) -> str:
        """The case as it stands in its file."""
        step = "" if self.step == self.file else f"pass: {self.step}\n"
        parts = "".join(f"--- {name}\n{text}" for name, text in self.sections.items())
        return f"=== {self.title}\n{step}{self.graph}{parts}\n"


def _quantize(model: ir.Model, scheme: str, method: str) -> Quantize:
    sites = analyze(model).sites
    groups = [(own, None) for own in siblings_of(sites)]
    read = {site for own, _ in groups for site in own.sites}
    tables = [site for site in sites if site not in read]
    return Quantize(groups, tables, {site.name: Scheme.parse(scheme) for site in sites}, {}, method)


def _split(model: ir.Model, kind: str, word: str, number: str) -> Pass:
    made, how = _SPLITS[kind]
    groups = [own for own in siblings_of(analyze(model).sites) if own.value.is_graph_input()]
    statistics = {}
    for own in groups:
        loud = np.where(np.arange(own.width) == 0, 8, 1).astype(np.float32)
        statistics[own.name] = Statistics(np.diag(loud**2).astype(np.float64), loud[None], 1)
    scheme = [Scheme.parse("int4-g32")] if kind == "branches" else []
    return made(groups, statistics, *scheme, how(**{word: int(number)}))


def _placement(analysis: Analysis, siblings: Sequence[Siblings], kind: str) -> Placement:
    scheme = Scheme.parse("int4-g32")
    return place(analysis, {own: probes_of(own) for own in siblings}, lambda _: scheme, kind=kind)


def cases(path: Path) -> list[Case]:
    """The cases of a golden file."""
    _, *texts = re.split(r"^=== ", path.read_text(), flags=re.M)
    return [_read(path.stem, text) for text in texts]


def _read(name: str, text: str) -> Case:
    title, _, rest = text.partition("\n")
    step = name
    if rest.startswith("pass: "):
        line, _, rest = rest.partition("\n")
        step = line.removeprefix("pass: ")
    graph, *sections = _SECTION.split(rest.rstrip("\n") + "\n")
    return Case(name, title, step, graph, dict(zip(sections[::2], sections[1::2], strict=True)))


def save(case: Case, sections: dict[str, str]) -> None:
    """Write what a pass makes now into the file of a case."""
    path = FOLDER / f"{case.file}.txt"
    head = path.read_text().partition("=== ")[0]
    new = replace(case, sections=sections)
    found = [new if other.title == case.title else other for other in cases(path)]
    path.write_text((head + "".join(other.text() for other in found)).rstrip("\n") + "\n")
