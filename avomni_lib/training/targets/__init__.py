"""What the model must say about a window, and how it is read back; a name is a version."""

from __future__ import annotations

from avomni_lib.errors import pick
from avomni_lib.training.targets.coc import COC_V1
from avomni_lib.training.targets.form import Said, Target
from avomni_lib.training.targets.full import FULL_V1
from avomni_lib.training.targets.future import FUTURE_V1
from avomni_lib.training.targets.meta import META_V1
from avomni_lib.training.targets.summary import SUMMARY_V1

__all__ = ["TARGETS", "Said", "Target", "target"]

TARGETS = {each.name: each for each in (SUMMARY_V1, FUTURE_V1, META_V1, COC_V1, FULL_V1)}


def target(name: str) -> Target:
    """The target called `name`.

    Raises:
        AvomniError: there is none.
    """
    return pick(TARGETS, name, "target", "training.target")
