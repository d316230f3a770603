"""One answer: about a window, a clip or a folder of videos, with its numbers and what was true."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avomni_lib.errors import AvomniError
from avomni_lib.live import subject
from avomni_lib.live.answerer import Answer, Answerer
from avomni_lib.live.subject import Subject
from avomni_lib.params import Params


@dataclass(frozen=True)
class Prediction:
    """What was asked about and what came out.

    Attributes:
        model: "base" or "adapted".
        off: How far off by the target's figure; None where the truth is not known or nothing could
            be read.
    """

    subject: Subject
    model: str
    answer: Answer
    off: float | None
    figure: str

    def values(self) -> dict[str, Any]:
        """As plain values, for `--json`."""
        said, true = self.answer.said, self.subject.true
        return {
            "about": self.subject.name,
            "model": self.model,
            "answer": self.answer.text,
            "said": _known(said),
            "truth": self.subject.truth,
            "true": _known(true),
            self.figure: self.off,
            "seconds": round(self.answer.seconds, 3),
        }


def chosen(
    p: Params,
    window: int | None = None,
    clip: str | None = None,
    folder: Path | None = None,
    at_s: float | None = None,
) -> Subject:
    """What the arguments name; the first window of the score where they name nothing.

    Raises:
        AvomniError: more than one of them is named, or it cannot be read.
    """
    named = [name for name in (window, clip, folder) if name is not None]
    if len(named) > 1:
        raise AvomniError("name one of --window, --clip and --folder", where="avomni predict")
    if clip is not None:
        return subject.of_clip(p, clip, at_s)
    if folder is not None:
        return subject.of_folder(p, folder, at_s)
    if at_s is not None:
        raise AvomniError("--at belongs to --clip and --folder", where="avomni predict")
    return subject.of_window(p, window or 0)


def predict(asked: Subject, answerer: Answerer) -> Prediction:
    """Ask a model about one window."""
    answer = answerer.answer(asked.frames, asked.history)
    off = None
    if answer.said is not None and asked.true is not None:
        off = round(float(answerer.target.error(answer.said, asked.true)), 4)
    return Prediction(asked, answerer.name, answer, off, answerer.target.figure)


def _known(said: Any) -> dict[str, Any] | None:
    if said is None:
        return None
    values = dataclasses.asdict(said)
    return {name: value for name, value in values.items() if value is not None}
