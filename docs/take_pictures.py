"""Takes the pictures of the README in headless Chromium: python docs/take_pictures.py ARTIFACT

The artifact is that of the README's first command. This needs `playwright` and a browser, which CHROMIUM may name.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from qcompile.inspection import inspect_files

FOLDER = Path(__file__).parent / "pictures"

#: Chooses a site in the smallest of the groups that are closed, which opens it.
CHOICE = """
const closed = graphs[0].visible.filter(item => item.group && item.nodes.some(node => node.site));
const group = closed.sort((a, b) => a.nodes.length - b.nodes.length)[0];
choose(group.nodes.find(node => node.site), null); views.forEach(view => { view.zoom = 0.8; view.redraw(); });
"""


def main(artifact: Path) -> None:
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as player:
        page_of_graph = Path(folder) / "graph.html"
        inspect_files(str(artifact), html=page_of_graph)
        browser = player.chromium.launch(
            executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"), args=["--no-sandbox"]
        )  # fmt: skip
        page = browser.new_page(viewport={"width": 1240, "height": 700})
        page.goto((artifact / "report.html").resolve().as_uri())
        page.screenshot(path=FOLDER / "report.png")
        page.set_viewport_size({"width": 1400, "height": 760})
        page.goto(page_of_graph.as_uri())
        page.evaluate(CHOICE)
        page.wait_for_timeout(300)
        page.screenshot(path=FOLDER / "graph.png")
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
