"""How long an answer takes on a card, by arithmetic alone: nothing here was measured.

Before its first token a window goes through the vision tower and the language model once, at
`estimate.UTILISATION` of the card's peak. Each token then reads all weights of the language model
and its head once, in 16 bit with the adapter merged into them, at `BANDWIDTH_SHARE` of the memory's
peak; what it reads of the keys and values of the window is small beside them and is left out, and
so are sending frames and making tokens of text.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from avomni_lib.params import Params
from avomni_lib.training.forecast.estimate import CARD_FLOPS, UTILISATION, operations
from avomni_lib.training.forecast.memory import size_of
from avomni_lib.training.prompt.tokens import backbone_of, tokens_per_sample

# AMD's data sheet of the MI300X, bytes a second; and what kernels that only read reach of it.
CARD_BANDWIDTH, BANDWIDTH_SHARE = 5.3e12, 0.7
BYTES_PER_WEIGHT = 2


@dataclass(frozen=True)
class AnswerTime:
    """Seconds of an answer by part.

    Attributes:
        vision: The vision tower, for the frames that it has not seen.
        window: The language model, until the first token.
        text: The tokens of the answer, one after another.
        num_tokens: Of the answer, estimated.
        work: Operations before the first token.
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
            hz: Ticks a second.
        """
        return max(math.ceil(self.total * hz), 1)


def answer_time(p: Params) -> AnswerTime | None:
    """What an answer of a live session takes on an MI300X; None where the model's size is unknown.

    Where the vision tower's features are kept, it goes through the new frames of one hop alone.

    Raises:
        AvomniError: the base model cannot see the grid.
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
    of = size.language
    read = BYTES_PER_WEIGHT * (of.num_linears + of.num_others + of.num_embeddings)
    text = tokens.answer * read / (CARD_BANDWIDTH * BANDWIDTH_SHARE)
    return AnswerTime(
        vision / per_second, window / per_second, text, tokens.answer, vision + window
    )
