"""Random graphs from the whole rule table keep their outputs under random transforms of all their spaces at once.

``tests/support/random_graphs.py`` grows them. A seed that fails prints the graph and the spaces that break it.
"""

from __future__ import annotations

from functools import cache

import pytest
from changes import TOLERANCE, basis_change, claimed, member
from random_graphs import MIXED, SYMBOLS, Graph, grow

from qcompile.analysis.analyze import analyze
from qcompile.analysis.spaces import Analysis, Space
from qcompile.transforms.freedom import Freedom

CHUNK = 20

#: Every case is grown around at least once.
SEEDS = -(-len(MIXED) // CHUNK) * CHUNK
MORE = 4000


@cache
def graph_of(seed: int) -> Graph:
    return grow(seed)


def free_spaces(analysis: Analysis) -> list[Space]:
    return [space for space in analysis.spaces if space.freedom != Freedom.NONE]


def alone(graph: Graph) -> str:
    """The spaces whose change alone changes the outputs."""
    model, seed, found = graph.model(), graph.seed, []
    for i, space in enumerate(free_spaces(analyze(model))):

        def choose(analysis: Analysis, i: int = i):
            space = free_spaces(analysis)[i]
            return {space.node: member(space.freedom, space.size, seed + i)}

        error, dtype = basis_change(model, choose, seed, SYMBOLS)
        if error >= TOLERANCE[dtype]:
            found.append(
                f"{space.id} of size {space.size}, {space.freedom.label}: {error:.1e}: {', '.join(space.values)}"
            )
    return "\n".join(found)


def check(seed: int) -> None:
    graph = graph_of(seed)
    error, dtype = basis_change(graph.model(), lambda analysis: claimed(analysis, seed), seed, SYMBOLS)
    assert error < TOLERANCE[dtype], f"seed {seed}, opset {graph.opset}: {error:.1e}\n{graph.text}\n{alone(graph)}"


@pytest.mark.parametrize("start", range(0, SEEDS, CHUNK))
def test_random_graphs_keep_their_outputs(start):
    for seed in range(start, start + CHUNK):
        check(seed)


@pytest.mark.slow
@pytest.mark.parametrize("start", range(SEEDS, SEEDS + MORE, CHUNK))
def test_more_random_graphs_keep_their_outputs(start):
    for seed in range(start, start + CHUNK):
        check(seed)


def test_random_graphs_use_every_case_and_have_much_to_change():
    graphs = [graph_of(seed) for seed in range(SEEDS)]
    assert {name for graph in graphs for name in graph.cases} == {case.name for case in MIXED}
    counts = [len(free_spaces(analyze(graph.model()))) for graph in graphs]
    assert sum(counts) / len(counts) > 2
    assert sum(count > 0 for count in counts) > 0.7 * len(counts)
