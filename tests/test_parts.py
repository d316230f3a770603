"""A clip's part: bytes read and written, memory, and the assembly of a chunk."""

from __future__ import annotations

import os
import statistics
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from avomni_lib.dataset import cameras, stored_zip
from avomni_lib.etl.cache import shard
from avomni_lib.etl.clip.sampling import Recipe
from avomni_lib.etl.run import parts
from avomni_lib.workers import run_jobs
from tests.linked_set import linked_id, num_frames, with_free_box, write_linked_set
from tests.published_set import chunk_path, encode_video, frame_bits

SETUPS = {setup: [c.name for c in cameras.grid(setup).cameras] for setup in ("4-cam", "7-cam")}
MEGABYTE = 1 << 20


def video(camera_idx: int, seconds: float, size: tuple[int, int] = (64, 48)) -> bytes:
    count = num_frames(seconds)
    return encode_video([frame_bits(0, camera_idx, i, *size) for i in range(count)])


def videos(setup: str, seconds: float, extra_bytes: int = 0) -> dict[str, bytes]:
    contents = {}
    for camera_idx, camera in enumerate(cameras.CAMERAS):
        if camera.name in SETUPS[setup]:
            plain = video(camera_idx, seconds)
            contents[camera.name] = with_free_box(plain, extra_bytes) if extra_bytes else plain
    return contents


def recipe(setup: str = "4-cam", tile=(32, 24), sample_hz=10.0, decoder="pyav") -> Recipe:
    return Recipe(setup, tile, "letterbox", sample_hz, 1.0, decoder)


def job(folder: Path, number: int, where: Path, how: Recipe) -> parts.ClipJob:
    return parts.ClipJob(linked_id(number), 0, folder, how, where / f"{number}.npz")


def io_of(pid: str = "self") -> dict[str, int]:
    """Counters of proc(5): `rchar` and `wchar` are the bytes of all reads and writes."""
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    return {name: int(count) for name, count in (line.split(": ") for line in lines)}


def counted(job: parts.ClipJob) -> tuple[str | None, int, int, list[str]]:
    """(reason, bytes read, bytes written, files opened for writing) while a part is made."""
    opened: list[str] = []
    if not hasattr(counted, "log"):
        counted.log = []
        sys.addaudithook(_note_writes)
    counted.log, before = opened, io_of()
    outcome = parts.make_part(job)
    after, counted.log = io_of(), []
    read, written = (after[name] - before[name] for name in ("rchar", "wchar"))
    return outcome.reason, read, written, opened


def _note_writes(event: str, arguments: tuple) -> None:
    if event == "open" and isinstance(arguments[2], int):
        path, _, flags = arguments
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            counted.log.append(str(path))


def weighed(job: parts.ClipJob) -> tuple[str | None, int]:
    """(reason, bytes of memory held by the process afterwards)."""
    outcome = parts.make_part(job)
    job.path.unlink(missing_ok=True)
    return outcome.reason, psutil.Process().memory_info().rss


def peak(job: parts.ClipJob) -> tuple[str | None, int]:
    """(reason, peak memory of the process in bytes)."""
    outcome = parts.make_part(job)
    status = Path("/proc/self/status").read_text().splitlines()
    high = next(line for line in status if line.startswith("VmHWM"))
    return outcome.reason, int(high.split()[1]) << 10


def test_only_the_clips_bytes_are_read_from_a_large_zip(tmp_path):
    """From each zip of 2 GB only its directory, once, and the clip's members are read."""
    video_files = videos("4-cam", 1.0, extra_bytes=MEGABYTE)
    folder = write_linked_set(tmp_path / "set", video_files, 1.0, 1, 3, filler_bytes=2_000_000_000)
    features = [*video_files, "egomotion"]
    zips = [folder / chunk_path(feature, 0) for feature in features]
    assert all(path.stat().st_size > 2_000_000_000 for path in zips)
    assert all(path.stat().st_blocks * 512 < 10 * MEGABYTE for path in zips), (
        "the files must be sparse"
    )
    clip_bytes = sum(
        entry.file_size
        for path in zips
        for name, entry in stored_zip.directory(path).entries.items()
        if name.startswith(linked_id(1))
    )
    assert clip_bytes > len(video_files) * MEGABYTE

    jobs = [job(folder, number, tmp_path, recipe()) for number in range(3)]
    outcomes = {job.path.stem: outcome for job, outcome in run_jobs(counted, jobs, 1)}
    for number in ("1", "2"):
        reason, read, written, opened = outcomes[number]
        part = tmp_path / f"{number}.npz"
        assert reason is None
        assert clip_bytes <= read < 1.02 * clip_bytes + 100_000
        assert part.stat().st_size <= written < part.stat().st_size + 10_000
        assert [Path(path).name.split(".")[1] for path in opened] == [number], opened
        assert Path(opened[0]).parent == tmp_path and opened[0].endswith(".partial")
    # The first clip of a chunk also reads the catalog, the zip directories and libraries.
    assert outcomes["0"][1] < clip_bytes + 40 * MEGABYTE and outcomes["0"][3] != []


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_worker_memory_stays_constant_over_80_clips(decoder, tmp_path):
    """Each file has an extra megabyte, so keeping files would show as hundreds of megabytes."""
    video_files = videos("4-cam", 0.4, extra_bytes=MEGABYTE)
    folder = write_linked_set(tmp_path / "set", video_files, 0.4, 1, 80)
    how = recipe(sample_hz=5.0, decoder=decoder)
    jobs = [job(folder, number, tmp_path, how) for number in range(80)]
    outcomes = [outcome for _, outcome in run_jobs(weighed, jobs, 1)]
    assert {reason for reason, _ in outcomes} == {None}
    held = [memory / MEGABYTE for _, memory in outcomes]
    growth = statistics.median(held[-10:]) - statistics.median(held[10:20])
    assert growth < 16, f"{growth:.0f} MB more after {len(video_files) * 60} files of 1 MB"


def test_worker_needs_less_than_700_mb_for_seven_1080p_cameras(tmp_path):
    """Files of 20 MB, and from one second of video as many grid frames as 20 s have at 2 Hz."""
    seconds, size = 1.3, (1920, 1080)
    pictures = [frame_bits(0, 0, i, *size) for i in range(num_frames(seconds))]
    video_file = with_free_box(encode_video(pictures), 20 * MEGABYTE)
    video_files = dict.fromkeys(SETUPS["7-cam"], video_file)
    folder = write_linked_set(tmp_path / "set", video_files, seconds, 1, 2)
    how = recipe("7-cam", (448, 256), sample_hz=38.0)
    jobs = [job(folder, number, tmp_path, how) for number in range(2)]
    outcomes = [outcome for _, outcome in run_jobs(peak, jobs, 1)]
    assert [reason for reason, _ in outcomes] == [None, None]
    with np.load(tmp_path / "1.npz") as part:
        assert len(part["times"]) >= 40 and part["frames"].shape[1:] == (768, 1344, 3)
    assert max(memory for _, memory in outcomes) < 700e6


def test_assembly_killed_between_two_renames_is_repeated(tmp_path):
    """One clip has a new part; the others are only in the old shard, which was renamed."""
    folder = write_linked_set(tmp_path / "set", videos("4-cam", 0.5), 0.5, 1, 3)
    ids = [linked_id(number) for number in range(3)]
    clips = [{"clip_id": clip_id, "split": "train", "chunk": 0} for clip_id in ids]
    work = parts.ChunkWork(tmp_path / "cache", 0, clips, "0" * 64, [])

    def make(*numbers: int) -> None:
        for number in numbers:
            where = work.part(ids[number])
            assert (
                parts.make_part(parts.ClipJob(ids[number], 0, folder, recipe(), where)).reason
                is None
            )

    make(0, 1)
    work.assemble({"storage": "raw"}, {ids[2]})
    make(2)
    os.replace(work.shard_folder, work.shard_folder.with_name(".shard_0000.old"))
    half = work.shard_folder.with_name(".shard_0000.new")
    half.mkdir()
    (half / "frames.npy").write_bytes(b"half")
    outcome = parts.do(parts.Assembly(work, {"storage": "raw"}, frozenset()))
    assert outcome.reason is None
    assert [clip.clip_id for clip in shard.clips_of(work.shard)] == ids
    frames = work.shard.frames
    assert np.array_equal(frames[: len(frames) // 3], frames[len(frames) // 3 * 2 :])
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == [".parts", "shard_0000"]
    assert not work.parts_folder.exists()
