"""The answers of the base model and of the adapted one to the same window."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from avomni_lib import hardware
from avomni_lib.errors import AvomniError
from avomni_lib.evaluation.answer import held_out_windows
from avomni_lib.params import Params
from avomni_lib.training.model import adapter
from avomni_lib.training.model.generate import say
from avomni_lib.training.prompt import samples

if TYPE_CHECKING:
    from avomni_lib.etl.cache.windows import Windows


@dataclass(frozen=True)
class BeforeAfter:
    """One window and the answers to it.

    Attributes:
        clip_id: Whose window it is.
        frames: (T, H, W, 3) uint8 RGB.
        true: The target's text.
        base: The base model's answer.
        adapted: The adapted model's; None where it was not asked.
        speed_true_mps: What the car drove.
        speed_base_mps, speed_adapted_mps: Read back; None where an answer has none.
    """

    clip_id: str
    frames: np.ndarray
    true: str
    base: str
    adapted: str | None
    speed_true_mps: float
    speed_base_mps: float | None
    speed_adapted_mps: float | None


def before_after(p: Params, window: int = 0, adapted: bool = True) -> BeforeAfter:
    """Ask the base model and the adapted one about the same held-out window.

    Args:
        window: Index in the windows of `evaluation.split`.
        adapted: Ask the adapted model too; before there is one only the base can be asked.

    Raises:
        AvomniError: there is no cache, no such window, or no adapter that belongs to `p`.
    """
    windows = held_out_windows(p)
    if not 0 <= window < len(windows):
        raise AvomniError(
            f"no window {window}: the split {p.evaluation.split!r} has {len(windows)}, from 0",
        )
    frames = np.array(windows.frames(window))
    conversation, before, after = _answers(p, windows, window, frames, adapted)
    hardware.release_memory()  # the training that follows is another process
    truth = windows.truth(window)
    read = [conversation.target.read(text or "") for text in (before, after)]
    return BeforeAfter(
        clip_id=windows[window].clip_id,
        frames=frames,
        true=conversation.target.render(truth),
        base=before,
        adapted=after,
        speed_true_mps=truth.speed_mps,
        speed_base_mps=read[0] and read[0].speed_mps,
        speed_adapted_mps=read[1] and read[1].speed_mps,
    )


def models(p: Params, windows: Windows, adapted: bool = True) -> tuple[Any, Any, dict[str, Any]]:
    """The base model with or without its adapter, the conversation, and what was chosen.

    Raises:
        AvomniError: no adapter, or it was trained for something else than these windows.
    """
    from avomni_lib.training.backbones import backbone
    from avomni_lib.training.model import load

    if adapted:  # before weights are loaded
        load.check_adapter(adapter.adapter_dir(p), p, windows.cache.header)
    base = load.load_base(p)
    kind = backbone(p.model.backbone, base.model.config)
    conversation = samples.conversation_of(p, windows, base.tokenizer, kind)
    if not adapted:
        return base.model.eval(), conversation, base.choices
    tuned = load.load_adapter(base.model, adapter.adapter_dir(p), p, windows.cache.header)
    return tuned, conversation, base.choices


def _answers(
    p: Params, windows: Windows, index: int, frames: np.ndarray, adapted: bool
) -> tuple[Any, str, str | None]:
    """The conversation, and the answers of the base and the adapted model about one window."""
    model, conversation, _ = models(p, windows, adapted)
    history = [samples.history_of(index, windows, conversation)]

    def answer() -> str:
        return say(
            model, conversation, frames[None], p.evaluation.max_new_tokens, histories=history
        )[0]

    after = answer() if adapted else None
    with model.disable_adapter() if adapted else contextlib.nullcontext():
        return conversation, answer(), after
