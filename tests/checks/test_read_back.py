"""A checkpoint whose modules compute something else than the graph is refused."""

import pytest

from qcompile.checks.artifacts import check_read_back
from qcompile.errors import TargetError


def test_modules_that_compute_something_else_are_refused() -> None:
    with pytest.raises(TargetError, match="read back by transformers, the modules compute something else"):
        check_read_back({"transformers": {"rel_l2_to_reference": 0.5}})


def test_rounding_and_what_was_not_compared_pass() -> None:
    check_read_back({"a": {"rel_l2_to_reference": 0.004}, "b": {"not_checked": "the extra is missing"}})
