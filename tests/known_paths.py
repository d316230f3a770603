"""Drives whose every pose is known in closed form, arcs at any speed; and any truth at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from avomni_lib.etl.cache.windows import Truth
from avomni_lib.etl.clip.scene import Other, Surroundings
from avomni_lib.etl.clip.trajectory import FUTURE_STEPS, STEP_S, Trajectory


@dataclass(frozen=True)
class Arc:
    """A drive on a circle, or on a straight line where `curvature` (1/m, left positive) is 0.

    Attributes:
        driven_m: Seconds -> metres along the arc since 0 s, negative backwards; arrays too.
        place, turn: Where it is in the world at 0 s, and how the rig stands there.
    """

    driven_m: Callable[[np.ndarray], np.ndarray]
    curvature: float = 0.0
    place: tuple[float, float, float] = (0.0, 0.0, 0.0)
    turn: Rotation = Rotation.identity()

    @classmethod
    def steady(cls, speed_mps: float, **others) -> Arc:
        return cls(lambda t: speed_mps * t, **others)

    def local(self, t_s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(K, 2) metres in the rig's frame at 0 s, and (K,) heading."""
        driven = np.asarray(self.driven_m(np.asarray(t_s, dtype=float)))
        yaw = self.curvature * driven
        if abs(self.curvature) < 1e-9:  # within a micrometre of straight, and 1 / it is finite
            return np.stack([driven, 0 * driven], axis=1), yaw
        x, y = np.sin(yaw) / self.curvature, (1 - np.cos(yaw)) / self.curvature
        return np.stack([x, y], axis=1), yaw

    def speed_mps(self, t_s: float) -> float:
        return (
            float(self.driven_m(np.array(t_s + 1e-4)) - self.driven_m(np.array(t_s - 1e-4))) / 2e-4
        )

    def track(self, times_us: np.ndarray) -> np.ndarray:
        """(N, 9) as the cache keeps it: µs, place, quaternion, metres driven."""
        t_s = np.asarray(times_us) / 1e6
        xy, yaw = self.local(t_s)
        places = self.turn.apply(np.column_stack([xy, 0 * t_s])) + self.place
        quaternions = (self.turn * Rotation.from_euler("z", yaw[:, None])).as_quat()
        return np.column_stack([times_us, places, quaternions, self.driven_m(t_s)])

    def now(self, time_us: int) -> np.ndarray:
        """(11,) as the cache keeps a frame: place, quaternion, velocity, metres driven."""
        row = self.track(np.array([time_us]))[0]
        ahead = Rotation.from_quat(row[4:8]).apply((self.speed_mps(time_us / 1e6), 0.0, 0.0))
        return np.concatenate([row[1:8], ahead, row[8:]])

    def future(self) -> Trajectory:
        """The 6.4 s after 0 s."""
        t_s = np.arange(1, FUTURE_STEPS + 1) * STEP_S
        return Trajectory(t_s, *self.local(t_s), self.speed_mps(0.0))


def truth(future: Trajectory | None, *others: Other, event: str | None = None) -> Truth:
    """Of a window of 7.5 s at 10 m/s, whose scene is known."""
    return Truth(7.5, 75.0, 75.0, 10.0, future, Surroundings(others, event))


def other(label: str = "automobile", x_m: float = 20.0, y_m: float = 0.0, **changed) -> Other:
    """A car that stands ahead, its nose as ours, but for what is changed."""
    usual = {"vx_mps": 0.0, "vy_mps": 0.0, "yaw_rad": 0.0, "length_m": 4.0, "width_m": 2.0}
    return Other(label, x_m, y_m, **usual | changed)


def _numbers(most: float) -> st.SearchStrategy[float]:
    return st.floats(-most, most, allow_subnormal=False)


LABELS = ("automobile", "person", "heavy_truck", "rider", "animal", "train_or_tram_car")


@st.composite
def truths(draw, events: bool = True) -> Truth:
    """Any finite truth, possible or not; every future has 64 poses."""
    seed, reach = draw(st.integers(0, 2**32 - 1)), draw(st.sampled_from([0.0, 0.004, 1.0, 40.0]))
    rng = np.random.default_rng(seed)
    xy = np.cumsum(rng.normal(0, reach, (FUTURE_STEPS, 2)), axis=0)
    yaw = np.cumsum(rng.normal(0, draw(st.sampled_from([0.0, 0.02, 0.3])), FUTURE_STEPS))
    t_s = np.arange(1, FUTURE_STEPS + 1) * STEP_S
    future = Trajectory(t_s, xy, yaw, draw(_numbers(60.0)))
    size, speed = st.floats(0.1, 20.0), _numbers(40.0)
    others = st.builds(
        Other, st.sampled_from(LABELS), _numbers(80.0), _numbers(8.0), speed, speed,
        _numbers(3.2), size, size,
    )  # fmt: skip
    event = draw(st.none() | st.text(max_size=300)) if events else None
    scene = Surroundings(tuple(draw(st.lists(others, max_size=3))), event)
    lengths = st.floats(0, 1e6)
    return Truth(7.5, draw(lengths), draw(lengths), draw(lengths), future, scene)
