"""What a model must beat that has no camera: constants, and the car's own motion.

The motion models are two of Schubert, Richter and Wanielik, "Comparison and evaluation of advanced
motion models for vehicle tracking", 11th International Conference on Information Fusion, 2008:
constant velocity, and constant turn rate and acceleration (CTRA). They see the speed at a moment
and the poses of the second before it, and go on from there, in the rig's frame at that moment.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from avomni_lib.errors import AvomniError
from avomni_lib.etl.cache.windows import Truth
from avomni_lib.etl.clip.trajectory import FUTURE_STEPS, HISTORY_STEPS, STEP_S, Trajectory
from avomni_lib.training.prompt import history
from avomni_lib.training.targets import Said, Target
from avomni_lib.training.targets.constants import constants

if TYPE_CHECKING:
    from avomni_lib.etl.cache.windows import Windows

FIT_S, FEWEST_POSES = 1.0, 5  # what CTRA is fitted to
STANDING_MPS = 0.05  # slower is the noise of a speed, and no acceleration starts from that
# What the regression answers, and how it is fitted.
NUMBERS, WORDS = ("speed_mps", "displacement_m", "waypoints_m"), ("along", "across")
NUM_FEATURES = 4 * HISTORY_STEPS + 1
PENALTY = 1.0  # on the squared weights, of standardised features
LEAST_SPREAD = 1e-3  # m, rad or m/s: a feature that varies less over the windows is dropped
FURTHEST = 6.0  # standard deviations from the mean: features are clipped there


@dataclass(frozen=True)
class Motion:
    """A car on its way with a constant acceleration and a constant turn rate.

    A car that brakes stops, and stays where it is and as it stands.

    Attributes:
        speed_mps: Now, along x; negative backwards.
        accel_mps2: Change of that speed.
        yaw_rate_radps: To the left positive.
    """

    speed_mps: float
    accel_mps2: float = 0.0
    yaw_rate_radps: float = 0.0

    @property
    def stops_s(self) -> float:
        """Seconds until it stands; infinity for one that does not brake, 0 for one that stands."""
        if self.speed_mps == 0:
            return 0.0
        braking = self.accel_mps2 != 0 and (self.accel_mps2 < 0) != (self.speed_mps < 0)
        return -self.speed_mps / self.accel_mps2 if braking else math.inf

    def driven_m(self, t_s: float) -> float:
        """Length of the path driven `t_s` seconds from now."""
        t = min(t_s, self.stops_s)
        return abs(self.speed_mps * t + self.accel_mps2 * t**2 / 2)

    def poses(self, t_s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where it is `t_s` (K,) seconds from now: xy_m (K, 2) and yaw_rad (K,).

        The integral of (v + a τ) exp(i ω τ) over τ from 0 to t, in closed form.
        """
        t = np.minimum(t_s, self.stops_s)
        turned = 1j * self.yaw_rate_radps * t
        place = self.speed_mps * t * _moment(turned, 0)
        place += self.accel_mps2 * t**2 * _moment(turned, 1)
        return np.stack([place.real, place.imag], axis=-1), self.yaw_rate_radps * t

    def after(self, t_s: float) -> Motion:
        """The same car `t_s` seconds from now, as seen from where it is then."""
        if t_s >= self.stops_s:
            return Motion(0.0)
        return replace(self, speed_mps=self.speed_mps + self.accel_mps2 * t_s)

    def trajectory(self) -> Trajectory:
        """The next 6.4 s."""
        t = np.arange(1, FUTURE_STEPS + 1) * STEP_S
        return Trajectory(t, *self.poses(t), self.speed_mps)


def constant_velocity(past: Trajectory) -> Motion:
    """Straight on at the speed of the moment."""
    return Motion(past.speed_mps)


def ctra(past: Trajectory) -> Motion:
    """On at the speed of the moment with the acceleration and the turn rate of the second before.

    Both are the slopes of straight lines through the last second, the moment itself among it, by
    least squares: of the speeds between poses, and of the headings. With fewer than 5 poses there,
    or for a car that stands, it is constant velocity.
    """
    recent = (past.t_s >= -FIT_S - STEP_S / 2) & (past.t_s < 0)
    if recent.sum() < FEWEST_POSES:
        return constant_velocity(past)
    if abs(past.speed_mps) < STANDING_MPS:
        return Motion(0.0)
    t = np.append(past.t_s[recent], 0.0)
    yaw = np.append(past.yaw_rad[recent], 0.0)
    between = (yaw[1:] + yaw[:-1]) / 2
    hops = np.diff(np.append(past.xy_m[recent], [[0.0, 0.0]], axis=0), axis=0)
    chords = hops[:, 0] * np.cos(between) + hops[:, 1] * np.sin(between)
    # On a circle the path between two poses is longer than the chord.
    speeds = chords / np.sinc(np.diff(yaw) / (2 * np.pi)) / np.diff(t)
    middles = (t[1:] + t[:-1]) / 2
    accel = _slope(np.append(middles, 0.0), np.append(speeds, past.speed_mps))
    return Motion(past.speed_mps, accel, _slope(t, yaw))


MODELS: dict[str, Callable[[Trajectory], Motion]] = {
    "constant_velocity": constant_velocity,
    "ctra": ctra,
}


def rolled(motion: Motion, duration_s: float, history_ends: str) -> Truth:
    """The ground truth of a window if a car went on like that.

    Args:
        motion: At the window's frame at which the history ends.
        duration_s: Of the window.
        history_ends: `Target.history_ends`. From the `first` frame the window itself is driven,
            then the future; from the `last` the future alone, and the numbers of the window, which
            are over by then, are NaN.
    """
    if history_ends == "last":
        return Truth(duration_s, math.nan, math.nan, math.nan, motion.trajectory())
    path = motion.driven_m(duration_s)
    chord = float(np.linalg.norm(motion.poses(np.array([duration_s]))[0]))
    after = motion.after(duration_s).trajectory()
    return Truth(duration_s, path, chord, path / duration_s, after)


def says(name: str, past: Trajectory, target: Target, duration_s: float) -> Said:
    """What a motion model answers from the past alone; None where it knows nothing.

    Args:
        name: Of one of `MODELS`.
        past: Ends at the frame of the window that `target.history_ends` names.
        duration_s: Of the window.
    """
    answer = target.of(rolled(MODELS[name](past), duration_s, target.history_ends))
    unknown = [key for key, value in asdict(answer).items() if value != value]  # NaN
    return replace(answer, **dict.fromkeys(unknown))


@dataclass(frozen=True)
class EgoMotion:
    """Ridge regression on the car's own past motion: a model with eyes should do better.

    Attributes:
        centre, scale: (65,) float64 of the features; scale 0 drops one.
        middle: (D,) float64, the mean of the D outputs: numbers, then one-hot words.
        weights: (65, D) float64, standardised features -> outputs less their mean.
        outputs: Field of `Said` -> the shape of its numbers, or the words that it knows.
    """

    centre: np.ndarray
    scale: np.ndarray
    middle: np.ndarray
    weights: np.ndarray
    outputs: dict[str, tuple[int, ...] | tuple[str, ...]]

    @classmethod
    def fit(cls, pasts: Sequence[Trajectory], answers: Sequence[Said]) -> EgoMotion:
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

    def predict(self, past: Trajectory) -> Said:
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
        return Said(**fields, action_m=fields.get("displacement_m"))


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
        answers = [says(name, past, target, duration_s) for past in pasts]
        if not target.numbers or np.isfinite([answer.numbers for answer in answers]).all():
            rows[name] = [target.write(answer) for answer in answers]
    if not target.numbers:  # ridge regression learns the fields of the built-in targets
        known = [history.past_of(train, i, target) for i in range(len(train))]
        ridge = EgoMotion.fit(known, truths)
        rows["ego_motion"] = [target.write(ridge.predict(past)) for past in pasts]
    return rows


def _slope(t: np.ndarray, values: np.ndarray) -> float:
    """Of the straight line through values at times, by least squares."""
    t = t - t.mean()
    return float(t @ (values - values.mean()) / (t @ t))


def _moment(z: np.ndarray, n: int) -> np.ndarray:
    """The integral of s**n exp(z s) over s from 0 to 1, for n = 0 and 1 and any complex z.

    Near 0 the closed form cancels, and the series Σ z**k / (k! (n + 1 + k)) is exact: for |z| < 1
    its 20th term is below 1e-18.
    """
    small = np.abs(z) < 1
    safe = np.where(small, 1.0, z)
    closed = np.expm1(safe) / safe if n == 0 else (np.exp(safe) * (safe - 1) + 1) / safe**2
    terms = [z**k / (math.factorial(k) * (n + 1 + k)) for k in range(20)]
    return np.where(small, sum(terms), closed)
