"""A road with curves, and a car that follows it: a kinematic bicycle with stops, starts and turns.

The frame of reference of everything here is the data set's anchor frame: the rig at time 0,
x forward, y left, z up, yaw 0, the origin on the ground below the middle of the rear axle.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from avomni_world.scene.towns import Town

LANE_M = 3.6
EGO_OFFSET_M = -LANE_M / 2  # to the left of the centre line: the right-hand lane
STEP_S = 0.01  # of the integration
BEFORE_S = 0.5  # driven before time 0
ROAD_STEP_M = 0.5
NEAR_M = 30.0  # search range along the road
ROAD_BEHIND_M = 340.0
ROAD_AHEAD_M = 400.0
MAX_HEADING_RAD = math.radians(75.0)  # limits the turns, so that the road never crosses itself
RAMP_M = 24.0  # curvature changes over this length
MAX_STEER_RATE = 0.5  # rad/s
MAX_STEER_RAD = 0.6
BACK_S = 2.0  # in this time a strayed car's distance falls to 1/e


@dataclass(frozen=True)
class Stray:
    """The start of a car that is not in its lane.

    Attributes:
        left_m: Distance to the left of its lane.
        turned_rad: Heading relative to the lane's, positive to the left.
    """

    left_m: float = 0.0
    turned_rad: float = 0.0


IN_LANE = Stray()


def make_stray(rng: np.random.Generator) -> Stray:
    """Beside the lane, turned away from it, or both: up to 2 m and 12°."""
    left, turned = rng.uniform(-2.0, 2.0), rng.uniform(-1.0, 1.0) * math.radians(12)
    kind = rng.integers(3)
    return Stray(0.0 if kind == 1 else float(left), 0.0 if kind == 0 else float(turned))


@dataclass(frozen=True)
class Road:
    """A centre line, sampled every `ROAD_STEP_M` of its length from `start_m` on.

    Attributes:
        start_m: Length at the first point; 0 is where the road builder began.
        points: (N, 2) metres.
        headings: (N,) radians.
    """

    start_m: float
    points: np.ndarray
    headings: np.ndarray

    @property
    def end_m(self) -> float:
        return self.start_m + (len(self.points) - 1) * ROAD_STEP_M

    def place(self, along_m: np.ndarray, left_m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Points at a length along the road and a distance to the left of it.

        Returns:
            (…, 2) m and the road's heading there, (…,) radians.
        """
        at = np.clip(
            (np.asarray(along_m) - self.start_m) / ROAD_STEP_M, 0, len(self.points) - 1.001
        )
        idx = at.astype(int)
        part = at - idx
        heading = self.headings[idx] * (1 - part) + self.headings[idx + 1] * part
        centre = self.points[idx] * (1 - part)[..., None] + self.points[idx + 1] * part[..., None]
        normal = np.stack([-np.sin(heading), np.cos(heading)], axis=-1)
        return centre + normal * np.asarray(left_m)[..., None], heading

    def locate(self, x: float, y: float, near_m: float) -> tuple[float, float, float]:
        """Position of a point relative to the centre line; the inverse of `place`.

        Args:
            near_m: A length along the road within `NEAR_M` of the point's.

        Returns:
            Length along the road, distance to the left of it, and its heading there.
        """
        cells, middle = int(NEAR_M / ROAD_STEP_M), int((near_m - self.start_m) / ROAD_STEP_M)
        first = min(max(middle - cells, 0), len(self.points) - 2 * cells)
        apart = self.points[first : first + 2 * cells] - (x, y)
        idx = first + int(np.einsum("ij,ij->i", apart, apart).argmin())
        along = self.start_m + idx * ROAD_STEP_M
        for _ in range(2):  # to the foot of the perpendicular
            (centre_x, centre_y), heading = self.place(np.array(along), np.array(0.0))
            dx, dy = x - centre_x, y - centre_y
            along += float(dx * np.cos(heading) + dy * np.sin(heading))
        left = float(dy * np.cos(heading) - dx * np.sin(heading))
        return along, left, float(heading)


@dataclass(frozen=True)
class Drive:
    """The car's motion at uniform instants, `STEP_S` apart, from `-BEFORE_S` on.

    Attributes:
        wheelbase_m: Of the bicycle.
        state: (N, 7): x, y (m), yaw (rad), speed (m/s), its rate of change (m/s²), steering
            angle (rad), length along the road (m).
    """

    wheelbase_m: float
    state: np.ndarray

    @property
    def end_s(self) -> float:
        return (len(self.state) - 1) * STEP_S - BEFORE_S

    def at(self, times_s: np.ndarray) -> dict[str, np.ndarray]:
        """The motion at any time between the first instant and the last.

        Position, yaw, speed and length are cubic Hermite curves through the instants with the
        bicycle's own rates of change; steering and acceleration are linear between them.

        Args:
            times_s: (…,) seconds.

        Returns:
            x, y (m), yaw (rad), speed (m/s), acceleration (m/s², along the car), curvature (1/m),
            along (m along the road); each (…,) float64.
        """
        times_s = np.asarray(times_s, np.float64)
        at = (times_s + BEFORE_S) / STEP_S
        if times_s.size and (at.min() < -1e-6 or at.max() > len(self.state) - 1 + 1e-6):
            raise ValueError(
                f"{times_s.min()=} {times_s.max()=}: the drive spans "
                f"{-BEFORE_S} .. {self.end_s:.3f} s"
            )
        idx = np.clip(at.astype(int), 0, len(self.state) - 2)
        part = at - idx
        first, second = self.state[idx], self.state[idx + 1]
        rate = self._rates()
        start, stop = (state[..., [0, 1, 2, 3, 6]] for state in (first, second))
        smooth = _hermite(start, stop, rate[idx] * STEP_S, rate[idx + 1] * STEP_S, part[..., None])
        linear = first[..., 4:6] * (1 - part)[..., None] + second[..., 4:6] * part[..., None]
        x, y, yaw, speed, along = np.moveaxis(smooth, -1, 0)
        return {
            "x": x,
            "y": y,
            "yaw": yaw,
            "speed": np.maximum(speed, 0.0),
            "acceleration": linear[..., 0],
            "curvature": np.tan(linear[..., 1]) / self.wheelbase_m,
            "along": along,
        }

    def _rates(self) -> np.ndarray:
        """(N, 5) time derivatives of x, y, yaw, speed and length."""
        _, _, yaw, speed, acceleration, steer, along = self.state.T
        velocity = speed * np.cos(yaw), speed * np.sin(yaw)
        turning = speed * np.tan(steer) / self.wheelbase_m
        return np.stack([*velocity, turning, acceleration, np.gradient(along, STEP_S)], axis=-1)


def _hermite(p0, p1, m0, m1, t):
    t2, t3 = t * t, t * t * t
    return (
        (2 * t3 - 3 * t2 + 1) * p0
        + (t3 - 2 * t2 + t) * m0
        + (3 * t2 - 2 * t3) * p1
        + (t3 - t2) * m1
    )


def make_road(rng: np.random.Generator, town: Town, length_m: float) -> Road:
    """Straights and arcs in turn, from `-ROAD_BEHIND_M` to `length_m + ROAD_AHEAD_M`."""
    total = int((ROAD_BEHIND_M + length_m + ROAD_AHEAD_M) / ROAD_STEP_M)
    curvature = np.zeros(total)
    heading, start = 0.0, 0
    while start < total:
        start += int(rng.uniform(10.0, 70.0) / ROAD_STEP_M)
        radius = math.exp(rng.uniform(*np.log(town.radius_m)))
        turn = rng.uniform(math.radians(15), math.radians(100))
        side = rng.choice((-1.0, 1.0))
        if abs(heading + side * turn) > MAX_HEADING_RAD:
            side = -math.copysign(1.0, heading)
            turn = min(turn, MAX_HEADING_RAD + abs(heading))
        stop = start + max(1, int(turn * radius / ROAD_STEP_M))
        curvature[start:stop] = side / radius
        heading += side * (min(stop, total) - min(start, total)) * ROAD_STEP_M / radius
        start = stop
    ramp = np.ones(int(RAMP_M / ROAD_STEP_M)) / int(RAMP_M / ROAD_STEP_M)
    curvature = np.convolve(curvature, ramp, mode="same")
    headings = np.cumsum(curvature) * ROAD_STEP_M
    steps = np.stack([np.cos(headings), np.sin(headings)], axis=-1) * ROAD_STEP_M
    return Road(-ROAD_BEHIND_M, np.cumsum(steps, axis=0), headings)


def speed_profile(
    rng: np.random.Generator, town: Town, seconds: float
) -> tuple[np.ndarray, np.ndarray]:
    """Speed and its rate of change every `STEP_S`: the driver aims at one target speed after
    another.

    Each clip has a mean speed, uniform over the town's range, and target speeds around it; one
    target in six is a stop.

    Returns:
        (N,) m/s and (N,) m/s².
    """
    low, high = town.speed_mps
    middle = rng.uniform(low, high)
    steps = int(round(seconds / STEP_S)) + 1
    speeds, rates = np.empty(steps), np.empty(steps)
    speed, rate, aim, until = 0.0, 0.0, 0.0, 0
    for step in range(steps):
        if step >= until:
            stopping = low == 0.0 and rng.random() < 0.18 and step > 0
            aim = 0.0 if stopping else _reflect(rng.normal(middle, 0.22 * (high - low)), low, high)
            hardest, gentlest = rng.uniform(2.0, 3.6), rng.uniform(1.2, 2.8)
            hold = rng.uniform(1.0, 2.5) + (speed / hardest if stopping else 0.0)
            until = step + int((hold if stopping else rng.uniform(1.5, 4.5)) / STEP_S)
            if step == 0:
                speed = aim
        wanted = min(max(0.9 * (aim - speed), -hardest), gentlest)
        if aim == 0.0 and speed > 0.05:
            wanted = -min(hardest, speed / 0.5 + 0.2)
        rate += (wanted - rate) * STEP_S / 0.25
        if speed + rate * STEP_S <= 0.0:
            speed, rate = 0.0, max(rate, 0.0)
        speeds[step], rates[step] = speed, rate
        speed += rate * STEP_S
    return speeds, rates


def _reflect(value: float, low: float, high: float) -> float:
    """Reflect a value back into a range, so that its ends are as likely as its middle."""
    span = high - low
    value = (value - low) % (2 * span)
    return low + (value if value <= span else 2 * span - value)


def drive_along(
    rng: np.random.Generator,
    road: Road,
    town: Town,
    wheelbase_m: float,
    seconds: float,
    stray: Stray = IN_LANE,
) -> Drive:
    """Follow the right-hand lane by pure pursuit: the steering angle turns towards a point ahead.

    A car that begins beside the lane also aims beside it, by a distance that falls to 1/e every
    `BACK_S`.

    Source of the steering law: Coulter, "Implementation of the Pure Pursuit Path Tracking
    Algorithm", CMU-RI-TR-92-01; of the motion: the kinematic bicycle with its reference at the
    rear axle.
    """
    speeds, rates = speed_profile(rng, town, seconds + BEFORE_S)
    phase = rng.uniform(0, 2 * math.pi)
    lengths = road.start_m + np.arange(len(road.points)) * ROAD_STEP_M
    left = EGO_OFFSET_M + 0.18 * np.sin(lengths / 37.0 + phase) + 0.07 * np.sin(lengths / 11.0)
    lane, _ = road.place(lengths, left)
    curvature = np.gradient(road.headings, ROAD_STEP_M)
    lane_x, lane_y = lane[:, 0].tolist(), lane[:, 1].tolist()
    road_x, road_y = road.points[:, 0].tolist(), road.points[:, 1].tolist()
    headings, curvatures = road.headings.tolist(), curvature.tolist()

    def cell(length: float) -> int:
        return min(max(int((length - road.start_m) / ROAD_STEP_M + 0.5), 0), len(lane_x) - 1)

    along = 0.0
    here = cell(along)
    x = lane_x[here] - stray.left_m * math.sin(headings[here])
    y = lane_y[here] + stray.left_m * math.cos(headings[here])
    yaw = headings[here] + stray.turned_rad
    steer = math.atan(wheelbase_m * curvatures[here])
    state = np.empty((len(speeds), 7))
    for step, (speed, rate) in enumerate(zip(speeds.tolist(), rates.tolist(), strict=True)):
        state[step] = x, y, yaw, speed, rate, steer, along
        ahead_m = 4.0 + 0.55 * speed
        target = cell(along + ahead_m)
        beside = stray.left_m * math.exp(-step * STEP_S / BACK_S)
        dx = lane_x[target] - beside * math.sin(headings[target]) - x
        dy = lane_y[target] + beside * math.cos(headings[target]) - y
        bearing = math.atan2(dy, dx) - yaw
        bearing = math.atan2(math.sin(bearing), math.cos(bearing))
        wanted = math.atan2(2 * wheelbase_m * math.sin(bearing), math.hypot(dx, dy))
        wanted = min(max(wanted, -MAX_STEER_RAD), MAX_STEER_RAD)
        change = (wanted - steer) * STEP_S / 0.15
        limit = MAX_STEER_RATE * STEP_S if speed > 0.1 else 0.0  # a standing car is not steered
        next_steer = steer + min(max(change, -limit), limit)
        # Midpoint rule over one step; 1 mm in 20 s against a step ten times finer.
        turn = (speed + rate * STEP_S / 2) * math.tan((steer + next_steer) / 2) / wheelbase_m
        middle = yaw + turn * STEP_S / 2
        moved = (speed + rate * STEP_S / 2) * STEP_S
        x += moved * math.cos(middle)
        y += moved * math.sin(middle)
        here = cell(along)
        sin, cos = math.sin(headings[here]), math.cos(headings[here])
        offset = -(x - road_x[here]) * sin + (y - road_y[here]) * cos
        along += moved * math.cos(middle - headings[here]) / (1 - curvatures[here] * offset)
        yaw += turn * STEP_S
        steer = next_steer
    return Drive(wheelbase_m, state)


def anchor(road: Road, drive: Drive) -> tuple[Road, Drive]:
    """Move road and drive rigidly so that the rig at time 0 is the origin with yaw 0."""
    zero = drive.at(np.array(0.0))
    x, y, yaw = float(zero["x"]), float(zero["y"]), float(zero["yaw"])
    turn = np.array([[math.cos(yaw), math.sin(yaw)], [-math.sin(yaw), math.cos(yaw)]])
    state = drive.state.copy()
    state[:, :2] = (state[:, :2] - (x, y)) @ turn.T
    state[:, 2] -= yaw
    points = (road.points - (x, y)) @ turn.T
    return Road(road.start_m, points, road.headings - yaw), Drive(drive.wheelbase_m, state)
