"""Who else is on the road at a moment, and what people wrote about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from avomni_lib.etl.clip.obstacles import LABEL, LABELS, LENGTH, TIME, TRACK, YAW, X

MAX_AGE_S = 0.15  # of a label; they come ten times a second
VELOCITY_S = 0.3  # a velocity is the mean over so long before the last label
EVENT_S = (-1.0, 3.0)  # an event is about a moment if it begins so long after it


@dataclass(frozen=True)
class Other:
    """Another road user at a moment, in the rig's frame then: x forward, y left.

    Attributes:
        label: The data set's `label_class`.
        x_m, y_m: Its middle.
        vx_mps, vy_mps: Over the ground.
        yaw_rad: Where its nose points; 0 is ours.
        length_m, width_m: Of its box.
    """

    label: str
    x_m: float
    y_m: float
    vx_mps: float
    vy_mps: float
    yaw_rad: float
    length_m: float
    width_m: float


@dataclass(frozen=True)
class Scene:
    """A moment.

    Attributes:
        others: Nearest first.
        event: The sentence of `reasoning/ood_reasoning.parquet` about this moment, or None.
        is_known: False where the clip has no labels: then nobody knows whether `others`, which is
            empty, is all there is.
    """

    others: tuple[Other, ...]
    event: str | None = None
    is_known: bool = True


def others(now_us: int, now: np.ndarray, rows: np.ndarray) -> tuple[Other, ...]:
    """Who is there at a moment, as seen until then: nothing later is looked at.

    Each is where its last label within 0.15 s has it, moved on to the moment at its own velocity:
    the mean over the ground between its labels of the 0.3 s before that one. Who has been labelled
    only once is left out, as nobody can tell how it moves.

    Args:
        now_us: The moment.
        now: (11,) its row of the cache's `egomotion`.
        rows: (K, 10) the clip's rows of `obstacles`.
    """
    rows = rows[(rows[:, TIME] <= now_us)]
    rows = rows[rows[:, TIME] >= now_us - (MAX_AGE_S + VELOCITY_S) * 1e6]
    to_rig = Rotation.from_quat(now[3:7]).inv()
    ahead = to_rig.inv().apply((1.0, 0.0, 0.0))
    heading = np.arctan2(ahead[1], ahead[0])
    found = []
    for track in np.unique(rows[:, TRACK]):
        own = rows[rows[:, TRACK] == track]
        last = own[-1]
        first = own[own[:, TIME] >= last[TIME] - VELOCITY_S * 1e6][0]
        passed_s = (last[TIME] - first[TIME]) / 1e6
        age_s = (now_us - last[TIME]) / 1e6
        if age_s > MAX_AGE_S or passed_s <= 0:
            continue
        velocity = (last[X : X + 3] - first[X : X + 3]) / passed_s
        place = to_rig.apply(last[X : X + 3] + velocity * age_s - now[:3])
        over_ground = to_rig.apply(velocity)
        turn = last[YAW] - heading
        found.append(
            Other(
                LABELS[int(last[LABEL])],
                float(place[0]),
                float(place[1]),
                float(over_ground[0]),
                float(over_ground[1]),
                float(np.arctan2(np.sin(turn), np.cos(turn))),
                float(last[LENGTH]),
                float(last[LENGTH + 1]),
            )
        )
    return tuple(sorted(found, key=lambda other: (np.hypot(other.x_m, other.y_m), other.x_m)))


def event(now_us: int, events: Sequence[tuple[int, str]]) -> str | None:
    """The sentence of the event that begins nearest to a moment, from 1 s before to 3 s after it.

    What begins later is about what the car will do, and its cause may be in sight.

    Args:
        events: (start_us, text) of the clip.
    """
    low, high = (now_us + offset_s * 1e6 for offset_s in EVENT_S)
    near = [each for each in events if low <= each[0] <= high]
    return min(near, key=lambda each: (abs(each[0] - now_us), each[0]))[1] if near else None
