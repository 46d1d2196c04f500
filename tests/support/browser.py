"""Headless Chromium for tests of pages, where Playwright and a browser are installed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

__all__ = ["browser_page"]

#: Where a browser may be, if the environment does not say so.
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


@contextmanager
def browser_page(path: Path, width: int = 1280, height: int = 860, dark: bool = False) -> Iterator[Any]:
    """A page of Playwright that shows a file; whatever its scripts throw or load from elsewhere fails the test."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("there is no Chromium; CHROMIUM may name one")
    with api.sync_playwright() as player:
        browser = player.chromium.launch(executable_path=found, args=["--no-sandbox"])
        page = browser.new_page(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light"
        )  # fmt: skip
        wrong: list[str] = []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
        page.on("request", lambda asked: wrong.append(asked.url) if not asked.url.startswith("file:") else None)
        page.goto(path.as_uri())
        yield page
        browser.close()
        assert wrong == []
