"""Baselines without a camera: constants, motion models and a regression on past motion."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from avomni_lib.errors import AvomniError
from avomni_lib.etl.cache.windows import Windows
from avomni_lib.etl.clip.trajectory import HISTORY_STEPS, STEP_S, Trajectory
from avomni_lib.training.prompt import history
from avomni_lib.training.targets import Content, Target
from avomni_lib.training.targets.constants import constants
from avomni_lib.training.targets.motion_models import MODELS, predict

# What the regression answers, and how it is fitted.
NUMBERS, WORDS = ("speed_mps", "displacement_m", "waypoints_m"), ("along", "across")
NUM_FEATURES = 4 * HISTORY_STEPS + 1
PENALTY = 1.0  # on the squared weights, of standardised features
LEAST_SPREAD = 1e-3  # m, rad or m/s: a feature that varies less over the windows is dropped
FURTHEST = 6.0  # standard deviations from the mean: features are clipped there


@dataclass(frozen=True)
class EgoMotion:
    """Ridge regression on the car's own past motion: a model with eyes should do better.

    Attributes:
        centre, scale: (65,) float64 of the features; scale 0 drops one.
        middle: (D,) float64, the mean of the D outputs: numbers, then one-hot words.
        weights: (65, D) float64, standardised features -> outputs less their mean.
        outputs: Field of `Content` -> the shape of its numbers, or the words that it knows.
    """

    centre: np.ndarray
    scale: np.ndarray
    middle: np.ndarray
    weights: np.ndarray
    outputs: dict[str, tuple[int, ...] | tuple[str, ...]]

    @classmethod
    def fit(cls, pasts: Sequence[Trajectory], answers: Sequence[Content]) -> EgoMotion:
        """Learn what follows from a past, in closed form: (XᵀX + λ)⁻¹ Xᵀ Y.

        Args:
            pasts: Of the training windows, each up to where the target's history ends.
            answers: The ground truth of them. Fields that all have are learned: speed and
                displacement, waypoints, the two words of the manoeuvre; a cause never is.

        Raises:
            AvomniError: past motion predicts nothing of the training windows.
        """
        columns: list[np.ndarray] = []
        fields: dict[str, tuple[int, ...] | tuple[str, ...]] = {}
        for name in (*NUMBERS, *WORDS):
            values = [getattr(answer, name) for answer in answers]
            if not values or None in values:
                continue
            if name in NUMBERS:
                fields[name] = np.shape(values[0])
                columns.append(np.reshape(values, (len(values), -1)))
            else:
                fields[name] = tuple(sorted(set(values)))
                columns.append(np.equal.outer(values, fields[name]))
        if not fields:
            raise AvomniError(
                f"{len(answers)} training windows hold nothing that past motion could predict",
                where="split train of the cache",
                fix="take more clips (download.target_chunks)",
            )
        outputs = np.concatenate(columns, axis=1).astype(np.float64)
        features = np.array([_features(past) for past in pasts])
        centre, spread, middle = features.mean(axis=0), features.std(axis=0), outputs.mean(axis=0)
        scale = np.where(spread > LEAST_SPREAD, 1 / np.maximum(spread, LEAST_SPREAD), 0.0)
        inputs = _standard(features, centre, scale)
        square = inputs.T @ inputs + PENALTY * np.eye(NUM_FEATURES)
        weights = np.linalg.solve(square, inputs.T @ (outputs - middle))
        return cls(centre, scale, middle, weights, fields)

    def predict(self, past: Trajectory) -> Content:
        """What `Target.write` takes for the fields that were learned; the others are None."""
        values = self.middle + _standard(_features(past), self.centre, self.scale) @ self.weights
        fields: dict[str, Any] = {}
        for name, known in self.outputs.items():
            size = len(known) if name in WORDS else math.prod(known)
            part, values = values[:size], values[size:]
            if name in WORDS:
                fields[name] = known[int(part.argmax())]
            elif known:
                fields[name] = tuple(map(tuple, part.reshape(known).tolist()))
            else:
                fields[name] = max(float(part[0]), 0.0)
        return Content(**fields, action_m=fields.get("displacement_m"))


def _features(past: Trajectory) -> np.ndarray:
    """(65,) float64: how far the last 16 poses are from constant velocity, which there are, speed.

    What constant velocity would have been fills in for poses that are missing, so they are 0.
    """
    poses = np.zeros((HISTORY_STEPS, 4))
    steps = np.rint(past.t_s / STEP_S).astype(int)
    kept = (steps < 0) & (steps >= -HISTORY_STEPS)
    straight = past.speed_mps * past.t_s[kept]
    poses[steps[kept], :2] = past.xy_m[kept] - np.stack([straight, 0 * straight], axis=1)
    poses[steps[kept], 2] = past.yaw_rad[kept]
    poses[steps[kept], 3] = 1.0
    return np.append(poses.ravel(), past.speed_mps)


def _standard(features: np.ndarray, centre: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return np.clip((features - centre) * scale, -FURTHEST, FURTHEST)


def texts(
    target: Target, train: Windows, windows: Windows, chosen: Sequence[int]
) -> dict[str, list[str]]:
    """Row -> its answer to each chosen window, in the target's own form.

    Where a target needs what motion alone cannot predict, as other road users, the rows that rest
    on motion are absent.

    Args:
        train: The training windows, which constants and ridge regression are fitted on.
        windows: That are asked about; their past is read up to where `target.history_ends`, and
            nothing else of them.
    """
    truths = [target.of(train.truth(i)) for i in range(len(train))]
    rows = {name: [target.write(one)] * len(chosen) for name, one in constants(truths).items()}
    if target.scenes:
        return rows
    pasts = [history.past_of(windows, index, target) for index in chosen]
    times_us = windows.times_us(chosen[0])
    duration_s = float(times_us[-1] - times_us[0]) / 1e6
    for name in MODELS:
        answers = [predict(name, past, target, duration_s) for past in pasts]
        if not target.numbers or np.isfinite([answer.numbers for answer in answers]).all():
            rows[name] = [target.write(answer) for answer in answers]
    if not target.numbers:  # ridge regression learns the fields of the built-in targets
        known = [history.past_of(train, i, target) for i in range(len(train))]
        ridge = EgoMotion.fit(known, truths)
        rows["ego_motion"] = [target.write(ridge.predict(past)) for past in pasts]
    return rows
