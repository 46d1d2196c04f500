"""Passes are found by name, and lists of them are read from text."""

from __future__ import annotations

import pytest

from qcompile.errors import InputError
from qcompile.passes.canonicalize.fold_constants import FoldConstants
from qcompile.passes.fold_scales import FoldScales
from qcompile.passes.index import all_passes, parse_passes
from qcompile.passes.pipelines import CANONICALIZE, PREPARE

READ = {
    "fold-scales": (FoldScales(),),
    " canonicalize , fold-scales ": (CANONICALIZE, FoldScales()),
    "fold-scales{smallest=0.5},prepare": (FoldScales(0.5), PREPARE),
    "fold-constants{most_bytes=8, small_bytes=4}": (FoldConstants(8, 4),),
    "fold-constants{small_bytes=4 most_bytes=8}": (FoldConstants(8, 4),),
    "fold-scales{}": (FoldScales(),),
}

REFUSED = {
    "": "the list of passes is empty; there are center-norms, ",
    "fold-scalez": "unknown pass 'fold-scalez'; the nearest: fold-scales, ",
    "fold-scales{": "'fold-scales{' is no list of passes",
    "fold-scales,,center-norms": "is no list of passes",
    "fold-scales{largest=1}": "pass 'fold-scales' has no option 'largest'; there are smallest",
    "fold-scales{smallest=tiny}": "option 'smallest' of pass 'fold-scales' takes a number, which 'tiny' is not",
    "fold-shifts{most_elements=1.5}": "option 'most_elements' of pass 'fold-shifts' takes a whole number, which '1.5'",
    "center-norms{x=1}": "pass 'center-norms' has no option 'x'; there are none",
    "canonicalize{x=1}": "pass 'canonicalize' has no option 'x'; there are none",
    "rotate": "pass 'rotate' needs more than options: qcompile rotate runs it",
    "canonicalize,quantize": "pass 'quantize' needs more than options: qcompile export runs it",
}


@pytest.mark.parametrize("text", READ)
def test_a_list_is_read(text: str) -> None:
    assert parse_passes(text).passes == READ[text]


@pytest.mark.parametrize("text", REFUSED)
def test_a_list_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_passes(text)
    assert REFUSED[text] in str(caught.value)


def test_every_pass_of_a_pipeline_is_found() -> None:
    assert {type(step) for step in PREPARE.steps()} <= set(all_passes().values())
