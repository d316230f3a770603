"""Time of an answer on a card, estimated by arithmetic; nothing here was measured.

Before the first token, a window goes through the vision tower and the language model once, at
`estimate.UTILISATION` of the card's peak. Each token then reads all weights of the language model
and its head once, in 16 bit with the adapter merged, at `BANDWIDTH_SHARE` of the peak bandwidth.
Reading the window's keys and values, transferring frames and tokenising are neglected.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from avomni_lib.params import Params
from avomni_lib.training.forecast.estimate import CARD_FLOPS, UTILISATION, operations
from avomni_lib.training.forecast.memory import size_of
from avomni_lib.training.prompt.tokens import backbone_of, tokens_per_sample

# AMD's data sheet of the MI300X, bytes per second; and the share that read-only kernels reach.
CARD_BANDWIDTH, BANDWIDTH_SHARE = 5.3e12, 0.7
BYTES_PER_WEIGHT = 2


@dataclass(frozen=True)
class AnswerTime:
    """Seconds of an answer by part.

    Attributes:
        vision: The vision tower, for frames that are not cached.
        window: The language model, until the first token.
        text: Generation of the answer's tokens.
        num_tokens: Number of the answer's tokens, estimated.
        work: Number of operations before the first token.
    """

    vision: float
    window: float
    text: float
    num_tokens: int
    work: float

    @property
    def total(self) -> float:
        return self.vision + self.window + self.text

    def least_hop(self, hz: float) -> int:
        """The smallest `live.hop` at which no window is overtaken.

        Args:
            hz: Ticks per second.
        """
        return max(math.ceil(self.total * hz), 1)


def answer_time(p: Params) -> AnswerTime | None:
    """Time of an answer in a live session on an MI300X; None if the model's size is unknown.

    If the vision tower's features are cached, it processes only the new frames of one hop.

    Raises:
        AvomniError: the base model does not support the grid.
    """
    size = size_of(p)
    if size is None:
        return None
    tokens, kind, length = tokens_per_sample(p), backbone_of(p), p.processing.sequence_length
    num_new = length
    if kind.tower and p.processing.past.scale == 1:
        per_patch = kind.frames_per_patch
        num_new = min(math.ceil(p.live.hop / per_patch) * per_patch, length)
    work = operations(size, tokens, rank=0, targets=())
    vision = work.vision * num_new / length
    window = work.linears + work.attention
    per_second = CARD_FLOPS * UTILISATION
    language = size.language
    num_read = language.num_linears + language.num_others + language.num_embeddings
    read = BYTES_PER_WEIGHT * num_read
    text = tokens.answer * read / (CARD_BANDWIDTH * BANDWIDTH_SHARE)
    return AnswerTime(
        vision / per_second, window / per_second, text, tokens.answer, vision + window
    )
