"""Reads a recorded session: its ticks and answers as tables, with the ground truth."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from avomni_lib.errors import AvomniError
from avomni_lib.live import session, subject
from avomni_lib.live.answerer import Answer, Prediction, scored
from avomni_lib.live.playback import Moments, Played, history_of
from avomni_lib.live.session import GRIDS_FILE, PARTS, RECORD_FILE
from avomni_lib.live.subject import Subject
from avomni_lib.params import Params
from avomni_lib.training.prompt import past, tokens
from avomni_lib.training.targets import target_of


@dataclass(frozen=True)
class SessionRecord:
    """The record of a session.

    Attributes:
        ticks: One row per tick, indexed by its number: `time_s` since the session began,
            `waited_ms` for the slowest camera, `is_gap`, and the age of each camera's frame in ms,
            NaN if the camera had no recent frame.
        answers: One row per answer: `tick` and `time_s` of the window's last frame, `text`, and
            the seconds of each part of its latency (`session.PARTS` and `total`).
        counts: See `LiveSession.counts`; empty if the session was killed.
        grids: (n, H, W, 3) uint8 RGB: the grids of all ticks that are not gaps.
    """

    folder: Path
    ticks: pd.DataFrame
    answers: pd.DataFrame
    counts: dict[str, Any]
    grids: np.ndarray

    @classmethod
    def read(cls, folder: Path | str) -> SessionRecord:
        """Read the record in a folder.

        Raises:
            AvomniError: there is none, it is incomplete, or every tick is a gap.
        """
        folder = Path(folder)
        try:
            lines = [json.loads(line) for line in (folder / RECORD_FILE).read_text().splitlines()]
        except (OSError, ValueError):
            raise AvomniError(
                "no whole record of a session", where=str(folder), fix="record one with live.record"
            ) from None
        by_kind: dict[str, list[dict[str, Any]]] = {"tick": [], "answer": [], "end": []}
        for line in lines:
            by_kind.get(line.pop("kind"), []).append(line)
        if not (folder / GRIDS_FILE).exists():
            raise AvomniError(
                "no tick of the session has a picture of each camera",
                where=str(folder / RECORD_FILE),
                fix="see whether the addresses in live.sources answer; the log says what was wrong "
                "with each camera",
            )
        return cls(
            folder,
            _ticks(by_kind["tick"]),
            _answers(by_kind["answer"], by_kind["tick"]),
            next(iter(by_kind["end"]), {}),
            np.load(folder / GRIDS_FILE, mmap_mode="r", allow_pickle=False),
        )

    def frames(self, p: Params, tick: int) -> np.ndarray:
        """(T, H, W, 3) uint8 RGB: the window that ends with a tick, as the model saw it.

        Raises:
            AvomniError: no whole window ends there.
        """
        rows = np.array(past.rows(p, tokens.backbone_of(p)))
        rows -= rows[-1]  # relative to the last frame
        grid_idx = int((~self.ticks.is_gap.loc[:tick]).sum()) - 1
        has_gap = self.ticks.is_gap.loc[tick + rows[0] : tick].any()
        if tick not in self.ticks.index or has_gap or grid_idx + rows[0] < 0:
            raise AvomniError(f"no whole window ends with tick {tick}", where=str(self.folder))
        return np.array(self.grids[grid_idx + rows])

    @property
    def last_tick(self) -> int:
        """Number of the last tick whose window was answered.

        Raises:
            AvomniError: none was.
        """
        if self.answers.empty:
            gaps = f"{int(self.ticks.is_gap.sum()):,} of {len(self.ticks):,} ticks are gaps"
            raise AvomniError(
                f"no window was answered: {gaps}",
                where=str(self.folder / RECORD_FILE),
                fix="raise live.seconds, live.deadline_ms or live.max_age_s, and see in the log "
                "what was wrong with each camera",
            )
        return int(self.answers.tick.iloc[-1])

    def history(self, p: Params, tick: int) -> str:
        """Text of the car's past in the prompt at a tick; empty unless `prompt.ego_history`."""
        words_at = history_of(p, self.folder)
        return "" if words_at is None else words_at(float(self.ticks.time_s.loc[tick]))

    def latency(self) -> pd.DataFrame:
        """Quantiles of the latency in seconds; see `session.latency`."""
        return session.latency(self.answers)

    def figures(self) -> dict[str, Any]:
        """The session's figures as plain values for `result.json`."""
        seconds = float(self.ticks.time_s.iloc[-1] - self.ticks.time_s.iloc[0])
        latency = {} if self.answers.empty else self.latency().round(4).to_dict("index")
        return {
            "seconds": round(seconds, 1),
            **self.counts,
            "answers_per_s": round(len(self.answers) / seconds, 2) if seconds else None,
            "latency_s": latency,
        }

    def predictions(self, p: Params) -> list[Prediction]:
        """All answers, parsed, with the ground truth if a clip of the cache was played."""
        played, target = Played.of(self.folder), target_of(p)
        moments = None if played is None else Moments(p, played)
        lens = None if played is None else subject.lens_of(p, played.clip_id)
        made = []
        for row in self.answers.itertuples():
            truth = None if moments is None else moments.truth(row.time_s)
            asked = Subject(
                f"{row.time_s:.1f} s",
                self.frames(p, row.tick),
                np.empty(0, np.int64),
                truth=None if truth is None else target.render(truth),
                true=None if truth is None else target.of(truth),
                lens=lens,
            )
            answer = Answer(row.text, target.read(row.text), row.model)
            made.append(scored(asked, "adapted", answer, target))
        return made


def replay(p: Params, folder: Path, ask: Callable[..., str]) -> Iterator[tuple[int, str, str]]:
    """Answer again every window that a recorded session answered.

    Args:
        ask: See `LiveSession`; called with the car's past motion if the session's prompt had it.

    Yields:
        (tick, the recorded answer, the new answer).

    Raises:
        AvomniError: there is no complete record in the folder.
    """
    recorded = SessionRecord.read(folder)
    history = history_of(p, folder)
    for row in recorded.answers.itertuples():
        past_motion = () if history is None else (history(row.time_s),)
        yield row.tick, row.text, ask(recorded.frames(p, row.tick), *past_motion)


def _ticks(lines: list[dict[str, Any]]) -> pd.DataFrame:
    rows = [
        {
            "time_s": line["time_s"],
            "waited_ms": line["waited_ms"],
            "is_gap": bool(line["missing"]),
            **line["age_ms"],
        }
        for line in lines
    ]
    numbers = pd.Index([line["number"] for line in lines], name="tick")
    return pd.DataFrame(rows, index=numbers)


def _answers(lines: list[dict[str, Any]], ticks: list[dict[str, Any]]) -> pd.DataFrame:
    times = {line["number"]: line["time_s"] for line in ticks}
    rows = [
        {"tick": line["tick"], "time_s": times[line["tick"]], "text": line["text"]}
        | line["latency_s"]
        | {key: value for key, value in line.items() if key not in ("tick", "text", "latency_s")}
        for line in lines
    ]
    return pd.DataFrame(rows, columns=None if rows else ["tick", "time_s", "text", *PARTS, "total"])
