"""Tables of answers whose figures are known by hand: windows, and what rows of a ladder say."""

import numpy as np
import pyarrow as pa

from avomni_lib.etl.cache.windows import Truth
from avomni_lib.etl.clip.trajectory import FUTURE_STEPS, STEP_S, Trajectory
from avomni_lib.evaluation import metrics
from avomni_lib.evaluation.metrics import Asked
from avomni_lib.training.targets import Content, target

SUMMARY = target("summary_v1")
DURATION_S = 1.5
STEPS_S = np.arange(1, FUTURE_STEPS + 1) * STEP_S


def straight(speed_mps):
    """A future on the x axis at a constant speed."""
    places = np.stack([speed_mps * STEPS_S, np.zeros(FUTURE_STEPS)], axis=1)
    return Trajectory(STEPS_S, places, np.zeros(FUTURE_STEPS), speed_mps)


def window(clip_id, number, speed_mps, displacement_m, turn_rad=0.0, future=None, **attributes):
    truth = Truth(DURATION_S, displacement_m, displacement_m, speed_mps, future)
    return Asked(clip_id, number, truth, turn_rad, attributes)


def summary(speed_mps, displacement_m):
    return SUMMARY.write(Content(speed_mps, displacement_m))


def summaries(asked, mean, **predicted):
    """The mean, (speed, displacement), beside rows of such pairs, of texts, or of None."""
    texts = {"mean": [summary(*mean)] * len(asked)}
    for name, each in predicted.items():
        texts[name] = [summary(*one) if isinstance(one, tuple) else one for one in each]
    return table(SUMMARY, asked, texts)


def table(about, asked, texts):
    """Row of the ladder -> texts, or (row, sample) -> texts."""
    keys = {key: key if isinstance(key, tuple) else (key, 0) for key in texts}
    return pa.concat_tables(
        metrics.rows(keys[key][0], about, asked, texts[key], keys[key][1]) for key in texts
    )


def drives(num_clips, windows_each=4, seed=0, bias=0.0, spread=1.0):
    """Clips at speeds of their own, and a row whose errors share something within a clip.

    Returns:
        The windows, and what that row says of each, (speed, displacement).
    """
    draw = np.random.default_rng(seed)
    asked, predicted = [], []
    for clip in range(num_clips):
        speed, error = draw.uniform(3, 25), draw.normal(bias, spread)
        for number in range(windows_each):
            own = speed + draw.normal(0, 0.2)
            asked.append(window(f"clip-{clip}", number, own, own * DURATION_S))
            near = abs(own + error + draw.normal(0, 0.1))
            predicted.append((near, near * DURATION_S))
    return asked, predicted
