"""One shard of the cache: the clips of one chunk as plain .npy arrays and a header.json.

shard_0000/{frames,prints,timestamps,times,egomotion,track}.npy + header.json

Any program can open the arrays with `np.load(path, mmap_mode="r")`. If the header says `"storage":
"jpeg"`, {jpeg,offsets,crc32}.npy replace frames.npy (see `jpeg`). With `processing.obstacles`,
there is obstacles.npy too, and the header has `obstacle_columns`.

Windows are read with `pread` instead of through a memory map. For a window of 22 MB, this took
1.9 ms for a file just written, 3.2 ms from the page cache and 20 ms from the disk; copying from a
memory map took 2.8 to 6 ms, and 28 ms from the disk.
"""

from __future__ import annotations

import functools
import hashlib
import io
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from avomni_lib import files
from avomni_lib.errors import AvomniError, pick
from avomni_lib.etl.cache import jpeg

FORMAT_VERSION = 2  # 1 had no prints
HEADER_FILE = "header.json"
CLIPS_FILE = "clips.json"  # of the whole cache
BUILD_AGAIN = "run 03_etl again; it keeps what is whole"
# The byte order is explicit, so that a cache can be copied to another machine.
_ROWS = {"prints": "<u8", "timestamps": "<i8", "times": "<i8", "egomotion": "<f8", "track": "<f8"}
STORAGES = {
    "raw": {"frames": "|u1", **_ROWS},
    "jpeg": {"jpeg": "|u1", "offsets": "<i8", "crc32": "<u4", **_ROWS},
}
OBSTACLES = {"obstacles": "<f8"}
EGOMOTION_COLUMNS = ("x", "y", "z", "qx", "qy", "qz", "qw", "vx", "vy", "vz", "distance_m")
TRACK_COLUMNS = ("time_us", "x", "y", "z", "qx", "qy", "qz", "qw", "distance_m")
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class CachedClip:
    """A clip's place in the cache.

    Attributes:
        shard: Index into `Cache.shards`.
        start, stop: Its rows of frames, timestamps, times and egomotion.
        track_start, track_stop: Its rows of track.
        obstacles: Its rows (start, stop) of obstacles, in a cache that has them.
        unlabelled: Why there are no labels of other road users; empty if there are.
        events: (start_us, text) of the events that human annotators described.
    """

    clip_id: str
    split: str
    chunk: int
    shard: int
    start: int
    stop: int
    track_start: int
    track_stop: int
    obstacles: tuple[int, int] = (0, 0)
    unlabelled: str = ""
    events: tuple[tuple[int, str], ...] = ()

    def __len__(self) -> int:
        return self.stop - self.start


def arrays_in(header: Mapping[str, Any]) -> Mapping[str, str]:
    """Name -> dtype of the arrays of a shard with this header."""
    arrays = STORAGES[header["storage"]]
    return arrays | OBSTACLES if "obstacle_columns" in header else arrays


def pack_notes(notes: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The optional fields of a clip's header row (events, unlabelled, phase_us) as an array."""
    notes = {name: notes[name] for name in ("events", "unlabelled", "phase_us") if notes.get(name)}
    return {"notes": np.array(json.dumps(notes))} if notes else {}


def check_version(header: Mapping[str, Any], path: Path) -> None:
    version = header.get("format_version")
    if version != FORMAT_VERSION:
        raise AvomniError(
            f"the cache has format version {version}, this program reads {FORMAT_VERSION}",
            where=str(path),
            fix="run 03_etl again: it makes the cache anew, from raw files that it fetches again "
            "where they were evicted; or use the program that wrote it "
            f"({header.get('generator', 'unknown')})",
        )


@dataclass(frozen=True)
class Shard:
    """The arrays of one chunk on the disk, memory-mapped on access."""

    folder: Path
    header: dict[str, Any]

    def _load(self, name: str) -> np.ndarray:
        state = file_state(self.folder / f"{name}.npy", self.header["arrays"][name]["bytes"])
        return _mapped(self.folder / f"{name}.npy", state.st_ino, state.st_mtime_ns)

    @property
    def storage(self) -> str:
        """`raw` or `jpeg`."""
        return self.header["storage"]

    @property
    def num_frames(self) -> int:
        return self.header["arrays"]["times"]["shape"][0]

    @property
    def frames(self) -> np.ndarray | jpeg.JpegFrames:
        """(N, H, W, 3) uint8 RGB: memory-mapped, or JPEGs that are decoded on access."""
        if self.storage == "raw":
            return self._load("frames")
        data, offsets, crc32 = (self._load(name) for name in ("jpeg", "offsets", "crc32"))
        return jpeg.JpegFrames(data, offsets, crc32, self.header["frames_shape"], self.describe)

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """(H, W, 3)."""
        raw = self.storage == "raw"
        shape = self.header["arrays"]["frames"]["shape"] if raw else self.header["frames_shape"]
        return tuple(shape[1:])

    def read_frames(self, start: int, out: np.ndarray) -> None:
        """Fill `out` (T, H, W, 3) uint8, C-contiguous, with the frames from row `start` on."""
        if self.storage == "raw":
            read_rows(self.folder / "frames.npy", self.header["arrays"]["frames"], start, out)
        else:
            self.frames.read(range(start, start + len(out)), out)

    @property
    def prints(self) -> np.ndarray:
        """(N, 2, words) uint64: perceptual hash of each frame (`etl.clip.fingerprints`)."""
        return self._load("prints")

    @property
    def timestamps(self) -> np.ndarray:
        """(N, cameras) int64 µs: capture time of each camera's picture."""
        return self._load("timestamps")

    @property
    def times(self) -> np.ndarray:
        """(N,) int64 µs: the wanted times."""
        return self._load("times")

    @property
    def egomotion(self) -> np.ndarray:
        """(N, 11) float64 at `times`, columns `EGOMOTION_COLUMNS`: m, m/s, anchor frame."""
        return self._load("egomotion")

    @property
    def track(self) -> np.ndarray:
        """(M, 9) float64 at 10 Hz, columns `TRACK_COLUMNS`; extends before and after the frames."""
        return self._load("track")

    @property
    def obstacles(self) -> np.ndarray:
        """(K, 10) float64 other road users, columns `obstacles.COLUMNS`: anchor frame, m."""
        return self._load("obstacles")

    def describe(self, row: int) -> str:
        """Name of a frame in error messages."""
        for clip in clips_of(self):
            if clip.start <= row < clip.stop:
                return f"{self.folder}, clip {clip.clip_id}, frame {row - clip.start}"
        return f"{self.folder}, frame {row}"

    def arrays_of(self, clip: CachedClip) -> Arrays:
        """A clip's part of every array as stored (JPEGs stay encoded), and its `pack_notes`."""
        rows = (row for row in self.header["clips"] if row["clip_id"] == clip.clip_id)
        arrays = pack_notes(next(rows))
        for name in arrays_in(self.header):
            array, part = self._load(name), slice(clip.start, clip.stop)
            if name == "track":
                part = slice(clip.track_start, clip.track_stop)
            elif name == "obstacles":
                part = slice(*clip.obstacles)
            elif name == "offsets":
                array, part = array - array[clip.start], slice(clip.start, clip.stop + 1)
            elif name == "jpeg":
                part = slice(*self._load("offsets")[[clip.start, clip.stop]])
            arrays[name] = array[part]
        return arrays


# A memory map keeps its file open. Reading windows of a thousand shards in random order would
# exceed the usual limit of 1,024 open files, and mapping a file again takes only 0.1 ms.
@functools.lru_cache(maxsize=256)
def _mapped(path: Path, *state: int) -> np.ndarray:
    return np.load(path, mmap_mode="r", allow_pickle=False)


def encode(arrays: Arrays, storage: str) -> Arrays:
    """Convert a clip's arrays, with frames (N, H, W, 3) uint8, to those that `storage` keeps.

    Raises:
        AvomniError: unknown storage.
    """
    names = pick(STORAGES, storage, "storage", "processing.storage")
    encoded = {**arrays, **jpeg.encode(arrays["frames"])} if storage == "jpeg" else arrays
    more = [name for name in OBSTACLES if name in arrays]
    return {name: encoded[name] for name in (*names, *more)}


def shard_name(chunk: int) -> str:
    return f"shard_{chunk:04d}"


def open_shard(folder: Path) -> Shard:
    """Open a shard and check the presence and size of its files.

    Raises:
        AvomniError: as `Cache.open`.
    """
    path = folder / HEADER_FILE
    if not path.exists():
        raise AvomniError("a shard has no header", where=str(folder), fix=BUILD_AGAIN)
    header = files.read_json(path)
    check_version(header, path)
    for name, entry in header["arrays"].items():
        file_state(folder / f"{name}.npy", entry["bytes"])
    return Shard(folder, header)


def clips_of(shard: Shard, place: int = 0) -> list[CachedClip]:
    """The clips of a shard, which has index `place` in the cache."""
    return [
        CachedClip(  # type: ignore[call-arg]
            row["clip_id"],
            row["split"],
            row["chunk"],
            place,
            *row["frames"],
            *row["track"],
            tuple(row.get("obstacles", (0, 0))),
            row.get("unlabelled", ""),
            tuple((event["start_us"], event["text"]) for event in row.get("events", ())),
        )
        for row in shard.header["clips"]
    ]


def write_shard(
    folder: Path,
    common: Mapping[str, Any],
    clips: Sequence[Mapping[str, Any]],
    load: Callable[[str], Arrays],
) -> Shard:
    """Write a shard atomically, replacing an existing one.

    Args:
        common: Header fields; `storage` and `obstacle_columns` determine the arrays.
        clips: clip_id, split and chunk of each clip, in order.
        load: clip_id -> its arrays as returned by `encode`, loaded lazily, one clip at a time; the
            array of `pack_notes` goes into the clip's header row.

    Raises:
        AvomniError: no room on the disk; nothing is left behind.
    """
    fresh, old = _beside(folder)
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        ids, storage = [clip["clip_id"] for clip in clips], common["storage"]
        header: dict[str, Any] = {"format_version": FORMAT_VERSION, **common, "arrays": {}}
        counted = {"frames": "times", "track": "track"}
        if "obstacles" in arrays_in(common):
            counted["obstacles"] = "obstacles"
        ranges = {
            name: _ranges([len(load(clip_id)[array]) for clip_id in ids])
            for name, array in counted.items()
        }
        num_frames = ranges["frames"][-1][1]
        lengths = dict.fromkeys(arrays_in(common), num_frames)
        lengths |= {name: ranges[name][-1][1] for name in counted if name != "frames"}
        starts: list[int] = []
        if storage == "jpeg":
            blobs = _ranges([int(load(clip_id)["offsets"][-1]) for clip_id in ids])
            starts = [start for start, _ in blobs]
            lengths |= {"jpeg": blobs[-1][1], "offsets": num_frames + 1}
            first = load(ids[0])
            picture = first["jpeg"][: first["offsets"][1]]
            header["frames_shape"] = [num_frames, *jpeg.frame_shape(picture)]
        for name, dtype in arrays_in(common).items():
            shape = (lengths[name], *load(ids[0])[name].shape[1:])
            pieces = (load(clip_id)[name] for clip_id in ids)
            if name == "offsets":
                pieces = _joined(pieces, starts)
            header["arrays"][name] = write_array(fresh / f"{name}.npy", dtype, shape, pieces)
        header["clips"] = []
        for n, clip in enumerate(clips):
            rows = {name: ranges[name][n] for name in counted}
            notes = load(clip["clip_id"]).get("notes", "{}")
            header["clips"].append({**clip, **rows, **json.loads(str(notes))})
        files.write_json(fresh / HEADER_FILE, header)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    if folder.exists():
        os.replace(folder, old)
    os.replace(fresh, folder)
    files.fsync_folder(folder.parent)
    _mapped.cache_clear()  # a map of the old file would keep its disk space occupied
    shutil.rmtree(old, ignore_errors=True)
    return open_shard(folder)


def undo_interrupted_writes(folder: Path) -> None:
    """Undo interrupted `write_shard` calls in a cache that no other process writes to."""
    for left in [*folder.glob(".shard_*.old"), *folder.glob(".shard_*.new")]:
        undo_interrupted_write(folder / left.stem.removeprefix("."))


def undo_interrupted_write(folder: Path) -> None:
    """Undo an interrupted `write_shard` of this shard."""
    fresh, old = _beside(folder)
    if old.exists() and not folder.exists():
        os.replace(old, folder)
    for left in (fresh, old):
        shutil.rmtree(left, ignore_errors=True)


def _beside(folder: Path) -> tuple[Path, Path]:
    """Temporary folders of the new shard and of the one that it replaces."""
    return folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")


def _joined(offsets: Iterable[np.ndarray], starts: Sequence[int]) -> Iterator[np.ndarray]:
    """Convert the offsets of single clips to offsets into the shard's jpeg.npy."""
    yield np.zeros(1, np.int64)
    for clip_offsets, start in zip(offsets, starts, strict=True):
        yield clip_offsets[1:] + start


def _ranges(counts: Sequence[int]) -> list[list[int]]:
    stops = np.cumsum(counts).tolist()
    return [[stop - count, stop] for stop, count in zip(stops, counts, strict=True)]


def file_state(path: Path, num_bytes: int) -> os.stat_result:
    """The file's `stat` if its size is right; reading a map past a file's end kills the process.

    Raises:
        AvomniError: it is missing, or differs in size from its header.
    """
    try:
        state = path.stat()
    except FileNotFoundError:
        what = "is missing"
    else:
        if state.st_size == num_bytes:
            return state
        what = f"has {state.st_size:,} of {num_bytes:,} bytes"
    raise AvomniError(f"an array of the cache {what}", where=str(path), fix=BUILD_AGAIN)


def read_rows(path: Path, entry: Mapping[str, Any], start: int, out: np.ndarray) -> None:
    """Read `len(out)` rows from `start` on into `out`.

    The file is opened for each call, which costs microseconds: no files stay open, however many
    shards there are, and threads and processes share no state. The GIL is released meanwhile.

    Args:
        path: A .npy file.
        entry: Its entry in the shard's header: shape and bytes.
        out: C-contiguous, of the file's dtype. If it is not aligned to 64 bytes (PyTorch's arrays
            are, NumPy's large ones are not), the copy takes up to twice as long.

    Raises:
        AvomniError: the file is missing, cut short, or cannot be read.
    """
    file_state(path, entry["bytes"])
    num_rows, row_bytes = entry["shape"][0], out[0].nbytes
    # Counted from the end of the file, as the length of the .npy header varies.
    offset = entry["bytes"] - (num_rows - start) * row_bytes
    left = memoryview(out).cast("B")
    try:
        file = os.open(path, os.O_RDONLY)
        try:
            while left:  # one call reads at most 2 GiB
                count = os.preadv(file, [left], offset)
                if count == 0:
                    raise OSError("it ends too early")
                left, offset = left[count:], offset + count
        finally:
            os.close(file)
    except OSError as error:
        raise AvomniError(
            f"an array of the cache cannot be read: {error}", where=str(path), fix=BUILD_AGAIN
        ) from error


def write_array(
    path: Path, dtype: str, shape: tuple[int, ...], pieces: Iterable[np.ndarray]
) -> dict[str, Any]:
    """Write an array (N, ...), whose rows come in pieces, atomically.

    Returns:
        dtype, shape, bytes and sha256 of the file.

    Raises:
        AvomniError: no room on the disk.
    """
    digest, head = hashlib.sha256(), io.BytesIO()
    fields = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(head, fields)
    # An empty view cannot be cast to bytes.
    rows = (np.ascontiguousarray(p, dtype=dtype).data.cast("B") for p in pieces if len(p))
    with files.write_whole(path) as file:
        for block in itertools.chain([head.getvalue()], rows):
            digest.update(block)
            file.write(block)
        size = file.tell()
    return {"dtype": dtype, "shape": list(shape), "bytes": size, "sha256": digest.hexdigest()}
