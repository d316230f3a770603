"""Images from a ROS bag as a camera: `rosbag:PATH?topic=/camera/front`.

Reads bags of ROS 2 (sqlite3 and mcap) and ROS 1 with `rosbags`, which does not need ROS. Supports
topics of `sensor_msgs/Image` and `sensor_msgs/CompressedImage` (JPEG, PNG). The time of an image is
its header's, or the recording time if that is 0.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np

from avomni_lib import files
from avomni_lib.errors import AvomniError

SCHEME = "rosbag:"
FORM = "write rosbag:PATH?topic=/the/topic"
PLAIN, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
# sensor_msgs/image_encodings.hpp -> FFmpeg's name and bytes per pixel.
ENCODINGS = {
    "rgb8": ("rgb24", 3),
    "bgr8": ("bgr24", 3),
    "rgba8": ("rgba", 4),
    "bgra8": ("bgra", 4),
    "mono8": ("gray", 1),
    "8UC1": ("gray", 1),
    "8UC3": ("bgr24", 3),
    "yuv422_yuy2": ("yuyv422", 2),
    "yuyv": ("yuyv422", 2),
}
STARTS = {b"\xff\xd8": "mjpeg", b"\x89P": "png"}  # first bytes of a compressed image -> codec


def parts(url: str) -> tuple[Path, str]:
    """Path of the bag, and the topic.

    Raises:
        AvomniError: the address does not name exactly one bag and topic.
    """
    split = urllib.parse.urlsplit(url)
    topics = urllib.parse.parse_qs(split.query).get("topic", [])
    if split.netloc or not split.path or len(topics) != 1:
        raise AvomniError(f"{url} names no bag and topic", where="live.sources", fix=FORM)
    return files.resolve(urllib.parse.unquote(split.path)), topics[0]


def frames(
    url: str, warn: Callable[[str], None] = lambda text: None
) -> Iterator[tuple[int, av.VideoFrame]]:
    """(time in ns, image) of each message of the topic, in recorded order.

    Args:
        warn: Called when a damaged JPEG or PNG is skipped.

    Raises:
        AvomniError: `rosbags` is not installed, the bag cannot be read, it has no such topic, or an
            image has an unsupported encoding.
    """
    try:
        from rosbags.highlevel import AnyReader
        from rosbags.typesys import Stores, get_typestore
    except ImportError:
        raise AvomniError(
            "bags are read by rosbags, which is not installed",
            where=url,
            fix="pip install -e '.[ros]'",
        ) from None
    path, topic = parts(url)
    if not path.exists():
        raise AvomniError("there is no such bag", where=str(path), fix=FORM)
    try:
        with AnyReader([path], default_typestore=get_typestore(Stores.ROS2_HUMBLE)) as reader:
            shown = [c for c in reader.connections if c.msgtype in (PLAIN, COMPRESSED)]
            chosen = [connection for connection in shown if connection.topic == topic]
            if not chosen:
                names = ", ".join(sorted({connection.topic for connection in shown})) or "none"
                raise AvomniError(
                    f"the bag shows no pictures on {topic}",
                    where=str(path),
                    fix=f"its topics with pictures: {names}",
                )
            decoders: dict[str, Any] = {}
            for connection, recorded_ns, raw in reader.messages(connections=chosen):
                message: Any = reader.deserialize(raw, connection.msgtype)
                stamp = message.header.stamp
                taken_ns = stamp.sec * 1_000_000_000 + stamp.nanosec or recorded_ns
                try:
                    is_plain = connection.msgtype == PLAIN
                    frame = plain(message) if is_plain else compressed(message.data, decoders)
                except av.error.InvalidDataError:
                    warn("a damaged frame is left out")
                    continue
                if frame is not None:
                    yield taken_ns, frame
    except AvomniError:
        raise
    except Exception as error:  # readers of damaged bags raise many kinds
        raise AvomniError(
            f"the bag cannot be read: {type(error).__name__}: {error}", where=str(path)
        ) from None


def plain(message: Any) -> av.VideoFrame:
    """A `sensor_msgs/Image` as a frame.

    Raises:
        AvomniError: its encoding is not in `ENCODINGS`, or its data are shorter than its size.
    """
    if message.encoding not in ENCODINGS:
        raise AvomniError(
            f"a picture is encoded as {message.encoding!r}",
            fix=f"known are {', '.join(ENCODINGS)}; image_transport makes JPEG of others",
        )
    form, num_bytes = ENCODINGS[message.encoding]
    height, width, step = message.height, message.width, message.step
    data = np.frombuffer(message.data, np.uint8)
    if not 0 < width * num_bytes <= step or data.size < height * step or not height:
        raise AvomniError(
            f"a picture of {width}×{height} px in lines of {step} bytes has {data.size:,} bytes"
        )
    lines = data[: height * step].reshape(height, step)[:, : width * num_bytes]
    shape = (height, width) if num_bytes == 1 else (height, width, num_bytes)
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(lines).reshape(shape), format=form)


def compressed(data: Any, decoders: dict[str, Any]) -> av.VideoFrame | None:
    """A `sensor_msgs/CompressedImage` as a frame; None if the decoder needs more data.

    Args:
        decoders: Codec -> decoder, reused between images.

    Raises:
        AvomniError: it is neither JPEG nor PNG.
        av.error.FFmpegError: it is damaged.
    """
    content = bytes(data)
    codec = STARTS.get(content[:2])
    if codec is None:
        raise AvomniError("a compressed picture is neither JPEG nor PNG")
    if codec not in decoders:
        decoders[codec] = av.CodecContext.create(codec, "r")
    return next(iter(decoders[codec].decode(av.Packet(content))), None)
