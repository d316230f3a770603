"""Answers for windows as every row of the ladder might give them: good, poor, and unreadable."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa

from avomni_lib.etl.cache.windows import Windows
from avomni_lib.etl.clip.manoeuvre import ACROSS, ALONG
from avomni_lib.etl.clip.scene import Surroundings
from avomni_lib.evaluation import metrics
from avomni_lib.training.targets import Content, Target, target

# How far off each row is, as a share of the mean's error; the model is the last one.
SPREADS = {
    "mean": 1.0,
    "median": 1.0,
    "constant_velocity": 0.3,
    "ctra": 0.25,
    "ego_motion": 0.2,
    "base": 0.8,
    "blind": 1.0,
    "trained_blind": 0.9,
    "shuffled": 0.22,
    "one_camera": 0.12,
    "adapted": 0.1,
}
EVENTS = (None, "Brake because a cone blocks the lane.", "Slow down for a dog on the road.")
COUNTRIES, PLATFORMS = ("Germany", "Italy", "United States"), ("hyperion_8", "hyperion_8.1")


def asked(windows: Windows) -> list[metrics.Asked]:
    """Every window, with attributes that follow from its clip's place."""
    places = {clip_id: i for i, clip_id in enumerate(dict.fromkeys(w.clip_id for w in windows))}
    return [
        metrics.Asked(
            window.clip_id,
            window.number,
            dataclasses.replace(windows.truth(i), scene=Surroundings((), EVENTS[i % 3])),
            turn_rad=0.5 * np.sin(i),
            attributes={
                "country": COUNTRIES[places[window.clip_id] % 3],
                "hour": 5 * places[window.clip_id] % 24,
                "platform": PLATFORMS[places[window.clip_id] % 2],
            },
        )
        for i, window in enumerate(windows)
    ]


def answers(
    windows: Windows,
    name: str = "summary_v1",
    spreads: dict[str, float] = SPREADS,
    unread: int = 3,
    samples: int = 0,
) -> pa.Table:
    """A table of the full schema; the first `unread` answers of base and model are babble."""
    of, about = target(name), asked(windows)
    true = [of.of(each.truth) for each in about]
    parts = []
    for number, (row, spread) in enumerate(spreads.items()):
        for sample in range(1 + (samples if row == "adapted" else 0)):
            rng = np.random.default_rng([number, sample])
            texts = [_answer(of, predicted, spread, rng) for predicted in true]
            if row in ("base", "adapted"):
                texts[:unread] = ["$x$ babble_{ <b>&amp;</b> " * 5] * unread
            if row == "blind":
                texts = [""] * len(texts)
            parts.append(metrics.rows(row, of, about, texts, sample))
    return pa.concat_tables(parts)


def _answer(of: Target, true: Content, spread: float, rng: np.random.Generator) -> str:
    predicted = true
    if true.speed_mps is not None:
        speed = abs(true.speed_mps + 6 * spread * rng.normal())
        length = true.displacement_m * speed / max(true.speed_mps, 0.1)
        predicted = dataclasses.replace(
            predicted, speed_mps=speed, displacement_m=length, action_m=length
        )
    if true.waypoints_m is not None:
        points = np.array(true.waypoints_m)
        off = spread * rng.normal(size=2) * np.linspace(0.1, 1, len(points))[:, None] * (15, 4)
        predicted = dataclasses.replace(
            predicted, waypoints_m=tuple(map(tuple, (points + off).tolist()))
        )
    if true.along is not None:
        along = rng.choice(ALONG) if rng.random() < spread else true.along
        across = rng.choice(ACROSS) if rng.random() < spread else true.across
        predicted = dataclasses.replace(predicted, along=str(along), across=str(across))
    return of.write(predicted)
