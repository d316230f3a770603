"""The pages of a run in a browser without a network: pictures load, nothing is requested."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Page

from avomni_lib.notebook.pages import web
from avomni_lib.notebook.run import runs
from avomni_lib.params import Params
from tests.notebooks.small_run import avomni

STAGES = ("01_audit", "02_download", "03_etl", "04_tiles")
PHONE = {"width": 390, "height": 800}
LOADED = """() => [...document.images].map(
    image => [image.complete, image.naturalWidth, image.getBoundingClientRect().width])"""


@pytest.fixture(scope="module")
def report(params: Path) -> Path:
    """The folder with the pages of a run up to 04, the notebook with widgets."""
    done = avomni("run", str(params), "--only", "04")
    assert done.returncode == 0, done.stderr[-3000:]
    return web.write(Params.from_files([params])).parent


@pytest.fixture
def requested(page: Page) -> list[str]:
    """Every address that the page requests, with the network cut."""
    addresses: list[str] = []
    page.context.set_offline(True)
    page.on("request", lambda request: addresses.append(request.url))
    return addresses


@pytest.mark.parametrize("name", [*STAGES, "index"])
def test_page_loads_completely_without_a_network(
    page: Page, report: Path, requested: list[str], tmp_path: Path, name: str
):
    messages: list[str] = []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.goto((report / f"{name}.html").as_uri())
    page.screenshot(path=tmp_path / f"{name}.png", full_page=True)
    pictures = page.evaluate(LOADED)
    assert name == "index" or pictures
    for complete, natural, shown in pictures:
        assert complete and natural > 0 and 0 < shown <= natural + 1
    assert messages == []
    page_url = (report / f"{name}.html").as_uri()
    assert all(address == page_url or address.startswith("data:image/png") for address in requested)
    text = page.inner_text("body")
    for words in ("VBox(", "HBox(", "IntSlider(", "Traceback", "<Picture"):
        assert words not in text
    assert page.evaluate("document.scripts.length") == 0


def test_index_links_to_every_page_and_back(page: Page, report: Path, requested: list[str]):
    page.goto((report / web.INDEX).as_uri())
    for name in STAGES:
        page.get_by_role("link", name=name).first.click()
        assert page.locator("h1").inner_text()[:2] == name[:2]
        page.get_by_role("link", name="all notebooks").click()
    rows = page.locator("table tr").all_inner_texts()
    assert len(rows) == 1 + len(runs.STAGES)
    assert "not run yet" in rows[-1] and "10 clips" in rows[3]


@pytest.mark.parametrize("name", STAGES)
def test_page_does_not_scroll_sideways_on_a_phone(
    page: Page, report: Path, requested: list[str], name: str
):
    page.set_viewport_size(PHONE)
    page.goto((report / f"{name}.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    widths = [shown for _, _, shown in page.evaluate(LOADED)]
    assert min(widths) > 300, "a picture that is shrunk to the screen cannot be read"


def test_dark_mode_shows_light_text_on_a_dark_page(page: Page, report: Path, requested: list[str]):
    colours = """() => [getComputedStyle(document.body).color,
        getComputedStyle(document.body).backgroundColor]"""

    def brightness(colour: str) -> int:
        return sum(int(part) for part in colour[4:-1].split(",")[:3])

    for scheme, text_is_lighter in (("dark", True), ("light", False)):
        page.emulate_media(color_scheme=scheme)
        page.goto((report / "03_etl.html").as_uri())
        text, background = map(brightness, page.evaluate(colours))
        assert (text > background) == text_is_lighter
