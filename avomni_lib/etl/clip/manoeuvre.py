"""What the car does in the next 3 s, along the road and across it, by thresholds with hysteresis.

A signal is first made of the poses, then a label is made of the signal. A label begins at one
threshold and ends at a lower one, so that a signal which trembles about a threshold does not switch
it. Between the two at the very moment, it has not begun. The thresholds are ours and fitted to
nothing: choose others where you know better ones.

Along the road, the first that holds:

1. `stop`: the car stands after 3 s. Standing begins at `stand_mps` and ends at `move_mps`.
2. `reverse`: it goes backwards then.
3. `gentle brake`, `gentle accelerate`: it does so for `lasting_s` or more of the 3 s, and not
   shorter than the other. Each begins at `gentle_mps2` and ends at `gentle_end_mps2`. Who stood
   within the 3 s and drives after them accelerates in any case.
4. `strong brake`, `strong accelerate`: of these, where `strong_mps2` begins and `strong_end_mps2`
   ends what lasts for `strong_lasting_s` or more.
5. `hold`: else.

Across it, by what holds after 3 s, the first of:

1. `u-turn`: the heading has changed by `u_turn_rad`, and not come back to `u_turn_end_rad`.
2. `turn left`, `turn right`: the same with `turn_rad`. A turn tells where the nose goes, forwards
   or backwards.
3. `nudge left`, `nudge right`: the car has shifted sideways by `nudge_m`, and not come back to
   `nudge_end_m`.
4. `straight`: else; so is a bend that is no turn.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np

from avomni_lib.etl.clip.trajectory import STEP_S, Trajectory

HORIZON_S = 3.0
NUM_STEPS = round(HORIZON_S / STEP_S)
FIT_S = 0.5  # a signal at t is a straight line's through what lies so near to t

ALONG = (
    *("stop", "hold", "gentle accelerate", "strong accelerate"),
    *("gentle brake", "strong brake", "reverse"),
)
ACROSS = ("straight", "nudge left", "nudge right", "turn left", "turn right", "u-turn")


@dataclass(frozen=True)
class Thresholds:
    """Where labels begin and, with `end` in the name, where they end; all are magnitudes."""

    stand_mps: float = 0.3  # standing begins
    move_mps: float = 0.8  # and ends
    gentle_mps2: float = 0.5
    gentle_end_mps2: float = 0.3
    strong_mps2: float = 2.0
    strong_end_mps2: float = 1.5
    lasting_s: float = 1.0
    strong_lasting_s: float = 0.5
    nudge_m: float = 0.4
    nudge_end_m: float = 0.25
    turn_rad: float = float(np.radians(25))
    turn_end_rad: float = float(np.radians(15))
    u_turn_rad: float = float(np.radians(110))
    u_turn_end_rad: float = float(np.radians(90))


THRESHOLDS = Thresholds()


@dataclass(frozen=True)
class Signals:
    """What the labels are decided by; each (31,) float64, from the moment to 3 s after it.

    Attributes:
        t_s: 0.0, 0.1 … 3.0.
        speed_mps: Along the car's own heading, negative backwards.
        acceleration_mps2: Of that speed.
        heading_rad: Change since the moment, left positive.
        offset_m: How far to the left the car was brought by headings that it has come back from:
            those to the left of both its first heading and the present one, and to the right of
            both as negative. 0 in every bend, however it narrows and opens; the whole shift when a
            change of lane is over. Without a map this alone tells a nudge from a bend, and only
            from a nudge's second half on.
    """

    t_s: np.ndarray
    speed_mps: np.ndarray
    acceleration_mps2: np.ndarray
    heading_rad: np.ndarray
    offset_m: np.ndarray


class Manoeuvre(NamedTuple):
    """One of `ALONG` and one of `ACROSS`."""

    along: str
    across: str


def signals(after: Trajectory) -> Signals:
    """The signals of the first 3 s after a moment; what comes later is not looked at.

    The speed within a step is the step's length along the heading in its middle, a central
    difference; at the moment it is `after.speed_mps`. Against noise, each signal at t is read off a
    straight line that is fitted (least squares) to what lies within 0.5 s of t: a steady
    acceleration or a steady turn comes out as it is.

    Args:
        after: At least 30 steps of 0.1 s, as `trajectory.future` gives them.

    Raises:
        ValueError: fewer.
    """
    if len(after) < NUM_STEPS:
        raise ValueError(f"{len(after)} steps, expected {NUM_STEPS} or more")
    t_s = np.arange(NUM_STEPS + 1) * STEP_S
    xy = np.vstack([np.zeros(2), after.xy_m[:NUM_STEPS]])
    yaw = np.concatenate([[0.0], after.yaw_rad[:NUM_STEPS]])
    between = (yaw[1:] + yaw[:-1]) / 2
    steps = np.diff(xy, axis=0)
    speed = (steps[:, 0] * np.cos(between) + steps[:, 1] * np.sin(between)) / STEP_S
    # By speed and heading, for a rear axle goes where the car points: the poses themselves would
    # drift 0.5 m to the side on every 60 m with a rig that is mounted half a degree askew.
    right, left = np.minimum(yaw, 0.0)[:, None], np.maximum(yaw, 0.0)[:, None]
    come_back_from = between - np.clip(between, right, left)  # (31, 30): at t, of each step
    offset = (np.tril(np.sin(come_back_from), -1) * speed).sum(axis=1) * STEP_S
    value, _ = _fits(of_steps=False)
    step_value, step_slope = _fits(of_steps=True)
    speed = np.concatenate([[after.speed_mps], speed])
    return Signals(t_s, step_value @ speed, step_slope @ speed, value @ yaw, value @ offset)


def decide(after: Trajectory, thresholds: Thresholds = THRESHOLDS) -> Manoeuvre:
    """What the car does in the 3 s after a moment.

    Args:
        after: As `signals` takes it.

    Raises:
        ValueError: it is shorter than 3 s.
    """
    seen, at = signals(after), thresholds
    across = "straight"
    if levels(seen.heading_rad, at.u_turn_rad, at.u_turn_end_rad)[-1]:
        across = "u-turn"
    elif turn := levels(seen.heading_rad, at.turn_rad, at.turn_end_rad)[-1]:
        across = "turn left" if turn > 0 else "turn right"
    elif nudge := levels(seen.offset_m, at.nudge_m, at.nudge_end_m)[-1]:
        across = "nudge left" if nudge > 0 else "nudge right"
    return Manoeuvre(_along(seen, at), across)


def levels(signal: np.ndarray, begin: float, end: float, before: int = 0) -> np.ndarray:
    """Where a label holds along a signal: 1 above, -1 below zero, 0 nowhere; (T,) int.

    It begins where the signal's magnitude reaches `begin` and ends where it falls below `end` or
    changes its sign.

    Args:
        before: What held before the first.
    """
    found, now = np.zeros(len(signal), dtype=int), before
    for step, value in enumerate(signal):
        if abs(value) >= begin:
            now = 1 if value > 0 else -1
        elif value * now < end:
            now = 0
        found[step] = now
    return found


def _along(seen: Signals, at: Thresholds) -> str:
    # Standing is where driving does not hold, so it begins at driving's end. A car that is between
    # the two at the moment has not begun to stand.
    before = int(np.sign(seen.speed_mps[0]))
    moves = levels(seen.speed_mps, at.move_mps, at.stand_mps, before)
    if moves[-1] <= 0:
        return "reverse" if moves[-1] else "stop"
    gentle = levels(seen.acceleration_mps2, at.gentle_mps2, at.gentle_end_mps2)
    strong = levels(seen.acceleration_mps2, at.strong_mps2, at.strong_end_mps2)
    enough, strongly = round(at.lasting_s / STEP_S), round(at.strong_lasting_s / STEP_S)
    braking, accelerating = (gentle == -1).sum(), (gentle == 1).sum()
    if (moves <= 0).any() or accelerating >= max(enough, braking):
        return f"{'strong' if (strong == 1).sum() >= strongly else 'gentle'} accelerate"
    if braking >= enough:
        return f"{'strong' if (strong == -1).sum() >= strongly else 'gentle'} brake"
    return "hold"


@cache
def _fits(of_steps: bool) -> tuple[np.ndarray, np.ndarray]:
    """Matrices that take samples to the fitted lines' values and slopes at 0.0 … 3.0 s.

    Args:
        of_steps: The samples lie at 0 and in the steps' middles, else at the steps' ends.
    """
    t_s = np.arange(NUM_STEPS + 1) * STEP_S
    own_s = np.concatenate([[0.0], t_s[1:] - STEP_S / 2]) if of_steps else t_s
    value, slope = np.zeros((2, len(t_s), len(own_s)))
    for row, t in enumerate(t_s):
        near = np.flatnonzero(np.abs(own_s - t) <= FIT_S + STEP_S / 4)
        lines = np.stack([np.ones(len(near)), own_s[near] - t], axis=1)
        value[row, near], slope[row, near] = np.linalg.pinv(lines)
    return value, slope
