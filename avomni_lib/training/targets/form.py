"""What every target is: what it says about a window, how that is written, and how it is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from avomni_lib.etl.cache.windows import Truth

# What a target's figure is called, and its unit.
FIGURES = {
    "speed_mae_mps": ("speed error", "m/s"),
    "ade_m": ("average distance to the true path", "m"),
    "manoeuvre_error": ("share of labels that are wrong", ""),
    "cause_error": ("1 - word F1", ""),
}


def figure_in_words(figure: str) -> tuple[str, str]:
    """What a target's figure is called, and its unit; of a user's own target it has none."""
    return FIGURES.get(figure, (f"error of {figure.removesuffix('_mae')}", ""))


# What may stand around an answer that a model wrote: the ends of a turn and padding.
END_TOKENS = ("<|im_end|>", "<|endoftext|>")


@dataclass(frozen=True)
class Said:
    """What an answer says about a window, or what is true of it; None where it says nothing.

    Attributes:
        speed_mps: Average speed over the window: length of the path driven over the duration.
        displacement_m: Length of the path driven in the window.
        action_m: The same length as the action line repeats it, with one digit.
        waypoints_m: 16 pairs (x forward, y left): the next 6.4 s, 0.4 s apart, seen from the rig
            at the last frame.
        along: The manoeuvre of the next 3 s along the road.
        across: The same across it.
        cause: A sentence: why the car does what it does.
        cause_from: Of what is true: `event` (written by people) or `template` (made from where
            others are). An answer does not tell it.
        numbers: Those of a target of the user's own, in the order of `Target.numbers`.
    """

    speed_mps: float | None = None
    displacement_m: float | None = None
    action_m: float | None = None
    waypoints_m: tuple[tuple[float, float], ...] | None = None
    along: str | None = None
    across: str | None = None
    cause: str | None = None
    cause_from: str | None = None
    numbers: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Target:
    """A versioned form of answer.

    Attributes:
        name: As in `training.target`; a change of form is a new name.
        question: What the prompt asks for, in words.
        figure: Name of the held-out figure that `error` averages to, with its unit.
        of: Truth of a window -> what there is to say, unrounded.
        write: What there is to say -> the text that the model must say.
        parse: Text -> what it says; None unless the text has the full form, to the letter.
        lenient: The same of a text that has not the full form: other spaces, cases and words
            around; None where a part of the answer cannot be found.
        error: Said, true -> how far off, in the unit of `figure`; 0 is right.
        pattern: Regular expression (of Python's `re`, no look-around, no back reference) that
            matches the full form and nothing else, for constrained decoding.
        horizon_s: Seconds of ego motion past the last frame that the truth needs.
        history_ends: Frame at which the history that a prompt may tell ends: `first` where the
            answer is about the window itself, which a later history would hold, else `last`.
        scenes: Whether the truth needs other road users.
        numbers: Names of the numbers that a target of the user's own says; empty of a built-in one.
    """

    name: str
    question: str
    figure: str
    of: Callable[[Truth], Said]
    write: Callable[[Said], str]
    parse: Callable[[str], Said | None]
    lenient: Callable[[str], Said | None]
    error: Callable[[Said, Said], float]
    pattern: str
    horizon_s: float = 0.0
    history_ends: str = "first"
    scenes: bool = False
    numbers: tuple[str, ...] = ()

    def render(self, truth: Truth | Any) -> str:
        """The text that the model must say about a window."""
        return self.write(self.of(truth))

    def read(self, text: str) -> Said | None:
        """What a text says: by `parse` where it has the full form, else `lenient`."""
        return self.parse(text) or self.lenient(text)


def bare(text: str) -> str:
    """An answer without the whitespace and end tokens around it."""
    text = text.strip()
    while cut := next((token for token in END_TOKENS if text.endswith(token)), None):
        text = text.removesuffix(cut).rstrip()
    return text
