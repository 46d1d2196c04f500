"""Breaks the rules one call at a time and sees whether the cases notice.

Each call in ``qcompile/analysis/rules`` that constrains, joins or freezes axes is left out in turn, or leaves the next
larger group; each operator's rule is replaced by one that passes every axis on. A mutant is killed when a case in
``tests/support/*_cases.py`` no longer has the freedom that it states, or loses its output under members of what is
claimed. What survives is printed, but for the calls that ``EQUIVALENT`` names with the reason.

    PYTHONPATH=.:tests/support python tests/mutate_rules.py [FILE ...]
"""

from __future__ import annotations

import ast
import contextlib
import io
import logging
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import qcompile.analysis.rules as rules
from qcompile.analysis import spaces
from qcompile.analysis.analyze import analyze
from qcompile.analysis.axes import Axes, Ref
from qcompile.analysis.spaces import Analysis
from qcompile.transforms.freedom import Freedom

FOLDER = Path(rules.__file__).parent

#: What survives in the cases alone is shown to these tests.
ELSEWHERE = {
    "boundaries.py": ["tests/analysis/test_boundaries.py"],
    "control_flow.py": ["tests/analysis/rules/test_control_flow.py"],
    "convolution.py": ["tests/passes/test_canonicalize.py"],
    "fused.py": ["tests/analysis/rules/test_norms.py"],
    "normalization.py": ["tests/analysis/rules/test_norms.py"],
    "state_space.py": ["tests/analysis/rules/test_state_space.py"],
}

#: Parts of a mutant's name: why it changes nothing.
EQUIVALENT = {
    "looks up each element": "the axes of integers are permuted at most, wherever they come from",
    "picks for each element": "as above",
    'constrain(ref, Freedom.PERMUTATION, f"{label(node)} rounds each element")': "what reads the integers says it",
    "indexing.py:142": "the axes of integers are permuted at most",
    "counts each element": "as above",
    "decides by it": "a condition has no axes",
    "counts by it": "nor has a count of steps",
    "('', 'Range')": "a range has no axis that could change, nor have the scalars that it reads",
    "('', 'Size')": "a scalar has no axes",
    "('', 'SequenceLength')": "as above",
    "('', 'Shape') passes": "results in the cases state their sizes: nothing is learned from the shape",
    "repeats for {len(refs)} axes": "no such graph runs",
}

#: Methods whose calls are mutated, by the class that has them.
METHODS = {"constrain": Axes, "unify": Axes, "freeze": Analysis, "opaque": Analysis}

WIDER = {
    Freedom.NONE: Freedom.PERMUTATION, Freedom.PERMUTATION: Freedom.MONOMIAL, Freedom.SIGNS: Freedom.SIGNED_PERMUTATION,
    Freedom.DIAGONAL: Freedom.MONOMIAL, Freedom.SIGNED_PERMUTATION: Freedom.MONOMIAL,
    Freedom.POSITIVE_MONOMIAL: Freedom.MONOMIAL, Freedom.MONOMIAL: Freedom.GENERAL,
    Freedom.ORTHOGONAL_ONES: Freedom.ORTHOGONAL, Freedom.ORTHOGONAL: Freedom.GENERAL,
}  # fmt: skip

Call = tuple[str, int]  # file and line


def calls() -> dict[Call, str]:
    """Every call of those methods in the rules, as written."""
    found = {}
    for path in sorted(FOLDER.glob("*.py")):
        text = path.read_text()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in METHODS:
                found[path.name, node.lineno] = " ".join(ast.get_source_segment(text, node).split())
    return found


def _caller() -> Call:
    frame = sys._getframe(2)
    return Path(frame.f_code.co_filename).name, frame.f_lineno


@contextmanager
def watching(change: Callable[[str, Call, tuple], tuple | None]) -> Iterator[None]:
    """Pass the arguments of every such call from the rules through ``change``; ``None`` leaves the call out."""
    originals = {name: getattr(owner, name) for name, owner in METHODS.items()}

    def wrap(name: str) -> Callable:
        def method(self, *args, **options):
            call = _caller()
            changed = change(name, call, args) if call in CALLS else args
            return None if changed is None else originals[name](self, *changed, **options)

        return method

    patches = [patch.object(owner, name, wrap(name)) for name, owner in METHODS.items()]
    for item in patches:
        item.start()
    try:
        yield
    finally:
        for item in patches:
            item.stop()


CALLS = calls()


class Suite:
    """The cases, with the calls that each of them makes."""

    def __init__(self) -> None:
        from cases import build
        from rule_tables import CASES

        self.cases = {case.name: case for case in CASES}
        self.models = {name: build(case) for name, case in self.cases.items()}
        self.users: dict[Call, set[str]] = defaultdict(set)
        self.rules: dict[tuple[str, str], list[str]] = defaultdict(list)
        for name, model in self.models.items():
            with watching(lambda _, call, args, name=name: self.users[call].add(name) or args):
                analyze(model)
            for node in model.graph:
                self.rules[node.domain, node.op_type].append(name)

    def kills(self, names: list[str]) -> bool:
        """Whether one of the cases fails."""
        names = sorted(names, key=lambda name: len(self.models[name].graph))
        return any(map(self.misread, names)) or any(map(self.unsound, names[:12]))

    def misread(self, name: str) -> bool:
        """Whether the freedom is not what the case states."""
        from cases import expression

        try:
            analysis = analyze(self.models[name])
        except Exception:  # a broken rule may raise anything
            return True
        refs = next(refs for value, refs in analysis.refs_of.items() if value.name == "h")
        return " ".join(expression(analysis, ref) for ref in refs) != self.cases[name].freedom

    def unsound(self, name: str) -> bool:
        """Whether members of what is claimed change the output."""
        from changes import TOLERANCE, basis_change, claimed

        for seed in range(2):
            try:
                error, dtype = basis_change(self.models[name], lambda found, seed=seed: claimed(found, seed), seed)
            except Exception:  # as above
                return True
            if error >= TOLERANCE[dtype]:
                return True
        return False


def mutants(suite: Suite, files: set[str]) -> Iterator[tuple[str, bool]]:
    """Each mutant in words, with whether it was killed."""
    for call, text in CALLS.items():
        if files and call[0] not in files:
            continue
        where = f"{call[0]}:{call[1]}"
        yield f"{where} without {text}", _killed(suite, call, lambda name, args: None)
        if ".constrain(" in text:
            yield f"{where} wider {text}", _killed(suite, call, _wider)


def _killed(suite: Suite, call: Call, change: Callable[[str, tuple], tuple | None]) -> bool:
    with watching(lambda name, at, args: change(name, args) if at == call else args):
        return suite.kills(list(suite.users[call])) or _fails(ELSEWHERE.get(call[0], []))


def _fails(tests: list[str]) -> bool:
    """Whether tests fail, in this process so that they see the mutant."""
    import pytest

    with contextlib.redirect_stdout(io.StringIO()):
        return bool(tests) and pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests]) != 0


def _wider(name: str, args: tuple) -> tuple:
    return (args[0], WIDER.get(args[1], Freedom.GENERAL), *args[2:])


def replaced(suite: Suite) -> Iterator[tuple[str, bool]]:
    """Each operator's rule replaced by one that passes all axes on as they are, and by none at all."""

    def pass_on(analysis: Analysis, node) -> None:
        for output in node.outputs:
            size = None if output.shape is None else [d if isinstance(d, int) else None for d in output.shape]
            refs: list[Ref] | None = size and [analysis.axes.fresh(dim) for dim in size]
            analysis.set(output, refs)

    for key in sorted(spaces.RULES):
        names = suite.rules.get(key, [])
        elsewhere = ELSEWHERE.get(Path(sys.modules[spaces.RULES[key].__module__].__file__).name, [])
        with patch.dict(spaces.RULES, {key: pass_on}):
            yield f"{key} passes everything on", suite.kills(names) or _fails(elsewhere)
        if any(set(suite.cases[name].freedom) - set("N- *|") for name in names):
            with patch.dict(spaces.RULES):
                del spaces.RULES[key]
                yield f"{key} without a rule", suite.kills(names)


def main(files: set[str]) -> int:
    """Print what survives; the number of survivors is the exit status."""
    logging.disable(logging.WARNING)
    suite, count, survivors = Suite(), 0, []
    for source in (mutants(suite, files), replaced(suite)) if not files else (mutants(suite, files),):
        for name, killed in source:
            count += 1
            if not killed and not any(part in name for part in EQUIVALENT):
                survivors.append(name)
                print("survives:", name, flush=True)
    print(f"{count} mutants, {len(survivors)} survive, {len(EQUIVALENT)} calls are known to be equivalent")
    return len(survivors)


if __name__ == "__main__":
    sys.exit(min(main(set(sys.argv[1:])), 100))
