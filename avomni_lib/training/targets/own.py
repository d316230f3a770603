"""User-defined targets: a question, a pattern, the numbers of a window, and their text.

    class Kmh:
        question = "How fast does the car go, in km/h?"
        pattern = r"(?P<kmh>[0-9]{1,3}) km/h"

        def numbers(self, truth):
            return {"kmh": 3.6 * truth.speed_mps}

        def write(self, kmh):
            return f"{kmh:.0f} km/h"

`pattern` matches exactly the whole answer; its named groups are the numbers. `truth` is an
`etl.cache.windows.Truth`. `horizon_s`, `history_ends` and `scenes` are optional, see `form.Target`:
`horizon_s = 6.4` provides `truth.future`, `scenes = True` provides `truth.scene`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from avomni_lib.errors import AvomniError
from avomni_lib.etl.cache.windows import Truth
from avomni_lib.etl.clip.scene import Other, Surroundings
from avomni_lib.etl.clip.trajectory import FUTURE_S, STEP_S, Trajectory
from avomni_lib.params import user_code
from avomni_lib.training.targets.form import Content, Target, bare

WHERE = "training.target"
GROUP = re.compile(r"\(\?P<[A-Za-z_][A-Za-z0-9_]*>")
LONGEST_ANSWER = 4000


def own_target(reference: str) -> Target:
    """The target `module:attribute`, an object as above or its class.

    Raises:
        AvomniError: it cannot be imported, lacks a part, or cannot read its own answer.
    """
    path = user_code.find(reference, WHERE).path
    made = user_code.load(reference, WHERE)

    def refuse(what: str) -> AvomniError:
        return AvomniError(
            f"{reference} is no target: {what}",
            where=str(path),
            fix="write question, pattern, numbers(truth) and write(**numbers), as in "
            "notebooks/examples/own_target.ipynb",
        )

    if isinstance(made, type):
        with user_code.in_words(path, WHERE, f"{reference}()"):
            made = made()
    question, pattern = (getattr(made, name, None) for name in ("question", "pattern"))
    for name, text in (("question", question), ("pattern", pattern)):
        if not isinstance(text, str) or not text.strip():
            raise refuse(f"its {name} is {text!r}, a text is wanted")
    if not question.isprintable() or len(question) > LONGEST_ANSWER:
        raise refuse("its question holds what cannot be printed, or is too long")
    for name in ("numbers", "write"):
        if not callable(getattr(made, name, None)):
            raise refuse(f"it has no function {name}")
    try:
        form = re.compile(pattern, re.ASCII)
    except re.error as error:
        raise refuse(f"its pattern is not a regular expression: {error}") from None
    names = tuple(form.groupindex)
    if not names:
        raise refuse("its pattern names no number: write one as (?P<name>[0-9]+)")
    horizon_s, history_ends = getattr(made, "horizon_s", 0.0), getattr(made, "history_ends", None)
    if horizon_s not in (0, FUTURE_S):
        raise refuse(f"its horizon_s is {horizon_s!r}, it is 0 or {FUTURE_S}")
    history_ends = history_ends or ("last" if horizon_s else "first")
    if history_ends not in ("first", "last"):
        raise refuse(f"its history_ends is {history_ends!r}, it is 'first' or 'last'")
    numbers, write = (
        user_code.guarded(getattr(made, name), path, WHERE, f"{name} of {reference}")
        for name in ("numbers", "write")
    )
    target = Target(
        name=reference,
        question=question,
        figure=f"{names[0]}_mae",
        of=_of(numbers, names, refuse),
        write=_write(write, form, names, refuse),
        parse=lambda text: _read(form.fullmatch(bare(text)), names),
        lenient=lambda text: _read(form.search(text), names),
        error=lambda predicted, true: abs(predicted.numbers[0] - true.numbers[0]),
        pattern=GROUP.sub("(?:", pattern),
        horizon_s=float(horizon_s),
        history_ends=history_ends,
        scenes=bool(getattr(made, "scenes", False)),
        numbers=names,
    )
    target.render(usual_truth())  # a wrong target fails here and not during training
    return target


def source_of(target: Target) -> user_code.UserModule | None:
    """The source of a user's own target; None for a built-in one."""
    return user_code.find(target.name, WHERE) if user_code.is_reference(target.name) else None


def usual_truth() -> Truth:
    """Ground truth of a fast window, with a typical number of digits."""
    ahead = Other("automobile", 60.0, 0.0, 20.0, 0.0, 0.0, 4.5, 1.9)
    return Truth(7.5, 211.04, 211.04, 28.13, straight(1, 64), Surroundings((ahead,)))


def straight(direction: int, steps: int) -> Trajectory:
    """The path of a fast car on a straight road: future (1) or past (-1)."""
    t_s = direction * np.arange(1, steps + 1)[::direction] * STEP_S
    places = np.stack([28.13 * t_s, 0.21 * t_s], axis=1)
    return Trajectory(t_s, places, np.zeros(steps), 28.13)


Refuse = Callable[[str], AvomniError]


def _of(numbers: Callable, names: tuple[str, ...], refuse: Refuse) -> Callable[[Any], Content]:
    def of(truth: Any) -> Content:
        returned = numbers(truth)
        if not isinstance(returned, dict) or set(returned) != set(names):
            raise refuse(
                f"numbers returned {returned!r:.200}; its pattern names {', '.join(names)}"
            )
        try:
            return Content(numbers=tuple(float(returned[name]) for name in names))
        except (TypeError, ValueError):
            raise refuse(f"numbers returned {returned!r:.200}, which are no numbers") from None

    return of


def _write(
    write: Callable, form: re.Pattern, names: tuple[str, ...], refuse: Refuse
) -> Callable[[Content], str]:
    def written(content: Content) -> str:
        text = write(**dict(zip(names, content.numbers or (), strict=True)))
        if not isinstance(text, str) or not 0 < len(text) <= LONGEST_ANSWER:
            raise refuse(f"write returned {text!r:.200}, an answer of text is wanted")
        if _read(form.fullmatch(bare(text)), names) is None:
            raise refuse(f"write returned {text!r:.200}, which its pattern does not match")
        return text

    return written


def _read(match: re.Match | None, names: tuple[str, ...]) -> Content | None:
    """The numbers of an answer; None if a group is not a number."""
    if match is None:
        return None
    try:
        numbers = tuple(float(match[name]) for name in names)
    except (TypeError, ValueError):
        return None
    return Content(numbers=numbers) if all(map(math.isfinite, numbers)) else None
