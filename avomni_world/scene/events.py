"""What happens in a scene with an event, described in one true sentence.

The drive is given and is not changed here. If the car brakes, a vehicle ahead that keeps its
distance brakes with it; if there is none, a pedestrian is added who crosses the road ahead. If the
car does not brake, the sentence states what can be seen.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from avomni_world.scene import drive as drives
from avomni_world.scene import traffic
from avomni_world.scene.towns import Town
from avomni_world.scene.traffic import Vehicle, Walk

# Frames of an event count about ten a second; frame 16 is at 1,448,872 µs at the source.
STEP_US, START_US = 100_000, -151_128
LOOK_S = 0.05
EARLIEST_S, LATEST_S = 0.3, 0.5  # after the clip's start, before its end
CHANGE_MPS2, END_MPS2 = 0.3, 0.1  # where a change of speed begins and ends
CHANGE_MPS = 1.5  # smallest change that gets a sentence
STANDING_MPS = 0.1

KERB_M = 4.75  # beside the asphalt, before the posts
LANE_LEFT_M = 0.3  # of the centre line: beyond it somebody has left our lane
WALK_MPS = (0.8, 1.8)
NOTICED_S = 0.5  # from the first step to the brake
ROOM_M, ROOM_S = 3.0, 0.3  # between the car's front and the pedestrian
GONE_S = 2.0  # the car does not stop for somebody who left our lane longer ago
HIT_M = 3.8  # between the centres of a car and of a person

FREE, AHEAD = "the lane ahead is free", "the {label} {gap:.0f} m ahead"


@dataclass(frozen=True)
class SceneEvent:
    """One entry of the `events` of `reasoning/ood_reasoning.parquet`.

    Attributes:
        start_us: When the car's reaction begins, on the clip's clock, with the source's precision
            of 50 ms.
        text: What the car does, and why.
    """

    start_us: int
    text: str

    @property
    def json(self) -> str:
        """The column's content."""
        frame = (self.start_us - START_US) // STEP_US
        start = {"event_start_frame": frame, "event_start_timestamp": self.start_us}
        return json.dumps([start | {"coc": self.text}])


@dataclass(frozen=True)
class Change:
    """The longest change of speed of one kind: start and end, s, and whether it ends at rest."""

    start_s: float
    end_s: float
    stops: bool


def happen(
    rng: np.random.Generator,
    town: Town,
    drive: drives.Drive,
    front_m: float,
    seconds: float,
    others: Sequence[Vehicle],
) -> tuple[SceneEvent | None, tuple[Vehicle, ...]]:
    """The event, and everybody on the road with it.

    Args:
        front_m: From the rig's origin to the car's front.
        seconds: Length of the clip, within which the event begins.
        others: Road users without the event. Those that would hit the pedestrian are left out.

    Returns:
        None if no true sentence can be made.
    """
    others = tuple(others)
    ahead = min((v.along_m for v in others if v.follows and v.along_m > 0), default=None)
    leader = next((v for v in others if v.follows and v.along_m == ahead), None)
    if leader is not None:
        size, middle = leader.box
        gap = leader.along_m + middle[0] - size[0] / 2 - front_m
        its = AHEAD.format(label=leader.label, gap=gap)
    if braking := change(drive, seconds, -1):
        if leader is not None:
            does = "stops" if braking.stops else "slows down"
            return _event(braking.start_s, does, f"{its} {does}"), others
        if town.landmarks:
            return None, others
        walker, stops = _walker(rng, town, drive, front_m, braking)
        gap = walker.along_m - drive.at(np.array([braking.start_s]))["along"][0] - front_m
        why = f"a {walker.label} {gap:.0f} m ahead crosses from the right"
        event = _event(braking.start_s, "stops" if stops else "slows down", why)
        return event, (*(v for v in others if not _hits(v, walker, drive)), walker)
    if faster := change(drive, seconds, 1):
        why = FREE if leader is None else f"{its} accelerates"
        return _event(faster.start_s, "accelerates", why), others
    middle_s = seconds / 2
    now = drive.at(np.array([middle_s]))
    if now["speed"][0] < 1.0 or abs(now["acceleration"][0]) > CHANGE_MPS2:
        return None, others
    why = FREE if leader is None else f"{its} holds its own"
    return _event(middle_s, "holds its speed", why), others


def change(drive: drives.Drive, seconds: float, sign: int) -> Change | None:
    """The largest gain (sign 1) or loss (-1) of speed that begins within the clip."""
    times = np.arange(0.0, drive.end_s, LOOK_S)  # a change that begins in the clip may end after it
    motion = drive.at(times)
    speed, rate = motion["speed"], sign * motion["acceleration"]
    edges = np.diff(np.concatenate([[0], rate > END_MPS2, [0]]).astype(int))
    best, most = None, CHANGE_MPS
    for first, last in zip(np.flatnonzero(edges > 0), np.flatnonzero(edges < 0) - 1, strict=True):
        first += int(np.argmax(rate[first : last + 1] > CHANGE_MPS2))
        gain = sign * (speed[last] - speed[first])
        if EARLIEST_S <= times[first] <= seconds - LATEST_S and gain >= most:
            at_rest = bool(speed[last : last + 3].min() < STANDING_MPS)
            best, most = Change(float(times[first]), float(times[last]), at_rest), gain
    return best


def _event(start_s: float, does: str, why: str) -> SceneEvent:
    frame = round((start_s * 1e6 - START_US) / STEP_US)
    return SceneEvent(frame * STEP_US + START_US, f"The car {does} because {why}.")


def _walker(
    rng: np.random.Generator, town: Town, drive: drives.Drive, front_m: float, braking: Change
) -> tuple[Vehicle, bool]:
    """A pedestrian who steps onto the road from the right just before the car brakes and leaves our
    lane before the car arrives; and whether the car stops for them."""
    start_s = braking.start_s - NOTICED_S
    way_m = KERB_M + LANE_LEFT_M
    speed = float(np.clip(way_m / (braking.end_s - start_s), *WALK_MPS))
    left_s = start_s + way_m / speed
    nose = drive.at(np.array([left_s + ROOM_S, braking.end_s]))["along"] + front_m
    stops = braking.stops and braking.end_s < left_s + GONE_S
    along = max(nose) if stops else nose[0]
    walk = Walk(start_s, speed, 2 * KERB_M)
    mesh = traffic.person(rng, town)
    return Vehicle(mesh, float(along) + ROOM_M, -KERB_M, 0.0, label="person", walk=walk), stops


def _hits(vehicle: Vehicle, walker: Vehicle, drive: drives.Drive) -> bool:
    """Whether a vehicle would come too close to the pedestrian."""
    times = np.arange(-drives.BEFORE_S, drive.end_s, LOOK_S)
    along = vehicle.along_m + vehicle.speed_mps * times
    if vehicle.follows:
        along = vehicle.along_m + drive.at(times)["along"]
    left = walker.left_m + walker.walked_m(times)
    apart = np.hypot(along - walker.along_m, vehicle.left_m - left)
    return bool((apart[np.abs(left) < drives.LANE_M] < HIT_M).any())
