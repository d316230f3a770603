"""CPU seconds to read 40 of 600 frames, beside decord and the ffmpeg command line; frames right.

    python -m tests.benchmarks.decode

Writes outputs/benchmarks/decode.json. CPU seconds are those of user and system together, one thread
each, decoders taking turns, so that other work on the machine disturbs the ratios little.
"""

from __future__ import annotations

import gc
import os
import platform
import subprocess
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from statistics import median

import av
import decord
import imageio_ffmpeg
import numpy as np

from avomni_lib import files
from avomni_lib.etl.clip import sampling
from avomni_lib.etl.video import reader as video
from avomni_lib.etl.video import stream
from tests import streams
from tests.benchmarks import drive
from tests.benchmarks.drive import Encoding

FOLDER = files.PROJECT_ROOT / "outputs" / "benchmarks"
SIZE = (448, 252)
HZ, EVERY = 2.0, 15  # of 30 frames a second
ROUNDS, OTHER_ROUNDS = 5, 3
ALIGNED = "H.264 GOP 15, 2 B"
SAME = {"maxrate": "12M", "bufsize": "12M", "preset": "faster"}


def _h264(gop: int, num_b: int, num_frames: int) -> Encoding:
    x264 = f"keyint={gop}:min-keyint={gop}:scenecut=0:bframes={num_b}"
    return Encoding("libx264", SAME | {"b": "8M", "x264-params": x264}, num_frames)


MAIN = "H.264 GOP 30, 2 B"
ENCODINGS = {
    MAIN: _h264(30, 2, 600),
    "H.264 GOP 60, 3 B": _h264(60, 3, 300),
    "H.264 GOP 15, 2 B": _h264(15, 2, 300),
    "H.264 GOP 30, no B": _h264(30, 0, 300),
    "HEVC GOP 30, 2 B, open": Encoding(
        "libx265",
        {
            "preset": "superfast",
            "b": "6M",
            "x265-params": "keyint=30:min-keyint=30:scenecut=0:bframes=2:open-gop=1:log-level=none",
        },
        300,
    ),
}


def by_ours(path: Path, rows: np.ndarray, num_frames: int) -> np.ndarray:
    stamps = np.rint(np.arange(num_frames) * 1e6 / drive.FPS).astype(np.int64)
    frames = video.read_frames(path, stamps[rows], timestamps_us=stamps, size=SIZE, decoder="pyav")
    return frames.images


def by_decord(path: Path, rows: np.ndarray) -> np.ndarray:
    """As its users call it; its frames are not checked."""
    reader = decord.VideoReader(str(path), num_threads=1, width=SIZE[0], height=SIZE[1])
    return reader.get_batch(rows.tolist()).asnumpy()


def by_ffmpeg(path: Path, rows: np.ndarray) -> tuple[np.ndarray, float]:
    """The pictures of every 15th frame from `rows[0]` on, and the child's CPU seconds."""
    chosen = f"select='gte(n,{rows[0]})*not(mod(n-{rows[0]},{EVERY}))'"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-threads", "1", "-i", str(path)]
    command += ["-filter_threads", "1", "-fps_mode", "passthrough"]
    command += ["-vf", f"{chosen},scale={SIZE[0]}:{SIZE[1]}:flags=area,format=rgb24"]
    command += ["-f", "rawvideo", "pipe:1"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE)
    content = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.stdout.close()
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(f"ffmpeg failed: {' '.join(command)}")
    images = np.frombuffer(content, np.uint8).reshape(-1, SIZE[1], SIZE[0], 3)
    return images, usage.ru_utime + usage.ru_stime


def measured(read: Callable[..., np.ndarray], *arguments: object) -> tuple[np.ndarray, float]:
    """What `read` gives, and the CPU seconds of this process."""
    gc.collect()
    started = time.process_time()
    images = read(*arguments)
    return images, time.process_time() - started


def compare(path: Path, num_frames: int, rows: np.ndarray, rounds: int, with_ffmpeg: bool) -> dict:
    """Medians of alternated rounds: CPU seconds, frames right, and the difference to ffmpeg."""
    readers = {
        "pyav": lambda: measured(by_ours, path, rows, num_frames),
        "decord": lambda: measured(by_decord, path, rows),
    }
    if with_ffmpeg:
        readers["ffmpeg"] = lambda: by_ffmpeg(path, rows)
    cpu_s: dict[str, list[float]] = {name: [] for name in readers}
    images, right = {}, {}
    for turn in range(rounds):
        for name in list(readers)[:: 1 if turn % 2 == 0 else -1]:
            images[name], seconds = readers[name]()
            cpu_s[name].append(round(seconds, 3))
            right[name] = sum(np.equal(drive.numbers(images[name]), rows).tolist())
    found = {
        "asked": len(rows),
        "right": right,
        "cpu_s": {name: round(median(each), 3) for name, each in cpu_s.items()},
        "rounds_cpu_s": cpu_s,
    }
    if with_ffmpeg:
        apart = images["pyav"].astype(np.int16) - images["ffmpeg"]
        found["mean_abs_diff_to_ffmpeg"] = round(float(np.abs(apart).mean()), 3)
    return found


def aligned(path: Path, num_frames: int, rounds: int) -> dict:
    """`processing.align` on a stream whose key frames divide the step, from a start between them.

    CPU seconds of ours with it and without, phase included, and of decord's without.
    """
    stamps = np.rint(np.arange(num_frames) * 1e6 / drive.FPS).astype(np.int64)
    first = EVERY // 2  # as where another camera starts later
    of_two = [stamps, stamps[first:]]

    def ours(align: bool) -> np.ndarray:
        with stream.opened(path) as video_stream:
            rows = video_stream.key_rows
            keys = [rows, rows[rows >= first] - first] if align else []
            times, _ = sampling.times_of(of_two, int(stamps[-1]), HZ, keys)
            found = video.read_frames(video_stream, times, timestamps_us=stamps, size=SIZE)
        return found.images

    cpu_s: dict[str, list[float]] = {"aligned": [], "as it starts": [], "decord": []}
    rows = np.arange(first, num_frames, EVERY)
    readers = {
        "aligned": lambda: ours(True),
        "as it starts": lambda: ours(False),
        "decord": lambda: by_decord(path, rows),
    }
    for _ in range(rounds):
        for name, read in readers.items():
            images, seconds = measured(read)
            cpu_s[name].append(seconds / len(images))
            if name == "aligned" and any(n % EVERY for n in drive.numbers(images)):
                raise RuntimeError(f"not all frames of {path} are key frames")
    found = {name: round(median(each), 5) for name, each in cpu_s.items()}
    return {
        "cpu_s_a_frame": found,
        "over_decord": round(found["aligned"] / found["decord"], 3),
        "over_not_aligned": round(found["aligned"] / found["as it starts"], 3),
    }


def count_right() -> dict[str, tuple[int, int]]:
    """(frames right, frames asked) of each small stream, in random order with repeats."""
    rng, counts = np.random.default_rng(7), {}
    for name in streams.SPECS:
        content = streams.stream_bytes(name)
        with stream.opened(content) as opened:
            stamps = opened.times_us
        right = asked = 0
        for size in (1, 2, 7, 40, 150):
            rows = rng.integers(0, len(stamps), size)
            frames = video.read_frames(content, stamps[rows], timestamps_us=stamps)
            right += int(np.equal(streams.numbers(frames.images, name), rows).sum())
            asked += size
        counts[name] = (right, asked)
    return counts


def main() -> None:
    started = time.monotonic()
    paths = drive.encoded(FOLDER / "clips", ENCODINGS)
    clips = {}
    for name, each in ENCODINGS.items():
        rows = np.arange(0, each.num_frames, EVERY)
        rounds = ROUNDS if name == MAIN else OTHER_ROUNDS
        clips[name] = compare(paths[name], each.num_frames, rows, rounds, name == MAIN)
    off_grid = "H.264 GOP 30, 2 B, between key frames"
    rows = np.arange(7, 600, EVERY)
    clips[off_grid] = compare(paths[MAIN], 600, rows, OTHER_ROUNDS, True)
    keyed = aligned(paths[ALIGNED], ENCODINGS[ALIGNED].num_frames, ROUNDS)
    counts = count_right()
    head = clips[MAIN]
    record = {
        "pyav_over_decord_cpu": round(head["cpu_s"]["pyav"] / head["cpu_s"]["decord"], 3),
        "pyav_over_ffmpeg_cpu": round(head["cpu_s"]["pyav"] / head["cpu_s"]["ffmpeg"], 3),
        "frames_right": sum(right for right, _ in counts.values())
        + sum(each["right"]["pyav"] for each in clips.values()),
        "frames_asked": sum(asked for _, asked in counts.values())
        + sum(each["asked"] for each in clips.values()),
        "mean_abs_diff_to_ffmpeg": head["mean_abs_diff_to_ffmpeg"],
        "aligned": keyed,
        "clips": clips,
        "streams": {name: {"right": r, "asked": n} for name, (r, n) in counts.items()},
        "size": SIZE,
        "megabits": {
            name: round(path.stat().st_size * 8e-6 / ENCODINGS[name].num_frames * drive.FPS, 2)
            for name, path in paths.items()
        },
        "versions": {name: metadata.version(name) for name in ("av", "decord", "imageio-ffmpeg")}
        | {"ffmpeg": imageio_ffmpeg.get_ffmpeg_version(), "python": platform.python_version()}
        | {"libavcodec": ".".join(map(str, av.library_versions["libavcodec"]))},
        "seconds": round(time.monotonic() - started, 1),
    }
    files.write_json(FOLDER / "decode.json", record)
    print(report(record))


def report(record: dict) -> str:
    """The record as one table."""
    rows = [
        ("1080p to 448×252", "frames", "PyAV s", "decord s", "PyAV/decord", "ffmpeg s", "right")
    ]
    for name, each in record["clips"].items():
        cpu_s, right = each["cpu_s"], each["right"]
        ratio = f"{cpu_s['pyav'] / cpu_s['decord']:.2f}"
        if right["decord"] < each["asked"]:
            ratio = f"decord wrong: {each['asked'] - right['decord']}"
        ffmpeg = f"{cpu_s['ffmpeg']:.2f}" if "ffmpeg" in cpu_s else ""
        seconds = (f"{cpu_s['pyav']:.2f}", f"{cpu_s['decord']:.2f}")
        rows.append((name, each["asked"], *seconds, ratio, ffmpeg, right["pyav"]))
    return "\n".join(
        [
            drive.table(rows),
            "",
            f"PyAV's CPU seconds: {record['pyav_over_decord_cpu']} of decord's, "
            f"{record['pyav_over_ffmpeg_cpu']} of the ffmpeg command line's ({MAIN})",
            f"processing.align on {ALIGNED}, from between key frames: "
            f"{record['aligned']['over_decord']} of decord's CPU, "
            f"{record['aligned']['over_not_aligned']} of ours without it",
            f"frames right: {record['frames_right']:,} of {record['frames_asked']:,} in "
            f"{len(record['streams']) + len(record['clips'])} streams; mean difference to ffmpeg's "
            f"picture: {record['mean_abs_diff_to_ffmpeg']} levels",
            f"{record['seconds']} s; all of it in {FOLDER / 'decode.json'}",
        ]
    )


if __name__ == "__main__":
    main()
