"""Every rule: the freedom that it leaves is what the mathematics says, sound, and not larger than it may be.

``tests/support/*_cases.py`` hold the operators with the freedom of each axis that they read. Soundness is checked by
random members of all spaces' freedoms at once, tightness by members of every kind of matrix that the freedom lacks:
each must change the output. Where a rule finds less than the mathematics allows, the case says so, and the members of
the larger group are seen to keep the output.
"""

from __future__ import annotations

from functools import cache

import pytest
from cases import CODES, Case, build, expression
from changes import TOLERANCE, evaluate_exactly, member
from rule_tables import CASES

from qcompile.analysis import folding
from qcompile.analysis.analyze import analyze
from qcompile.analysis.axes import Mode, Ref
from qcompile.analysis.spaces import Analysis
from qcompile.errors import InputError
from qcompile.ir.widen import to_double
from qcompile.run.compare import compare
from qcompile.run.data import example_inputs
from qcompile.transforms.freedom import Freedom

#: One kind of matrix each; every freedom is a union of such kinds.
KINDS = [Freedom.PERMUTATION, Freedom.SIGNS, Freedom.POSITIVE_DIAGONAL, Freedom.ORTHOGONAL_ONES, Freedom.ORTHOGONAL,
         Freedom.GENERAL]  # fmt: skip

BY_NAME = {case.name: case for case in CASES}
assert len(BY_NAME) == len(CASES), "two cases have one name"


@cache
def model_of(name: str):
    return build(BY_NAME[name])


def axes_of(analysis: Analysis) -> list[Ref]:
    return next(refs for value, refs in analysis.refs_of.items() if value.name == "h")


@cache
def before_of(name: str, seed: int):
    inputs = example_inputs(model_of(name), seed=seed)
    return inputs, *evaluate_exactly(to_double(model_of(name)), inputs)


@pytest.mark.parametrize("name", BY_NAME)
def test_freedom_is_what_the_mathematics_says(name):
    analysis = analyze(model_of(name))
    assert " ".join(expression(analysis, ref) for ref in axes_of(analysis)) == BY_NAME[name].freedom


@pytest.mark.parametrize("name", BY_NAME)
def test_members_of_the_freedom_keep_the_output(check_sound, name):
    for seed in range(3):
        check_sound(model_of(name), seed)


def leaves(analysis: Analysis, axis: int) -> list[Ref]:
    return [leaf for leaf in analysis.axes.leaves(axes_of(analysis)[axis]) if leaf.node.size != 1]


def groups(case: Case, axis: int) -> list[Freedom]:
    """For each leaf of an axis, the group that its operators commute with, whether or not the rule finds it."""
    found, loose = case.freedom.split()[axis], case.loose.split()
    codes = loose[axis] if loose and loose[axis] != "-" else found
    return [CODES[code] for code in codes if code in CODES]


def effect(monkeypatch, name: str, axis: int, leaf: int, group: Freedom, seed: int) -> tuple[float, float]:
    """The change by a member of a group on one leaf of one axis, and what counts as none."""
    permutation_part = folding.permutation_part

    def part(transform):
        try:
            return permutation_part(transform)
        except InputError:
            return None  # no matrix but a monomial one has such a part: what would need it stays

    def choose(analysis: Analysis):
        node = leaves(analysis, axis)[leaf].node
        return {node: member(group, node.size, seed)}

    monkeypatch.setattr(folding, "permutation_part", part)
    wide = to_double(model_of(name))
    inputs, before, dtype = before_of(name, seed)
    analysis = analyze(wide)
    folding.fold(analysis, choose(analysis))
    return compare(before, evaluate_exactly(wide, inputs)[0])[0], TOLERANCE[dtype]


def each_leaf(name: str):
    """(axis, leaf, its group); leaves that follow another node's permutation have no transform of their own."""
    analysis, case = analyze(model_of(name)), BY_NAME[name]
    for axis in range(len(case.shape.split())):
        for index, (leaf, group) in enumerate(zip(leaves(analysis, axis), groups(case, axis))):
            if leaf.mode is not Mode.PLAIN:
                yield axis, index, leaf.node.size, group


@pytest.mark.parametrize("name", BY_NAME)
def test_members_of_any_other_kind_change_the_output(monkeypatch, name):
    for axis, leaf, size, group in each_leaf(name):
        for kind in KINDS:
            if kind in group or (size == 2 and kind == Freedom.ORTHOGONAL_ONES):  # for two, a permutation
                continue
            changed = (effect(monkeypatch, name, axis, leaf, kind, seed)[0] > 1e-3 for seed in range(5, 9))
            assert any(changed), f"a {kind.label} matrix on axis {axis}, leaf {leaf} changes nothing"


@pytest.mark.parametrize("name", [name for name in BY_NAME if BY_NAME[name].loose])
def test_what_a_rule_does_not_find_does_hold(monkeypatch, name):
    wider = [item for item in each_leaf(name) if BY_NAME[name].loose.split()[item[0]] != "-"]
    assert wider
    for axis, leaf, _, group in wider:
        change, tolerance = effect(monkeypatch, name, axis, leaf, group, 3)
        assert change < tolerance
