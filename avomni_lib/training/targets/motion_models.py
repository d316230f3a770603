"""Motion models that extrapolate the car's past motion.

Two models of Schubert, Richter and Wanielik, "Comparison and evaluation of advanced motion models
for vehicle tracking", 11th International Conference on Information Fusion, 2008: constant velocity,
and constant turn rate and acceleration (CTRA). Both are fitted to the speed at a moment and the
poses of the second before it, and predict in the rig's frame at that moment. The evaluation uses
them as baselines, and a prompt with past motion ends with the answer of CTRA.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import numpy as np

from avomni_lib.etl.cache.windows import Truth
from avomni_lib.etl.clip.trajectory import FUTURE_STEPS, STEP_S, Trajectory
from avomni_lib.training.targets.form import Content, Target

FIT_S, FEWEST_POSES = 1.0, 5  # what CTRA is fitted to
STANDING_MPS = 0.05  # slower is the noise of a speed, and no acceleration starts from that


@dataclass(frozen=True)
class Motion:
    """A car with a constant acceleration and a constant turn rate.

    A braking car stops, and then keeps its place and heading.

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
    """Straight on at the current speed."""
    return Motion(past.speed_mps)


def ctra(past: Trajectory) -> Motion:
    """The current speed with the acceleration and turn rate of the past second.

    Acceleration and turn rate are least-squares slopes over the past second, including the current
    moment, of the speeds between poses and of the headings. With fewer than 5 poses in it, or for a
    standing car, the model is constant velocity.
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


def truth_of(motion: Motion, duration_s: float, history_ends: str) -> Truth:
    """The ground truth of a window in which a car moves according to a motion model.

    Args:
        motion: Motion at the frame at which the history ends.
        duration_s: Duration of the window.
        history_ends: `Target.history_ends`. With `first`, the car drives through the window and
            then the future. With `last` it drives the future alone, and the numbers of the window
            are NaN.
    """
    if history_ends == "last":
        return Truth(duration_s, math.nan, math.nan, math.nan, motion.trajectory())
    path = motion.driven_m(duration_s)
    chord = float(np.linalg.norm(motion.poses(np.array([duration_s]))[0]))
    after = motion.after(duration_s).trajectory()
    return Truth(duration_s, path, chord, path / duration_s, after)


def predict(name: str, past: Trajectory, target: Target, duration_s: float) -> Content:
    """The answer of a motion model; fields that it cannot predict are None.

    Args:
        name: Key of `MODELS`.
        past: Motion up to the frame of the window that `target.history_ends` names.
        duration_s: Duration of the window.
    """
    answer = target.of(truth_of(MODELS[name](past), duration_s, target.history_ends))
    unknown = [key for key, value in asdict(answer).items() if value != value]  # NaN
    return replace(answer, **dict.fromkeys(unknown))


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
