"""Answers windows with the base model and an adapter, loaded once, and scores one answer."""

from __future__ import annotations

import dataclasses
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from avomni_lib.errors import AvomniError
from avomni_lib.etl.run.build import description
from avomni_lib.evaluation import models
from avomni_lib.live import subject
from avomni_lib.live.subject import Subject
from avomni_lib.params import Params
from avomni_lib.training.model import adapter, generate
from avomni_lib.training.model.feature_cache import FeatureCache
from avomni_lib.training.targets import Content, Target, target_of

# A model on the hub at one commit: owner/name@40 hex digits.
ON_THE_HUB = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*)@([0-9a-f]{40})")


@dataclass(frozen=True)
class Answer:
    """A model's answer to one window.

    Attributes:
        text: Without the prompt, padding and end-of-turn token.
        content: The parsed text; None if it cannot be read.
        seconds: From frames on the host to the text.
        num_encoded: Number of frames (or squares, if the model uses them) that went through the
            vision tower, without those cached from previous windows; None if unknown.
    """

    text: str
    content: Content | None
    seconds: float
    num_encoded: int | None = None


class Answerer:
    """Answers windows as 06_evaluate does: same pixels, same prompt, greedy decoding.

    Args:
        p: The run's parameters; the adapter's record is compared with them.
        place: The adapter's folder, `owner/name@commit` on the hub, or None for the run's adapter.

    Raises:
        AvomniError: no such adapter, it is damaged, or it was trained with other parameters; both
            `place` and `base_only` are given.
    """

    def __init__(self, p: Params, place: str | Path | None = None, base_only: bool = False):
        self.p, self.target = p, target_of(p)
        if base_only and place is not None:
            raise AvomniError(
                "--base asks without an adapter", where="--adapter", fix="leave one out"
            )
        self.adapter = None if base_only else adapter_folder(p, place)
        self.model, self.conversation, self.choices = models.opened(p, description(p), self.adapter)
        self.seen = FeatureCache(self.model, self.conversation.backbone)

    @property
    def name(self) -> str:
        """Name of the corresponding row of the ladder."""
        return "base" if self.adapter is None else "adapted"

    @property
    def num_encoded(self) -> int | None:
        """`Answer.num_encoded` of the last answer."""
        return self.seen.num_frames

    def __call__(self, frames: np.ndarray, history: str = "") -> str:
        """The text of `answer`, as `LiveSession` asks for it."""
        return self.answer(frames, history).text

    def answer(self, frames: np.ndarray, history: str = "") -> Answer:
        """Answer one window.

        Args:
            frames: (T, H, W, 3) uint8 RGB.
            history: Text of the car's past motion, if `prompt.ego_history` is on.

        Raises:
            AvomniError: the shape of the frames does not match the parameters.
        """
        if frames.shape != self.conversation.frame_shape:
            raise AvomniError(
                f"the window has shape {frames.shape}, the model expects "
                f"{self.conversation.frame_shape} (frames, height, width, colours)"
            )
        started = time.monotonic()
        (text,) = generate.generate_texts(
            self.model,
            self.conversation,
            frames[None],
            self.p.evaluation.max_new_tokens,
            histories=[history],
            constrained=self.p.evaluation.constrained,
        )
        seconds = time.monotonic() - started
        return Answer(text, self.target.read(text), seconds, self.num_encoded)


def adapter_folder(p: Params, place: str | Path | None = None) -> Path:
    """The folder of an adapter; one on the hub is downloaded.

    Args:
        place: A folder, `owner/name@commit`, or None for the run's adapter.

    Raises:
        AvomniError: there is none.
    """
    if place is None:
        return adapter.adapter_dir(p)
    folder = Path(place)
    if (folder / adapter.RECORD_FILE).is_file():
        return folder
    named = ON_THE_HUB.fullmatch(str(place))
    if named is None:
        raise AvomniError(
            f"no adapter at {place}",
            where="--adapter",
            fix="name the folder that 05_train wrote, or owner/name@commit of one on the hub (all "
            "40 digits: a branch may change)",
        )
    return adapter.fetch(*named.groups())


@dataclass(frozen=True)
class Prediction:
    """A window, the model's answer to it, and the error.

    Attributes:
        model: "base" or "adapted".
        off: Error by the target's figure; None if there is no ground truth or the answer cannot be
            read.
    """

    subject: Subject
    model: str
    answer: Answer
    off: float | None
    figure: str

    def values(self) -> dict[str, Any]:
        """Plain values, for `--json`."""
        content, true = self.answer.content, self.subject.true
        return {
            "about": self.subject.name,
            "model": self.model,
            "answer": self.answer.text,
            "content": _known(content),
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
    """The window that the arguments select; without any, the first window that 06 scores.

    Raises:
        AvomniError: more than one of them is given, or it cannot be read.
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
    """Answer one window and score the answer."""
    answer = answerer.answer(asked.frames, asked.history)
    return scored(asked, answerer.name, answer, answerer.target)


def scored(asked: Subject, model: str, answer: Answer, target: Target) -> Prediction:
    """Score an answer, if it can be read and the ground truth is known."""
    off = None
    if answer.content is not None and asked.true is not None:
        off = round(float(target.error(answer.content, asked.true)), 4)
    return Prediction(asked, model, answer, off, target.figure)


def _known(content: Any) -> dict[str, Any] | None:
    if content is None:
        return None
    values = dataclasses.asdict(content)
    return {name: value for name, value in values.items() if value is not None}
