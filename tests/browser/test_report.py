"""The pages of a run without a network: every picture is there, nothing is asked for, no widget."""

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
    """The folder of the pages of a run that has come as far as 04, the notebook with widgets."""
    ran = avomni("run", str(params), "--only", "04")
    assert ran.returncode == 0, ran.stderr[-3000:]
    return web.write(Params.from_files([params])).parent


@pytest.fixture
def asked(page: Page) -> list[str]:
    """Every address that the page asks for, with the network cut."""
    addresses: list[str] = []
    page.context.set_offline(True)
    page.on("request", lambda request: addresses.append(request.url))
    return addresses


@pytest.mark.parametrize("name", [*STAGES, "index"])
def test_a_page_is_whole_without_a_network(
    page: Page, report: Path, asked: list[str], tmp_path: Path, name: str
):
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto((report / f"{name}.html").as_uri())
    page.screenshot(path=tmp_path / f"{name}.png", full_page=True)
    pictures = page.evaluate(LOADED)
    assert name == "index" or pictures
    for complete, natural, shown in pictures:
        assert complete and natural > 0 and 0 < shown <= natural + 1
    assert said == []
    own = (report / f"{name}.html").as_uri()
    assert all(address == own or address.startswith("data:image/png") for address in asked)
    text = page.inner_text("body")
    for words in ("VBox(", "HBox(", "IntSlider(", "Traceback", "<Picture"):
        assert words not in text
    assert page.evaluate("document.scripts.length") == 0


def test_from_the_index_one_comes_to_every_page_and_back(
    page: Page, report: Path, asked: list[str]
):
    page.goto((report / web.INDEX).as_uri())
    for name in STAGES:
        page.get_by_role("link", name=name).first.click()
        assert page.locator("h1").inner_text()[:2] == name[:2]
        page.get_by_role("link", name="all notebooks").click()
    rows = page.locator("table tr").all_inner_texts()
    assert len(rows) == 1 + len(runs.STAGES)
    assert "not run yet" in rows[-1] and "10 clips" in rows[3]


@pytest.mark.parametrize("name", STAGES)
def test_on_a_phone_only_pictures_and_tables_are_wider_than_the_screen(
    page: Page, report: Path, asked: list[str], name: str
):
    page.set_viewport_size(PHONE)
    page.goto((report / f"{name}.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    widths = [shown for _, _, shown in page.evaluate(LOADED)]
    assert min(widths) > 300, "a picture that is shrunk to the screen cannot be read"


def test_in_the_dark_letters_are_lighter_than_the_page(page: Page, report: Path, asked: list[str]):
    colours = """() => [getComputedStyle(document.body).color,
        getComputedStyle(document.body).backgroundColor]"""

    def brightness(colour: str) -> int:
        return sum(int(part) for part in colour[4:-1].split(",")[:3])

    for scheme, letters_are_lighter in (("dark", True), ("light", False)):
        page.emulate_media(color_scheme=scheme)
        page.goto((report / "03_etl.html").as_uri())
        ink, ground = map(brightness, page.evaluate(colours))
        assert (ink > ground) == letters_are_lighter
