"""The held-out figure of a training: what its model is off by on windows that it does not learn.

A falling loss says that the words are learned; whether the numbers in them are right is seen only
in answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from avomni_lib.errors import AvomniError
from avomni_lib.params import Params
from avomni_lib.training.model.generate import say_all
from avomni_lib.training.prompt import samples
from avomni_lib.training.prompt.conversation import Conversation
from avomni_lib.training.targets import Said
from avomni_lib.training.targets.constants import constants

SPLIT = "val"  # never evaluation.split's test: a checkpoint is chosen by it
SPARE_TOKENS = 8  # that an answer may be longer than the longest that is learned
AT_A_TIME = 8  # windows answered at a time: their keys and values take 4.7 GB in the 8B at 896×512


@dataclass(frozen=True)
class HeldOut:
    """Windows that are answered at each checkpoint.

    Attributes:
        windows: Of the split `val`.
        indices: Which of them.
        conversation: The conversation that is trained.
        fallback: What counts as said where an answer cannot be read: the mean of the training
            windows.
        max_new_tokens: Of an answer.
    """

    windows: Any
    indices: tuple[int, ...]
    conversation: Conversation
    fallback: Said
    max_new_tokens: int

    def errors(self, model: Any, rank: int = 0, num_ranks: int = 1) -> list[float]:
        """How far off this rank's share of the windows is, in the unit of the target's figure."""
        own, target = self.indices[rank::num_ranks], self.conversation.target
        texts = predictions(model, self.conversation, self.windows, own, self.max_new_tokens)
        return [
            target.error(target.read(text) or self.fallback, target.of(self.windows.truth(index)))
            for index, text in zip(own, texts, strict=True)
        ]


def predictions(
    model: Any,
    conversation: Conversation,
    windows: Any,
    indices: Sequence[int],
    max_new_tokens: int,
) -> list[str]:
    """What a model answers about each of these windows, a few at a time."""
    frames = (windows.frames(index) for index in indices)
    pasts = (samples.history_of(index, windows, conversation) for index in indices)
    options = {"max_new_tokens": max_new_tokens, "at_a_time": AT_A_TIME}
    return say_all(model, conversation, frames, pasts, **options)


def thinned(num_windows: int, at_most: int | None) -> list[int]:
    """Indices of so many windows, evenly spaced over all of them; of all where it is None."""
    num = min(num_windows, at_most or num_windows)
    return [i * num_windows // num for i in range(num)]


def choose(
    p: Params, windows: Any, conversation: Conversation, longest_answer: int, held_out: Any = None
) -> HeldOut | None:
    """The held-out windows of a run, evenly thinned, or None where none are asked for.

    Args:
        windows: That are trained on.
        longest_answer: Tokens of the longest answer among them.
        held_out: Instead of the cache's windows of the split `val`.

    Raises:
        AvomniError: they are asked for and there is none.
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
    """The checkpoint with the smallest error; of equals the earliest."""
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
