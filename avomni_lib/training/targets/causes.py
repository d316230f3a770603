"""Causes of the car's behaviour from the positions of other road users, as filled templates.

They are guesses from automatically labelled boxes, and marked as such (`Content.cause_from`):
lanes, lights and signs are unknown. The first rule that holds is used:

1. Crossing: a person, rider, stroller or animal ahead, within `NEAR_M`, moves across our path at
   `CROSSING_MPS` or more, and is in it or will be before we have passed.
2. Closing: less than `CONTACT_S` to contact with the nearest road user in our path.
3. Following: the nearest road user in our path is less than `HEADWAY_S` ahead (at least
   `STANDING_GAP_M`).
4. `NOTHING`.

The sentence has `because` if the car's behaviour is a response to the cause, else `while`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from avomni_lib.etl.clip import manoeuvre

if TYPE_CHECKING:
    from avomni_lib.etl.cache.windows import Truth
    from avomni_lib.etl.clip.scene import Other

NOTHING = "Nothing on the road asks the car to react."
MOVERS = frozenset({"person", "rider", "stroller", "animal"})
HALF_LANE_M = 1.8
FRONT_M = 3.8  # from the rig (rear axle) to the front bumper of a passenger car
NEAR_M, CROSSING_MPS = 40.0, 0.5
CONTACT_S, HEADWAY_S, STANDING_GAP_M = 8.0, 2.0, 8.0
STANDING_MPS, AS_FAST_MPS = 0.3, 0.5
BEYOND_M = 200.0  # length of the straight extension of the path beyond the known future

DOES = {
    "stop": "stops",
    "hold": "holds its speed",
    "gentle accelerate": "accelerates gently",
    "strong accelerate": "accelerates strongly",
    "gentle brake": "brakes gently",
    "strong brake": "brakes strongly",
    "reverse": "reverses",
}
STEERS = {
    "straight": "",
    "nudge left": " and nudges left",
    "nudge right": " and nudges right",
    "turn left": " and turns left",
    "turn right": " and turns right",
    "u-turn": " and makes a U-turn",
}
SLOWING = frozenset({"stop", "gentle brake", "strong brake"})
SPEEDING = frozenset({"gentle accelerate", "strong accelerate"})


@dataclass(frozen=True)
class Met:
    """Another road user, relative to our path.

    Attributes:
        name: Its label as text.
        mover: Whether it is one of `MOVERS`.
        gap_m: Distance along our path from our bumper to its near end.
        left_m: Offset to the left of our path.
        along_mps, left_mps: Its speed along our path and to the left of it.
    """

    name: str
    mover: bool
    gap_m: float
    left_m: float
    along_mps: float
    left_mps: float

    @property
    def in_lane(self) -> bool:
        return abs(self.left_m) < HALF_LANE_M


@dataclass(frozen=True)
class _Action:
    """The car's behaviour: as text, its speed (m/s), and the label along the road if known."""

    words: str
    speed_mps: float
    along: str | None


def cause(truth: Truth) -> str:
    """The sentence for a window whose `truth.scene` is known.

    The car's path is that of the next 6.4 s with a straight extension, or straight ahead if the
    future is unknown.
    """
    deed = _action_of(truth)
    if deed.along == "reverse":
        return NOTHING
    path = path_of(truth)
    seen = [other for other in (met(other, path) for other in truth.scene.others) if other]
    ahead = sorted(seen, key=lambda other: other.gap_m)
    crossing = next((seen for seen in ahead if _crosses(seen, deed.speed_mps)), None)
    if crossing:
        side = "left" if crossing.left_mps < 0 else "right"
        what = f"the {crossing.name} {crossing.gap_m:.0f} m ahead crosses from the {side}"
        return _joined(deed, deed.along in SLOWING, what)
    lead = next((seen for seen in ahead if seen.in_lane), None)
    return (lead and _behind(lead, deed)) or NOTHING


def path_of(truth: Truth) -> np.ndarray:
    """(K, 2) float64, metres in the rig's frame: vertices of the car's future path."""
    corners, heading = np.zeros((1, 2)), 0.0
    if truth.future is not None:
        corners = np.vstack([corners, truth.future.xy_m])
        heading = float(truth.future.yaw_rad[-1])
    on = corners[-1] + BEYOND_M * np.array([np.cos(heading), np.sin(heading)])
    return np.vstack([corners, on])


def met(other: Other, path: np.ndarray) -> Met | None:
    """A road user relative to a path (K, 2); None if its centre is behind the path's start."""
    steps = np.diff(path, axis=0)
    lengths = np.linalg.norm(steps, axis=1)
    # Steps below a centimetre have no direction: the car stands.
    long = lengths > 0.01
    starts, steps, lengths = path[:-1][long], steps[long], lengths[long]
    ways = steps / lengths[:, None]
    middle = np.array([other.x_m, other.y_m]) - starts
    along = (middle * ways).sum(axis=1)
    on = np.clip(along, 0, lengths)
    nearest = int(np.argmin(np.linalg.norm(middle - on[:, None] * ways, axis=1)))
    if nearest == 0 and along[0] <= 0:
        return None
    way, velocity = ways[nearest], np.array([other.vx_mps, other.vy_mps])
    travelled = lengths[:nearest].sum() + on[nearest]
    return Met(
        name=other.label.replace("_", " "),
        mover=other.label in MOVERS,
        gap_m=max(float(travelled) - _reach(other, way) - FRONT_M, 0.0),
        left_m=_cross(way, middle[nearest]),
        along_mps=float(velocity @ way),
        left_mps=_cross(way, velocity),
    )


def _reach(other: Other, way: np.ndarray) -> float:
    """Half of a box's extent along a direction."""
    turned = other.yaw_rad - np.arctan2(way[1], way[0])
    return float(abs(np.cos(turned)) * other.length_m + abs(np.sin(turned)) * other.width_m) / 2


def _crosses(seen: Met, speed_mps: float) -> bool:
    if not seen.mover or seen.gap_m > NEAR_M or abs(seen.left_mps) < CROSSING_MPS:
        return False
    if seen.in_lane:
        return True
    # Whether it enters our path before we get there; a standing car counts `CONTACT_S`.
    until_s = min(seen.gap_m / max(speed_mps, STANDING_MPS), CONTACT_S)
    comes = -seen.left_mps * np.sign(seen.left_m)
    return comes > 0 and (abs(seen.left_m) - HALF_LANE_M) / comes <= until_s


def _behind(lead: Met, deed: _Action) -> str | None:
    """The sentence about the nearest road user in our lane; None if it is too far away."""
    closing = deed.speed_mps - lead.along_mps
    who = f"the {lead.name} {lead.gap_m:.0f} m ahead"
    stands = abs(lead.along_mps) <= STANDING_MPS
    if closing > AS_FAST_MPS and lead.gap_m < closing * CONTACT_S:
        seconds = max(round(lead.gap_m / closing), 1)
        how = "stands" if stands else f"is {closing:.0f} m/s slower"
        return _joined(deed, deed.along in SLOWING, f"{who} {how} ({seconds} s to contact)")
    if lead.gap_m >= max(HEADWAY_S * deed.speed_mps, STANDING_GAP_M):
        return None
    if closing < -AS_FAST_MPS:
        return _joined(deed, deed.along in SPEEDING, f"{who} is {-closing:.0f} m/s faster")
    if stands:
        return _joined(deed, deed.along in SLOWING, f"{who} stands")
    return _joined(deed, deed.along in SLOWING | {"hold"}, f"{who} is about as fast")


def _action_of(truth: Truth) -> _Action:
    if truth.future is None:
        speed = truth.speed_mps
        words = "stands" if speed <= STANDING_MPS else f"drives at {speed:.0f} m/s"
        return _Action(words, speed, None)
    speed = truth.future.speed_mps
    along, across = manoeuvre.decide(truth.future)
    words = "stands" if along == "stop" and speed <= STANDING_MPS else DOES[along]
    return _Action(words + STEERS[across], speed, along)


def _joined(deed: _Action, answers: bool, what: str) -> str:
    return f"The car {deed.words} {'because' if answers else 'while'} {what}."


def _cross(way: np.ndarray, vector: np.ndarray) -> float:
    return float(way[0] * vector[1] - way[1] * vector[0])
