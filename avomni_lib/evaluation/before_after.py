"""What the base model and the adapted one answer about the same windows.

05's training process has the model loaded and leaves the answers (`training.fit.job`); here
they are waited for and set beside the ground truth.
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
class Answered:
    """One window, the target's text of it, and what the models answer; None if not asked.

    Attributes:
        frames: (T, H, W, 3) uint8 RGB.
        speed_base_mps, speed_adapted_mps: Read back; None where an answer states none.
    """

    clip_id: str
    frames: np.ndarray
    ground_truth: str
    base: str
    adapted: str | None
    speed_ground_truth_mps: float
    speed_base_mps: float | None
    speed_adapted_mps: float | None


def before(p: Params) -> list[Answered]:
    """A few windows of `evaluation.split` and what the base model answers about them.

    The training's process is started where there is none; it trains after `trainer.train`.

    Raises:
        AvomniError: there is no cache, the split has no window, or the process failed.
    """
    windows = held_out_windows(p)
    return _answered(p, windows, _predictions(p, windows, job.BEFORE_FILE, pauses=True), {})


def after(p: Params) -> list[Answered]:
    """The same windows, with what the adapted model answers too.

    Raises:
        AvomniError: as `before`; there is no adapter that belongs to `p`.
    """
    from avomni_lib.training.model import load

    windows = held_out_windows(p)
    load.check_adapter(adapter.adapter_dir(p), p, windows.cache.header)
    adapted = _predictions(p, windows, job.AFTER_FILE)
    return _answered(p, windows, _predictions(p, windows, job.BEFORE_FILE), adapted)


def models(
    p: Params, header: Mapping[str, Any], folder: Path | None
) -> tuple[Any, Conversation, dict[str, Choice]]:
    """The base model with an adapter, the conversation, and what was chosen.

    Args:
        header: Of the cache that is asked about.
        folder: The adapter's; None asks the base model alone.

    Raises:
        AvomniError: no adapter, or it was trained for something else than this cache.
    """
    from avomni_lib.training.backbones import backbone
    from avomni_lib.training.model import load
    from avomni_lib.training.prompt import samples

    if folder is not None:  # before weights are loaded
        load.check_adapter(folder, p, header)
    base = load.load_base(p)
    kind = backbone(p.model.backbone, base.model.config)
    conversation = samples.conversation_of(p, base.tokenizer, kind)
    if folder is None:
        return base.model, conversation, base.choices
    return load.load_adapter(base.model, folder, p, header), conversation, base.choices


def _predictions(p: Params, windows: Windows, name: str, pauses: bool = False) -> dict[int, str]:
    """What the training's process leaves, by the window's index."""
    found = job.awaited(p, name, windows.cache.digest, pauses)
    if found is None:  # one was at work whose `evaluation` is another
        raise AvomniError(
            f"the training left no answers of these windows in {name}",
            where=str(p.checkpoints_dir),
            fix="run the same cell again",
        )
    return {int(index): text for index, text in found.items()}


def _answered(
    p: Params, windows: Windows, base: dict[int, str], adapted: dict[int, str]
) -> list[Answered]:
    target, answered = target_of(p), []
    for index, text in base.items():
        truth, texts = windows.truth(index), (text, adapted[index] if adapted else None)
        read = [target.read(each or "") for each in texts]
        speeds = [answer.speed_mps if answer else None for answer in read]
        answered.append(
            Answered(
                windows[index].clip_id,
                np.array(windows.frames(index)),
                target.render(truth),
                *texts,
                truth.speed_mps,
                *speeds,
            )
        )
    return answered
