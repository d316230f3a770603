"""The section `dataset.lerobot`: how a data set in LeRobot's v3 layout is interpreted."""

from __future__ import annotations

from pydantic import Field, field_validator

from avomni_lib.params import user_code
from avomni_lib.params.section import Section

PROFILES = ("l2d", "rig")  # built in
# Profile -> owner on the hub whose data set is known to have a free licence (Apache-2.0).
FREE = {"l2d": "yaak-ai"}


class LeRobotParams(Section):
    """Columns and cameras of a LeRobot data set (`dataset.source: lerobot`), and its location."""

    profile: str = Field(
        "l2d",
        description="meaning of columns and cameras: l2d (yaak-ai/L2D), rig (poses as `export "
        "--lerobot` writes them), or module:attribute of your own profile",
    )
    is_local: bool = Field(
        False,
        description="the files already lie in dataset.local_dir; false fetches them from "
        "dataset.repo_id",
    )

    @field_validator("profile")
    @classmethod
    def _names_a_profile(cls, name: str) -> str:
        return user_code.need_known(name, PROFILES)
