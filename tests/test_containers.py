"""Videos are opened as self-contained files, and references to other files are not followed."""

from __future__ import annotations

import io
import os
import socket
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import pytest

from avomni_lib.dataset.streams import NotVideo, opened
from tests.streams import NUM_FRAMES, remuxed, stream_bytes

NAME = "h264 gop 30"


def num_packets(source) -> int:
    with opened(source) as (container, _):
        return sum(packet.size > 0 for packet in container.demux(video=0))


@pytest.mark.parametrize("kind", ["mp4", "mov", "ismv", "matroska", "webm", "avi", "mpegts"])
def test_self_contained_containers_open(kind, tmp_path):
    codecs = {"webm": "libvpx", "avi": "mpeg4"}
    content = encoded(kind, codecs[kind]) if kind in codecs else remuxed(stream_bytes(NAME), kind)
    path = tmp_path / "drive.bin"
    path.write_bytes(content)
    assert num_packets(content) == num_packets(path) == NUM_FRAMES


def other_video(folder: Path) -> Path:
    path = folder / "other.mp4"
    path.write_bytes(stream_bytes(NAME))
    return path


LURES = {
    "ffconcat": "ffconcat version 1.0\nfile {path}\n",
    "concat without its header": "file {path}\n",
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:3,\n{path}\n#EXT-X-ENDLIST\n",
    "hls over http": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:3,\nhttp://127.0.0.1:{port}/a.ts\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
    "m=video {port} RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    "dash": '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
    'profiles="urn:mpeg:dash:profile:isoff-live:2011"><Period><AdaptationSet><Representation>'
    "<BaseURL>{path}</BaseURL></Representation></AdaptationSet></Period></MPD>",
    "smil": '<smil><body><video src="{path}"/></body></smil>',
    "imf": '<?xml version="1.0"?><CompositionPlaylist '
    'xmlns="http://www.smpte-ra.org/schemas/2067-3/2016"></CompositionPlaylist>',
    "a byte order mark before it": "\ufeffffconcat version 1.0\nfile {path}\n",
    "blank lines before it": "\n\n\nffconcat version 1.0\nfile {path}\n",
    "rtsp redirect": "[Reference]\nRef1=http://127.0.0.1:{port}/a?MSWMExt=.asf\n",
    "avisynth": 'FFmpegSource2("{path}")',
    "subtitle": "{{1}}{{1}}25\n{{2}}{{9}}text\n",
    "raw h264": "\x00\x00\x00\x01\x67",
    "empty": "",
}  # fmt: skip


@pytest.mark.parametrize("ending", ["mp4", "m3u8"])
@pytest.mark.parametrize("lure", LURES)
def test_file_that_refers_to_other_files_is_refused(lure, ending, tmp_path):
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        server.setblocking(False)
        port = server.getsockname()[1]
        path = tmp_path / f"clip.{ending}"
        path.write_text(LURES[lure].format(path=other_video(tmp_path), port=port))
        started = time.monotonic()
        for source, where in ((path, str(path)), (path.read_bytes(), None)):
            with pytest.raises(NotVideo) as caught, opened(source):
                pass
            assert caught.value.where == where
            assert ("empty" if lure == "empty" else "no video container") in caught.value.what
        assert time.monotonic() - started < 2
        with pytest.raises(BlockingIOError):
            server.accept()


@pytest.mark.parametrize("lure", ["ffconcat", "hls", "sdp", "dash"])
def test_playlist_after_an_mp4_box_is_refused(lure, tmp_path):
    """A file that begins like an mp4 and continues as a playlist is not read as a playlist."""
    text = LURES[lure].format(path=other_video(tmp_path), port=9).encode()
    for start in (b"\0\0\0\x08free", struct.pack(">I4s", len(text) + 8, b"free"), b"v=0\nftyp"):
        content = start + text
        with pytest.raises(NotVideo), opened(content):
            pass


@pytest.mark.parametrize(
    "name", ["a:b.mp4", "concat:a.mp4", "subfile,,start,0,end,0,,:a.mp4", "%03d.mp4", "http:a.mp4",
             "pipe:0", "data:text", "-", "lavfi:testsrc", "ä ö.mp4"]
)  # fmt: skip
def test_path_is_not_parsed_as_an_ffmpeg_url(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError), opened(Path(name)):
        pass
    Path(name).write_bytes(stream_bytes(NAME))
    assert num_packets(Path(name)) == num_packets(Path(name).absolute()) == NUM_FRAMES


def test_named_pipe_is_refused_without_blocking(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    with ThreadPoolExecutor() as pool:
        refused = pool.submit(num_packets, tmp_path / "pipe.mp4").exception(timeout=5)
    assert isinstance(refused, NotVideo | OSError)


def boxes_to(content: bytes, *names: bytes) -> list[int]:
    """Offset of each of the nested boxes."""
    places, start = [], 0
    for name in names:
        start = content.index(name, start) - 4
        places.append(start)
        start += 8
    return places


def with_alias(content: bytes, path: Path) -> bytes:
    """A QuickTime file, index at its end, whose video's samples lie in another file."""
    target = os.fsencode(path)
    target += bytes(len(target) % 2)
    alias = struct.pack(">10xB27x12xB63x16xHH16x", 0, 0, 0, 0)
    alias += struct.pack(">HH", 2, len(target)) + target + struct.pack(">HH", 0xFFFF, 0)
    entry = struct.pack(">I4sI", 12 + len(alias), b"alis", 0) + alias
    nest = boxes_to(content, b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref")
    assert content.index(b"mdat") < nest[0], "chunk offsets must not move"
    dref = nest[-1]
    size = struct.unpack_from(">I", content, dref)[0]
    changed = bytearray(content[: dref + 16] + entry + content[dref + size :])
    for place in nest:
        before = struct.unpack_from(">I", content, place)[0]
        struct.pack_into(">I", changed, place, before + len(entry) - (size - 16))
    return bytes(changed)


def test_external_quicktime_track_is_not_followed(tmp_path):
    other = other_video(tmp_path)
    content = with_alias(stream_bytes(NAME), other)
    followed = {"enable_drefs": "1", "use_absolute_path": "1"}
    with av.open(io.BytesIO(content), format="mov", options=followed) as container:
        assert sum(p.size > 0 for p in container.demux(video=0)) == NUM_FRAMES, "the lure works"
    path = tmp_path / "lure.mov"
    path.write_bytes(content)
    assert num_packets(content) == num_packets(path) == 0


def test_unsupported_container_error_gives_a_command():
    with pytest.raises(NotVideo) as caught, opened(encoded("ivf", "libvpx")):
        pass
    assert "mkv" in caught.value.what and "DKIF" in caught.value.what
    assert "OUT.mp4" in caught.value.fix


def encoded(container: str, codec: str) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=container) as target:
        stream = target.add_stream(codec, rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(NUM_FRAMES):
            frame = av.VideoFrame(64, 48, "yuv420p")
            frame.pts = number
            target.mux(stream.encode(frame))
        target.mux(stream.encode())
    return file.getvalue()
