"""What the model must say about a window, and how it is read back; a name is a version."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from avomni_lib.errors import AvomniError, pick

# What may stand around an answer that a model wrote: the ends of a turn and padding.
END_TOKENS = ("<|im_end|>", "<|endoftext|>")


class Truth(Protocol):
    """What a target is rendered from; `etl.windows.Truth` is one."""

    speed_mps: float  # path length over the window's duration
    path_m: float  # length of the path driven in the window


@dataclass(frozen=True, slots=True)
class Summary:
    """A summary read back from text.

    Attributes:
        speed_mps: Average speed over the window, m/s.
        displacement_m: Length of the path driven in the window, m.
        action_m: The same length as the action line repeats it, with one digit.
    """

    speed_mps: float
    displacement_m: float
    action_m: float


@dataclass(frozen=True)
class Target:
    """A versioned form of answer.

    Attributes:
        name: As in `training.target`; a change of form is a new name.
        question: What the prompt asks for, in words.
        render: Truth of a window -> the text that the model must say.
        parse: Text -> what it says, or None when it does not have the full form.
    """

    name: str
    question: str
    render: Callable[[Truth], str]
    parse: Callable[[str], Summary | None]


_NUMBER = r"(?:0|[1-9]\d*)"
_SUMMARY_V1 = re.compile(
    rf"<think>\nAvg Velocity: ({_NUMBER}\.\d\d)m/s\. "
    rf"Total displacement: ({_NUMBER}\.\d\d)m\.\n</think>\n"
    rf"Action: Displacement of ({_NUMBER}\.\d) meters\.",
    re.ASCII,
)


def _render_summary_v1(truth: Truth) -> str:
    speed, path = float(truth.speed_mps), float(truth.path_m)
    if not (math.isfinite(speed) and math.isfinite(path) and speed >= 0 and path >= 0):
        raise AvomniError(
            f"speed {speed} m/s and path {path} m are not lengths that were driven",
            fix="run 01_audit, it names clips with damaged ego motion",
        )
    # Each number is printed from the unrounded value: 42.149 m is 42.15 and 42.1.
    # abs() only drops the sign of -0.0, which would be printed.
    speed, path = abs(speed), abs(path)
    return (
        f"<think>\nAvg Velocity: {speed:.2f}m/s. Total displacement: {path:.2f}m.\n</think>\n"
        f"Action: Displacement of {path:.1f} meters."
    )


def _parse_summary_v1(text: str) -> Summary | None:
    match = _SUMMARY_V1.fullmatch(bare(text))
    return Summary(*map(float, match.groups())) if match else None


def bare(text: str) -> str:
    """An answer without the whitespace and end tokens around it."""
    text = text.strip()
    while cut := next((token for token in END_TOKENS if text.endswith(token)), None):
        text = text.removesuffix(cut).rstrip()
    return text


TARGETS = {
    "summary_v1": Target(
        "summary_v1",
        "State the car's average velocity and how far it drives in this video.",
        _render_summary_v1,
        _parse_summary_v1,
    )
}


def target(name: str) -> Target:
    """The target called `name`.

    Raises:
        AvomniError: there is none.
    """
    return pick(TARGETS, name, "target", "training.target")
