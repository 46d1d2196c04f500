"""Norms as the passes that fold their scales read them: what follows is an axis of its own, with the shift."""

from __future__ import annotations

import pytest
from cases import build
from rule_tables import CASES

from qcompile.analysis.analyze import analyze
from qcompile.transforms.freedom import Freedom

NORMS = [case for case in CASES if case.name.endswith("with a shift") or "embedding with" in case.name]


@pytest.mark.parametrize("case", NORMS, ids=lambda case: case.name)
def test_what_follows_a_norm_starts_anew(case):
    analysis = analyze(build(case), join_norms=False)
    (norm,) = analysis.norms
    assert not analysis.axes.same(norm.ref_in, norm.ref_out)
    assert analysis.free(analysis.refs(norm.scale)[-1]) == Freedom.NONE
    assert analysis.axes.same(analysis.refs(norm.shift)[-1], norm.ref_out)
