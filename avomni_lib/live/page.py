"""A web page that shows a live session: images as MJPEG and the newest answer.

`/` is the page, `/feed` the images, `/state` the numbers as JSON. The server listens on 127.0.0.1
only and uses the standard library.
"""

from __future__ import annotations

import io
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image

from avomni_lib.live.session import LiveState

QUALITY = 85
BOUNDARY = "frame"
IDLE_S = 1.0  # an unchanged image is sent again after this time, to detect closed connections
HTML = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>AV-Omni live</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">
<style>
:root{color-scheme:light dark;--ink:#22262a;--ground:#fff;--line:#d5d8da}
@media (prefers-color-scheme:dark){:root{--ink:#e4e6e6;--ground:#16191c;--line:#3a4046}}
body{font:15px system-ui,sans-serif;margin:1.2rem;background:var(--ground);color:var(--ink)}
h1{font-size:1.2rem;margin:0 0 .8rem}
main{display:flex;flex-wrap:wrap;gap:1.5rem;align-items:flex-start}
img{flex:3 1 22rem;min-width:0;max-height:82vh;object-fit:contain;object-position:left top;
image-rendering:pixelated}
section{flex:2 1 18rem;min-width:0}
pre{white-space:pre-wrap;overflow-wrap:anywhere;font-size:1.05rem;min-height:6em;margin:0 0 1rem}
td{padding:.15rem 1rem .15rem 0;border-top:1px solid var(--line)}
td + td{text-align:right;font-variant-numeric:tabular-nums}
</style></head><body><h1>AV-Omni live <span id="state"></span></h1>
<main><img src="/feed" alt="what the model sees"><section><pre id="answer">no answer yet</pre>
<table id="numbers"></table></section></main><script>
const byId = name => document.getElementById(name);
const cell = text => {
  const made = document.createElement("td"); made.textContent = text; return made };
const poll = setInterval(async () => {
  let state;
  try { state = await (await fetch("/state")).json() } catch {
    clearInterval(poll); byId("state").textContent = "(the session has ended)"; return }
  if (state.answer) byId("answer").textContent = state.answer.text;
  const rows = Object.entries(state.numbers).map(([name, value]) => {
    const row = document.createElement("tr"); row.append(cell(name), cell(value)); return row });
  byId("numbers").replaceChildren(...rows);
}, 500);
</script></body></html>"""


class Page:
    """Serves the state of a session until it is closed.

    Args:
        port: Port on 127.0.0.1; 0 takes a free one.
    """

    def __init__(self, port: int = 0):
        self._state, self._number = LiveState(), 0
        self._changed = threading.Condition()
        self._is_closed = False
        page = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                match self.path.partition("?")[0]:
                    case "/":
                        page._send(self, "text/html; charset=utf-8", HTML)
                    case "/state":
                        page._send(self, "application/json", json.dumps(page.values()))
                    case "/feed":
                        page._send_feed(self)
                    case _:
                        self.send_error(404)

            def log_message(self, format: str, *args: Any) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/"
        threading.Thread(target=self._server.serve_forever, name="page", daemon=True).start()

    def show(self, state: LiveState) -> None:
        """Show a session's state; images are encoded only while a client reads the feed."""
        with self._changed:
            self._state = state
            self._number += 1
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._server.shutdown()
        self._server.server_close()

    def __repr__(self) -> str:
        return f"the session's page, while it lasts: {self.url}"

    def _repr_html_(self) -> str:
        return f'the session\'s page, while it lasts: <a href="{self.url}">{self.url}</a>'

    def __enter__(self) -> Page:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _send(self, handler: BaseHTTPRequestHandler, kind: str, text: str) -> None:
        body = text.encode()
        handler.send_response(200)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(body)))
        handler.send_header("Cache-Control", "no-store")
        handler.end_headers()
        handler.wfile.write(body)

    def values(self) -> dict[str, Any]:
        """The session's state as plain values."""
        state = self._state
        numbers: dict[str, Any] = {
            "tick": state.tick,
            "answers": state.num_answers,
            "overtaken windows": state.num_overtaken,
            "windows without an answer (error)": state.num_failed,
            "ticks without an image from every camera": state.num_gaps,
        }
        answer = None
        if state.answer is not None:
            answer = {"text": state.answer.text, "tick": state.answer.tick}
            numbers |= {f"{name}, s": round(s, 3) for name, s in state.answer.latency_s.items()}
        if state.failure is not None:
            numbers["no answer"] = state.failure
        return {"answer": answer, "numbers": numbers}

    def _send_feed(self, handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", f"multipart/x-mixed-replace; boundary={BOUNDARY}")
        handler.send_header("Cache-Control", "no-store")
        handler.end_headers()
        seen = -1
        while not self._is_closed:
            with self._changed:
                if self._number == seen and not self._is_closed:
                    self._changed.wait(IDLE_S)
                seen, grid = self._number, self._state.grid
            if grid is None:
                time.sleep(0.05)
                continue
            buffer = io.BytesIO()
            Image.fromarray(grid).save(buffer, format="JPEG", quality=QUALITY)
            body = buffer.getvalue()
            head = (
                f"--{BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            try:
                handler.wfile.write(head.encode() + body + b"\r\n")
            except (ConnectionError, TimeoutError):
                return
