"""Answers of a model of this process, as 06 gets them: in batches, and kept as they come."""

import numpy as np

from avomni_lib.evaluation import answer
from avomni_lib.training.model import generate


def answers(
    model,
    talk,
    windows,
    indices,
    *,
    batch_size,
    max_new_tokens,
    kept=None,
    bar=None,
    constrained=False,
    **row,
):
    """The answer to each window, in their order; `row` as `answer.Row.of` takes it."""
    asked = answer.Row.of(windows, indices, batch_size, **row)

    def say(batch):
        return generate.generate_texts(
            model,
            talk,
            np.stack([windows.frames(i) for i in batch.indices]),
            max_new_tokens,
            histories=batch.histories,
            sampling=batch.sampling,
            constrained=constrained,
        )

    ask = answer.one_by_one(lambda: say)
    return answer.ask_all([asked], ask, kept, bar)[asked.name, asked.sample]
