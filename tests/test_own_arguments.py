"""Invalid arguments of `pack` are refused with the argument, the row and the clip.

Nothing is written then, and all mistakes of a call are reported at once.
"""

from __future__ import annotations

import datetime
import os
import shutil
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pandas as pd
import pytest
from scipy.spatial.transform import Rotation

from avomni_lib.dataset import cameras
from avomni_lib.dataset.catalog import Catalog
from avomni_lib.dataset.own.pack import OwnClip, check, pack
from avomni_lib.errors import AvomniError
from tests.published_set import encode_video, frame_bits
from tests.streams import remuxed

CAMERAS = [camera.name for camera in cameras.GRIDS["4-cam"].cameras]
FRONT = CAMERAS[0]
NUM_FRAMES = 45
T_S = np.arange(-1.0, 4.0, 0.05)
HEADING = 0.4 + 0.08 * T_S
POSITION = 100 * np.stack([np.sin(HEADING), -np.cos(HEADING)], axis=1)
FRAMES_S = np.arange(NUM_FRAMES) / 30
QUATERNION = np.stack([0 * T_S, 0 * T_S, np.sin(HEADING / 2), np.cos(HEADING / 2)], axis=1)
LEVEL = np.column_stack([POSITION, 0 * T_S])


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "a.mp4"
    pictures = [frame_bits(0, 0, i, 96, 64) for i in range(NUM_FRAMES)]
    path.write_bytes(encode_video(pictures))
    return path


def clip_of(video: Path, name: Any = "drive", **values: Any) -> OwnClip:
    arguments: dict[str, Any] = {"t_s": T_S, "position_m": POSITION, "heading_rad": HEADING}
    videos = values.pop("videos", dict.fromkeys(CAMERAS, video))
    return OwnClip(name, videos, **(arguments | values))


def refusal(clips: Any, folder: Path) -> str:
    """The error of `pack`, which leaves nothing on the disk."""
    before = sorted(folder.iterdir())
    with pytest.raises(AvomniError) as refused:
        pack(folder / "data", clips)
    assert sorted(folder.iterdir()) == before
    return str(refused.value)


def fault(clip: OwnClip) -> str:
    """The error of `check` for one clip."""
    with pytest.raises(AvomniError) as refused:
        check([clip])
    return str(refused.value)


def with_row(values: np.ndarray, row: int, value: Any) -> np.ndarray:
    """A copy with one row changed."""
    values = np.array(values, np.float64)
    values[row] = value
    return values


def masked(values: np.ndarray, row: int) -> np.ma.MaskedArray:
    values = np.ma.array(values)
    values[row] = np.ma.masked
    return values


UTC = datetime.datetime(2024, 5, 1, 12, tzinfo=datetime.UTC)
DATES = [UTC + datetime.timedelta(seconds=float(t)) for t in T_S]
VALID = {
    "t_s": T_S,
    "position_m": POSITION,
    "heading_rad": HEADING,
    "quaternion": QUATERNION,
    "velocity_mps": 8 * np.column_stack([np.cos(HEADING), np.sin(HEADING), 0 * HEADING]),
    "speed_m_s": np.full(len(T_S), 8.0),
    "frames": FRAMES_S,
}
# Fault of an array -> (change, part of the message).
SPOILT = {
    "nan": (lambda a: with_row(a, 7, np.nan), "row 7"),
    "infinite": (lambda a: with_row(a, 9, -np.inf), "row 9"),
    "masked": (lambda a: masked(a, 3), "row 3"),
    "complex": (lambda a: a + 0j, "complex128"),
    "booleans": (lambda a: a > 0, "bool"),
    "text": (lambda a: a.astype(str), "text"),
    "bytes": (lambda a: a.astype("S"), "text"),
    "objects": (lambda a: a.astype(object), "objects"),
    "a None among numbers": (lambda a: _object(a, 5, None), "row 5"),
    "a text among numbers": (lambda a: _object(a, 6, "7,5"), "row 6"),
    "pandas' NA": (lambda a: _object(a, 4, pd.NA), "row 4"),
    "one row short": (lambda a: a[1:], "shape"),
    "one axis more": (lambda a: a[None], "shape"),
    "one number": (lambda a: 3.0, "shape"),
    "empty": (lambda a: a[:0], "shape"),
    "a string": (lambda a: "poses.csv", "text"),
    "a dict": (lambda a: {"x": 1}, "dict"),
    "a generator": (lambda a: (x for x in a), "generator"),
    "a set": (lambda a: {1.0, 2.0}, "set"),
    "dates": (lambda a: np.datetime64("2024-05-01") + (a * 1e3).astype("timedelta64[ms]"), "dates"),
    "durations": (lambda a: (a * 1e3).astype("timedelta64[ms]"), "np.timedelta64(1, 's')"),
    "rows of a table": (lambda a: np.zeros(len(a), [("t", float), ("x", float)]), "numbers"),
}


# Every fault of position_m, and the faults of rows and shapes of each other argument.
SPOILT_ARGUMENTS = [("position_m", kind) for kind in SPOILT] + [
    (argument, kind)
    for argument in VALID
    if argument != "position_m"
    for kind in ("nan", "masked", "text", "one row short", "empty", "one axis more")
]


def _object(values: np.ndarray, row: int, value: Any) -> np.ndarray:
    values = values.astype(object)
    values[row if values.ndim == 1 else (row, 0)] = value
    return values


@pytest.mark.parametrize(("argument", "kind"), SPOILT_ARGUMENTS)
def test_invalid_array_is_refused_by_argument_and_row(argument, kind, video):
    spoil, message = SPOILT[kind]
    changed = spoil(VALID[argument])
    values: dict[str, Any] = {argument: changed}
    named = argument
    if argument == "frames":
        values, named = {"frame_times_s": {FRONT: changed}}, f"frame_times_s[{FRONT!r}]"
    if argument == "quaternion":
        values["heading_rad"] = None
    if argument == "velocity_mps":
        values["position_m"] = LEVEL
    if argument == "t_s" and kind == "empty":
        message = "at least two"
    text = fault(clip_of(video, **values))
    assert named in text or message == "shape" and "of shape" in text, text
    assert message in text and "clip 'drive'" in text, text


RAGGED = POSITION.tolist()
RAGGED[11] = [1.0, 2.0, 3.0]
SPOILT_TIMES = {
    "python's dates": (DATES, "[t.timestamp() for t in times]"),
    "pandas' timestamps": ([pd.Timestamp(t) for t in DATES], "dates"),
    "a column of dates": (pd.Series(pd.to_datetime(DATES)), "dates"),
    "an index of dates": (pd.DatetimeIndex(DATES), "dates"),
    "dates without a zone": ([t.replace(tzinfo=None) for t in DATES], "dates"),
    "days": ([t.date() for t in DATES], "dates"),
    "numpy's dates": (np.array([t.replace(tzinfo=None) for t in DATES], "datetime64[us]"), "dates"),
    "ISO 8601": ([t.isoformat() for t in DATES], "text"),
    "milliseconds": (T_S * 1e3, "milliseconds"),
    "microseconds": ((T_S * 1e6).astype(np.int64), "microseconds"),
    "nanoseconds": ((T_S * 1e9).astype(np.int64), "nanoseconds"),
    "Unix nanoseconds": ((T_S * 1e9).astype(np.int64) + 1_700_000_000_000_000_000, "nanoseconds"),
    "Unix milliseconds": (T_S * 1e3 + 1.7e12, "milliseconds"),
    "row numbers": (np.arange(len(T_S)), "at least two poses a second"),
    "out of order": (with_row(T_S, 20, T_S[18] - 0.01), "row 20"),
    "backwards": (T_S[::-1], "row 1"),
    "a repeated time": (with_row(T_S, 20, T_S[19]), "row 20, which has the time of the row before"),
    "float32 of Unix times": ((T_S + 1.7e9).astype(np.float32), "float32"),
}  # fmt: skip


FRAME_TIMES = {
    "milliseconds": (FRAMES_S * 1e3, "milliseconds"),
    "microseconds": (FRAMES_S * 1e6, "microseconds"),
    "nanoseconds": ((FRAMES_S * 1e9).astype(np.int64), "nanoseconds"),
    "frame numbers": (np.arange(NUM_FRAMES), "frame numbers"),
    "backwards": (FRAMES_S[::-1], "row 1"),
    "a repeated time": (with_row(FRAMES_S, 30, FRAMES_S[29]), "row 30"),
    "one time too many": (np.arange(NUM_FRAMES + 1) / 30, "45 frames in the video"),
    "dates": (np.datetime64("2024-05-01") + (FRAMES_S * 1e6).astype("timedelta64[us]"), "dates"),
    "on another clock": (FRAMES_S + 1.7e9, "the cameras do not overlap"),
    "off by an hour": (FRAMES_S + 3600, "the cameras do not overlap"),
    "little overlap with the others": (FRAMES_S + 1.2, "in common"),
}


@pytest.mark.parametrize("kind", SPOILT_TIMES)
def test_invalid_pose_times_are_refused_with_a_fix(kind, video):
    times, message = SPOILT_TIMES[kind]
    text = fault(clip_of(video, t_s=times))
    assert "t_s" in text and message in text, text


@pytest.mark.parametrize("kind", FRAME_TIMES)
def test_invalid_frame_times_are_refused_with_their_camera(kind, video):
    times, message = FRAME_TIMES[kind]
    text = fault(clip_of(video, frame_times_s={CAMERAS[2]: times}))
    assert "frame_times_s" in text and CAMERAS[2] in text and message in text, text


def test_pose_and_frame_times_without_overlap_are_refused(video):
    unix = dict.fromkeys(CAMERAS, FRAMES_S + 1.7e9)
    text = fault(clip_of(video, frame_times_s=unix))
    assert "ego motion covers no frame" in text and "t_s" in text
    text = fault(clip_of(video, t_s=T_S + 1.7e9))
    assert "ego motion covers no frame" in text and "give frame_times_s" in text
    partly = {camera: unix[camera] for camera in CAMERAS[1:]}
    text = fault(clip_of(video, t_s=T_S + 1.7e9, frame_times_s=partly))
    assert f"{FRONT} runs from 0.000 to 1.467 s by its file" in text
    assert check([clip_of(video, t_s=T_S + 1.7e9, frame_times_s=unix)])


BAD_VALUES = {
    "text for an hour": ({"hour": "07"}, "hour is '07'", "give int('07')"),
    "hour 24": ({"hour": 24}, "hour is 24", "from 0 to 23"),
    "a fractional hour": ({"hour": 7.5}, "hour is 7.5", "from 0 to 23"),
    "nan for an hour": ({"hour": float("nan")}, "hour is nan", "None"),
    "a bool for an hour": ({"hour": True}, "hour is True", "whole number"),
    "month 13": ({"month": 13}, "month is 13", "from 1 to 12"),
    "a month's name": ({"month": "May"}, "month is 'May'", "from 1 to 12"),
    "a country's number": ({"country": 49}, "country is 49", "text"),
    "a surrogate": ({"country": "\ud800"}, "country is", "cannot be printed"),
    "a name with a line break": ({"name": "a\nb\x1b[31m"}, "name is 'a\\nb", "cannot be printed"),
    "an impossible speed": ({"speed_m_s": with_row(T_S * 0, 8, 1e308)}, "row 8", "placeholder"),
    "huge velocities": (
        {"velocity_mps": np.full((len(T_S), 3), 1e300)},
        "velocity_mps is 1e+300 at row 0",
        "unit",
    ),
    "positions without a GPS fix": (
        {"position_m": np.outer(np.arange(100) % 4 > 0, (52.0, 13.0)), "frame": "wgs84"},
        "which no car does; fastest at row",
        "placeholders",
    ),
    "minutes of NMEA": (
        {"position_m": np.full((100, 2), (5231.2, 1324.3)), "frame": "wgs84"},
        "latitude 5231.2",
        "ddmm.mmmm",
    ),
    "an unknown split": ({"split": "all"}, "unknown split 'all'", "train, val, test"),
    "an unknown frame": ({"frame": "utm"}, "unknown frame 'utm'", "enu, ned, wgs84, ecef"),
    "unknown axes": ({"axes": "FLU"}, "unknown axes 'FLU'", "flu, frd"),
    "axes without a quaternion": ({"axes": "frd"}, "axes='frd'", "frame='ned'"),
    "neither heading nor quaternion": (
        {"heading_rad": None},
        "either heading_rad or quaternion",
        "neither",
    ),
    "heading and quaternion": ({"quaternion": QUATERNION}, "either heading_rad", "both"),
    "degrees": ({"heading_rad": np.degrees(HEADING)}, "heading_rad is", "np.radians"),
    "zero quaternions": (
        {"heading_rad": None, "quaternion": with_row(QUATERNION, 13, 0.0)},
        "row 13",
        "length 0",
    ),
    "ragged positions": ({"position_m": RAGGED}, "row 11 is [1.0, 2.0, 3.0]", "as many numbers"),
    "transposed positions": ({"position_m": POSITION.T}, "of shape (2, 100)", "position_m.T"),
    "geocentric without height": ({"frame": "ecef"}, "position_m", "(100, 3)"),
    "huge": ({"position_m": with_row(POSITION, 50, 1e308)}, "row 50", "placeholder"),
    "float32 of a far map": (
        {"position_m": (POSITION + (5e5, 5e6)).astype(np.float32)},
        "float32",
        "float64",
    ),
    "float32 of degrees": (
        {"position_m": (52 + POSITION * 1e-5).astype(np.float32), "frame": "wgs84"},
        "float32",
        "float64",
    ),
    "no name": ({"name": ""}, "name is ''", "text"),
    "a list of videos": ({"videos": ["a.mp4"]}, "videos is ['a.mp4']", "mapping"),
    "frame times of no camera": (
        {"frame_times_s": {cameras.REAR_TELE.name: FRAMES_S}},
        "frame_times_s names camera_rear_tele_30fov",
        "no video",
    ),
    "frame times of an unknown camera": (
        {"frame_times_s": {"front": FRAMES_S}},
        "unknown camera 'front'",
        "camera_front_wide_120fov",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_VALUES)
def test_invalid_value_is_refused_with_its_argument(kind, video):
    values, message, fix = BAD_VALUES[kind]
    text = fault(clip_of(video, **values))
    assert message in text and fix in text and "clip " in text, text


def test_pandas_columns_lists_and_rotations_are_accepted(video):
    table = pd.DataFrame({"t": T_S, "x": POSITION[:, 0], "y": POSITION[:, 1], "h": HEADING})
    clip = clip_of(
        video,
        t_s=table.t,
        position_m=table[["x", "y"]],
        heading_rad=list(table.h),
        month=np.int64(5),
        hour=np.uint8(0),
        frame_times_s={FRONT: pd.Series(FRAMES_S)},
    )
    [summary] = check([clip]).clips
    assert summary == check([clip_of(video)]).clips[0]
    whole = np.ma.array(T_S)
    assert check([clip_of(video, t_s=whole, position_m=POSITION.astype(np.float32))])
    turn = Rotation.from_euler("z", HEADING[:, None])
    from_rotation = check([clip_of(video, heading_rad=None, quaternion=turn)]).clips[0]
    assert (
        from_rotation == check([clip_of(video, heading_rad=None, quaternion=QUATERNION)]).clips[0]
    )


def test_numpy_scalars_are_written_as_plain_values(video, tmp_path):
    words = {"month": np.int64(5), "hour": np.uint8(0), "country": np.str_("Iceland")}
    clip = clip_of(video, split=np.str_("val"), **words)
    folder = pack(tmp_path / "data", [clip]).folder
    attributes = Catalog.open(folder).attributes(clip.clip_id)
    assert {name: attributes[name] for name in words} == {
        "month": 5,
        "hour": 0,
        "country": "Iceland",
    }


def test_all_mistakes_of_a_call_are_reported_at_once(video, tmp_path):
    clips = [
        clip_of(video, "one", hour="07", month=13, t_s=with_row(T_S, 4, np.nan)),
        clip_of(video, "two"),
        clip_of(video, "three", videos=dict.fromkeys(CAMERAS, tmp_path / "no.mp4"), country=3),
        clip_of(video, "two", heading_rad=with_row(HEADING, 8, np.inf)),
        "drive",
    ]
    text = refusal(clips, tmp_path)
    for part in (
        "hour is '07'",
        "month is 13",
        "t_s is nan at row 4",
        "there is no video",
        "country is 3",
        "two clips have one name: 'two', clips 1, 3",
        "heading_rad is inf at row 8",
        "clips[4] is 'drive'",
    ):
        assert text.count(part) >= 1, part
    assert "mistakes:" in text and text.startswith(tuple("123456789"))


def test_long_list_of_mistakes_is_shortened(video, tmp_path):
    text = refusal([clip_of(video, f"clip {i}", hour=24) for i in range(100)], tmp_path)
    assert text.startswith("100 mistakes") and "and 80 more" in text and text.count("\n") < 80


@pytest.mark.parametrize(
    ("clips", "message"),
    [
        ([], "no clip"),
        ("drive", "expected a list of OwnClip"),
        (None, "expected a list of OwnClip"),
        ({"a": 1}, "expected a list of OwnClip"),
        ([None], "clips[0] is None"),
        ([{"name": "x"}], "clips[0] is {'name': 'x'}"),
    ],
)
def test_argument_that_is_not_a_list_of_clips_is_refused(clips, message, tmp_path):
    assert message in refusal(clips, tmp_path)


def test_single_clip_is_refused_and_a_generator_accepted(video, tmp_path):
    assert "one OwnClip" in refusal(clip_of(video), tmp_path)
    packed = pack(tmp_path / "data", (clip_of(video, name) for name in ("a", "b")))
    assert [clip.name for clip in packed.clips] == ["a", "b"]


@pytest.mark.parametrize("count", (0, 1.5, "7", True))
def test_clips_per_chunk_must_be_a_positive_integer(count, video, tmp_path):
    with pytest.raises(AvomniError, match="clips_per_chunk is"):
        pack(tmp_path / "data", [clip_of(video)], clips_per_chunk=count)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("folder", (None, 7, "", "a\0b", b"a"))
def test_folder_must_be_a_path(folder, video):
    with pytest.raises(AvomniError, match="folder is"):
        pack(folder, [clip_of(video)])


def test_unwritable_folder_is_refused(video, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for folder in (video, video / "data", tmp_path / "link", tmp_path / ("a" * 300)):
        with pytest.raises(AvomniError, match="the folder to pack into") as refused:
            pack(folder, [clip_of(video)])
        assert str(folder) in refused.value.where
    # The name is of a valid length, but the temporary name during writing is too long.
    with pytest.raises(AvomniError, match="File name too long"):
        pack(tmp_path / ("a" * 250), [clip_of(video)])
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


def test_missing_file_of_all_cameras_is_reported_once(video, tmp_path):
    text = fault(clip_of(video, videos=dict.fromkeys(CAMERAS, tmp_path / "no.mp4")))
    assert text.count("there is no video") == 1 and "mistakes" not in text


def no_videos(folder: Path, video: Path) -> Iterator[tuple[Path, str]]:
    """Yield (file, part of the message)."""

    def put(name: str, content: bytes) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    content = video.read_bytes()
    yield folder / "no.mp4", "there is no video"
    yield put("empty.mp4", b""), "is empty"
    (folder / "folder.mp4").mkdir()
    yield folder / "folder.mp4", "is a folder"
    yield put("text.mp4", b"t,x,y\n" * 99), "no video container"
    yield put("cut.mp4", content[:40]), "does not open"
    yield put("codec.mp4", content.replace(b"avc1", b"zzzz")), "not known to this build of FFmpeg"
    yield _sound(folder / "sound.mp4"), "has no video"
    yield put("raw.mp4", remuxed(content, "h264")), "ffmpeg -framerate"
    yield put("list.mp4", b"ffconcat version 1.0\nfile a.mp4\n"), "no video container"
    os.mkfifo(folder / "pipe.mp4")
    yield folder / "pipe.mp4", "not a regular file"
    yield Path("/dev/null"), "not a regular file"
    (folder / "link.mp4").symlink_to(folder / "gone.mp4")
    yield folder / "link.mp4", "there is no video"
    yield folder / "a\0b.mp4", "there is no video"
    yield folder / ("a" * 300 + ".mp4"), "no video that opens"


def _sound(path: Path) -> Path:
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16000)
        silence = np.zeros((1, 1024), np.float32)
        frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
        frame.rate, frame.pts, frame.time_base = 16000, 0, Fraction(1, 16000)
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_file_that_is_not_a_video_is_refused_with_its_path(video, tmp_path):
    for path, message in no_videos(tmp_path, video):
        text = fault(clip_of(video, videos=dict.fromkeys(CAMERAS, video) | {CAMERAS[1]: path}))
        assert message in text and CAMERAS[1] in text and "clip 'drive'" in text, text
        assert str(path)[:60].split("\0")[0] in text, text


@pytest.mark.parametrize("value", (None, b"a.mp4", ["a.mp4"]))
def test_video_must_be_a_path(value, video):
    text = fault(clip_of(video, videos=dict.fromkeys(CAMERAS, video) | {CAMERAS[1]: value}))
    assert "expected a path" in text and CAMERAS[1] in text


@pytest.mark.parametrize("name", ("a:b.mp4", "http:a.mp4", "concat:a|b.mp4", "%03d.mp4", "-"))
def test_file_names_are_not_parsed_as_ffmpeg_urls(name, video, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(video, tmp_path / name)
    packed = check([clip_of(video, videos=dict.fromkeys(CAMERAS, name))])
    assert packed.clips[0].frames == dict.fromkeys(CAMERAS, NUM_FRAMES)


def test_failed_call_leaves_no_files(video, tmp_path, monkeypatch):
    """With a full disk, for instance, the parent folder is unchanged."""

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(AvomniError, match="no room left on the disk"):
        pack(tmp_path / "data", [clip_of(video)])
    assert list(tmp_path.iterdir()) == []
