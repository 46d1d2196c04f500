"""Bases of caches: fitted where keys have loud directions that queries see little of, and left where nothing gains."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.analysis.cache_sites import CacheSite
from qcompile.choice.cache_candidates import best_cache_plan
from qcompile.choice.cache_samples import AttentionSample
from qcompile.formats.cache_words import parse_cache_format
from qcompile.ir.cache_pairs import CachePair
from qcompile.targets.cache_plans import CachePlan

HEADS, QUERIES, LENGTH, FEATURES = 2, 4, 48, 32


def site(role: str) -> CacheSite:
    past, present, new = (ir.Value(name=name) for name in ("past", "present", "new"))
    node = ir.Node("", "Concat", [past, new], outputs=[present])
    return CacheSite(CachePair(past, present, node, 2), role, new, node, HEADS, FEATURES)


def samples(count: int, seed: int, loud: float, quiet: float) -> list[AttentionSample]:
    """Causal attention with keys that are louder in some directions, of no single feature, and queries quieter."""
    rng, turn = np.random.default_rng(seed), np.random.default_rng(7)
    basis = np.linalg.qr(turn.standard_normal((HEADS, FEATURES, FEATURES)))[0]
    spread, seen = np.geomspace(loud, 1 / loud, FEATURES), np.geomspace(1 / quiet, quiet, FEATURES)

    def drawn(heads: int, spread: np.ndarray) -> np.ndarray:
        flat = rng.standard_normal((1, heads, LENGTH, FEATURES)) * spread
        return (flat @ np.repeat(basis, heads // HEADS, 0)).astype(np.float32)

    bias = np.triu(np.full((1, 1, LENGTH, LENGTH), np.float32(-1e30)), 1)
    return [
        AttentionSample(
            drawn(QUERIES, seen), drawn(HEADS, spread), drawn(HEADS, spread), bias, FEATURES**-0.5,
            np.arange(LENGTH),
        )
        for _ in range(count)
    ]  # fmt: skip


def best(word: str, loud: float = 4.0, quiet: float = 4.0, fits: int = 8) -> CachePlan:
    learned, judged = samples(8, 1, loud, quiet), samples(4, 2, loud, quiet)
    new = [{"new": sample.key} for sample in learned]
    return best_cache_plan(site("key"), parse_cache_format(word), new, learned[:fits], judged, rotates=True)


@pytest.mark.parametrize("word", ["uint4-g16", "int4-token", "int4-channel"])
def test_keys_that_are_loud_where_queries_are_quiet(word: str) -> None:
    plan = best(word)
    assert plan.transform == "wush"
    assert plan.errors is not None
    assert plan.error == plan.errors["wush"] < 0.5 * plan.errors["hadamard"]
    assert plan.basis is not None
    keys = samples(1, 3, 4.0, 4.0)[0].key
    assert np.linalg.norm(plan.basis.into(keys)) == pytest.approx(np.linalg.norm(keys), rel=0.05)


def test_more_bits_in_front_are_for_what_is_missed_most() -> None:
    """Queries see all directions, and keys are loud in some: an error there is not seen more, but it is larger."""
    apart, alike = best("uint5+3-g16", quiet=1.0), best("uint4-g16", quiet=1.0)
    assert apart.transform == "wush"
    assert apart.error is not None
    assert alike.error is not None
    assert apart.error < 0.7 * alike.error


def test_nothing_is_turned_for_nothing() -> None:
    """Where all directions are alike, a matrix is not worth its time; nor is one fitted to nothing, or of float32."""
    assert best("uint4-g16", loud=1.0, quiet=1.0).transform == "none"
    assert "wush" not in (best("uint4-g16", fits=0).errors or {})
    assert best("float32").errors == {"none": 0.0}


def test_recent_tokens_are_met_as_they_were() -> None:
    """Queries of any position see their neighbours in float32: errors fall with what is kept, to none at all."""
    errors = [best(f"int2-token{{recent={count}}}").error for count in (0, 8, 24, LENGTH)]
    assert errors[0] > errors[1] > errors[2] > errors[3] == 0
    kept = samples(1, 3, 4.0, 4.0)[0]
    np.testing.assert_allclose(kept.attend_recent(0 * kept.key, 0 * kept.value, LENGTH), kept.output, atol=1e-6)
