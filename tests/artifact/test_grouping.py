"""Operators are grouped by what is known of their modules, or by what repeats."""

from __future__ import annotations

import pytest

from qcompile.artifact.grouping import grouped, repeats


def joined(paths: list[list[str]]) -> list[str]:
    return ["/".join(path) for path in paths]


def test_operators_without_a_module_belong_where_they_stand() -> None:
    """Two blocks of two maps each, with an activation within and a sum behind; only maps know their modules."""
    modules = [None, "l.0.up", None, "l.0.down", None, None, "l.1.up", None, "l.1.down", None]
    kinds = ["input", "MatMul", "Relu", "MatMul", "Add", "Norm", "MatMul", "Relu", "MatMul", "output"]
    reads = [[], [0], [1], [2], [0, 3], [4], [5], [6], [7], [8]]
    assert joined(grouped(modules, kinds, reads)) == [
        "", "l/0", "l/0", "l/0", "l/0", "l/1", "l/1", "l/1", "l/1", ""
    ]  # fmt: skip


def test_a_module_that_is_called_again_has_a_group_for_each_call() -> None:
    """Layers that share their weights have one path; what repeats within a layer is no call of it."""
    layer = [("q", "MatMul"), ("k", "MatMul"), ("", "Softmax"), ("o", "MatMul"), ("", "Add")]
    modules = [".".join(["e", "layer", *([part] if part else [])]) for part, _ in layer] * 3
    kinds = [kind for _, kind in layer] * 3
    paths = joined(grouped(modules, kinds, [[]] * 15))
    assert paths == [f"e/layer/call {number}" for number in (1, 2, 3) for _ in layer]
    modules, kinds = ["e.layer.q", "e.layer", *modules[1:]], ["MatMul", "Where", *kinds[1:]]  # once, for all calls
    paths = joined(grouped(modules, kinds, [[]] * 16))
    assert paths == ["e/layer/call 1"] * 6 + ["e/layer/call 2"] * 5 + ["e/layer/call 3"] * 5
    turned = ["Mul", "Neg", "Concat", "Add"]  # of queries, then of keys
    attention = ["a.q", "a.k", *["a"] * 8, "a.v", "a.o", "b"]
    paths = joined(grouped(attention, ["MatMul", "MatMul", *turned, *turned, *["MatMul"] * 3], [[]] * 13))
    assert paths == ["a"] * 12 + [""]


def test_what_reads_constants_alone_stands_with_its_readers() -> None:
    """Weights that are decoded where the graph begins, each by two operators, and one that both blocks read."""
    modules = [None, None, None, None, None, None, "l.0.up", "l.0.down", "l.1.up", "l.1.down"]
    kinds = ["input", "Decode", "Reshape", "Decode", "Reshape", "Decode", *["MatMul"] * 4]
    reads = [[], [], [1], [], [3], [], [0, 2], [6, 5], [7, 4], [8, 5]]
    assert joined(grouped(modules, kinds, reads)) == [
        "", "l/0/up", "l/0/up", "l/1/up", "l/1/up", "l", "l/0/up", "l/0", "l/1/up", "l/1"
    ]  # fmt: skip
    assert joined(grouped([*modules[:1], *[None] * 9], kinds, reads)) == [""] * 10  # structure alone says nothing here


def test_groups_of_one_operator_are_none() -> None:
    assert joined(grouped(["a.x", "a.x", "a.y", "b"], ["M"] * 4, [[]] * 4)) == ["a/x", "a/x", "a", ""]


@pytest.mark.parametrize(
    "text, found",
    [("xabcdabcdabcdy", (1, 4, 3)), ("abcdefgh", None), ("aaaaaaaa", (0, 4, 2)), ("", None), ("ab", None)],
)
def test_the_longest_run_of_equal_pieces_is_found(text: str, found: tuple[int, int, int] | None) -> None:
    assert repeats(list(text)) == found


def test_repeated_structure_stands_in_for_modules() -> None:
    paths = grouped([None] * 14, list("xabcdabcdabcdy"), [[]] * 14)
    assert joined(paths)[:6] == ["", *["3 equal blocks/block 1"] * 4, "3 equal blocks/block 2"]
    assert paths[-1] == []


def test_much_in_no_group_is_cut() -> None:
    names = [chr(ord("a") + i % 23) + str(i) for i in range(450)]
    paths = joined(grouped([None] * 450, names, [[]] * 450))
    assert paths[0] == paths[99] == "operators 1 to 100"
    assert paths[100] == "operators 101 to 200"
    assert paths[-1] == "operators 401 to 450"
