"""The held-out figure of a training: the error of generated answers on validation windows.

A falling loss shows that the form of answers is learned; only answers show whether their numbers
are correct.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from avomni_lib.errors import AvomniError
from avomni_lib.params import Params
from avomni_lib.training.model.generate import generate_all
from avomni_lib.training.prompt import samples
from avomni_lib.training.prompt.conversation import Conversation
from avomni_lib.training.targets import Content
from avomni_lib.training.targets.constants import constants

SPLIT = "val"  # not `test`, because a checkpoint is chosen by it
SPARE_TOKENS = 8  # an answer may be this much longer than the longest target
AT_A_TIME = 8  # batch size; its keys and values take 4.7 GB in the 8B at 896×512


@dataclass(frozen=True)
class HeldOut:
    """Windows that are answered at each checkpoint.

    Attributes:
        windows: Windows of the split `val`.
        fallback: Replaces an answer that cannot be read: the mean of the training windows.
        max_new_tokens: Limit of an answer.
    """

    windows: Any
    indices: tuple[int, ...]
    conversation: Conversation
    fallback: Content
    max_new_tokens: int

    def errors(self, model: Any, rank: int = 0, num_ranks: int = 1) -> list[float]:
        """Errors of this rank's share of the windows, in the unit of the target's figure."""
        share, target = self.indices[rank::num_ranks], self.conversation.target
        texts = predictions(model, self.conversation, self.windows, share, self.max_new_tokens)
        return [
            target.error(target.read(text) or self.fallback, target.of(self.windows.truth(index)))
            for index, text in zip(share, texts, strict=True)
        ]


def predictions(
    model: Any,
    conversation: Conversation,
    windows: Any,
    indices: Sequence[int],
    max_new_tokens: int,
) -> list[str]:
    """The model's answers to some windows, in batches of `AT_A_TIME`."""
    frames = (windows.frames(index) for index in indices)
    pasts = (samples.history_of(index, windows, conversation) for index in indices)
    options = {"max_new_tokens": max_new_tokens, "at_a_time": AT_A_TIME}
    return generate_all(model, conversation, frames, pasts, **options)


def thinned(num_windows: int, at_most: int | None) -> list[int]:
    """Indices of at most `at_most` windows, evenly spaced; None takes all."""
    num = min(num_windows, at_most or num_windows)
    return [i * num_windows // num for i in range(num)]


def choose(
    p: Params, windows: Any, conversation: Conversation, longest_answer: int, held_out: Any = None
) -> HeldOut | None:
    """The held-out windows of a run, evenly thinned; None unless `training.heldout_windows` is set.

    Args:
        windows: The training windows.
        longest_answer: Tokens of the longest target among them.
        held_out: Replaces the cache's windows of the split `val`.

    Raises:
        AvomniError: the split has no window.
    """
    if p.training.heldout_windows is None:
        return None
    if held_out is None:
        held_out = samples.windows_of(p, SPLIT, windows.cache)
    if not len(held_out):
        raise AvomniError(
            f"training.heldout_windows is {p.training.heldout_windows}, and no clip of the split "
            f"{SPLIT!r} has a window",
            where="training.heldout_windows",
            fix="set it to null, or take more chunks (download.target_chunks)",
        )
    return HeldOut(
        held_out,
        tuple(thinned(len(held_out), p.training.heldout_windows)),
        conversation,
        constants(conversation.target.of(windows.truth(i)) for i in range(len(windows)))["mean"],
        longest_answer + SPARE_TOKENS,
    )


def best(history: Sequence[dict[str, float]]) -> dict[str, float] | None:
    """The checkpoint with the smallest error, the earliest of equal ones."""
    return min(history, key=lambda row: (figure_of(row)[1], row["step"]), default=None)


def figure_of(row: dict[str, float]) -> tuple[str, float]:
    """Name and value of a checkpoint's held-out figure; its name is the target's."""
    ((name, value),) = ((key, value) for key, value in row.items() if key != "step")
    return name, value


def exhausted(history: Sequence[dict[str, float]], patience: int | None) -> bool:
    """Whether `patience` checkpoints have come since the best one."""
    if patience is None or not history:
        return False
    since = [row for row in history if row["step"] > best(history)["step"]]
    return len(since) >= patience
