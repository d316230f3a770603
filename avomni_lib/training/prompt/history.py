"""The car's past motion as words of a prompt, where `prompt.ego_history` asks for it.

Nothing that an answer is about is in it: `Target.history_ends` says at which frame it ends.
"""

from __future__ import annotations

from typing import Any

from avomni_lib.etl.clip.trajectory import Trajectory
from avomni_lib.training.targets import Target
from avomni_lib.training.targets.motion_models import predict

EVERY = 2  # of the poses 0.1 s apart: eight of them in 1.6 s
FRAME = {"first": 0, "last": -1}


def past_of(windows: Any, index: int, target: Target) -> Trajectory:
    """The motion before what the target is about."""
    return windows.past(index, FRAME[target.history_ends])


def of_window(windows: Any, index: int, target: Target, own_from_s: float) -> str:
    """The past motion of a window as text; see `text_of`."""
    return text_of(past_of(windows, index, target), target, own_from_s)


def text_of(past: Trajectory, target: Target, own_from_s: float = 0.0) -> str:
    """Past motion as text: a place every 0.2 s, the speed at the end, and CTRA's answer.

    Places are in metres in the rig's frame at the end: x forward, y left. There are fewer where the
    ego motion does not go back far enough. For a target about the future, the answer of the motion
    model CTRA follows in the target's form, which leaves the model to correct it by the pictures.

    Args:
        own_from_s: Start of the frames that the question is about, s in the video.
    """
    frame = f"{target.history_ends} frame"
    if own_from_s and target.history_ends == "first":
        frame = f"frame at {own_from_s:.1f} seconds"
    steps = range(len(past) % EVERY, len(past), EVERY)
    places = [
        f"{past.t_s[i]:.1f}s ({_metres(past.xy_m[i, 0])},{_metres(past.xy_m[i, 1])})" for i in steps
    ]
    listed = " ".join(places) if places else "none"
    words = (
        f" Past places up to the video's {frame}, metres forward and left of "
        f"there: {listed}. Speed there: {_metres(past.speed_mps)}m/s."
    )
    if target.history_ends == "last" and not (target.scenes or target.numbers):
        unchanged = target.write(predict("ctra", past, target, 0.0))
        words += f" With that acceleration and turn rate kept the answer would be: {unchanged}."
    return words


def _metres(value: float) -> str:
    """With two digits, and never -0.00."""
    return f"{round(float(value), 2) + 0.0:.2f}"
