"""The rows of the ladder that have no eyes: constants, and motion that goes on as it was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from avomni_lib.evaluation import baselines
from avomni_lib.evaluation.ego_mlp import EgoMlp
from avomni_lib.training.prompt import history
from avomni_lib.training.targets import Target
from avomni_lib.training.targets.constants import constants

if TYPE_CHECKING:
    from avomni_lib.etl.cache.windows import Windows

MOTION = ("constant_velocity", "ctra")


def texts(
    target: Target, train: Windows, windows: Windows, chosen: Sequence[int], seed: int
) -> dict[str, list[str]]:
    """Row -> its answer to each chosen window, in the target's own form.

    Where a target speaks of what motion alone cannot tell, the rows that live by motion are absent.

    Args:
        train: The training windows, which constants and network are fitted on.
        windows: That are asked about; their past is read up to where `target.history_ends`, and
            nothing else of them.
    """
    ids = [train[i].clip_id for i in range(len(train))]
    truths = [target.of(train.truth(i)) for i in range(len(train))]
    rows = {name: [target.write(said)] * len(chosen) for name, said in constants(truths).items()}
    if target.scenes:
        return rows
    pasts = [history.past_of(windows, index, target) for index in chosen]
    times_us = windows.times_us(chosen[0])
    duration_s = float(times_us[-1] - times_us[0]) / 1e6
    for name in MOTION:
        said = [baselines.says(name, past, target, duration_s) for past in pasts]
        if not target.numbers or np.isfinite([each.numbers for each in said]).all():
            rows[name] = [target.write(each) for each in said]
    if target.numbers:  # the network learns the fields of the built-in targets
        return rows
    known = [history.past_of(train, i, target) for i in range(len(train))]
    network = EgoMlp.fit(known, truths, seed, clip_ids=ids)
    rows["ego_mlp"] = [target.write(network.says(past)) for past in pasts]
    return rows
