"""The page of a live session, and the page of the executed 07, in a browser."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Page

from avomni_lib.live.page import Page as LivePage
from avomni_lib.live.session import LiveState, TimedAnswer
from avomni_lib.notebook.pages import web
from avomni_lib.params import Params
from tests.browser.test_report import LOADED
from tests.notebooks.small_run import avomni

SHOWN = "() => { const image = document.images[0]; return [image.naturalWidth, image.width] }"


def console_messages(page: Page) -> list[str]:
    messages: list[str] = []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    return messages


def test_live_page_shows_frames_answers_figures_and_the_end(page: Page, tmp_path: Path):
    messages = console_messages(page)
    state = LiveState(grid=np.full((64, 96, 3), 90, np.uint8), tick=3)
    with LivePage() as live:
        live.show(state)
        page.goto(live.url, wait_until="domcontentloaded")
        page.wait_for_function(f"({SHOWN})()[0] === 96")
        width = page.evaluate(SHOWN)[1]
        assert width >= 600, "small grids are enlarged"
        page.get_by_text("no answer yet").wait_for()
        ms = 1_000_000
        state.answer = TimedAnswer(3, "Avg <b>Velocity</b>", 0, 10 * ms, 11 * ms, 30 * ms, 250 * ms)
        state.num_answers, state.grid = 1, np.full((64, 96, 3), 200, np.uint8)
        live.show(state)
        page.get_by_text("Avg <b>Velocity</b>").wait_for()
        rows = page.locator("tr").all_inner_texts()
        assert ["tick", "3"] in [row.split("\t") for row in rows]
        assert any(row.startswith("total, s") and "0.25" in row for row in rows)
        page.screenshot(path=tmp_path / "page.png")
        box = page.locator("#answer").bounding_box()
        assert box["y"] < 300, "the answer stands beside the picture, not below the fold"
        page.set_viewport_size({"width": 390, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert messages == [], "nothing is missing while it lasts"
    page.get_by_text("(the session has ended)").wait_for()


@pytest.fixture(scope="module")
def watched(params: Path, tmp_path_factory: pytest.TempPathFactory) -> Params:
    """The small run, copied, trained for a few steps and watched live by the command line."""
    folder = tmp_path_factory.mktemp("watched")
    p = Params.from_files([params])
    shutil.copytree(p.run_dir, folder / p.run.name, copy_function=shutil.copyfile)
    override = f"run.outputs_dir={folder}"
    done = avomni("run", str(params), "--set", override, "--only", "05", "07")
    assert done.returncode == 0, done.stderr[-3000:]
    return Params.from_files([params], [override])


def test_executed_07_shows_the_recorded_session(page: Page, watched: Params, tmp_path: Path):
    page.context.set_offline(True)
    messages = console_messages(page)
    page.goto((web.write(watched).parent / "07_live.html").as_uri())
    page.screenshot(path=tmp_path / "07.png", full_page=True)
    pictures = page.evaluate(LOADED)
    assert len(pictures) == 2
    for complete, natural, shown in pictures:
        assert complete and natural > 900 and 0 < shown <= natural + 1
    text = page.inner_text("body")
    for words in ("p95", "too late", "camera_rear_left_70fov", "Avg Velocity", "True)"):
        assert words in text, words
    for words in (".dataframe", "Traceback", "<Picture", "Warning"):
        assert words not in text
    assert messages == []
