"""Profiles: meaning of a LeRobot data set's columns and cameras (`l2d`, `rig`, or your own)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from avomni_lib.dataset import cameras
from avomni_lib.dataset.lerobot import motion
from avomni_lib.dataset.lerobot.motion import EpisodeMotion
from avomni_lib.errors import AvomniError
from avomni_lib.params import user_code


@dataclass(frozen=True)
class Published:
    """Published figures of a data set, for plans that make no requests.

    Attributes:
        repo_id: The data set that they apply to.
        num_episodes, hours: Of the whole data set.
        share_kept: Share of the episodes left without overlaps.
        bytes_a_s: Bytes per second of one camera's video.
        bytes_a_file: Bytes of a video file.
        bytes_metadata: Bytes of the tables about all episodes.
        bytes_a_data_file: Bytes of a file of states.
        source: Where the figures are from.
    """

    repo_id: str
    num_episodes: int
    hours: float
    share_kept: float
    bytes_a_s: float
    bytes_a_file: float
    bytes_metadata: float
    bytes_a_data_file: float
    fps: int
    size: tuple[int, int]
    codec: str
    source: str

    @property
    def seconds(self) -> float:
        """Mean duration of an episode."""
        return self.hours * 3600 / self.num_episodes


@dataclass(frozen=True)
class Profile:
    """How episodes of a data set become clips.

    Attributes:
        name: Name in errors.
        cameras: Our camera -> the data set's video key.
        state: The feature with the car's state, one array per row.
        axes: The names (in info.json) of the state's columns that `read` needs.
        read: (columns by axis (N,) float64, times (N,) s) -> `EpisodeMotion`.
        session: Column of meta/episodes that names the recording; its episodes share a split.
        clock: Feature of absolute times, ns; overlapping episodes of a session are left out.
        remarks: Remarks for the audit: (kind, sentence).
        published: Figures for plans before anything is fetched.
    """

    name: str
    cameras: Mapping[str, str]
    state: str
    axes: tuple[str, ...]
    read: Callable[[Mapping[str, np.ndarray], np.ndarray], EpisodeMotion]
    session: str | None = None
    clock: str | None = None
    remarks: tuple[tuple[str, str], ...] = ()
    published: Published | None = field(default=None, compare=False)


NO_LENSES = (
    "no camera intrinsics",
    (
        "the data set has no camera intrinsics: lenses and mounts are stand-ins, and nothing that "
        "needs them (paths drawn into pictures) is to be trusted"
    ),
)
# Cameras are matched by direction; L2D has no tele camera, and its seventh video is a map.
L2D = Profile(
    name="l2d",
    cameras={
        "camera_front_wide_120fov": "observation.images.front_left",
        "camera_cross_left_120fov": "observation.images.left_forward",
        "camera_cross_right_120fov": "observation.images.right_forward",
        "camera_rear_left_70fov": "observation.images.left_backward",
        "camera_rear_right_70fov": "observation.images.right_backward",
        "camera_rear_tele_30fov": "observation.images.rear",
    },
    state="observation.state.vehicle",
    axes=("speed", "heading", "hp_loc_latitude", "hp_loc_longitude"),
    read=motion.of_speed_heading_and_gps,
    session="session_id",
    clock="observation.state.timestamp",
    remarks=(
        NO_LENSES,
        (
            "nothing said of anonymisation",
            "nobody states that faces and number plates are anonymised: the licence (Apache-2.0) "
            "grants the copyright, not the rights of the people who are seen",
        ),
    ),
    published=Published(
        repo_id="yaak-ai/L2D",
        num_episodes=100_000,
        hours=735,
        share_kept=0.465,
        bytes_a_s=0.48e6,
        bytes_a_file=500e6,
        bytes_metadata=93e6,
        bytes_a_data_file=60e6,
        fps=10,
        size=(1920, 1080),
        codec="av1",
        source="public pages of 2025 and 2026; the hub is not asked",
    ),
)
RIG = Profile(
    name="rig",
    cameras={name: f"observation.images.{name}" for name in cameras.BY_NAME},
    state="observation.state",
    axes=("x", "y", "z", "qx", "qy", "qz", "qw", "vx", "vy", "vz"),
    read=motion.of_poses,
    remarks=(NO_LENSES,),
)
BUILT_IN = {profile.name: profile for profile in (L2D, RIG)}


def profile_of(name: str) -> Profile:
    """The profile that `dataset.lerobot.profile` names.

    Raises:
        AvomniError: its module cannot be imported, or the attribute is no `Profile`.
    """
    where = "dataset.lerobot.profile"
    profile = BUILT_IN[name] if name in BUILT_IN else user_code.load(name, where)
    if not isinstance(profile, Profile):
        kind = type(profile).__name__
        raise AvomniError(f"{name} is of type {kind}, expected a Profile", where=where)
    if unknown := [camera for camera in profile.cameras if camera not in cameras.BY_NAME]:
        fix = f"choose among {', '.join(cameras.BY_NAME)}"
        raise AvomniError(f"{name} names an unknown camera {unknown[0]!r}", where=where, fix=fix)
    return profile
