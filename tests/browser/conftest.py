"""A browser, and a small run that its pages are about."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from avomni_lib import files
from tests.notebooks.small_run import avomni, environment, write_params

FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
WIDTH, HEIGHT = 1400, 1500


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Debian's chromium; nothing is fetched by `playwright install`."""
    found = next((path for path in map(shutil.which, NAMES) if path), None)
    assert found, "no chromium on the PATH: make test-browser installs Debian's"
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page of its own."""
    context = browser.new_context(viewport={"width": WIDTH, "height": HEIGHT})
    page = context.new_page()
    page.set_default_timeout(60e3)
    yield page
    context.close()


@pytest.fixture(scope="session")
def params(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A params file whose run has been through 01, 02 and 03 by the command line."""
    path = write_params(
        tmp_path_factory.mktemp("browser") / "outputs", dataset={"world": {"cameras": "7-cam"}}
    )
    ran = avomni("run", str(path), "--only", "01", "02", "03")
    assert ran.returncode == 0, ran.stderr[-3000:]
    return path


@pytest.fixture
def notebook(params: Path, tmp_path: Path) -> Path:
    """04_tiles with the run's parameters in it and nothing executed, in a folder of its own."""
    return prepared("04_tiles", params, tmp_path)


def prepared(name: str, params: Path, folder: Path) -> Path:
    """A copy of a notebook that papermill has put the parameters into."""
    copy = folder / f"{name}.ipynb"
    words = ["papermill", f"notebooks/{name}.ipynb", str(copy), "-f", str(params)]
    ran = subprocess.run(
        [sys.executable, "-m", *words, "--prepare-only"],
        capture_output=True,
        text=True,
        cwd=files.PROJECT_ROOT,
        env=environment(),
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return copy
