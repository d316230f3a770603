"""A live session with a run's model and page, and its latency and summary."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from avomni_lib import files
from avomni_lib.dataset import cameras
from avomni_lib.evaluation.models import LIVE_TIMEOUT_S, RemoteAnswerer
from avomni_lib.live import playback, session
from avomni_lib.live.answerer import Answerer
from avomni_lib.live.page import Page
from avomni_lib.live.session import LiveSession, TimedAnswer, sources_of
from avomni_lib.params import Params
from avomni_lib.training.prompt.conversation import prompt_text
from avomni_lib.training.targets import target_of


@contextlib.contextmanager
def opened(
    p: Params,
    adapter: str | None = None,
    base_only: bool = False,
    ask: Callable[..., str] | None = None,
) -> Iterator[tuple[LiveSession, Page]]:
    """A session with its cameras, model and page, ready to `run`.

    Args:
        adapter, base_only: See `Answerer`.
        ask: Answers a window, as returned by `asker`; None loads the model.

    Raises:
        AvomniError: no such adapter, there is nothing to play, or the prompt needs past motion
            that is unknown.
    """
    folder = record_folder(p)
    if p.live.sources is None:
        p = playback.as_cameras(p, playback.held_out_clips(p)[0], folder)
    history = playback.history_of(p, folder)
    sources_of(p)  # report mistakes before the model is loaded
    ask = ask or asker(p, adapter, base_only)
    with Page(p.live.port) as page:
        yield LiveSession(p, ask, folder, watch=page.show, history=history), page


def asker(p: Params, adapter: str | None = None, base_only: bool = False) -> Callable[..., str]:
    """The function that answers (frames, history): this process's model, or `live.server`."""
    if p.live.server is None:
        return Answerer(p, adapter, base_only)
    words = prompt_text(cameras.grid(p.vision.cameras), target_of(p))
    return RemoteAnswerer(p, p.live.server, words, timeout_s=LIVE_TIMEOUT_S).ask


def record_folder(p: Params) -> Path:
    """Folder for a new session's record: `live.record`, or the next free number in the run."""
    if p.live.record is not None:
        return files.resolve(p.live.record)
    number = 1
    while (p.run_dir / "live" / f"{number:03d}").exists():
        number += 1
    return p.run_dir / "live" / f"{number:03d}"


def latency(answers: Sequence[TimedAnswer]) -> dict[str, dict[str, float]]:
    """Part of the latency -> p50, p95 and p99 in seconds."""
    if not answers:
        return {}
    seconds = pd.DataFrame([answer.latency_s for answer in answers])
    return session.latency(seconds).round(4).to_dict("index")


def summary(figures: dict[str, Any]) -> str:
    """Summary of a session as text."""
    lines = [
        f"{figures['num_answers']} answers to {figures['num_ticks']} ticks, "
        f"{figures['num_overtaken']} windows overtaken, {figures['num_gaps']} ticks without an "
        "image from every camera"
    ]
    if figures["num_failed"]:
        lines.append(f"  {figures['num_failed']} windows got no answer because of an error")
    for part, values in figures["latency_s"].items():
        lines.append(f"  {part:<7} " + ", ".join(f"{q} {s:.3f} s" for q, s in values.items()))
    lines.append(f"record: {figures['record']}")
    return "\n".join(lines)
