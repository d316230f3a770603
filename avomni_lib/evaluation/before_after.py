"""Answers of the base model and the adapted one to the same windows.

The training process of 05, which has the model loaded, writes the answers (`training.fit.job`);
this module waits for them and adds the ground truth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from avomni_lib.errors import AvomniError
from avomni_lib.evaluation.answer import held_out_windows
from avomni_lib.hardware import Choice
from avomni_lib.params import Params
from avomni_lib.training.fit import job
from avomni_lib.training.model import adapter
from avomni_lib.training.targets import target_of

if TYPE_CHECKING:
    from avomni_lib.etl.cache.windows import Windows
    from avomni_lib.training.prompt.conversation import Conversation


@dataclass(frozen=True)
class ComparedWindow:
    """One window with its ground truth and the models' answers.

    Attributes:
        frames: (T, H, W, 3) uint8 RGB.
        ground_truth: The target's text.
        adapted: None before training.
        speed_base_mps, speed_adapted_mps: Parsed from the answers; None if an answer has no speed.
    """

    clip_id: str
    frames: np.ndarray
    ground_truth: str
    base: str
    adapted: str | None
    speed_ground_truth_mps: float
    speed_base_mps: float | None
    speed_adapted_mps: float | None


def before(p: Params) -> list[ComparedWindow]:
    """A few windows of `evaluation.split` and the base model's answers to them.

    Starts the training process if none runs; it waits for `trainer.train` before it trains.

    Raises:
        AvomniError: there is no cache, the split has no window, or the process failed.
    """
    windows = held_out_windows(p)
    return _answered(p, windows, _predictions(p, windows, job.BEFORE_FILE, pauses=True), {})


def after(p: Params) -> list[ComparedWindow]:
    """The same windows with the adapted model's answers as well.

    Raises:
        AvomniError: as `before`; there is no adapter that matches `p`.
    """
    from avomni_lib.training.model import load

    windows = held_out_windows(p)
    load.check_adapter(adapter.adapter_dir(p), p, windows.cache.header)
    adapted = _predictions(p, windows, job.AFTER_FILE)
    return _answered(p, windows, _predictions(p, windows, job.BEFORE_FILE), adapted)


def models(
    p: Params, header: Mapping[str, Any], folder: Path | None
) -> tuple[Any, Conversation, dict[str, Choice]]:
    """The base model with an adapter, its conversation, and the choices made on loading.

    Args:
        header: Header of the cache whose windows are answered.
        folder: The adapter's folder; None loads the base model alone.

    Raises:
        AvomniError: there is no adapter, or it does not match this cache or `p`.
    """
    from avomni_lib.training.backbones import backbone
    from avomni_lib.training.model import load
    from avomni_lib.training.prompt import samples

    if folder is not None:  # before the weights are loaded
        load.check_adapter(folder, p, header)
    base = load.load_base(p)
    kind = backbone(p.model.backbone, base.model.config)
    conversation = samples.conversation_of(p, base.tokenizer, kind)
    if folder is None:
        return base.model, conversation, base.choices
    return load.load_adapter(base.model, folder, p, header), conversation, base.choices


def _predictions(p: Params, windows: Windows, name: str, pauses: bool = False) -> dict[int, str]:
    """The answers written by the training process, by index of the window."""
    predictions = job.awaited(p, name, windows.cache.digest, pauses)
    if predictions is None:  # a process with another `evaluation` section was running
        raise AvomniError(
            f"the training left no answers of these windows in {name}",
            where=str(p.checkpoints_dir),
            fix="run the same cell again",
        )
    return {int(index): text for index, text in predictions.items()}


def _answered(
    p: Params, windows: Windows, base: dict[int, str], adapted: dict[int, str]
) -> list[ComparedWindow]:
    target, answered = target_of(p), []
    for index, text in base.items():
        truth, texts = windows.truth(index), (text, adapted[index] if adapted else None)
        answers = [target.read(text or "") for text in texts]
        speeds = [answer.speed_mps if answer else None for answer in answers]
        answered.append(
            ComparedWindow(
                windows[index].clip_id,
                np.array(windows.frames(index)),
                target.render(truth),
                *texts,
                truth.speed_mps,
                *speeds,
            )
        )
    return answered
