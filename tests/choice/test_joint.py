"""One decision over spaces and units: against brute force, against minimum cuts, in any order, within budgets."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.choice.assignment import Option
from qcompile.choice.cuts import minimum_cut
from qcompile.choice.joint import Joint, Unit, Wall
from qcompile.choice.solving import decide
from qcompile.errors import InputError

NUMBER = st.integers(0, 9).map(float)


@st.composite
def problems(draw: st.DrawFn) -> Joint:
    """Spaces that several units share, with walls, ties and budgets: few enough to try all."""
    spaces = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    labels = [draw(st.lists(NUMBER, min_size=n, max_size=n)) for n in spaces]
    budgets = draw(st.sampled_from([{}, {"a": 9.0}, {"a": 7.0, "b": 7.0}]))
    names = [f"o{i}" for i in range(draw(st.integers(1, 3)))]
    units = []
    for _ in range(draw(st.integers(1, 3))):
        own = tuple(draw(st.lists(st.integers(0, len(spaces) - 1), unique=True, max_size=2)))
        cost = {name: {"a": draw(NUMBER), "b": draw(NUMBER)} for name in names}
        combos = itertools.product(*(range(spaces[space]) for space in own))
        units.append(Unit(own, {c: [Option(name, draw(NUMBER), cost[name]) for name in names] for c in combos}))
    ends = st.one_of(st.none(), st.integers(0, len(spaces) - 1))
    walls = [
        Wall(a, b, cost, frozenset(alike))
        for a, b, cost, alike in draw(
            st.lists(st.tuples(ends, ends, NUMBER, st.sampled_from([[], [(1, 1)], [(1, 1), (2, 1)]])), max_size=2)
        )
        if a is not b and a != b
    ]
    ties = [(0, len(units) - 1)] if len(units) > 1 and draw(st.booleans()) else []
    return Joint(labels, units, walls, budgets, ties)


def brute_force(problem: Joint) -> float:
    """The least loss, or infinity."""
    best = math.inf
    for labels in itertools.product(*(range(len(losses)) for losses in problem.labels)):
        found = [unit.options[tuple(labels[space] for space in unit.spaces)] for unit in problem.units]
        for taken in itertools.product(*found):
            tied = all(taken[a].name == taken[b].name for a, b in problem.ties)
            within = all(sum(o.cost[n] for o in taken) <= bound for n, bound in problem.budgets.items())
            if tied and within:
                best = min(best, problem.fixed(labels) + sum(option.loss for option in taken))
    return best


@settings(deadline=None, max_examples=150)
@given(problems(), st.sampled_from([0, 64]))
def test_nothing_is_better(problem: Joint, labellings: int) -> None:
    """Neither one labelling after the other nor the integer program misses the best."""
    best = brute_force(problem)
    if best == math.inf:
        with pytest.raises(InputError, match="met"):
            decide(problem, labellings)
        return
    found = decide(problem, labellings)
    assert found.assignment.loss == pytest.approx(best, abs=1e-6)
    spent = problem.fixed(found.labels) + sum(
        next(o.loss for o in unit.options[tuple(found.labels[s] for s in unit.spaces)] if o.name == option.name)
        for unit, option in zip(problem.units, found.options, strict=True)
    )
    assert spent == pytest.approx(best, abs=1e-6)
    assert all(found.assignment.cost[name] <= bound for name, bound in problem.budgets.items())


@settings(deadline=None, max_examples=60)
@given(problems(), st.randoms(use_true_random=False))
def test_the_order_of_options_changes_no_loss(problem: Joint, random: object) -> None:
    if brute_force(problem) == math.inf:
        return
    units = [
        replace(unit, options={own: random.sample(list(o), len(o)) for own, o in unit.options.items()})
        for unit in problem.units
    ]
    assert decide(replace(problem, units=units)).assignment.loss == pytest.approx(decide(problem).assignment.loss)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(NUMBER, NUMBER), min_size=1, max_size=5), st.data())
def test_two_labels_are_a_minimum_cut(pairs, data) -> None:
    ends = st.sampled_from([None, *range(len(pairs))])
    walls = [
        Wall(a, b, cost, frozenset({(1, 1)}))
        for a, b, cost in data.draw(st.lists(st.tuples(ends, ends, NUMBER), max_size=8))
        if a != b
    ]
    units = [Unit((s,), {(0,): [Option("x", a, {})], (1,): [Option("x", b, {})]}) for s, (a, b) in enumerate(pairs)]
    problem = Joint([[0.0, 0.0]] * len(pairs), units, walls)
    changed = minimum_cut(dict(enumerate(pairs)), [(wall.before, wall.after, wall.cost) for wall in walls])
    labels = [int(space in changed) for space in range(len(pairs))]
    want = problem.fixed(labels) + sum(pair[label] for pair, label in zip(pairs, labels, strict=True))
    assert want == pytest.approx(brute_force(problem))
    for labellings in (0, 64):  # as a cut, and one after the other
        assert decide(problem, labellings).assignment.loss == pytest.approx(want)
