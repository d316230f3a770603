"""The tile preview served by `voila notebooks/04_tiles.ipynb`, see docs/running.md."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from playwright.sync_api import Page

from avomni_lib.notebook.tiles import widgets
from avomni_lib.params import Params
from tests.browser import lab


def test_voila_shows_a_working_preview(page: Page, params: Path, notebook: Path):
    view = widgets.TilePreview(Params.from_files([params]))
    with lab.voila(notebook) as server:
        page.goto(server.address)
        preview = page.locator(".avomni-tiles").first
        preview.wait_for(timeout=lab.RUN_S * 1e3)
        grid = preview.locator("img").first
        assert np.array_equal(lab.picture(grid), view.sheet())
        preview.locator(".noUi-handle").nth(1).focus()
        page.keyboard.press("ArrowRight")
        view.frame.value = 1
        for _ in range(160):
            if np.array_equal(lab.picture(grid), view.sheet()):
                break
            page.wait_for_timeout(250)
        assert np.array_equal(lab.picture(grid), view.sheet())
        page.screenshot(path=notebook.with_name("voila.png"), full_page=True)
        assert page.get_by_text("view = widgets.TilePreview").count() == 0, "sources are stripped"
