"""Ridge regression on the car's own past motion: a model with eyes should do better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from avomni_lib.errors import AvomniError
from avomni_lib.etl.clip.trajectory import HISTORY_STEPS, STEP_S, Trajectory
from avomni_lib.training.targets import Said

NUMBERS = ("speed_mps", "displacement_m", "waypoints_m")
WORDS = ("along", "across")
NUM_FEATURES = 4 * HISTORY_STEPS + 1

PENALTY = 1.0  # on the squared weights, of standardised features
LEAST_SPREAD = (
    1e-3  # m, rad or m/s: a feature that varies less over the training windows is dropped
)
FURTHEST = 6.0  # standard deviations from the mean: features are clipped there


@dataclass(frozen=True)
class EgoMotion:
    """A linear model of the numbers of an answer and of a score for each of its words.

    Made by `fit`.

    Attributes:
        centre, scale: (65,) float64 of the features; scale 0 drops one.
        middle: (D,) float64, the mean of the D outputs: numbers, then one-hot words.
        weights: (65, D) float64, standardised features -> outputs less their mean.
        numbers: Fields of `Said` that are answered in numbers.
        words: Field of `Said` -> the words it knows.
    """

    centre: np.ndarray
    scale: np.ndarray
    middle: np.ndarray
    weights: np.ndarray
    numbers: tuple[str, ...]
    words: dict[str, tuple[str, ...]]

    @classmethod
    def fit(cls, pasts: Sequence[Trajectory], answers: Sequence[Said]) -> EgoMotion:
        """Learn what follows from a past, in closed form: (XᵀX + λ)⁻¹ Xᵀ Y.

        Args:
            pasts: Of the training windows, each up to where the target's history ends.
            answers: The ground truth of them. Fields that all have are learned: speed and
                displacement, waypoints, the two words of the manoeuvre; a cause never is.

        Raises:
            AvomniError: there are no training windows, or nothing in them that motion could tell.
        """
        if not answers:
            raise AvomniError(
                "no training window for the regression on past motion to learn from",
                where="split train of the cache",
                fix="take more clips (download.target_chunks)",
            )
        numbers, words = _known(answers)
        if not numbers and not words:
            raise AvomniError(
                "the training windows hold nothing that past motion could tell",
                where="training.target",
                fix="leave this baseline out for targets that only name a cause",
            )
        features = np.array([_features(past) for past in pasts])
        outputs = np.array([_outputs(answer, numbers, words) for answer in answers])
        centre, spread, middle = features.mean(axis=0), features.std(axis=0), outputs.mean(axis=0)
        scale = np.where(spread > LEAST_SPREAD, 1 / np.maximum(spread, LEAST_SPREAD), 0.0)
        inputs = _standard(features, centre, scale)
        square = inputs.T @ inputs + PENALTY * np.eye(NUM_FEATURES)
        weights = np.linalg.solve(square, inputs.T @ (outputs - middle))
        return cls(centre, scale, middle, weights, numbers, words)

    def predict(self, past: Trajectory) -> Said:
        """What `Target.write` takes for the fields that were learned; the others are None."""
        values = self.middle + _standard(_features(past), self.centre, self.scale) @ self.weights
        fields: dict = {}
        for name in self.numbers:
            if name == "waypoints_m":
                size = len(values) - sum(map(len, self.words.values()))
                fields[name] = tuple(map(tuple, values[:size].reshape(-1, 2).tolist()))
                values = values[size:]
            else:
                fields[name], values = max(float(values[0]), 0.0), values[1:]
        if "displacement_m" in fields:
            fields["action_m"] = fields["displacement_m"]
        for name, known in self.words.items():
            fields[name] = known[int(values[: len(known)].argmax())]
            values = values[len(known) :]
        return Said(**fields)


def _known(answers: Sequence[Said]) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """The fields that all have: those of numbers, and those of words with the words."""

    def all_have(name: str) -> bool:
        return all(getattr(answer, name) is not None for answer in answers)

    words = {name: {getattr(each, name) for each in answers} for name in WORDS if all_have(name)}
    return tuple(filter(all_have, NUMBERS)), {key: tuple(sorted(of)) for key, of in words.items()}


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


def _outputs(answer: Said, numbers: Sequence[str], words: dict[str, tuple[str, ...]]) -> np.ndarray:
    """(D,) float64: speed, displacement and waypoints, then each field's words, one-hot."""
    parts = [np.ravel(getattr(answer, name)) for name in numbers]
    parts += [np.equal(known, getattr(answer, name)) for name, known in words.items()]
    return np.concatenate(parts).astype(np.float64)


def _standard(features: np.ndarray, centre: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return np.clip((features - centre) * scale, -FURTHEST, FURTHEST)
