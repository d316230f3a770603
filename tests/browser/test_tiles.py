"""04_tiles in JupyterLab: after keys and buttons, the page shows the array of the kernel."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Locator, Page

from avomni_lib.etl.cache.memmap import Cache
from avomni_lib.etl.cache.windows import Windows
from avomni_lib.notebook.tiles import widgets
from avomni_lib.params import Params
from tests.browser import lab
from tests.browser.conftest import WIDTH

PREVIEW = ".avomni-tiles"
GRID, MOTION = f"{PREVIEW} img >> nth=0", f"{PREVIEW} img >> nth=1"


@pytest.fixture
def opened(page: Page, notebook: Path) -> Iterator[Locator]:
    """The first preview of a notebook that has been run from top to bottom."""
    with lab.lab(notebook.parent) as server:
        lab.open_notebook(page, server, notebook.name)
        lab.run_all(page)
        yield lab.scroll_to(page, PREVIEW)


@pytest.fixture
def view(params: Path) -> widgets.TilePreview:
    """The same preview in this process, to compare with the kernel's."""
    return widgets.TilePreview(Params.from_files([params]))


def await_picture(page: Page, wanted: np.ndarray) -> None:
    """Wait until the page shows exactly these pixels."""
    shown = None
    for _ in range(160):
        shown = lab.picture(page.locator(GRID))
        if np.array_equal(shown, wanted):
            return
        page.wait_for_timeout(250)
    raise AssertionError(f"the page shows another picture, of {shown.shape}, not {wanted.shape}")


def screenshot(page: Page, tmp_path: Path, name: str) -> None:
    page.screenshot(path=tmp_path / f"{name}.png")


def test_keys_and_buttons_update_the_grid(
    page: Page, opened: Locator, view: widgets.TilePreview, tmp_path: Path
):
    await_picture(page, view.sheet())
    pictures, motions = [lab.picture(page.locator(GRID))], [lab.picture(page.locator(MOTION))]
    screenshot(page, tmp_path, "opened")

    opened.locator(".noUi-handle").nth(1).focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    view.frame.value = 3
    await_picture(page, view.sheet())
    pictures.append(lab.picture(page.locator(GRID)))
    motions.append(lab.picture(page.locator(MOTION)))

    # Checked independently of the widget: the array in the cache.
    windows = Windows(Cache.open(view.p.cache_dir), 16, view.p.processing.stride)
    assert np.array_equal(view.grid_frame(), windows.frames(0)[3])

    opened.get_by_role("button", name="7-cam").click()
    view.setup.value = "7-cam"
    await_picture(page, view.sheet())
    pictures.append(lab.picture(page.locator(GRID)))
    screenshot(page, tmp_path, "seven")

    opened.get_by_role("button", name="4-cam").click()
    opened.get_by_label("tile width").fill("96")
    page.keyboard.press("Enter")
    opened.get_by_label("vision tokens").check()
    view.setup.value, view.controls.width.value, view.controls.squares.value = "4-cam", 96, True
    await_picture(page, view.sheet())
    pictures.append(lab.picture(page.locator(GRID)))
    screenshot(page, tmp_path, "squares")

    for before, after in zip(pictures, pictures[1:], strict=False):
        assert not np.array_equal(before, after)
    assert not np.array_equal(*motions)


def test_player_plays_and_search_finds_a_clip(
    page: Page, opened: Locator, view: widgets.TilePreview
):
    name = view.clip.options[4][1]
    opened.get_by_label("find clip").fill(name[9:23])
    opened.locator("select").first.select_option(index=1)
    view.clip.value = name
    await_picture(page, view.sheet())
    opened.get_by_title("one frame ahead").click()
    view.frame.value = 1
    await_picture(page, view.sheet())
    opened.locator(".jupyter-widgets.widget-play button").first.click()
    page.wait_for_function(
        "() => document.querySelectorAll('.avomni-tiles .widget-readout')[1].innerText == '15'"
    )
    view.frame.value = 15
    await_picture(page, view.sheet())


def test_cameras_can_be_added_to_and_removed_from_a_custom_list(
    page: Page, opened: Locator, view: widgets.TilePreview
):
    opened.get_by_role("button", name="own list").click()
    view.setup.value = "own list"
    opened.locator("select", has_text="add a camera").select_option("rear tele")
    view.controls.cameras.value = [*view.controls.cameras.value, "rear tele"]
    await_picture(page, view.sheet())
    assert view.choice.size == (2 * 32, 3 * 48)
    opened.locator(".jupyter-widget-tag", has_text="front tele").locator("i, span").last.click()
    labels = [label for label in view.controls.cameras.value if label != "front tele"]
    view.controls.cameras.value = labels
    await_picture(page, view.sheet())


def test_preview_does_not_overflow_the_page(page: Page, opened: Locator, tmp_path: Path):
    for setup in ("4-cam", "7-cam", "own list"):
        opened.get_by_role("button", name=setup).click()
        page.wait_for_timeout(1500)
        screenshot(page, tmp_path, setup)
        box = opened.bounding_box()
        assert box["x"] + box["width"] <= WIDTH
        overflowing = opened.evaluate(
            """(box) => [...box.querySelectorAll("*")].filter((each) => {
                const {right, width} = each.getBoundingClientRect();
                return width && right > box.getBoundingClientRect().right + 1;
            }).map((each) => each.className)"""
        )
        assert overflowing == [], f"{setup}: {overflowing}"
