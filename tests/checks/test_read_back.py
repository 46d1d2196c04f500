"""A checkpoint whose modules compute something else than the graph is refused."""

import pytest

from qcompile.checks.artifacts import check_read_back
from qcompile.errors import TargetError


def test_modules_that_compute_something_else_are_refused() -> None:
    with pytest.raises(TargetError, match="read back by transformers, the modules compute something else"):
        check_read_back({"transformers": {"rel_l2_to_reference": 0.5}})


def test_rounding_and_what_was_not_compared_pass() -> None:
    check_read_back({"a": {"rel_l2_to_reference": 0.004}, "b": {"not_checked": "the extra is missing"}})


def test_rounded_inputs_explain_more_and_are_asked_only_where_it_matters() -> None:
    asked = []

    def explained() -> float:
        asked.append(True)
        return 0.1

    check_read_back({"a": {"rel_l2_to_reference": 0.004}}, explained)
    assert asked == []
    check_read_back({"a": {"rel_l2_to_reference": 0.18}}, explained)
    with pytest.raises(TargetError, match="relative L2 0.21"):
        check_read_back({"a": {"rel_l2_to_reference": 0.21}}, explained)
