"""The manoeuvre of the next 3 s, longitudinal and lateral, by thresholds with hysteresis.

Signals are computed from the poses, and labels from the signals. A label begins at one threshold
and ends at a lower one, so that a signal that fluctuates around a threshold does not toggle it. If
the signal is between the two at the start, the label has not begun. The thresholds are our own
choice and not fitted to data.

Longitudinal, the first that applies:

1. `stop`: the car stands after 3 s. Standing begins at `stand_mps` and ends at `move_mps`.
2. `reverse`: it moves backwards after 3 s.
3. `gentle brake`, `gentle accelerate`: it does so for at least `lasting_s` of the 3 s, and at least
   as long as the other. Each begins at `gentle_mps2` and ends at `gentle_end_mps2`. A car that
   stood within the 3 s and drives after them accelerates in any case.
4. `strong brake`, `strong accelerate`: one of these that, with the thresholds `strong_mps2` and
   `strong_end_mps2`, lasts for at least `strong_lasting_s`.
5. `hold`: otherwise.

Lateral, by the state after 3 s, the first of:

1. `u-turn`: the heading has changed by `u_turn_rad`, and not returned to `u_turn_end_rad`.
2. `turn left`, `turn right`: the same with `turn_rad`. The direction is that of the car's nose,
   whether it drives forwards or backwards.
3. `nudge left`, `nudge right`: the car has shifted sideways by `nudge_m`, and not returned to
   `nudge_end_m`.
4. `straight`: otherwise, including bends that are no turn.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np

from avomni_lib.etl.clip.trajectory import STEP_S, Trajectory

HORIZON_S = 3.0
NUM_STEPS = round(HORIZON_S / STEP_S)
FIT_S = 0.5  # a signal at t is read off a line fitted to samples within this distance of t

ALONG = (
    *("stop", "hold", "gentle accelerate", "strong accelerate"),
    *("gentle brake", "strong brake", "reverse"),
)
ACROSS = ("straight", "nudge left", "nudge right", "turn left", "turn right", "u-turn")


@dataclass(frozen=True)
class Thresholds:
    """Magnitudes at which labels begin and (with `end` in the name) end."""

    stand_mps: float = 0.3  # standing begins
    move_mps: float = 0.8  # standing ends
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
    """The signals that decide the labels; each (31,) float64, from the moment to 3 s after it.

    Attributes:
        t_s: 0.0, 0.1 … 3.0.
        speed_mps: Along the car's own heading, negative backwards.
        acceleration_mps2: Of that speed.
        heading_rad: Change since the moment, left positive.
        offset_m: Shift to the left caused by headings that the car has returned from: headings to
            the left of both the first and the current one; to the right of both counts negative.
            It is 0 in any bend, and the full shift once a change of lane is over. Without a map,
            only this distinguishes a nudge from a bend, and only from its second half on.
    """

    t_s: np.ndarray
    speed_mps: np.ndarray
    acceleration_mps2: np.ndarray
    heading_rad: np.ndarray
    offset_m: np.ndarray


class Manoeuvre(NamedTuple):
    """A longitudinal label of `ALONG` and a lateral one of `ACROSS`."""

    along: str
    across: str


def signals(after: Trajectory) -> Signals:
    """The signals of the first 3 s after a moment; later poses are ignored.

    The speed within a step is the step's length along the heading at its middle, a central
    difference; at the moment it is `after.speed_mps`. To reduce noise, each signal at t is read off
    a straight line fitted (least squares) to the samples within 0.5 s of t, which does not alter a
    constant acceleration or yaw rate.

    Args:
        after: At least 30 steps of 0.1 s, as returned by `trajectory.future`.

    Raises:
        ValueError: there are fewer steps.
    """
    if len(after) < NUM_STEPS:
        raise ValueError(f"{len(after)} steps, expected {NUM_STEPS} or more")
    t_s = np.arange(NUM_STEPS + 1) * STEP_S
    xy = np.vstack([np.zeros(2), after.xy_m[:NUM_STEPS]])
    yaw = np.concatenate([[0.0], after.yaw_rad[:NUM_STEPS]])
    between = (yaw[1:] + yaw[:-1]) / 2
    steps = np.diff(xy, axis=0)
    speed = (steps[:, 0] * np.cos(between) + steps[:, 1] * np.sin(between)) / STEP_S
    # Computed from speed and heading, as the rear axle moves where the car points: with a rig
    # mounted half a degree askew, positions would drift 0.5 m sideways every 60 m.
    right, left = np.minimum(yaw, 0.0)[:, None], np.maximum(yaw, 0.0)[:, None]
    returned_from = between - np.clip(between, right, left)  # (31, 30): at time t, for each step
    offset = (np.tril(np.sin(returned_from), -1) * speed).sum(axis=1) * STEP_S
    value, _ = _fits(of_steps=False)
    step_value, step_slope = _fits(of_steps=True)
    speed = np.concatenate([[after.speed_mps], speed])
    return Signals(t_s, step_value @ speed, step_slope @ speed, value @ yaw, value @ offset)


def decide(after: Trajectory) -> Manoeuvre:
    """The manoeuvre of the 3 s after a moment.

    Args:
        after: As in `signals`.

    Raises:
        ValueError: it is shorter than 3 s.
    """
    seen, at = signals(after), THRESHOLDS
    across = "straight"
    if levels(seen.heading_rad, at.u_turn_rad, at.u_turn_end_rad)[-1]:
        across = "u-turn"
    elif turn := levels(seen.heading_rad, at.turn_rad, at.turn_end_rad)[-1]:
        across = "turn left" if turn > 0 else "turn right"
    elif nudge := levels(seen.offset_m, at.nudge_m, at.nudge_end_m)[-1]:
        across = "nudge left" if nudge > 0 else "nudge right"
    return Manoeuvre(_along(seen, at), across)


def levels(signal: np.ndarray, begin: float, end: float, before: int = 0) -> np.ndarray:
    """The state of a label along a signal: 1 (positive), -1 (negative) or 0 (none); (T,) int.

    It begins where the signal's magnitude reaches `begin`, and ends where it falls below `end` or
    the sign changes.

    Args:
        before: The state before the first sample.
    """
    states, now = np.zeros(len(signal), dtype=int), before
    for step, value in enumerate(signal):
        if abs(value) >= begin:
            now = 1 if value > 0 else -1
        elif value * now < end:
            now = 0
        states[step] = now
    return states


def _along(seen: Signals, at: Thresholds) -> str:
    # Standing is the absence of moving. A car between the two thresholds at the start counts as
    # moving.
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
    """Matrices that map samples to the values and slopes of the fitted lines at 0.0 … 3.0 s.

    Args:
        of_steps: Samples are at 0 and at the middles of steps, else at the ends of steps.
    """
    t_s = np.arange(NUM_STEPS + 1) * STEP_S
    sample_s = np.concatenate([[0.0], t_s[1:] - STEP_S / 2]) if of_steps else t_s
    value, slope = np.zeros((2, len(t_s), len(sample_s)))
    for row, t in enumerate(t_s):
        near = np.flatnonzero(np.abs(sample_s - t) <= FIT_S + STEP_S / 4)
        lines = np.stack([np.ones(len(near)), sample_s[near] - t], axis=1)
        value[row, near], slope[row, near] = np.linalg.pinv(lines)
    return value, slope
