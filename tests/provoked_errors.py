"""The errors of docs/troubleshooting.md, each made to happen: its text -> how.

Each function does what a user would have done, or meets what the user's machine would have done,
and returns what is then said. `PROVOKED[text](Place(folder, monkeypatch))` holds `text`.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.spatial.transform import Rotation

from avomni_lib import files
from avomni_lib.dataset import cameras, checks
from avomni_lib.dataset.catalog import FEATURES_FILE, Catalog
from avomni_lib.dataset.download import download
from avomni_lib.dataset.download.backoff import Backoff
from avomni_lib.dataset.download.hub import Hub
from avomni_lib.dataset.own.conventions import Track, contradictions
from avomni_lib.dataset.own.pack import OwnClip, pack
from avomni_lib.dataset.select import evicted, split
from avomni_lib.dataset.select.chunks import rank
from avomni_lib.dataset.select.manifest import path_of as chosen_path
from avomni_lib.dataset.select.manifest import read_chosen
from avomni_lib.errors import AvomniError
from avomni_lib.etl import leaks
from avomni_lib.etl.cache import memmap
from avomni_lib.etl.cache.windows import Windows
from avomni_lib.etl.run import build, disk_budget, slurm
from avomni_lib.etl.video import reader
from avomni_lib.evaluation import comparison, metrics
from avomni_lib.params import Params
from avomni_lib.training.doctor.machine import DoctorFinding, Report
from avomni_lib.training.fit import job
from avomni_lib.training.forecast import estimate
from avomni_lib.training.prompt.samples import windows_of
from tests import folder_run, local_hub
from tests.answered import drives, summaries
from tests.answering_server import Answer, answering
from tests.published_set import (
    Drive,
    ListedClip,
    clip_id_of,
    listed_clip,
    write_metadata,
    write_published_set,
)
from tests.streams import NUM_FRAMES, SPECS, encode, stream_bytes

REPO = "owner/drives"
TIMES_US = (np.arange(NUM_FRAMES) * 1_000_000 / 30).astype(np.int64)


@dataclass(frozen=True)
class Place:
    """Where an error may happen: an empty folder, and pytest's patch."""

    folder: Path
    patch: pytest.MonkeyPatch

    def params(self, **sections: dict) -> Params:
        own = {
            "extends": "params/mi300x.yaml",
            "run": {"name": "x", "outputs_dir": str(self.folder / "outputs")},
        }
        return Params.from_values(own | sections)

    def chosen(self, **processing: object) -> Params:
        """A run whose small raw files lie in a folder."""
        published = write_published_set(self.folder / "published", 1, 3, 1.0, width=16, height=16)
        return folder_run.chosen(self.folder / "outputs", published, **processing)


def metadata(folder: Path, release: str = "26.03") -> Catalog:
    clips = [listed_clip(number, number // 2) for number in range(8)]
    return Catalog.open(write_metadata(folder / "published", clips, release))


def ranked(place: Place, clips: dict, release: str = "26.03") -> None:
    p = place.params(download={"clips": clips, "target_chunks": 1})
    rank(metadata(place.folder, release), p)


def no_room_left(place: Place) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    place.patch.setattr(os, "fsync", full)
    files.write_text(place.folder / "file", "text")


def locks_refused(place: Place) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    place.patch.setattr(fcntl, "flock", refuse)
    with files.hold(place.folder / ".lock", "busy"):
        pass


def built_by_another(place: Place) -> None:
    p = place.chosen()
    with files.hold(p.cache_dir / ".lock", "held by the test"):
        build.build(p)


def shared_while_built(place: Place) -> None:
    p = place.chosen()
    with files.hold(p.cache_dir / ".lock", "held by the test"):
        slurm.build_share(p, 1, 2)


def old_cache(place: Place) -> None:
    record = {"format_version": 0, "shards": [], "clips": []}
    files.write_json(place.folder / memmap.CLIPS_FILE, record)
    memmap.Cache.open(place.folder)


def trained_with_others(place: Place) -> None:
    with job.open_for(place.params(training={"learning_rate": 0.5})):
        job.start_or_attach(place.params())


def trained_by_another(place: Place) -> None:
    with job.open_for(place.params()), job.open_for(place.params()):
        pass


def killed_training(place: Place) -> None:
    """Its process is gone, and it left no outcome."""
    with job.open_for(place.params()):
        pass
    job.follow(place.params(), None)


def out_of_memory(place: Place) -> None:
    class OutOfMemoryError(RuntimeError):
        """As torch names it."""

    raise job.in_words(OutOfMemoryError("HIP out of memory. Tried to allocate 8.00 GiB"))


def unshareable(place: Place) -> None:
    from avomni_lib.training.fit import worker

    place.patch.setenv("TORCHELASTIC_RUN_ID", "none")
    place.patch.setenv("WORLD_SIZE", "3")
    worker._accumulation(place.params())


def not_a_merged_model(place: Place) -> None:
    from avomni_lib.training.export import merge

    (place.folder / "thesis.tex").write_text("years of work")
    merge._refuse_to_replace(place.folder)


def asked(place: Place, about: Callable[[Hub], object], **hub: object) -> None:
    """The real client against a hub on 127.0.0.1, which is gated where it has a `token`.

    With a `status` it answers nothing else.
    """
    status, token = hub.pop("status", None), hub.pop("token", None)
    write_metadata(place.folder / "served", [listed_clip(0, 0)])
    with local_hub.serve(place.folder / "served", REPO, token=token) as server:
        if status:
            server.faults.refuse("*", 9, status)
        if hub.pop("is_flipping", False):
            server.faults.flipped[FEATURES_FILE] = 2
        quick = Backoff(first_s=0.0, num_tries=2)
        about(Hub(REPO, endpoint=server.endpoint, backoff=quick, **hub))


def answered_by_a_portal(place: Place) -> object:
    with answering(lambda path: Answer(b"<html>Sign in</html>")) as portal:
        return Hub("a/b", endpoint=portal.endpoint).commit


def clip_of_no_name(place: Place) -> object:
    write_metadata(place.folder, [ListedClip("../x")])
    return Catalog.open(place.folder).clips.faults


def lerobot(place: Place, **info: object) -> None:
    from avomni_lib.dataset.lerobot.episodes import EpisodeCatalog

    if info:
        (place.folder / "meta").mkdir()
        (place.folder / "meta/info.json").write_text(json.dumps(info))
    EpisodeCatalog.read(place.folder, "l2d")


def exported_for_lerobot(place: Place) -> None:
    from avomni_lib.training.export import lerobot

    lerobot.export(place.chosen())


def unreachable(place: Place) -> None:
    quick = Backoff(first_s=0.0, num_tries=2)
    Hub(REPO, endpoint="http://127.0.0.1:9", backoff=quick).check_access()


def arrived_damaged(place: Place) -> None:
    def fetch(hub: Hub) -> None:
        hub.fetch(hub.sizes([FEATURES_FILE])[FEATURES_FILE], place.folder / "data")

    asked(place, fetch, is_flipping=True)


def tampered_cache(place: Place) -> None:
    p = place.chosen()
    build.build(p)
    path = p.cache_dir / "shard_0000" / "frames.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    memmap.verify(p.cache_dir)


def damaged_picture(place: Place) -> None:
    p = place.chosen(storage="jpeg")
    cache = build.build(p).cache
    path = p.cache_dir / "shard_0000" / "jpeg.npy"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    windows = Windows(memmap.Cache.open(p.cache_dir), 4, 2)
    for index in range(len(windows)):
        windows.frames(index)
    assert cache


def changed_raw_file(place: Place) -> str:
    """What the audit and 02 say of a file whose bytes have changed since it was hashed."""
    from avomni_lib.dataset.download.remote import RemoteFile

    path = place.folder / "a.zip"
    path.write_bytes(b"b" * 9)
    return RemoteFile("a.zip", 9, sha256="0" * 64).differs(path)


def short_egomotion(place: Place) -> str:
    times = np.arange(-100_000, 3_000_000, 10_000)
    _, found = checks.egomotion(Drive(0).egomotion(times), 0, 2_000_000, 6.4)
    return "\n".join(finding.reason for finding in found)


def open_groups(place: Place) -> None:
    content = stream_bytes("h264 open")
    reader.read_frames(content, TIMES_US[:-1], decoder="decord")


def another_target(place: Place) -> None:
    from avomni_lib.training.model import adapter, load

    files.write_json(place.folder / adapter.RECORD_FILE, {"sees": {"training.target": "future_v1"}})
    load.check_adapter(place.folder, place.params(model={"base_model": "tiny"}))


def old_record(place: Place) -> None:
    from avomni_lib.training.model import adapter, load

    files.write_json(place.folder / adapter.RECORD_FILE, {"target": "summary_v1"})
    load.check_adapter(place.folder, place.params(model={"base_model": "tiny"}))


def cache_of_another_rate(place: Place) -> None:
    p = place.chosen()
    build.build(p)
    processing = p.processing.model_copy(update={"sample_hz": 5.0})
    windows_of(p.model_copy(update={"processing": processing}), "train")


def damaged_adapter(place: Place) -> None:
    from avomni_lib.training.fit import checkpoints
    from avomni_lib.training.model import adapter

    path = place.folder / adapter.WEIGHTS_FILE
    for name in adapter.LOADED:
        (place.folder / name).write_bytes(b"{}")
    checkpoints.write_checksums(place.folder)
    path.write_bytes(b"{]")
    adapter.check_whole(place.folder)


def code_of_its_own(place: Place) -> None:
    from avomni_lib.training.model import load

    files.write_json(
        place.folder / "config.json",
        {"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}},
    )
    load.read_config("own", str(place.folder))


def optimizer_without_its_package(place: Place) -> None:
    from avomni_lib.training.doctor import doctor

    doctor.optimizer("grokadamw", "cpu")


def no_blind_adapter(place: Place) -> str:
    from avomni_lib.evaluation import ladder
    from avomni_lib.training.backbones import backbone
    from avomni_lib.training.model import adapter, load
    from avomni_lib.training.model.model_input import what_the_model_sees
    from avomni_lib.training.model.model_path import base_location

    p = place.chosen(tile_height=32)
    p = p.model_copy(update={"model": p.model.model_copy(update={"base_model": "tiny"})})
    header = build.build(p).cache.header
    location = base_location("tiny")
    kind = backbone(p.model.backbone, load.read_config("tiny", location))
    sees = what_the_model_sees(p, kind, load.base_digest(location, None), "nf4", header)
    record = {"base_model": "tiny", "training_clip_ids": [], "sees": sees}
    files.write_json(p.run_dir / "adapter" / adapter.RECORD_FILE, record)
    training = p.training.model_copy(update={"blind_steps": 0})
    return str(ladder.plan(p.model_copy(update={"training": training})))


def small_gain(place: Place) -> str:
    clips, said_ = drives(14)
    figures = metrics.figures(summaries(clips, (9.0, 9.0), blind=said_, adapted=said_))
    return "\n".join(claim["text"] for claim in figures["claims"])


def another_video(place: Place) -> None:
    reader.read_frames(stream_bytes("h264 gop 15"), TIMES_US[:1], timestamps_us=TIMES_US * 2)


def too_small_a_budget(place: Place) -> str:
    p = place.params(download={"evict_raw": True, "target_chunks": 230})
    return str(build.plan(p))


def evicted_meanwhile(place: Place) -> None:
    """Another run's eviction, while this one reads."""
    p = place.chosen()
    read = build.ReadingPass._read

    def late(self, job, outcome):
        for path in p.local_dir.rglob("camera_front_wide_120fov.chunk_0000.zip"):
            path.unlink()
        read(self, job, dataclasses.replace(outcome, reason="file not found"))

    place.patch.setattr(build.ReadingPass, "_read", late)
    build.build(p)


def all_lost(place: Place) -> None:
    p = place.chosen()
    next(p.local_dir.rglob("camera_front_wide_120fov.chunk_0000.zip")).unlink()
    build.build(p)


def lost_chunks_in_the_way(place: Place) -> None:
    raise disk_budget.held(place.params(), 1, 10**9, 10**10)


def needed_by_another_run(place: Place) -> None:
    p = place.chosen()
    other = p.model_copy(update={"run": p.run.model_copy(update={"name": "other"})})
    raise evicted.refusal(other, read_chosen(p).files)


def another_catalog(place: Place) -> None:
    p = place.chosen()
    with open(p.local_dir / "features.csv", "a") as file:
        file.write("\n")
    build.build(p)


def edited_choice(place: Place) -> None:
    p = place.chosen()
    values = files.read_json(chosen_path(p))
    files.write_json(chosen_path(p), values | {"clip_ids": {"train": ["nobody"]}})
    (p.run_dir / "split.json").unlink()
    build.build(p)


def near_duplicates(place: Place) -> None:
    """One drive, packed under two names into two splits."""
    drive, times = Drive(1), np.arange(-0.5, 10.0, 0.05)
    path = place.folder / "a.mp4"
    noise = np.random.default_rng(0).integers(0, 255, (60, 8, 12, 3), np.uint8)
    pictures = [np.kron(each, np.ones((8, 8, 1), np.uint8)) for each in noise]
    path.write_bytes(encode(SPECS["h264 gop 15"], pictures))
    names = [camera.name for camera in cameras.GRIDS["4-cam"].cameras]
    clips = [
        OwnClip(
            name,
            dict.fromkeys(names, path),
            times,
            drive.position(times),
            drive.curvature * drive.travelled(times),
            split=name,
        )
        for name in ("train", "test")
    ]
    p = Params.from_values(
        folder_run.values(place.folder / "outputs", pack(place.folder / "data", clips).folder)
    )
    download.fetch(p, None)
    cache = build.build(p).cache
    leaks.check(cache)


def known_to_the_base(place: Place) -> None:
    record = {"training_clip_ids": [clip_id_of(1)]}
    leaks.check_training_lists([clip_id_of(0), clip_id_of(1)], {"the base model x": record})


def not_frozen(place: Place) -> None:
    split.read(place.params())


def other_split(place: Place) -> None:
    p = place.params()
    split.freeze(p, {"train": ["a", "b"]})
    split.freeze(p, {"train": ["a"], "test": ["b"]})


def edited_split(place: Place) -> None:
    p = place.params()
    split.freeze(p, {"train": ["a", "b"]})
    record = files.read_json(split.path_of(p))
    record["splits"]["b"] = "test"
    files.write_json(split.path_of(p), record)
    split.read(p)


def without_others(place: Place) -> None:
    p = place.chosen()
    Windows(build.build(p).cache, 4, 2, scenes=True)


def labels_not_fetched(place: Place) -> None:
    p = place.chosen()
    path = p.local_dir / "metadata/feature_presence.parquet"
    table_ = pq.read_table(path)
    column = table_.column_names.index("obstacle.offline")
    true = pa.array([True] * len(table_))
    pq.write_table(table_.set_column(column, "obstacle.offline", true), path)
    download.fetch(p, None)
    processing = p.processing.model_copy(update={"obstacles": True})
    build.build(p.model_copy(update={"processing": processing}))


def compared(a: pa.Table | None, b: pa.Table | None) -> Callable[[Place], None]:
    """Two runs with these answers; None has none yet."""

    def compare(place: Place) -> None:
        for name, answers in (("a", a), ("b", b)):
            folder = place.folder / name / "06_evaluate"
            folder.mkdir(parents=True)
            if answers is not None:
                metrics.write(answers, folder / "answers.parquet")
        comparison.compare(place.folder / "a", place.folder / "b")

    return compare


def lone_camera(place: Place) -> None:
    path = place.folder / "a.mp4"
    path.write_bytes(stream_bytes("h264 gop 15"))
    pack(place.folder / "data", [OwnClip("x", {cameras.FRONT_WIDE.name: path}, TIMES_US, TIMES_US)])


def sideways(place: Place) -> str:
    t_s = np.arange(20) / 10
    track = Track.of(t_s, np.outer(9 * t_s, (1, 0, 0)))
    return "\n".join(contradictions(track, Rotation.from_euler("z", [[np.pi / 2]] * 20)))


SUMMARY_A, SUMMARY_B = (summaries(drives(3, seed=n)[0], (9.0, 9.0)) for n in (0, 1))


def far_away() -> pa.Table:
    return summaries(
        [dataclasses.replace(each, clip_id=f"z{each.clip_id}") for each in drives(3)[0]],
        (9.0, 9.0),
    )


PROVOKED: dict[str, Callable[[Place], object]] = {
    "to fix": lambda place: Params.from_values({"processing": {"strid": 3}}),
    "dataset.license_accepted is false": lambda place: download.fetch(place.params(), None),
    "the hub asks for a valid token": lambda place: asked(place, Hub.check_access, status=401),
    "no room on the disk for": lambda place: files.need_room(place.folder, 10**18, "the plan"),
    "no room left on the disk": no_room_left,
    "another process is building this cache": built_by_another,
    "no raw files have been chosen for this run yet": lambda place: read_chosen(place.params()),
    "the cache has format version": old_cache,
    "tokens, model.max_seq_length is": lambda place: str(
        estimate.plan_run(place.params(model={"max_seq_length": 64}))
    ),
    "training's process was killed": killed_training,
    "memory ran out": out_of_memory,
    "a training with other parameters": trained_with_others,
    "another training works in this run folder": trained_by_another,
    "cannot be shared among": unshareable,
    "this machine does not compute what training relies on": lambda place: Report(
        (DoctorFinding("4-bit linear", "wrong", "off by 70 %"),)
    ).raise_if_wrong(),
    "the folder holds something that is no merged model": not_a_merged_model,
    "no clip is left by download.clips": lambda place: ranked(
        place, {"countries": ["Germany"], "hours": [9]}
    ),
    "wanted clips lie in": lambda place: ranked(
        place, {"clip_ids": [clip_id_of(0), clip_id_of(7)]}
    ),
    "this release does not have it": lambda place: ranked(
        place, {"event_clusters": ["ANIMALS_BIRDS_ROADKILL"]}, "25.10"
    ),
    "no connection to the hub": unreachable,
    "what answers is no hub": answered_by_a_portal,
    "would go unencrypted to": lambda place: Hub("a/b", endpoint="http://hub.example", token="t"),
    "is no plain name": clip_of_no_name,
    "this folder is not in LeRobot's layout": lerobot,
    "and v3 is read": lambda place: lerobot(place, codebase_version="v2.1"),
    "their licence forbids to pass any part of them on": exported_for_lerobot,
    "is gated": lambda place: asked(place, Hub.check_access, token="secret"),
    "the hub takes no more requests": lambda place: asked(place, Hub.check_access, status=429),
    "arrived damaged twice": arrived_damaged,
    "has no revision": lambda place: asked(place, lambda hub: hub.commit, revision="gone"),
    "the cache is not what was written": tampered_cache,
    "a frame of the cache is not what was written": damaged_picture,
    "its sha256 is wrong": changed_raw_file,
    "s after the last frame": short_egomotion,
    "has open GOPs, in which decord returns": open_groups,
    "they belong to another video": another_video,
    "a build of the whole works on this cache": shared_while_built,
    "the file system does not lock files": locks_refused,
    "chunks go through with a budget of": too_small_a_budget,
    "went away while it was read": evicted_meanwhile,
    "clips could be read": all_lost,
    "of theirs were lost or another run needs them": lost_chunks_in_the_way,
    "raw files that another run has chosen and not read yet": needed_by_another_run,
    "the catalog is not the one that 02_download chose from": another_catalog,
    "the catalog does not have the chosen clips": edited_choice,
    "are near-duplicates": near_duplicates,
    "clips held out": known_to_the_base,
    "the splits of this run are not frozen yet": not_frozen,
    "clips would change their split": other_split,
    "is not what was written: its content and its sha256 disagree": edited_split,
    "speaks of other road users: set processing.obstacles": lambda place: place.params(
        training={"target": "coc_v1"}
    ),
    "the cache was built without other road users": without_others,
    "was not fetched": labels_not_fetched,
    "the adapter was trained with": another_target,
    "does not say what the model saw in training": old_record,
    "the cache was built with other parameters": cache_of_another_rate,
    "the adapter is damaged": damaged_adapter,
    "cannot run here": optimizer_without_its_package,
    "asks to run code that comes with it": code_of_its_own,
    "no adapter was trained on black frames": no_blind_adapter,
    "may be none": small_gain,
    "no such run": lambda place: comparison.compare(place.folder / "a", place.folder / "b"),
    "this run has no answers yet": compared(None, None),
    "no window in common": compared(SUMMARY_A, far_away()),
    "the runs disagree about": compared(SUMMARY_A, SUMMARY_B),
    "no grid can be filled": lone_camera,
    "beside where it points": sideways,
}


def said(text: str, place: Place) -> str:
    """What comes of provoking an error, as a user reads it."""
    try:
        return str(PROVOKED[text](place))
    except AvomniError as error:
        return str(error)
