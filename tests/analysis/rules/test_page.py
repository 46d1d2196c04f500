"""The page of rules names every operator: those with a rule, and those of ONNX that are known to need none."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from qcompile.analysis.spaces import RULES

DOCS = Path(__file__).parents[3] / "docs"


@pytest.fixture(scope="module")
def lists():
    spec = importlib.util.spec_from_file_location("list_rules", DOCS / "list_rules.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_operator_of_onnx_is_sorted(lists):
    assert lists.unsorted() == []


def test_no_operator_with_a_rule_is_said_to_have_none(lists):
    listed = {op for ops in lists.WITHOUT.values() for op in ops.split()}
    assert listed.isdisjoint(op for domain, op in RULES if not domain)


def test_page_names_every_operator_with_a_rule():
    """Run ``docs/list_rules.py`` to write it anew."""
    text = (DOCS / "rules.md").read_text()
    own = [key for key, rule in RULES.items() if rule.__module__.startswith("qcompile.analysis.rules.")]
    assert [key for key in own if f"`{'.'.join(filter(None, key))}`" not in text] == []
