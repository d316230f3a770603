"""Base of all targets: the content of an answer, and how it is written and parsed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from avomni_lib.etl.cache.windows import Truth

# Figure of a target -> its description and unit.
FIGURES = {
    "speed_mae_mps": ("speed error", "m/s"),
    "ade_m": ("average distance to the true path", "m"),
    "manoeuvre_error": ("share of labels that are wrong", ""),
    "cause_error": ("1 - word F1", ""),
}


def figure_in_words(figure: str) -> tuple[str, str]:
    """Description and unit of a target's figure; that of a user's own target has no unit."""
    return FIGURES.get(figure, (f"error of {figure.removesuffix('_mae')}", ""))


# Tokens that may surround a generated answer: end of turn and padding.
END_TOKENS = ("<|im_end|>", "<|endoftext|>")


@dataclass(frozen=True)
class Content:
    """The content of an answer or of the ground truth; parts that are missing are None.

    Attributes:
        speed_mps: Average speed over the window: path length divided by duration.
        displacement_m: Length of the path driven in the window.
        action_m: The same length as repeated in the action line, with one decimal.
        waypoints_m: 16 pairs (x forward, y left) for the next 6.4 s, 0.4 s apart, in the rig's
            frame at the last frame.
        along: The manoeuvre of the next 3 s along the road.
        across: The same across it.
        cause: A sentence that explains the car's behaviour.
        cause_from: Origin of a ground-truth cause: `event` (written by people) or `template`
            (generated from the positions of others). None in an answer.
        numbers: The numbers of a user's own target, in the order of `Target.numbers`.
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
        name: As in `training.target`; a change of the form needs a new name.
        question: The question of the prompt.
        figure: Name of the held-out figure (with its unit) that is the mean of `error`.
        of: Truth of a window -> content of the target, unrounded.
        write: Content -> text that the model must generate.
        parse: Text -> content; None unless the text has exactly the target's form.
        lenient: Text -> content, tolerating other spaces, case and surrounding words; None if a
            part is missing.
        error: Prediction, ground truth -> error in the unit of `figure`; 0 is correct.
        pattern: Regular expression (Python's `re`, without look-around and back references) that
            matches exactly the target's form, for constrained decoding.
        horizon_s: Seconds of egomotion after the last frame that the truth needs.
        history_ends: Frame at which the motion history in a prompt ends: `first` if the answer is
            about the window itself, which a later history would reveal, else `last`.
        scenes: Whether the truth needs other road users.
        numbers: Names of the numbers of a user's own target; empty for a built-in one.
    """

    name: str
    question: str
    figure: str
    of: Callable[[Truth], Content]
    write: Callable[[Content], str]
    parse: Callable[[str], Content | None]
    lenient: Callable[[str], Content | None]
    error: Callable[[Content, Content], float]
    pattern: str
    horizon_s: float = 0.0
    history_ends: str = "first"
    scenes: bool = False
    numbers: tuple[str, ...] = ()

    def render(self, truth: Truth | Any) -> str:
        """The text that the model must generate for a window."""
        return self.write(self.of(truth))

    def read(self, text: str) -> Content | None:
        """The content of a text, by `parse` if it has the exact form, else by `lenient`."""
        return self.parse(text) or self.lenient(text)


def bare(text: str) -> str:
    """An answer without surrounding whitespace and end tokens."""
    text = text.strip()
    while cut := next((token for token in END_TOKENS if text.endswith(token)), None):
        text = text.removesuffix(cut).rstrip()
    return text
