"""What is different where clips are the episodes of a LeRobot data set: tables, licence, plan."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from avomni_lib.dataset import cameras
from avomni_lib.dataset.download.remote import RemoteFile
from avomni_lib.dataset.download.verified import Verified
from avomni_lib.dataset.lerobot.layout import (
    INFO_FILE,
    TASKS_FILE,
    episode_files,
    metadata_files,
)
from avomni_lib.dataset.lerobot.profile import Published, profile_of
from avomni_lib.errors import AvomniError
from avomni_lib.params import NOT_ANONYMISED, Params

if TYPE_CHECKING:
    from avomni_lib.dataset.download.hub import Hub

__all__ = ["NUM_TABLES", "TRAIN_SHARE", "metadata_files"]

TRAIN_SHARE = 0.8  # of the sessions, as `lerobot.episodes` deals them
NUM_TABLES = 2  # that are there once the metadata are: info.json and one of episodes
# Asked for at once: L2D has one file of 100,000 episodes.
FILES_A_QUESTION = 100


def published(p: Params) -> Published | None:
    """What public pages say of the run's data set; None where they say nothing."""
    told = profile_of(p.lerobot_profile).published if p.lerobot_profile else None
    return told if told and told.repo_id.split("/")[0] == p.dataset.repo_id.split("/")[0] else None


def needs_no_decision(p: Params) -> bool:
    """Whether the data set's licence is known and free: then there is no gate."""
    return p.notice == NOT_ANONYMISED


def fetch_metadata(folder: Path, hub: Hub, verified: Verified) -> dict[str, RemoteFile]:
    """info.json, the tasks, and every table of episodes; what the hub lists of them.

    Raises:
        AvomniError: there is no info.json or no table of episodes; the access.
    """
    listed = hub.sizes([INFO_FILE, TASKS_FILE])
    number, found = FILES_A_QUESTION, hub.sizes(episode_files(FILES_A_QUESTION))
    while len(found) == number:
        number += FILES_A_QUESTION
        found = hub.sizes(episode_files(number))
    if INFO_FILE not in listed or not found:
        raise AvomniError(
            f"not a LeRobot v3 data set: it has no {INFO_FILE if found else episode_files(1)[0]}",
            where=hub.page,
            fix="check dataset.repo_id and dataset.revision",
        )
    listed |= found
    for path in metadata_files(folder):
        if path not in listed:  # another revision's table must not be taken for this one's
            (folder / path).unlink(missing_ok=True)
    for remote in listed.values():
        is_known = verified.known(remote)
        if not is_known and (not verified.needs_hash(remote) or verified.find(remote)):
            hub.fetch(remote, folder)
            verified.remember(remote)
    verified.save()
    return listed


def expected_chunks(p: Params, told: Published) -> tuple[int, int, int, float]:
    """(chunks, clips, files, bytes) of a run, by what is published.

    A chunk is taken to be one file of each camera, which hold the same episodes.
    """
    num_cameras = len(cameras.grid(p.vision.cameras).cameras)
    chunk_bytes = num_cameras * told.bytes_a_file + told.bytes_a_data_file
    clips = told.bytes_a_file / told.bytes_a_s / told.seconds * told.share_kept
    wanted = p.download.target_chunks if p.download.chunks is None else len(p.download.chunks)
    budget = p.download.target_size_gb * 1e9 - told.bytes_metadata
    most = max(int(budget // chunk_bytes), 0)
    num = wanted if p.download.evict_raw and most else min(wanted, most)
    files = num * (num_cameras + 1) + NUM_TABLES + 1
    return num, math.floor(num * clips), files, num * chunk_bytes + told.bytes_metadata


def plan_rows(p: Params, num_clips: int) -> list[tuple[str, str, str]]:
    """Hours of driving, of the run and of the whole set; nothing where nothing is published."""
    if (told := published(p)) is None:
        return []
    return [
        (
            "driving",
            f"{num_clips * told.seconds / 3600:.1f} h",
            f"of {told.hours:,.0f} h in {told.num_episodes:,} episodes, of which "
            f"{1 - told.share_kept:.1%} overlap and are left out; split by session",
        )
    ]


def plan_warnings(p: Params) -> list[str]:
    """What the data set does not say."""
    if not p.lerobot_profile:
        return []
    return [f"{what}: {reason}" for what, reason in profile_of(p.lerobot_profile).remarks]
