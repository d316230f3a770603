"""The car's past motion as words of a prompt, where `prompt.ego_history` asks for it.

Nothing that an answer is about is in it: `Target.history_ends` says at which frame it ends.
"""

from __future__ import annotations

from typing import Any

from avomni_lib.etl.clip.trajectory import Trajectory
from avomni_lib.training.targets import Target

EVERY = 2  # of the poses 0.1 s apart: eight of them in 1.6 s
FRAME = {"first": 0, "last": -1}


def past_of(windows: Any, index: int, target: Target) -> Trajectory:
    """The motion before what the target is about."""
    return windows.past(index, FRAME[target.history_ends])


def of_window(windows: Any, index: int, target: Target, own_from_s: float) -> str:
    """The words about the motion before what the target is about; see `text_of`."""
    return text_of(past_of(windows, index, target), target, own_from_s)


def text_of(past: Trajectory, target: Target, own_from_s: float = 0.0) -> str:
    """The words, one place every 0.2 s and the speed at the end.

    Places are in metres in the rig's frame at the end: x forward, y left. Where the ego motion does
    not go back far enough, there are fewer.

    Args:
        own_from_s: s at which the video's frames begin that the question is about.
    """
    frame = f"{target.history_ends} frame"
    if own_from_s and target.history_ends == "first":
        frame = f"frame at {own_from_s:.1f} seconds"
    steps = range(len(past) % EVERY, len(past), EVERY)
    places = [
        f"{past.t_s[i]:.1f}s ({_metres(past.xy_m[i, 0])},{_metres(past.xy_m[i, 1])})" for i in steps
    ]
    listed = " ".join(places) if places else "none"
    return (
        f" Past places up to the video's {frame}, metres forward and left of "
        f"there: {listed}. Speed there: {_metres(past.speed_mps)}m/s."
    )


def _metres(value: float) -> str:
    """With two digits, and never -0.00."""
    return f"{round(float(value), 2) + 0.0:.2f}"
