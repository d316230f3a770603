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
    """A copy that a test may damage."""
    return shutil.copytree(published, tmp_path / "data")


def params(tmp_path: Path, source: str = "world", depth: str = "quick", **download) -> Params:
    values = folder_run.values(tmp_path / "outputs", tmp_path / "data")
    values["dataset"] |= {"source": source, "repo_id": REPO, "audit": depth}
    values["download"] = {"target_chunks": 2, "target_size_gb": 1.0} | download
    del values["processing"]["horizon_s"]
    return Params.from_values(values)


def deep(p: Params) -> Params:
    return p.model_copy(update={"dataset": p.dataset.model_copy(update={"audit": "full"})})


def clip_row(report: Audit, clip_id: str) -> dict:
    (row,) = [row for row in report.clips if row["clip_id"] == clip_id]
    return row


def file_row(report: Audit, path: str) -> dict:
    (row,) = [row for row in report.files if row["path"] == path]
    return row


def faults(report: Audit) -> list[dict]:
    return [row for row in report.findings if row["severity"] in FAULTS]


def cells(report: Audit) -> set[str]:
    """The states of all features of all clips."""
    return {state for row in report.clips for state in row["features"].values()}


def by_state(report: Audit) -> dict[str, int]:
    return {state: n for state, n in report.figures["clips_by_state"].items() if n}


def test_files_are_missing_and_counted_before_download(hub: Hub, tmp_path: Path):
    p = params(tmp_path)
    report = audit(p, hub)
    assert by_state(report) == {"missing": 6}
    assert cells(report) == {"missing"} and report.clips[0]["features"].keys() == {*report.features}
    expected = fetch(p, hub).figures
    assert report.figures["num_files"] == expected["num_files"]
    missing = sum(row["size"] for row in report.files if row["state"] == "missing")
    assert report.figures["bytes_to_fetch"] == missing
    assert report.figures["bytes_to_fetch"] < expected["bytes"]
    assert report.figures["source"]["num_clips"] == 6
    assert report.figures["source"]["clips_by_split"] == {"train": 2, "val": 2, "test": 2}
    assert report.figures["source"]["num_features"] == 36
    assert report.findings == []


def test_intact_data_set_has_no_findings_at_either_depth(
    server: LocalHub, hub: Hub, tmp_path: Path
):
    p = params(tmp_path)
    before = audit(p, hub)
    fetch(p, hub)
    num_gets = len(server.requests)
    quick, full = audit(p, hub), audit(deep(p), hub)
    for report in (quick, full):
        assert {row["state"] for row in report.files} == {"sound"}
        assert cells(report) == {"sound"} and report.warnings == [] and faults(report) == []
        assert report.figures["bytes_to_fetch"] == 0
        assert report.digest == before.digest
    assert not any(r.method == "GET" and "chunk" in r.path for r in server.requests[num_gets:])
    assert quick.figures["bytes_read"] == 0 and quick.figures["streams"] == {}
    assert full.figures["bytes_read"] == full.figures["bytes"]
    assert sum(row["num_streams"] for row in full.figures["streams"].values()) == 6 * 4


def test_figures_describe_streams_and_egomotion_overrun_is_noted(folder: Path, tmp_path: Path):
    p = params(tmp_path, "folder", "full")
    report = audit(p, None)
    assert json.loads(path_of(p).read_text()) == json.loads(json.dumps(dataclasses.asdict(report)))
    assert [path.name for path in path_of(p).parent.iterdir()] == ["audit.json"]
    row = report.figures["streams"][CAMERA]
    assert row["num_streams"] == 6 and row["rates"] == {"30": 6} and row["num_open"] == 0
    assert row["codecs"] == {"h264 Constrained Baseline": 6} and row["sizes"] == {"64×48": 6}
    # Twelve frames or thirteen, with a key frame every fifteenth: one group, cut by the end.
    assert sum(row["gops"].values()) == 6 and row["gops"].keys() <= {"12", "13"}
    assert 0 < row["mbit_per_s"][0] <= row["mbit_per_s"][1] <= row["mbit_per_s"][2] < 10
    (row,) = report.findings
    assert (row["severity"], row["what"]) == ("noted", "ego motion runs past the video")
    assert "by 9.0 s" in row["reason"] and "6 clips" in row["reason"]


def test_unchosen_files_are_listed_as_not_chosen(hub: Hub, folder: Path, tmp_path: Path):
    report = audit(params(tmp_path, chunks=[1]), hub)
    other = file_row(report, chunk_path(CAMERA, 0))
    assert other["state"] == "not chosen"
    assert {row["chunk"] for row in report.clips} == {1}
    assert file_row(report, chunk_path(CAMERA, 1))["reason"].startswith(
        "its hash was never checked"
    )
    assert report.digest != audit(params(tmp_path), hub).digest


def test_unchosen_clips_are_listed_as_not_chosen(folder: Path, tmp_path: Path):
    """A damaged member of an unchosen clip is not a finding."""
    spoil_member(folder, 2, CAMERA, "mp4", lambda content: content[:500])
    clips = {"clip_ids": [clip_id_of(0), clip_id_of(4)]}
    report = audit(params(tmp_path, "folder", "full", clips=clips), None)
    states = [clip_row(report, clip_id_of(n))["state"] for n in range(6)]
    assert states.count("sound") == 2 and (states[0], states[4]) == ("sound", "sound")
    assert states.count("not chosen") == 4 and faults(report) == []


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
# One for each clip: feature, member, change, severity, pattern of the reason.
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


def test_each_planted_fault_is_reported_for_its_clip_only(tmp_path: Path):
    """One clip for each fault of PLANTED, one with a wrong calibration row; the rest are intact."""
    folder = write_published_set(tmp_path / "data", 3, 3, SECONDS)
    for number, (feature, member, spoil, _, _) in enumerate(PLANTED):
        spoil_member(folder, number, feature, member, spoil)
    path = folder / chunk_path("sensor_extrinsics", 2)
    extrinsics = pd.read_parquet(path)
    extrinsics.loc[extrinsics.clip_id == clip_id_of(NUM_PLANTED), "qw"] = 0.9
    extrinsics.to_parquet(path)
    extrinsic = r"no rotation of camera_front_wide_120fov: \|q\| = 1\.2"
    planted = [*PLANTED, ("sensor_extrinsics", "", None, "damaged", extrinsic)]
    report = audit(params(tmp_path, "folder", "full", target_chunks=3), None)
    assert {row["clip_id"] for row in faults(report)} == {
        clip_id_of(n) for n in range(NUM_PLANTED + 1)
    }
    for number, (feature, _, _, severity, message) in enumerate(planted):
        row = clip_row(report, clip_id_of(number))
        assert (number, row["state"]) == (number, severity)
        assert [name for name, state in row["features"].items() if state != "sound"] == [feature]
        assert re.search(f"^{feature}: .*{message}", row["reason"]), row["reason"]
        clip_findings = [row for row in faults(report) if row["clip_id"] == clip_id_of(number)]
        assert {row["feature"] for row in clip_findings} == {feature}
        assert all(
            row["chunk"] == number // 3 and row["severity"] in FAULTS for row in clip_findings
        )
    assert by_state(report) == {"damaged": 7, "odd": 1, "sound": 1}
    assert report.warnings == [
        "clips that are damaged: 7; see the table",
        "clips that are odd: 1; see the table",
    ]
    assert not any(row["state"] in FAULTS for row in report.files), "as published"


def not_of(camera: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda t: t[(t.clip_id != CLIP) | (t.sensor_name != camera)]


@pytest.mark.parametrize(
    ("feature", "depth", "change", "message"),
    [
        ("camera_intrinsics", "full", lambda t: t.assign(width=t.width * (1 + (t.clip_id == CLIP))),
         "is for 128×48 px, its video is 64×48"),
        ("sensor_extrinsics", "quick", not_of(CAMERA), f"has no row of {CAMERA}"),
        ("sensor_extrinsics", "quick", lambda t: pd.concat([t, t[t.clip_id == CLIP].head(1)]),
         f"has 2 rows of {cameras.FRONT_WIDE.name}"),
    ],
)  # fmt: skip
def test_calibration_that_contradicts_the_clip_is_damaged(
    folder: Path, tmp_path: Path, feature, depth, change, message
):
    path = folder / chunk_path(feature, 0)
    change(pd.read_parquet(path)).to_parquet(path)
    report = audit(params(tmp_path, "folder", depth), None)
    row = clip_row(report, CLIP)
    assert row["features"][feature] == row["state"] == "damaged" and message in row["reason"]
    assert by_state(report) == {"damaged": 1, "sound": 5}


def test_truncated_zip_damages_all_its_clips_and_no_others(folder: Path, tmp_path: Path):
    path = chunk_path(CAMERA, 0)
    os.truncate(folder / path, 9000)
    for depth in ("quick", "full"):
        report = audit(params(tmp_path, "folder", depth), None)
        assert file_row(report, path)["state"] == "damaged"
        assert "not a whole zip" in file_row(report, path)["reason"]
        states = {row["clip_id"]: row["state"] for row in report.clips}
        assert [states[clip_id_of(n)] for n in range(6)] == ["damaged"] * 3 + ["sound"] * 3


@pytest.mark.parametrize(
    ("change", "kind", "message", "state", "num_damaged"),
    [
        (lambda members: {k: v for k, v in members.items() if CLIP not in k}, zipfile.ZIP_STORED,
         "no member", "damaged", 1),
        (lambda members: members | {"stranger.mp4": b"x"}, zipfile.ZIP_STORED,
         "a member of no clip: stranger.mp4", "odd", 0),
        (lambda members: members | {f"{CLIP}.{CAMERA}.mp4": b""}, zipfile.ZIP_STORED,
         f"member {CLIP}.{CAMERA}.mp4 is empty", "damaged", 1),
        (lambda members: members, zipfile.ZIP_DEFLATED, "is compressed, not stored", "damaged", 3),
    ],
)  # fmt: skip
def test_zip_with_wrong_members_is_reported(
    folder: Path, tmp_path: Path, change, kind, message, state, num_damaged
):
    path = chunk_path(CAMERA, 0)
    write_zip(folder / path, change(read_zip(folder / path)), kind)
    report = audit(params(tmp_path, "folder"), None)
    row = file_row(report, path)
    assert row["state"] == state and message in row["reason"]
    assert by_state(report).get("damaged", 0) == num_damaged
    assert num_damaged == 0 or message in clip_row(report, CLIP)["reason"]


def flip_bit(path: Path, place: int) -> None:
    """Flip a bit and keep the size and the modification time."""
    times, content = path.stat(), bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("source", ["world", "folder"])
def test_full_audit_finds_a_flipped_bit_despite_unchanged_size_and_date(
    hub: Hub, tmp_path: Path, source: str
):
    """The full audit reads every byte; the zip's checksums show which clip is damaged."""
    p = params(tmp_path)
    fetch(p, hub)
    path = chunk_path(CAMERA, 0)
    with zipfile.ZipFile(p.local_dir / path) as archive:
        place = archive.getinfo(f"{CLIP}.{CAMERA}.mp4").header_offset
    flip_bit(p.local_dir / path, place + 800)
    p = params(tmp_path, source)
    hub = hub if source == "world" else None
    assert faults(audit(p, hub)) == []
    report = audit(deep(p), hub)
    assert file_row(report, path)["reason"].startswith(f"{CLIP}.{CAMERA}.mp4 is damaged")
    assert file_row(report, path)["reason"].endswith("its sha256 is wrong")
    row = clip_row(report, CLIP)
    assert row["state"] == "damaged" and "its checksum is wrong" in row["reason"]
    assert by_state(report) == {"damaged": 1, "sound": 5}


def test_flipped_bit_in_a_table_damages_all_its_clips(hub: Hub, tmp_path: Path):
    p = params(tmp_path)
    fetch(p, hub)
    path = p.local_dir / chunk_path("vehicle_dimensions", 1)
    flip_bit(path, 60)
    path.touch()
    report = audit(deep(p), hub)
    assert file_row(report, chunk_path("vehicle_dimensions", 1))["state"] == "damaged"
    assert by_state(report) == {"damaged": 3, "sound": 3}
    fetch(p, hub)
    assert cells(audit(deep(p), hub)) == {"sound"}


def test_download_after_full_audit_hashes_nothing(hub: Hub, folder: Path, tmp_path: Path):
    p = params(tmp_path)
    audit(deep(p), hub)
    done = fetch(p, hub).figures
    assert done["num_files_fetched"] == 0 and done["num_files_hashed"] == 0


def test_files_of_another_revision_are_reported_without_reading_them(
    hub: Hub, folder: Path, tmp_path: Path
):
    path = chunk_path("vehicle_dimensions", 0)
    flip_bit(folder / path, 60)
    with local_hub.serve(shutil.copytree(folder, tmp_path / "other"), REPO) as other:
        fetch(params(tmp_path), Hub(REPO, other.commit, other.endpoint))
    shutil.rmtree(tmp_path / "outputs")
    report = audit(params(tmp_path), hub)
    assert file_row(report, path)["reason"] == "its content is another revision's"
    assert by_state(report) == {"damaged": 3, "sound": 3}


def test_deleted_files_are_missing_and_truncated_files_damaged(hub: Hub, tmp_path: Path):
    p = params(tmp_path)
    fetch(p, hub)
    (p.local_dir / chunk_path(CAMERA, 0)).unlink()
    os.truncate(p.local_dir / chunk_path("egomotion", 1), 1000)
    report = audit(p, hub)
    deleted = file_row(report, chunk_path(CAMERA, 0))
    short = file_row(report, chunk_path("egomotion", 1))
    assert deleted["state"] == "missing" and "02_download fetches it" in deleted["reason"]
    assert short["state"] == "damaged" and short["reason"].startswith("1,000 bytes in place of")
    assert report.figures["bytes_to_fetch"] == deleted["size"] + short["size"]
    states = [clip_row(report, clip_id_of(n))["state"] for n in range(6)]
    assert states == ["missing"] * 3 + ["damaged"] * 3


def test_evicted_files_are_neither_missing_nor_damaged(hub: Hub, tmp_path: Path):
    p = params(tmp_path)
    chosen = fetch(p, hub).chosen
    evict(p, [path for path in chosen.files if "chunk_0001" in path])
    report = audit(p, hub)
    assert by_state(report) == {"evicted": 3, "sound": 3} and faults(report) == []
    row = file_row(report, chunk_path(CAMERA, 1))
    today = datetime.date.today().isoformat()
    assert row["state"] == "evicted" and f"evicted on {today}" in row["reason"]
    assert report.figures["bytes_to_fetch"] == 0


def test_files_absent_at_the_source_are_not_missing(folder: Path, tmp_path: Path, published: Path):
    table = pd.read_parquet(folder / "metadata/feature_presence.parquet")
    table.loc[table.clip_id == CLIP, CAMERA] = False
    table.to_parquet(folder / "metadata/feature_presence.parquet")
    path = folder / chunk_path(CAMERA, 0)
    write_zip(path, {k: v for k, v in read_zip(path).items() if CLIP not in k})
    source = folder.rename(tmp_path / "source")
    (source / chunk_path(CAMERA, 1)).unlink()
    with local_hub.serve(source, REPO) as server:
        p = params(tmp_path, target_chunks=2)
        report = audit(p, Hub(REPO, server.commit, server.endpoint))
    assert clip_row(report, CLIP)["features"][CAMERA] == "absent"
    assert clip_row(report, clip_id_of(0))["features"][CAMERA] == "missing"
    lost = file_row(report, chunk_path(CAMERA, 1))
    assert (lost["state"], lost["reason"]) == ("absent", "the source does not list it")
    assert clip_row(report, clip_id_of(4))["state"] == "absent"
    assert report.figures["num_clips"] == 2 and "chunk 1 is passed over" in report.figures["reason"]


def test_zip_member_of_a_clip_without_the_feature_is_odd(folder: Path, tmp_path: Path):
    table = pd.read_parquet(folder / "metadata/feature_presence.parquet")
    table.loc[table.clip_id == CLIP, CAMERA] = False
    table.to_parquet(folder / "metadata/feature_presence.parquet")
    report = audit(params(tmp_path, "folder"), None)
    row = file_row(report, chunk_path(CAMERA, 0))
    assert row["state"] == "odd" and f"should not have this feature: {CLIP}" in row["reason"]
    assert by_state(report) == {"absent": 1, "sound": 5}


def test_clips_marked_invalid_cause_no_findings(folder: Path, tmp_path: Path):
    table = pd.read_parquet(folder / "clip_index.parquet")
    table.loc[table.clip_id == CLIP, "clip_is_valid"] = False
    table.to_parquet(folder / "clip_index.parquet")
    report = audit(params(tmp_path, "folder"), None)
    assert CLIP not in {row["clip_id"] for row in report.clips} and faults(report) == []
    assert by_state(report) == {"sound": 5}


def test_file_missing_from_a_folder_source_is_reported(folder: Path, tmp_path: Path):
    (folder / chunk_path("egomotion", 0)).unlink()
    report = audit(params(tmp_path, "folder"), None)
    row = file_row(report, chunk_path("egomotion", 0))
    assert (row["state"], row["reason"]) == ("missing", "not in the folder")
    assert clip_row(report, CLIP)["features"]["egomotion"] == "missing"
    assert clip_row(report, clip_id_of(3))["state"] == "sound"


def test_unfinished_download_files_are_counted(folder: Path, tmp_path: Path):
    """Those of huggingface_hub, of our downloader and of a killed process."""
    for number, name in enumerate(
        (
            ".cache/huggingface/download/camera/x.zip.1a2b3c4d.incomplete",
            f"{PARTIALS}/0123abcd",
            "camera/.x.zip.17.partial",
        )
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(bytes(1000 + number))
    report = audit(params(tmp_path, "folder"), None)
    assert report.figures["unfinished"] == {"num_files": 3, "bytes": 3003}
    (row,) = report.findings
    assert row["severity"] == "noted" and "3.00 kB in 3 unfinished" in row["reason"]


def test_interrupted_audit_rereads_only_changed_files(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """A record is valid for the size, the date and the audit settings that it was made with."""
    p = params(tmp_path, "folder", "full")
    audit(p, None)
    # Like a killed audit: the records exist, but the result cannot be written.
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
        report = audit(p, None)
    assert by_state(report) == {"damaged": 1, "sound": 5}
    # Read again: the zip, and what is compared with its videos (egomotion and calibration).
    assert f"{num_read - 5} files had been read" in caplog.text
    assert not records.exists()


def test_plan_sends_no_request_and_audit_requires_license_acceptance(
    server: LocalHub, hub: Hub, tmp_path: Path
):
    p = params(tmp_path, "hub")
    planned = plan(p, hub)
    assert planned.figures["num_files_on_disk"] == 0
    assert "before you decide" in planned.warnings[0]
    assert "dataset.audit: quick" in str(planned) and "dataset.audit: full" in str(
        plan(deep(p), hub)
    )
    with pytest.raises(AvomniError, match=r"dataset\.license_accepted is false"):
        audit(p, hub)
    assert server.requests == []


def test_old_files_of_real_data_cause_a_reminder(hub: Hub, tmp_path: Path):
    p = params(tmp_path, "hub")
    p = p.model_copy(update={"dataset": p.dataset.model_copy(update={"license_accepted": True})})
    fetch(p, hub)
    assert audit(p, hub).warnings == []
    manifest = p.local_dir / MANIFEST
    entries = json.loads(manifest.read_text())
    entries[chunk_path(CAMERA, 0)]["checked_on"] = "2020-01-01"
    manifest.write_text(json.dumps(entries))
    report = audit(p, hub)
    assert report.figures["oldest_file"] == "2020-01-01"
    assert "12 months" in report.warnings[0]
