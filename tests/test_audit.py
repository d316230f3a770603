"""The audit: every fault is found, is reported with its reason, and touches no other clip."""

import dataclasses
import datetime
import io
import json
import logging
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest

from avomni_lib.dataset import cameras
from avomni_lib.dataset.audit.audit import Audit, audit, path_of, plan
from avomni_lib.dataset.download.download import fetch
from avomni_lib.dataset.download.hub import Hub
from avomni_lib.dataset.download.transfer import PARTIALS
from avomni_lib.dataset.download.verified import MANIFEST
from avomni_lib.dataset.select.evicted import evict
from avomni_lib.errors import AvomniError
from avomni_lib.params import Params
from tests import folder_run, local_hub
from tests.local_hub import LocalHub
from tests.published_set import (
    chunk_path,
    clip_id_of,
    parquet_bytes,
    read_zip,
    write_published_set,
    write_zip,
)

REPO = "avomni/world"
CAMERA = cameras.REAR_LEFT.name
CLIP = clip_id_of(1)
SECONDS = 0.4
FAULTS = ("damaged", "odd")


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


def params(tmp_path: Path, source: str = "world", depth: str = "quick", **download) -> Params:
    values = folder_run.values(tmp_path / "outputs", tmp_path / "data")
    values["dataset"] |= {"source": source, "repo_id": REPO, "audit": depth}
    values["download"] = {"target_chunks": 2, "target_size_gb": 1.0} | download
    del values["processing"]["horizon_s"]
    return Params.from_values(values)


def deep(p: Params) -> Params:
    return p.model_copy(update={"dataset": p.dataset.model_copy(update={"audit": "full"})})


def clip_row(found: Audit, clip_id: str) -> dict:
    (row,) = [row for row in found.clips if row["clip_id"] == clip_id]
    return row


def file_row(found: Audit, path: str) -> dict:
    (row,) = [row for row in found.files if row["path"] == path]
    return row


def faults(found: Audit) -> list[dict]:
    return [row for row in found.findings if row["severity"] in FAULTS]


def cells(found: Audit) -> set[str]:
    """The states of all features of all clips."""
    return {state for row in found.clips for state in row["features"].values()}


def by_state(found: Audit) -> dict[str, int]:
    return {state: n for state, n in found.figures["clips_by_state"].items() if n}


def test_before_the_download_all_is_missing_and_counted(hub: Hub, tmp_path: Path):
    p = params(tmp_path)
    found = audit(p, hub)
    assert by_state(found) == {"missing": 6}
    assert cells(found) == {"missing"} and found.clips[0]["features"].keys() == {*found.features}
    expected = fetch(p, hub).figures
    assert found.figures["num_files"] == expected["num_files"]
    missing = sum(row["size"] for row in found.files if row["state"] == "missing")
    assert found.figures["bytes_to_fetch"] == missing
    assert found.figures["bytes_to_fetch"] < expected["bytes"]
    assert found.figures["source"]["num_clips"] == 6
    assert found.figures["source"]["clips_by_split"] == {"train": 2, "val": 2, "test": 2}
    assert found.figures["source"]["num_features"] == 36
    assert found.findings == []


def test_a_sound_set_raises_nothing_at_either_depth(server: LocalHub, hub: Hub, tmp_path: Path):
    p = params(tmp_path)
    before = audit(p, hub)
    fetch(p, hub)
    num_gets = len(server.requests)
    quick, full = audit(p, hub), audit(deep(p), hub)
    for found in (quick, full):
        assert {row["state"] for row in found.files} == {"sound"}
        assert cells(found) == {"sound"} and found.warnings == [] and faults(found) == []
        assert found.figures["bytes_to_fetch"] == 0
        assert found.digest == before.digest
    assert not any(r.method == "GET" and "chunk" in r.path for r in server.requests[num_gets:])
    assert quick.figures["bytes_read"] == 0 and quick.figures["streams"] == {}
    assert full.figures["bytes_read"] == full.figures["bytes"]
    assert sum(row["num_streams"] for row in full.figures["streams"].values()) == 6 * 4


def test_streams_are_told_in_figures_and_ego_motion_in_a_remark(folder: Path, tmp_path: Path):
    p = params(tmp_path, "folder", "full")
    found = audit(p, None)
    assert json.loads(path_of(p).read_text()) == json.loads(json.dumps(dataclasses.asdict(found)))
    assert [path.name for path in path_of(p).parent.iterdir()] == ["audit.json"]
    row = found.figures["streams"][CAMERA]
    assert row["num_streams"] == 6 and row["rates"] == {"30": 6} and row["num_open"] == 0
    assert row["codecs"] == {"h264 Constrained Baseline": 6} and row["sizes"] == {"64×48": 6}
    # Twelve frames or thirteen, with a key frame every fifteenth: one group, cut by the end.
    assert sum(row["gops"].values()) == 6 and row["gops"].keys() <= {"12", "13"}
    assert 0 < row["mbit_per_s"][0] <= row["mbit_per_s"][1] <= row["mbit_per_s"][2] < 10
    (row,) = found.findings
    assert (row["severity"], row["what"]) == ("noted", "ego motion runs past the video")
    assert "by 9.0 s" in row["reason"] and "6 clips" in row["reason"]


def test_files_that_the_run_does_not_take_are_named(hub: Hub, folder: Path, tmp_path: Path):
    found = audit(params(tmp_path, chunks=[1]), hub)
    other = file_row(found, chunk_path(CAMERA, 0))
    assert other["state"] == "not chosen"
    assert {row["chunk"] for row in found.clips} == {1}
    assert file_row(found, chunk_path(CAMERA, 1))["reason"].startswith("its hash was never checked")
    assert found.digest != audit(params(tmp_path), hub).digest


def test_clips_that_the_run_does_not_take_are_named(folder: Path, tmp_path: Path):
    """Their part of a zip may be anything; the zip as a whole still counts."""
    spoil_member(folder, 2, CAMERA, "mp4", lambda content: content[:500])
    clips = {"clip_ids": [clip_id_of(0), clip_id_of(4)]}
    found = audit(params(tmp_path, "folder", "full", clips=clips), None)
    states = [clip_row(found, clip_id_of(n))["state"] for n in range(6)]
    assert states.count("sound") == 2 and (states[0], states[4]) == ("sound", "sound")
    assert states.count("not chosen") == 4 and faults(found) == []


def spoil_member(folder: Path, number: int, feature: str, member: str, spoil: Callable) -> None:
    path = folder / chunk_path(feature, number // 3)
    members = read_zip(path)
    name = f"{clip_id_of(number)}.{feature}.{member}"
    write_zip(path, members | {name: spoil(members[name])})


def table(change: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[bytes], bytes]:
    """Change a parquet member."""

    def spoil(content: bytes) -> bytes:
        changed = change(pd.read_parquet(io.BytesIO(content)))
        return parquet_bytes({name: changed[name].to_numpy() for name in changed})

    return spoil


EGO, CLOCK = ("egomotion", "parquet"), (CAMERA, "timestamps.parquet")
# One a clip: feature, member, what is done to it, severity, what must be said.
PLANTED = [
    (CAMERA, "mp4", lambda content: content[:-200], "damaged", "the mp4 lists 1[23] frames and h"),
    (*CLOCK, table(lambda t: t.head(9)), "damaged", r"1[23] frames in the mp4, 9 timestamps"),
    (*CLOCK, table(lambda t: t * 6 // 5), "damaged", "33.3 ms apart, those of its timestamps 40.0"),
    (*CLOCK, lambda _: b"PAR1", "damaged", "frame_timestamps: not a readable parquet file"),
    (*EGO, lambda _: parquet_bytes({"timestamp": [1, 2]}), "damaged", "no column qx"),
    (*EGO, table(lambda t: t.assign(x=t.x + 9.0 * (t.index > 59))), "damaged", r"jumps .*row 60"),
    (*EGO, table(lambda t: t[t.timestamp < 3_000_000]), "odd", r"ends 2\.\d\d s after the last fr"),
]
NUM_PLANTED = len(PLANTED)


def test_every_planted_fault_is_found_in_its_clip_and_nowhere_else(tmp_path: Path):
    """A fault in the zip of each of these clips, one in a table; the rest are sound."""
    folder = write_published_set(tmp_path / "data", 3, 3, SECONDS)
    for number, (feature, member, spoil, _, _) in enumerate(PLANTED):
        spoil_member(folder, number, feature, member, spoil)
    calibrated = folder / chunk_path("sensor_extrinsics", 2)
    rows_of = pd.read_parquet(calibrated)
    rows_of.loc[rows_of.clip_id == clip_id_of(NUM_PLANTED), "qw"] = 0.9
    rows_of.to_parquet(calibrated)
    extrinsic = r"no rotation of camera_front_wide_120fov: \|q\| = 1\.2"
    planted = [*PLANTED, ("sensor_extrinsics", "", None, "damaged", extrinsic)]
    found = audit(params(tmp_path, "folder", "full", target_chunks=3), None)
    assert {row["clip_id"] for row in faults(found)} == {
        clip_id_of(n) for n in range(NUM_PLANTED + 1)
    }
    for number, (feature, _, _, severity, says) in enumerate(planted):
        row = clip_row(found, clip_id_of(number))
        assert (number, row["state"]) == (number, severity)
        assert [name for name, state in row["features"].items() if state != "sound"] == [feature]
        assert re.search(f"^{feature}: .*{says}", row["reason"]), row["reason"]
        mine = [row for row in faults(found) if row["clip_id"] == clip_id_of(number)]
        assert {row["feature"] for row in mine} == {feature}
        assert all(row["chunk"] == number // 3 and row["severity"] in FAULTS for row in mine)
    assert by_state(found) == {"damaged": 7, "odd": 1, "sound": 1}
    assert found.warnings == [
        "clips that are damaged: 7; see the table",
        "clips that are odd: 1; see the table",
    ]
    assert not any(row["state"] in FAULTS for row in found.files), "as published"


def not_of(camera: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda t: t[(t.clip_id != CLIP) | (t.sensor_name != camera)]


@pytest.mark.parametrize(
    ("feature", "depth", "change", "says"),
    [
        ("camera_intrinsics", "full", lambda t: t.assign(width=t.width * (1 + (t.clip_id == CLIP))),
         "is for 128×48 px, its video is 64×48"),
        ("sensor_extrinsics", "quick", not_of(CAMERA), f"has no row of {CAMERA}"),
        ("sensor_extrinsics", "quick", lambda t: pd.concat([t, t[t.clip_id == CLIP].head(1)]),
         f"has 2 rows of {cameras.FRONT_WIDE.name}"),
    ],
)  # fmt: skip
def test_calibration_is_held_against_the_clip(
    folder: Path, tmp_path: Path, feature, depth, change, says
):
    path = folder / chunk_path(feature, 0)
    change(pd.read_parquet(path)).to_parquet(path)
    found = audit(params(tmp_path, "folder", depth), None)
    row = clip_row(found, CLIP)
    assert row["features"][feature] == row["state"] == "damaged" and says in row["reason"]
    assert by_state(found) == {"damaged": 1, "sound": 5}


def test_a_zip_cut_short_is_damaged_for_all_its_clips_and_for_no_other(
    folder: Path, tmp_path: Path
):
    path = chunk_path(CAMERA, 0)
    os.truncate(folder / path, 9000)
    for depth in ("quick", "full"):
        found = audit(params(tmp_path, "folder", depth), None)
        assert file_row(found, path)["state"] == "damaged"
        assert "not a whole zip" in file_row(found, path)["reason"]
        states = {row["clip_id"]: row["state"] for row in found.clips}
        assert [states[clip_id_of(n)] for n in range(6)] == ["damaged"] * 3 + ["sound"] * 3


@pytest.mark.parametrize(
    ("change", "kind", "says", "state", "num_damaged"),
    [
        (lambda held: {k: v for k, v in held.items() if CLIP not in k}, zipfile.ZIP_STORED,
         "no member", "damaged", 1),
        (lambda held: held | {"stranger.mp4": b"x"}, zipfile.ZIP_STORED,
         "a member of no clip: stranger.mp4", "odd", 0),
        (lambda held: held | {f"{CLIP}.{CAMERA}.mp4": b""}, zipfile.ZIP_STORED,
         f"member {CLIP}.{CAMERA}.mp4 is empty", "damaged", 1),
        (lambda held: held, zipfile.ZIP_DEFLATED, "is compressed, not stored", "damaged", 3),
    ],
)  # fmt: skip
def test_a_zip_that_does_not_hold_one_set_per_clip_is_said(
    folder: Path, tmp_path: Path, change, kind, says, state, num_damaged
):
    path = chunk_path(CAMERA, 0)
    write_zip(folder / path, change(read_zip(folder / path)), kind)
    found = audit(params(tmp_path, "folder"), None)
    row = file_row(found, path)
    assert row["state"] == state and says in row["reason"]
    assert by_state(found).get("damaged", 0) == num_damaged
    assert num_damaged == 0 or says in clip_row(found, CLIP)["reason"]


def flip_bit(path: Path, place: int) -> None:
    """Neither size nor date tells."""
    times, content = path.stat(), bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("source", ["world", "folder"])
def test_a_bit_that_rots_behind_the_files_back_is_found_by_the_full_audit(
    hub: Hub, tmp_path: Path, source: str
):
    """Every byte is read, and the zip's checksums tell whose it is."""
    p = params(tmp_path)
    fetch(p, hub)
    path = chunk_path(CAMERA, 0)
    with zipfile.ZipFile(p.local_dir / path) as archive:
        place = archive.getinfo(f"{CLIP}.{CAMERA}.mp4").header_offset
    flip_bit(p.local_dir / path, place + 800)
    p = params(tmp_path, source)
    hub = hub if source == "world" else None
    assert faults(audit(p, hub)) == []
    found = audit(deep(p), hub)
    assert file_row(found, path)["reason"].startswith(f"{CLIP}.{CAMERA}.mp4 is damaged")
    assert file_row(found, path)["reason"].endswith("its sha256 is wrong")
    row = clip_row(found, CLIP)
    assert row["state"] == "damaged" and "its checksum is wrong" in row["reason"]
    assert by_state(found) == {"damaged": 1, "sound": 5}


def test_a_wrong_bit_in_a_table_is_laid_to_all_its_clips(hub: Hub, tmp_path: Path):
    p = params(tmp_path)
    fetch(p, hub)
    path = p.local_dir / chunk_path("vehicle_dimensions", 1)
    flip_bit(path, 60)
    path.touch()
    found = audit(deep(p), hub)
    assert file_row(found, chunk_path("vehicle_dimensions", 1))["state"] == "damaged"
    assert by_state(found) == {"damaged": 3, "sound": 3}
    fetch(p, hub)
    assert cells(audit(deep(p), hub)) == {"sound"}


def test_a_full_audit_spares_the_download_the_hashing(hub: Hub, folder: Path, tmp_path: Path):
    p = params(tmp_path)
    audit(deep(p), hub)
    done = fetch(p, hub).figures
    assert done["num_files_fetched"] == 0 and done["num_files_hashed"] == 0


def test_files_of_another_revision_are_told_without_reading_them(
    hub: Hub, folder: Path, tmp_path: Path
):
    path = chunk_path("vehicle_dimensions", 0)
    flip_bit(folder / path, 60)
    with local_hub.serve(shutil.copytree(folder, tmp_path / "other"), REPO) as other:
        fetch(params(tmp_path), Hub(REPO, other.commit, other.endpoint))
    shutil.rmtree(tmp_path / "outputs")
    found = audit(params(tmp_path), hub)
    assert file_row(found, path)["reason"] == "its content is another revision's"
    assert by_state(found) == {"damaged": 3, "sound": 3}


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


def test_evicted_files_are_neither_missing_nor_damaged(hub: Hub, tmp_path: Path):
    p = params(tmp_path)
    chosen = fetch(p, hub).chosen
    evict(p, [path for path in chosen.files if "chunk_0001" in path])
    found = audit(p, hub)
    assert by_state(found) == {"evicted": 3, "sound": 3} and faults(found) == []
    row = file_row(found, chunk_path(CAMERA, 1))
    today = datetime.date.today().isoformat()
    assert row["state"] == "evicted" and f"evicted on {today}" in row["reason"]
    assert found.figures["bytes_to_fetch"] == 0


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


def test_a_clip_that_presence_denies_is_odd_in_the_zip(folder: Path, tmp_path: Path):
    table = pd.read_parquet(folder / "metadata/feature_presence.parquet")
    table.loc[table.clip_id == CLIP, CAMERA] = False
    table.to_parquet(folder / "metadata/feature_presence.parquet")
    found = audit(params(tmp_path, "folder"), None)
    row = file_row(found, chunk_path(CAMERA, 0))
    assert row["state"] == "odd" and f"should not have this feature: {CLIP}" in row["reason"]
    assert by_state(found) == {"absent": 1, "sound": 5}


def test_clips_marked_as_invalid_are_nobodys_fault(folder: Path, tmp_path: Path):
    table = pd.read_parquet(folder / "clip_index.parquet")
    table.loc[table.clip_id == CLIP, "clip_is_valid"] = False
    table.to_parquet(folder / "clip_index.parquet")
    found = audit(params(tmp_path, "folder"), None)
    assert CLIP not in {row["clip_id"] for row in found.clips} and faults(found) == []
    assert by_state(found) == {"sound": 5}


def test_a_folder_with_a_hole_says_what_is_missing(folder: Path, tmp_path: Path):
    (folder / chunk_path("egomotion", 0)).unlink()
    found = audit(params(tmp_path, "folder"), None)
    row = file_row(found, chunk_path("egomotion", 0))
    assert (row["state"], row["reason"]) == ("missing", "not in the folder")
    assert clip_row(found, CLIP)["features"]["egomotion"] == "missing"
    assert clip_row(found, clip_id_of(3))["state"] == "sound"


def test_what_interrupted_downloads_left_is_counted(folder: Path, tmp_path: Path):
    """The hub client's, our own, and what a killed process had half-written."""
    for number, name in enumerate(
        (
            ".cache/huggingface/download/camera/x.zip.1a2b3c4d.incomplete",
            f"{PARTIALS}/0123abcd",
            "camera/.x.zip.17.partial",
        )
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(bytes(1000 + number))
    found = audit(params(tmp_path, "folder"), None)
    assert found.figures["unfinished"] == {"num_files": 3, "bytes": 3003}
    (row,) = found.findings
    assert row["severity"] == "noted" and "3.00 kB in 3 unfinished" in row["reason"]


def test_what_was_read_before_a_change_is_read_again(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """A record holds for the bytes that it was made of: size, date and the audit's questions."""
    p = params(tmp_path, "folder", "full")
    audit(p, None)
    # As a killed audit leaves them: the result cannot be written, the records are there.
    path_of(p).unlink()
    path_of(p).mkdir()
    with pytest.raises(OSError):
        audit(p, None)
    path_of(p).rmdir()
    records = path_of(p).with_name("read")
    num_read = len(list(records.glob("*.json")))
    assert num_read > 10
    spoil_member(folder, 1, CAMERA, "mp4", lambda content: content[:500])
    with caplog.at_level(logging.INFO):
        found = audit(p, None)
    assert by_state(found) == {"damaged": 1, "sound": 5}
    # Read again: the zip, and what was held against its videos (ego motion and calibration).
    assert f"{num_read - 5} files had been read" in caplog.text
    assert not records.exists()


def test_the_plan_asks_nothing_and_the_audit_stops_at_the_licence(
    server: LocalHub, hub: Hub, tmp_path: Path
):
    p = params(tmp_path, "hub")
    foretold = plan(p, hub)
    assert foretold.figures["num_files_on_disk"] == 0
    assert "before you decide" in foretold.warnings[0]
    assert "dataset.audit: quick" in str(foretold) and "dataset.audit: full" in str(
        plan(deep(p), hub)
    )
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
