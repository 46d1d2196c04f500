"""Assignment: both exact solvers against brute force and against the published HAWQ-V3 programs."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.choice.assignment import Assignment, Option, assign
from qcompile.errors import InputError

HAWQ = json.loads((Path(__file__).parents[1] / "data" / "hawq_v3.json").read_text())


def hawq_problem(name: str) -> tuple[list[list[Option]], float, list[list[int]]]:
    network, kind, _ = name.split("_")
    net, optimum = HAWQ["networks"][network], HAWQ["optima"][name]
    costs = {
        "size": [(0.5 * p, p) for p in net["params_m"]],
        "bops": [(b / 64, b / 16) for b in net["bops"]],
        "latency": list(zip(net["latency_4bit_ms"], net["latency_8bit_ms"], strict=True)),
    }[kind]
    options = [
        [Option("4", trace * four, {kind: cost[0]}), Option("8", trace * eight, {kind: cost[1]})]
        for trace, four, eight, cost in zip(
            net["hessian_trace"], net["weight_error_4bit"], net["weight_error_8bit"], costs, strict=True
        )
    ]
    return options, optimum["limit"], optimum["ties"]


@pytest.mark.parametrize("method", ["dp", "ilp"])
@pytest.mark.parametrize("name", HAWQ["optima"])
def test_hawq_v3_optima(name: str, method: str) -> None:
    options, limit, ties = hawq_problem(name)
    kind, optimum = name.split("_")[1], HAWQ["optima"][name]
    result = assign(options, {kind: limit}, ties, method)
    assert result.loss == pytest.approx(optimum["omega"], abs=optimum["tol"])
    assert result.cost[kind] <= limit * (1 + 1e-9)
    assert result.cost[kind] == pytest.approx(optimum["constraint_used"], abs=1e-6)
    assert [int(site[i].name) for site, i in zip(options, result.choice, strict=True)] == optimum["bits"]
    assert result.method == method
    assert result.gap < 1e-9


@pytest.mark.parametrize("name", HAWQ["optima"])
def test_greedy_fits_and_is_never_better_than_the_optimum(name: str) -> None:
    options, limit, ties = hawq_problem(name)
    result = assign(options, {name.split("_")[1]: limit}, ties, "greedy")
    assert result.loss >= HAWQ["optima"][name]["omega"] - 1e-9
    assert next(iter(result.cost.values())) <= limit * (1 + 1e-9)


def brute_force(options: list[list[Option]], budgets: dict[str, float], ties: list[list[int]]) -> float:
    """The least loss, or infinity."""
    best = math.inf
    for taken in itertools.product(*options):
        tied = all(len({taken[s].name for s in tie}) == 1 for tie in ties if tie)
        within = all(sum(o.cost[n] for o in taken) <= b * (1 + 1e-12) for n, b in budgets.items())
        if tied and within:
            best = min(best, sum(o.loss for o in taken))
    return best


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[list[Option]], dict[str, float], list[list[int]]]:
    sites, names = draw(st.integers(1, 6)), ["a", "b"][: draw(st.integers(0, 2))]
    number = draw(
        st.sampled_from([st.integers(0, 9), st.floats(0, 1, width=32), st.floats(0, 1e-6), st.floats(-1, 1e3)])
    )
    cost = draw(st.sampled_from([st.integers(0, 12), st.floats(0, 3, width=32)]))
    options = [
        [Option(f"o{i}", draw(number), {n: draw(cost) for n in names}) for i in range(draw(st.integers(2, 4)))]
        for _ in range(sites)
    ]
    ties = draw(st.lists(st.lists(st.integers(0, sites - 1), min_size=1, max_size=3), max_size=2))
    budgets = {n: draw(st.floats(0, 6.0 * sites)) for n in names}
    return options, budgets, ties


def check(result: Assignment, options: list[list[Option]], budgets: dict[str, float], ties: list[list[int]]) -> None:
    taken = [site[i] for site, i in zip(options, result.choice, strict=True)]
    assert result.loss == pytest.approx(sum(o.loss for o in taken), rel=1e-12, abs=1e-300)
    for name, budget in budgets.items():
        assert result.cost[name] <= budget * (1 + 1e-9)
    for tie in ties:
        assert len({taken[site].name for site in tie}) == 1


@settings(max_examples=300, deadline=None)
@given(problems())
def test_exact_solvers_agree_with_brute_force(problem: tuple) -> None:
    options, budgets, ties = problem
    best = brute_force(options, budgets, ties)
    scale = max(abs(o.loss) for site in options for o in site)
    for method in ("ilp",) if len(budgets) > 1 else ("dp", "ilp"):
        if math.isinf(best):
            with pytest.raises(InputError, match="cannot be met"):
                assign(options, budgets, ties, method)
            continue
        result = assign(options, budgets, ties, method)
        check(result, options, budgets, ties)
        assert result.loss == pytest.approx(best, rel=1e-9, abs=1e-9 * scale)


def large_problem(sites: int, seed: int) -> list[list[Option]]:
    import numpy as np

    rng = np.random.default_rng(seed)
    problem = []
    for _ in range(sites):
        size, alpha = rng.integers(1, 64) * 4096, rng.lognormal()
        formats = [
            ("int4", 4.25, 1e-2),
            ("mxfp4", 4.25, 1.3e-2),
            ("int6", 6.25, 6e-4),
            ("int8", 8.25, 4e-5),
            ("bf16", 16, 0),
        ]
        problem.append(
            [
                Option(
                    n,
                    alpha * t * rng.uniform(0.8, 1.2),
                    {"bytes": size * b / 8, "us": size * rng.uniform(0.9, 1.1) * b},
                )
                for n, b, t in formats
            ]
        )
    return problem


@pytest.mark.parametrize("cost", ["bytes", "us"])
def test_hundreds_of_sites_with_real_costs_are_exact_and_fast(cost: str) -> None:
    options = large_problem(400, 1)
    budget = sum(site[0].cost[cost] for site in options) * 1.2
    dp = assign(options, {cost: budget}, method="dp")
    ilp = assign(options, {cost: budget}, method="ilp")
    assert dp.loss == pytest.approx(ilp.loss, rel=1e-8)
    assert dp.loss <= assign(options, {cost: budget}, method="greedy").loss


def test_several_budgets_at_once() -> None:
    options = large_problem(60, 2)
    budgets = {c: sum(site[0].cost[c] for site in options) * 1.3 for c in ("bytes", "us")}
    result = assign(options, budgets)
    assert result.method == "ilp"
    for name, budget in budgets.items():
        assert result.cost[name] <= budget * (1 + 1e-9)
        assert result.loss >= assign(options, {name: budget}).loss * (1 - 1e-9)


def test_without_budget_the_least_loss_is_taken() -> None:
    options = [[Option("a", 2, {}), Option("b", 1, {})], [Option("a", 0, {}), Option("b", 5, {})]]
    assert assign(options, {}).choice == (1, 0)
    assert assign(options, {}, ties=[[0, 1]]).choice == (0, 0)
    assert assign([], {"bytes": 1}).choice == ()


def test_budget_equal_to_a_sum_of_costs_is_met() -> None:
    options = [[Option("a", 1, {"c": 0.1}), Option("b", 0, {"c": 0.2})]] * 3
    for method in ("dp", "ilp"):
        assert assign(options, {"c": 0.1 + 0.1 + 0.2}, method=method).loss == 2


@pytest.mark.parametrize(
    ("options", "budgets", "ties", "message"),
    [
        (
            [[Option("a", 1, {"bytes": 5})], [Option("a", 1, {"bytes": 7})]],
            {"bytes": 10},
            [],
            "least reachable bytes is 12",
        ),
        ([[Option("a", 1, {"b": 5, "c": 0}), Option("d", 1, {"b": 0, "c": 5})]], {"b": 2, "c": 2}, [], "together"),
        ([[Option("a", 1, {})], [Option("b", 1, {})]], {}, [[0, 1]], r"tied sites \[0, 1\] have no option in common"),
        ([[]], {}, [], "site 0 has no option"),
        ([[Option("a", 1, {}), Option("a", 2, {})]], {}, [], "two options of the same name"),
        ([[Option("a", 1, {})]], {"bytes": 1}, [], "has no cost 'bytes'"),
        ([[Option("a", math.nan, {})]], {}, [], "not finite"),
        ([[Option("a", 1, {})]], {}, [[0, 3]], "outside"),
    ],
)
def test_mistakes_are_named(options: list, budgets: dict, ties: list, message: str) -> None:
    with pytest.raises(InputError, match=message):
        assign(options, budgets, ties)


def test_method_must_fit() -> None:
    with pytest.raises(InputError, match="one budget"):
        assign([[Option("a", 1, {"b": 1, "c": 1})]], {"b": 1, "c": 1}, method="dp")
    with pytest.raises(InputError, match="unknown assignment method"):
        assign([], {}, method="magic")  # type: ignore[arg-type]


def test_importing_assignment_does_not_import_torch() -> None:
    code = "import sys, qcompile.choice.assignment; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0
