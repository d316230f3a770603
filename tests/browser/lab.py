"""JupyterLab or Voilà on a notebook, in a process of its own, and what its page shows."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Locator, Page, TimeoutError

from avomni_lib import files
from tests.notebooks.small_run import environment

START_S, RUN_S = 90.0, 240.0
IDLE, BUSY = (f".jp-Notebook-ExecutionIndicator[data-status={it}]" for it in ("idle", "busy"))


@dataclass(frozen=True)
class Server:
    """A server at work: its address, the token that it asks for, and where its words go."""

    address: str
    token: str
    log: Path


@contextlib.contextmanager
def lab(folder: Path) -> Iterator[Server]:
    """JupyterLab with nobody's settings, its root at `folder`."""
    token = secrets.token_hex(16)
    news = folder / "settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings"
    news.parent.mkdir(parents=True, exist_ok=True)
    news.write_text(json.dumps({"fetchNews": "false", "checkForUpdates": False}))
    words = ["jupyterlab", "--no-browser", "--allow-root", f"--ServerApp.root_dir={folder}"]
    words += [f"--IdentityProvider.token={token}", "--ServerApp.port_retries=0"]
    with _serving(folder, words, "--ServerApp.port", f"/api/status?token={token}") as server:
        yield Server(server[0], token, server[1])


@contextlib.contextmanager
def voila(notebook: Path) -> Iterator[Server]:
    """Voilà on one notebook, see docs/running.md."""
    words = ["voila", str(notebook), "--no-browser"]
    with _serving(notebook.parent, words, "--port", "/voila/static/voila.js") as server:
        yield Server(server[0], "", server[1])


@contextlib.contextmanager
def _serving(
    folder: Path, words: list[str], port_option: str, ready: str
) -> Iterator[tuple[str, Path]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_RUNTIME_DIR": "runtime"}
    own |= {"JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces"}
    own |= {"JUPYTER_DATA_DIR": "data_dir", "IPYTHONDIR": "ipython"}
    env = environment() | {name: str(folder / place) for name, place in own.items()}
    log = folder / f"{words[0]}.log"
    with open(log, "wb") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", *words, f"{port_option}={port}"],
            stdout=said,
            stderr=said,
            cwd=files.PROJECT_ROOT,
            env=env,
            start_new_session=True,
        )
    try:
        address = f"http://127.0.0.1:{port}"
        _wait_for(address + ready, process, log)
        yield address, log
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_for(url: str, process: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        assert process.poll() is None, f"the server ended: {log.read_text()[-3000:]}"
        with contextlib.suppress(OSError):
            try:
                with urllib.request.urlopen(url, timeout=5):
                    return
            except urllib.error.HTTPError as error:
                if error.code in (403, 404):  # it answers
                    return
        time.sleep(0.3)
    raise AssertionError(f"the server did not start: {log.read_text()[-3000:]}")


def open_notebook(page: Page, server: Server, name: str) -> None:
    """Show a notebook of the server's root, with a kernel that is there already."""
    # Lab asks which kernel to start where a cell is run before it has one.
    kernel = {"path": name, "name": name, "type": "notebook", "kernel": {"name": "python3"}}
    request = urllib.request.Request(
        f"{server.address}/api/sessions?token={server.token}",
        data=json.dumps(kernel).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=START_S):
        pass
    page.goto(f"{server.address}/lab/workspaces/test/tree/{name}?token={server.token}&reset")
    kernel_name = page.locator(".jp-Toolbar-kernelName", has_text="Python 3").first
    kernel_name.wait_for(timeout=START_S * 1e3)
    page.wait_for_selector(IDLE, timeout=START_S * 1e3)


def run_all(page: Page) -> None:
    """*Run All Cells*, and wait until the kernel has nothing left to do."""
    for _ in range(5):
        page.locator(".lm-MenuBar-itemLabel", has_text="Run").first.click()
        page.locator("[data-command='runmenu:run-all']").click()
        # Clicked before the page has found its kernel it does nothing.
        with contextlib.suppress(TimeoutError):
            page.wait_for_selector(BUSY, timeout=10e3)
            break
        if (accept := page.locator(".jp-Dialog .jp-mod-accept")).count():
            accept.click()  # it asks which kernel to take, and proposes the one that there is
            page.wait_for_selector(BUSY, timeout=START_S * 1e3)
            break
    # Between two cells it is idle for a moment.
    still = 0
    while still < 8:
        page.wait_for_selector(IDLE, timeout=RUN_S * 1e3)
        page.wait_for_timeout(250)
        still = still + 1 if page.locator(IDLE).count() else 0


def scroll_to(page: Page, selector: str) -> Locator:
    """The first of what a notebook shows; Lab keeps only what is near the view in the page."""
    panel = page.locator(".jp-WindowedPanel-outer").first
    found = page.locator(selector).first
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        for top in range(0, panel.evaluate("(panel) => panel.scrollHeight"), 400):
            panel.evaluate("(panel, top) => { panel.scrollTop = top; }", top)
            page.wait_for_timeout(200)
            if found.count():
                found.scroll_into_view_if_needed()
                return found
    raise AssertionError(f"the notebook shows no {selector}")


def picture(image: Locator) -> np.ndarray:
    """(H, W, 3) uint8 RGB: the very bytes that an `<img>` of the page shows, decoded."""
    encoded = image.evaluate(
        """async (image) => {
            const bytes = new Uint8Array(await (await fetch(image.src)).arrayBuffer());
            let text = "";
            for (let i = 0; i < bytes.length; i += 4096)
                text += String.fromCharCode(...bytes.subarray(i, i + 4096));
            return btoa(text);
        }"""
    )
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB"))
