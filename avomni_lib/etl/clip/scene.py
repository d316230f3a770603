"""Other road users at a moment, and the event that annotators described there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from avomni_lib.etl.clip.obstacles import LABEL, LABELS, LENGTH, TIME, TRACK, YAW, X

MAX_AGE_S = 0.15  # maximum age of a label; labels are at 10 Hz
VELOCITY_S = 0.3  # velocities are means over this time before the last label
EVENT_S = (-1.0, 3.0)  # an event belongs to a moment if it begins this long after it


@dataclass(frozen=True)
class Other:
    """Another road user at a moment, in the rig's frame at that moment: x forward, y left.

    Attributes:
        label: The data set's `label_class`.
        x_m, y_m: Centre of its box.
        vx_mps, vy_mps: Velocity over the ground.
        yaw_rad: Heading relative to our car's.
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
class Surroundings:
    """The surroundings at a moment.

    Attributes:
        others: Nearest first.
        event: The sentence of `reasoning/ood_reasoning.parquet` about this moment, or None.
        is_known: False if the clip has no labels; `others` is empty then, although there may have
            been other road users.
    """

    others: tuple[Other, ...]
    event: str | None = None
    is_known: bool = True


def others(now_us: int, now: np.ndarray, rows: np.ndarray) -> tuple[Other, ...]:
    """Other road users at a moment, from labels up to that moment only.

    A position is that of the last label within 0.15 s, extrapolated to the moment with the mean
    velocity over the labels of the 0.3 s before it. Road users with a single label are left out, as
    their velocity is not known.

    Args:
        now: (11,) its row of the cache's `egomotion`.
        rows: (K, 10) the clip's rows of `obstacles`.
    """
    rows = rows[(rows[:, TIME] <= now_us)]
    rows = rows[rows[:, TIME] >= now_us - (MAX_AGE_S + VELOCITY_S) * 1e6]
    to_rig = Rotation.from_quat(now[3:7]).inv()
    ahead = to_rig.inv().apply((1.0, 0.0, 0.0))
    heading = np.arctan2(ahead[1], ahead[0])
    road_users = []
    for track in np.unique(rows[:, TRACK]):
        labels = rows[rows[:, TRACK] == track]
        last = labels[-1]
        first = labels[labels[:, TIME] >= last[TIME] - VELOCITY_S * 1e6][0]
        passed_s = (last[TIME] - first[TIME]) / 1e6
        age_s = (now_us - last[TIME]) / 1e6
        if age_s > MAX_AGE_S or passed_s <= 0:
            continue
        velocity = (last[X : X + 3] - first[X : X + 3]) / passed_s
        place = to_rig.apply(last[X : X + 3] + velocity * age_s - now[:3])
        over_ground = to_rig.apply(velocity)
        turn = last[YAW] - heading
        yaw = np.arctan2(np.sin(turn), np.cos(turn))
        numbers = (*place[:2], *over_ground[:2], yaw, *last[LENGTH : LENGTH + 2])
        road_users.append(Other(LABELS[int(last[LABEL])], *map(float, numbers)))
    return tuple(sorted(road_users, key=lambda other: (np.hypot(other.x_m, other.y_m), other.x_m)))


def event(now_us: int, events: Sequence[tuple[int, str]]) -> str | None:
    """Text of the event that begins nearest to a moment, from 1 s before to 3 s after it, or None.

    A later event describes what the car will do, and its cause may be visible already.

    Args:
        events: (start_us, text) of the clip.
    """
    low, high = (now_us + offset_s * 1e6 for offset_s in EVENT_S)
    near = [(abs(start - now_us), start, text) for start, text in events if low <= start <= high]
    return min(near)[2] if near else None
