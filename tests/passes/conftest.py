"""All tests of passes hold every pass to its contract."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def every_pass_is_checked(checked_passes: None) -> None:
    """Use the fixture in every test of this folder."""
