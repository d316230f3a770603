"""The audit: every fault is found, is told with its reason, and touches no other clip."""

import io
import json
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from avomni_lib.dataset import rig
from avomni_lib.dataset.audit import Audit, audit, plan
from avomni_lib.dataset.download import fetch
from avomni_lib.dataset.hub import Hub
from avomni_lib.dataset.verified import MANIFEST
from avomni_lib.errors import AvomniError
from avomni_lib.params import Params
from avomni_lib.world import local_hub
from avomni_lib.world.local_hub import LocalHub
from tests.published_set import (
    Drive,
    chunk_path,
    clip_id_of,
    egomotion_times,
    encode_video,
    frame_bits,
    parquet_bytes,
    read_zip,
    write_published_set,
    write_zip,
)

REPO = "avomni/world"
CAMERA = rig.REAR_LEFT.name
CLIP = clip_id_of(1)
SECONDS = 0.2


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_published_set(tmp_path_factory.mktemp("published"), seconds=SECONDS)


@pytest.fixture
def server(published: Path) -> Iterator[LocalHub]:
    with local_hub.serve(published, REPO) as server:
        yield server


@pytest.fixture
def hub(server: LocalHub) -> Hub:
    return Hub(REPO, server.commit, server.endpoint)


@pytest.fixture
def folder(published: Path, tmp_path: Path) -> Path:
    """A copy that may be spoilt."""
    return shutil.copytree(published, tmp_path / "data")


def params(tmp_path: Path, source: str = "world", **download: object) -> Params:
    return Params.from_values(
        {
            "run": {"name": "run", "outputs_dir": str(tmp_path / "outputs")},
            "dataset": {"source": source, "repo_id": REPO, "local_dir": str(tmp_path / "data")},
            "download": {"target_chunks": 2, "target_size_gb": 1.0} | download,
        }
    )


def clip_row(found: Audit, clip_id: str) -> dict:
    (row,) = [row for row in found.clips if row["clip_id"] == clip_id]
    return row


def file_row(found: Audit, path: str) -> dict:
    (row,) = [row for row in found.files if row["path"] == path]
    return row


def test_before_the_download_all_is_missing_and_counted(hub: Hub, tmp_path: Path):
    p = params(tmp_path)
    found = audit(p, hub)
    assert found.figures["clips_by_state"] == {"damaged": 0, "absent": 0, "missing": 6, "sound": 0}
    assert (found.states == "missing").all()
    assert found.states.shape == (len(found.features), 6)
    expected = fetch(p, hub).figures
    assert found.figures["num_files"] == expected["num_files"]
    assert found.figures["bytes_to_fetch"] == sum(found.bytes_by_feature("missing").values())
    assert found.figures["bytes_to_fetch"] < expected["bytes"]
    assert found.figures["source"]["num_clips"] == 6
    assert found.figures["source"]["clips_by_split"] == {"train": 2, "val": 2, "test": 2}
    assert found.figures["source"]["num_features"] == 36


def test_after_the_download_all_is_sound(server: LocalHub, hub: Hub, tmp_path: Path):
    p = params(tmp_path)
    before = audit(p, hub)
    fetch(p, hub)
    num_gets = len(server.requests)
    found = audit(p, hub)
    assert {row["state"] for row in found.files} == {"sound"}
    assert (found.states == "sound").all() and found.warnings == []
    assert found.figures["codecs"] == {"h264": 6 * 4}
    assert found.figures["bytes_to_fetch"] == 0
    assert not any(r.method == "GET" and "chunk" in r.path for r in server.requests[num_gets:])
    assert found.digest == before.digest
    json.dumps([found.files, found.clips, found.figures])


def test_files_that_the_run_does_not_take_are_named(hub: Hub, folder: Path, tmp_path: Path):
    found = audit(params(tmp_path, chunks=[1]), hub)
    other = file_row(found, chunk_path(CAMERA, 0))
    assert other["state"] == "not chosen"
    assert {row["chunk"] for row in found.clips} == {1}
    assert file_row(found, chunk_path(CAMERA, 1))["reason"].startswith("its hash was never checked")
    assert found.digest != audit(params(tmp_path), hub).digest


def video(num_frames: int) -> bytes:
    return encode_video([frame_bits(1, 0, i, 64, 48) for i in range(num_frames)])


def ego(change: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[bytes], bytes]:
    def spoil(content: bytes) -> bytes:
        table = change(pd.read_parquet(io.BytesIO(content)))
        return parquet_bytes({name: table[name].to_numpy() for name in table})

    return spoil


def nan_in_x(table: pd.DataFrame) -> pd.DataFrame:
    table.loc[7, "x"] = np.nan
    return table


def not_in_order(table: pd.DataFrame) -> pd.DataFrame:
    table.loc[[3, 4]] = table.loc[[4, 3]].to_numpy()
    return table.astype({"timestamp": np.int64})


def no_rotation(table: pd.DataFrame) -> pd.DataFrame:
    table.loc[9, "qw"] = 0.5
    return table


def gap(table: pd.DataFrame) -> pd.DataFrame:
    return table[(table.timestamp < 50_000) | (table.timestamp > 700_000)]


def too_late(table: pd.DataFrame) -> pd.DataFrame:
    return table[table.timestamp > 100_000]


def too_short(table: pd.DataFrame) -> pd.DataFrame:
    return table[table.timestamp < 100_000]


def times(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[bytes], bytes]:
    def spoil(content: bytes) -> bytes:
        return parquet_bytes({"timestamp": change(pd.read_parquet(io.BytesIO(content)).timestamp)})

    return spoil


def swapped(values: np.ndarray) -> np.ndarray:
    values = np.array(values)
    values[[2, 3]] = values[[3, 2]]
    return values


@pytest.mark.parametrize(
    ("feature", "member", "spoil", "says"),
    [
        (CAMERA, "mp4", lambda _: video(5), r"5 frames in the mp4, \d+ timestamps"),
        (CAMERA, "mp4", lambda content: content[:200], "the mp4 does not open"),
        (CAMERA, "mp4", lambda _: b"", "the mp4 does not open"),
        (CAMERA, "timestamps.parquet", times(swapped), "timestamps do not rise at row 3"),
        (CAMERA, "timestamps.parquet", times(lambda v: v[:-1]), "frames in the mp4"),
        (CAMERA, "timestamps.parquet", lambda _: b"PAR1", "not a readable parquet file"),
        ("egomotion", "parquet", ego(nan_in_x), "x is nan at row 7"),
        ("egomotion", "parquet", ego(not_in_order), "not in order"),
        ("egomotion", "parquet", ego(no_rotation), r"no rotation at row 9: \|q\|"),
        ("egomotion", "parquet", ego(gap), "a gap of 0.6[5-9] s in ego motion at 0.0[45] s"),
        ("egomotion", "parquet", ego(too_late), "ego motion covers 0.1. to"),
        ("egomotion", "parquet", ego(too_short), "ego motion covers -0.1. to 0.0. s, the cameras"),
        ("egomotion", "parquet", ego(lambda t: t.head(1)), "ego motion has 1 rows"),
        ("egomotion", "parquet", ego(lambda t: t.drop(columns="qz")), "no column qz"),
    ],
)
def test_one_bad_clip_is_a_row_with_its_reason(
    folder: Path, tmp_path: Path, feature: str, member: str, spoil, says: str
):
    path = folder / chunk_path(feature, 0)
    members = read_zip(path)
    name = f"{CLIP}.{feature}.{member}"
    write_zip(path, members | {name: spoil(members[name])})
    found = audit(params(tmp_path, "folder"), None)
    row = clip_row(found, CLIP)
    assert (row["state"], row["features"][feature]) == ("damaged", "damaged")
    assert re.search(says, row["reason"]), row["reason"]
    assert row["reason"].startswith(f"{feature}: ")
    others = [row for row in found.clips if row["clip_id"] != CLIP]
    assert {row["state"] for row in others} == {"sound"} and len(others) == 5
    assert [n for n, s in row["features"].items() if s != "sound"] == [feature]
    assert found.warnings == ["clips that are damaged: 1; see the table"]


def test_a_late_gap_in_egomotion_is_no_fault(folder: Path, tmp_path: Path):
    """The recording runs on after the video; only the cameras' span is needed here."""
    path = folder / chunk_path("egomotion", 0)
    name = f"{CLIP}.egomotion.parquet"
    times_us = egomotion_times(1, SECONDS)
    times_us = times_us[(times_us < 2_000_000) | (times_us > 4_000_000)]
    write_zip(path, read_zip(path) | {name: parquet_bytes(Drive(1).egomotion(times_us))})
    assert clip_row(audit(params(tmp_path, "folder"), None), CLIP)["state"] == "sound"


def lacking_row(path: Path) -> None:
    table = pd.read_parquet(path)
    table[(table.clip_id != CLIP) | (table.sensor_name != CAMERA)].to_parquet(path)


def infinite(path: Path) -> None:
    table = pd.read_parquet(path)
    table.loc[table.clip_id == CLIP, "z"] = np.inf
    table.to_parquet(path)


def no_unit(path: Path) -> None:
    table = pd.read_parquet(path)
    table.loc[table.clip_id == CLIP, "qw"] = 0.9
    table.to_parquet(path)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lacking_row, f"sensor_extrinsics has no row of {CAMERA}"),
        (infinite, "z of camera_front_wide_120fov is inf"),
        (no_unit, "no rotation of camera_front_wide_120fov"),
    ],
)
def test_calibration_of_one_clip_is_judged_alone(folder: Path, tmp_path: Path, spoil, says: str):
    spoil(folder / chunk_path("sensor_extrinsics", 0))
    found = audit(params(tmp_path, "folder"), None)
    row = clip_row(found, CLIP)
    assert says in row["reason"] and row["state"] == "damaged"
    assert sum(row["state"] == "damaged" for row in found.clips) == 1


def test_a_zip_cut_short_is_damaged_for_all_its_clips_and_for_no_other(
    folder: Path, tmp_path: Path
):
    path = chunk_path(CAMERA, 0)
    os.truncate(folder / path, 9000)
    found = audit(params(tmp_path, "folder"), None)
    assert file_row(found, path)["state"] == "damaged"
    assert "not a whole zip" in file_row(found, path)["reason"]
    states = {row["clip_id"]: row["state"] for row in found.clips}
    assert [states[clip_id_of(n)] for n in range(6)] == ["damaged"] * 3 + ["sound"] * 3


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda members: {k: v for k, v in members.items() if CLIP not in k}, "no member"),
        (lambda members: members | {"stranger.mp4": b"x"}, "a member of no clip: stranger.mp4"),
    ],
)
def test_a_zip_that_does_not_hold_one_set_per_clip_is_said(
    folder: Path, tmp_path: Path, change, says: str
):
    path = chunk_path(CAMERA, 0)
    write_zip(folder / path, change(read_zip(folder / path)))
    row = file_row(audit(params(tmp_path, "folder"), None), path)
    assert row["state"] == "damaged" and says in row["reason"]


def test_a_deflated_zip_is_said(folder: Path, tmp_path: Path):
    path = chunk_path("egomotion", 1)
    write_zip(folder / path, read_zip(folder / path), zipfile.ZIP_DEFLATED)
    found = audit(params(tmp_path, "folder"), None)
    assert "is compressed, not stored" in file_row(found, path)["reason"]
    assert "is compressed, not stored" in clip_row(found, clip_id_of(3))["reason"]


def test_a_wrong_bit_after_the_download_is_found_and_laid_to_its_clip(hub: Hub, tmp_path: Path):
    p = params(tmp_path)
    fetch(p, hub)
    path = p.local_dir / chunk_path(CAMERA, 0)
    with zipfile.ZipFile(path) as archive:
        place = archive.getinfo(f"{CLIP}.{CAMERA}.mp4").header_offset + 1500
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(bytes(content))
    found = audit(p, hub)
    assert file_row(found, chunk_path(CAMERA, 0))["reason"] == "its sha256 is wrong"
    row = clip_row(found, CLIP)
    assert row["state"] == "damaged" and "checksum" in row["reason"]
    assert sum(row["state"] == "damaged" for row in found.clips) == 1
    fetch(p, hub)
    assert (audit(p, hub).states == "sound").all()


def test_deleted_and_shortened_files_are_told_apart(hub: Hub, tmp_path: Path):
    p = params(tmp_path)
    fetch(p, hub)
    (p.local_dir / chunk_path(CAMERA, 0)).unlink()
    os.truncate(p.local_dir / chunk_path("egomotion", 1), 1000)
    found = audit(p, hub)
    gone = file_row(found, chunk_path(CAMERA, 0))
    short = file_row(found, chunk_path("egomotion", 1))
    assert gone["state"] == "missing" and "02_download fetches it" in gone["reason"]
    assert short["state"] == "damaged" and short["reason"].startswith("1,000 bytes in place of")
    assert found.figures["bytes_to_fetch"] == gone["size"] + short["size"]
    states = [clip_row(found, clip_id_of(n))["state"] for n in range(6)]
    assert states == ["missing"] * 3 + ["damaged"] * 3


def test_what_the_source_lacks_is_absent_not_missing(folder: Path, tmp_path: Path, published: Path):
    table = pd.read_parquet(folder / "metadata/feature_presence.parquet")
    table.loc[table.clip_id == CLIP, CAMERA] = False
    table.to_parquet(folder / "metadata/feature_presence.parquet")
    path = folder / chunk_path(CAMERA, 0)
    write_zip(path, {k: v for k, v in read_zip(path).items() if CLIP not in k})
    source = folder.rename(tmp_path / "source")
    (source / chunk_path(CAMERA, 1)).unlink()
    with local_hub.serve(source, REPO) as server:
        p = params(tmp_path, target_chunks=2)
        found = audit(p, Hub(REPO, server.commit, server.endpoint))
    assert clip_row(found, CLIP)["features"][CAMERA] == "absent"
    assert clip_row(found, clip_id_of(0))["features"][CAMERA] == "missing"
    lost = file_row(found, chunk_path(CAMERA, 1))
    assert (lost["state"], lost["reason"]) == ("absent", "the source does not list it")
    assert clip_row(found, clip_id_of(4))["state"] == "absent"
    assert found.figures["num_clips"] == 2 and "chunk 1 is passed over" in found.figures["reason"]


def test_a_folder_with_a_hole_says_what_is_missing(folder: Path, tmp_path: Path):
    (folder / chunk_path("egomotion", 0)).unlink()
    found = audit(params(tmp_path, "folder"), None)
    row = file_row(found, chunk_path("egomotion", 0))
    assert (row["state"], row["reason"]) == ("missing", "not in the folder")
    assert clip_row(found, CLIP)["features"]["egomotion"] == "missing"
    assert clip_row(found, clip_id_of(3))["state"] == "sound"


def test_the_plan_asks_nothing_and_the_audit_stops_at_the_licence(
    server: LocalHub, hub: Hub, tmp_path: Path
):
    p = params(tmp_path, "hub")
    foretold = plan(p, hub)
    assert foretold.figures["num_files_on_disk"] == 0
    assert "before you decide" in foretold.warnings[0]
    with pytest.raises(AvomniError, match=r"dataset\.license_accepted is false"):
        audit(p, hub)
    assert server.requests == []


def test_old_files_of_real_data_bring_a_reminder(hub: Hub, tmp_path: Path):
    p = params(tmp_path, "hub")
    p = p.model_copy(update={"dataset": p.dataset.model_copy(update={"license_accepted": True})})
    fetch(p, hub)
    assert audit(p, hub).warnings == []
    manifest = p.local_dir / MANIFEST
    entries = json.loads(manifest.read_text())
    entries[chunk_path(CAMERA, 0)]["checked_on"] = "2020-01-01"
    manifest.write_text(json.dumps(entries))
    found = audit(p, hub)
    assert found.figures["oldest_file"] == "2020-01-01"
    assert "12 months" in found.warnings[0]
