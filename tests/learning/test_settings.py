"""The words of ``--learn``."""

from __future__ import annotations

import pytest

from qcompile.errors import InputError
from qcompile.learning.settings import Schedule, learning_of


def test_words_name_parts_and_options() -> None:
    assert learning_of("all").parts == {"transforms": Schedule(), "codes": Schedule()}
    assert learning_of("minutes=5").parts["codes"] == Schedule(minutes=5.0)
    found = learning_of("codes{steps=400,rate=0.5},transforms")
    assert list(found.parts) == ["transforms", "codes"]
    assert found.parts["codes"] == Schedule(steps=400, rate=0.5)
    assert str(found) == "transforms,codes{steps=400,rate=0.5}"
    assert learning_of(str(found)) == found


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "says not what to learn"), ("weights", "nothing to learn is called 'weights'"),
     ("codes{steps=0}", "steps of 1 or more"), ("minutes=-1", "no negative number"),
     ("codes{speed=1}", "has no option 'speed'"), ("minutes=x", "takes a number")],
)  # fmt: skip
def test_refuses_in_a_sentence(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        learning_of(text)
