"""What the model must say about a window, and how it is read back; a name is a version.

form       what every target is
summary    `summary_v1`: speed and displacement of the window, the user's format
future     `future_v1`: 16 waypoints over the next 6.4 s
meta       `meta_v1`: the manoeuvre of the next 3 s
coc        `coc_v1`: one sentence of cause and effect
causes     its causes, from where others are
full       `full_v1`: all of these
own        a target that the user wrote
constants  the best answer that is the same for every window
motion_models  constant velocity, and constant turn rate and acceleration
"""

from __future__ import annotations

from dataclasses import replace

from avomni_lib.errors import pick
from avomni_lib.params import Params, user_code
from avomni_lib.training.targets.coc import COC_V1
from avomni_lib.training.targets.form import Content, Target
from avomni_lib.training.targets.full import FULL_V1
from avomni_lib.training.targets.future import FUTURE_V1
from avomni_lib.training.targets.meta import META_V1
from avomni_lib.training.targets.own import own_target
from avomni_lib.training.targets.summary import SUMMARY_V1

__all__ = ["TARGETS", "Content", "Target", "target", "target_of"]

TARGETS = {each.name: each for each in (SUMMARY_V1, FUTURE_V1, META_V1, COC_V1, FULL_V1)}


def target(name: str) -> Target:
    """The target called `name`, or the user's own that `module:attribute` names.

    Raises:
        AvomniError: there is none, or the user's own cannot be imported or is no target.
    """
    if user_code.is_reference(name):
        return own_target(name)
    return pick(TARGETS, name, "target", "training.target")


def target_of(p: Params) -> Target:
    """The run's target, asked for with the run's own question where it has one.

    Raises:
        AvomniError: as `target`.
    """
    named = target(p.training.target)
    return named if p.prompt.question is None else replace(named, question=p.prompt.question)
