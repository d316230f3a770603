"""Frames from real ROS bags, written with the rosbags package."""

from __future__ import annotations

import builtins
import io
import shutil
import time

import numpy as np
import pytest
from PIL import Image
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from avomni_lib.errors import AvomniError
from avomni_lib.live import rosbag
from avomni_lib.live.sources import Begun, Reader, Source, check

STORE = get_typestore(Stores.ROS2_HUMBLE)
CAMERA, TOPIC, JPEG_TOPIC = "camera_front_wide_120fov", "/camera/front", "/camera/rear/compressed"
START_S, WIDTH, HEIGHT, NUM = 1_700_000_000, 34, 20, 12
PLAIN, COMPRESSED = rosbag.PLAIN, rosbag.COMPRESSED


def header(time_ns: int):
    stamp = STORE.types["builtin_interfaces/msg/Time"](*divmod(time_ns, 1_000_000_000))
    return STORE.types["std_msgs/msg/Header"](stamp, "camera")


def image(time_ns: int, grey: int, encoding: str = "bgr8", channels: int = 3, pad: int = 2):
    """A grey image whose rows have `pad` bytes after the pixels."""
    lines = np.full((HEIGHT, WIDTH * channels + pad), 255 - grey, np.uint8)
    lines[:, : WIDTH * channels] = grey
    kind = STORE.types[PLAIN]
    return kind(
        header(time_ns), HEIGHT, WIDTH, encoding, 0, WIDTH * channels + pad, lines.reshape(-1)
    )


def jpeg(time_ns: int, grey: int, form: str = "JPEG"):
    buffer = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT), (grey, grey, grey)).save(buffer, format=form)
    data = np.frombuffer(buffer.getvalue(), np.uint8)
    return STORE.types[COMPRESSED](header(time_ns), form.lower(), data)


def write(path, topics: dict, storage=StoragePlugin.SQLITE3) -> None:
    """Write a bag of {topic: (type, [(recorded ns, message)])}."""
    with Writer(path, version=9, storage_plugin=storage) as bag:
        for topic, (kind, messages) in topics.items():
            connection = bag.add_connection(topic, kind, typestore=STORE)
            for recorded_ns, message in messages:
                bag.write(connection, recorded_ns, STORE.serialize_cdr(message, kind))


def taken(number: int, late_ms: float = 0) -> int:
    """Header stamps 50 ms apart."""
    return START_S * 1_000_000_000 + number * 50_000_000 + round(late_ms * 1e6)


@pytest.fixture(scope="module", params=list(StoragePlugin), ids=lambda plugin: plugin.name.lower())
def bag(request, tmp_path_factory):
    """Two cameras, one 20 ms later; each message is recorded a second after its stamp."""
    path = tmp_path_factory.mktemp("bags") / "drive"
    second = 1_000_000_000
    front = [(taken(i) + second, image(taken(i), 10 * i)) for i in range(NUM)]
    rear = [(taken(i, 20) + second, jpeg(taken(i, 20), 10 * i)) for i in range(NUM)]
    write(path, {TOPIC: (PLAIN, front), JPEG_TOPIC: (COMPRESSED, rear)}, request.param)
    return path


def greys(frames) -> list[float]:
    return [frame.to_ndarray(format="rgb24").mean() for frame in frames]


@pytest.mark.parametrize(("topic", "late_ms"), [(TOPIC, 0), (JPEG_TOPIC, 20)])
def test_frames_have_their_headers_timestamps(bag, topic, late_ms):
    read = list(rosbag.frames(f"rosbag:{bag}?topic={topic}"))
    assert [time_ns for time_ns, _ in read] == [taken(i, late_ms) for i in range(NUM)]
    assert {(frame.width, frame.height) for _, frame in read} == {(WIDTH, HEIGHT)}
    assert np.allclose(greys(frame for _, frame in read), 10 * np.arange(NUM), atol=2)


def test_two_cameras_keep_their_offset_and_real_time_pace(bag):
    begun, firsts, readers, counts = Begun(2), {}, [], {}

    def push(camera, time_ns, frame):
        firsts.setdefault(camera, time_ns)
        counts[camera] = counts.get(camera, 0) + 1

    started = time.monotonic()
    for name, topic in (("a", TOPIC), ("b", JPEG_TOPIC)):
        source = Source(name, f"rosbag://{bag}?topic={topic}", "device")
        check(source)
        readers.append(Reader(source, push, lambda _: None, begun=begun))
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(20)
    assert firsts["b"] - firsts["a"] == 20_000_000
    assert counts == {"a": NUM, "b": NUM}
    assert time.monotonic() - started >= 0.05 * (NUM - 1), "at the recorded rate"


@pytest.mark.parametrize(
    ("encoding", "channels"), [("rgb8", 3), ("rgba8", 4), ("bgra8", 4), ("mono8", 1)]
)
def test_plain_encodings_are_decoded(encoding, channels):
    frame = rosbag.plain(image(0, 77, encoding, channels))
    assert np.allclose(frame.to_ndarray(format="rgb24")[..., 0].mean(), 77, atol=1)


def test_colour_channels_are_in_order():
    message = image(0, 0, "bgr8", 3, pad=0)
    message.data[0::3] = 200  # blue
    shown = rosbag.plain(message).to_ndarray(format="rgb24")
    assert shown[0, 0].tolist() == [0, 0, 200]
    assert rosbag.compressed(jpeg(0, 90, "PNG").data, {}).to_ndarray(format="rgb24").mean() == 90


def test_recording_time_replaces_a_missing_stamp(tmp_path):
    write(tmp_path / "bag", {TOPIC: (PLAIN, [(taken(3), image(0, 5))])})
    [(time_ns, _)] = rosbag.frames(f"rosbag:{tmp_path / 'bag'}?topic={TOPIC}")
    assert time_ns == taken(3)


@pytest.mark.parametrize(
    ("ask", "what"),
    [
        ("rosbag:{bag}?topic=/none", "shows no pictures on /none"),
        ("rosbag:{bag}.gone?topic=/a", "there is no such bag"),
        ("rosbag:{bag}", "names no bag and topic"),
        ("rosbag:{bag}/metadata.yaml?topic=/a", "the bag cannot be read"),
    ],
)
def test_missing_bag_or_topic_is_an_error(bag, ask, what):
    with pytest.raises(AvomniError, match=what):
        list(rosbag.frames(ask.format(bag=bag)))


def test_damaged_bag_is_an_error(bag, tmp_path):
    shutil.copytree(bag, tmp_path / "bag")
    [content] = [path for path in (tmp_path / "bag").iterdir() if path.suffix in (".db3", ".mcap")]
    content.write_bytes(content.read_bytes()[:3000])
    with pytest.raises(AvomniError, match="the bag cannot be read"):
        list(rosbag.frames(f"rosbag:{tmp_path / 'bag'}?topic={TOPIC}"))


def test_damaged_frame_is_an_error():
    cut = image(0, 5)
    cut.data = cut.data[:100]
    for message in (cut, image(0, 5, "bayer_rggb8", 1)):
        with pytest.raises(AvomniError, match="a picture"):
            rosbag.plain(message)
    with pytest.raises(AvomniError, match="neither JPEG nor PNG"):
        rosbag.compressed(np.zeros(9, np.uint8), {})


def test_missing_extra_error_gives_the_install_command(monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.startswith("rosbags"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(AvomniError, match="not installed") as caught:
        list(rosbag.frames("rosbag:/a?topic=/b"))
    assert caught.value.fix == "pip install -e '.[ros]'"
