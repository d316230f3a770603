"""One shard of the cache: plain .npy arrays and a header.json, the clips of one chunk.

shard_0000/{frames,prints,timestamps,times,egomotion,track}.npy + header.json

Any program opens the arrays with `np.load(path, mmap_mode="r")`. Where the header says `"storage":
"jpeg"`, {jpeg,offsets,crc32}.npy stand for frames.npy (see `jpeg`). With `processing.obstacles`
there is obstacles.npy too, and the header bears `obstacle_columns`.

Rows are read into memory past any mapping: a window of 22 MB took 1.9 ms that way where the file
had just been written, 3.2 ms where the system had read it from the disk before, 20 ms from the
disk; copied out of a mapping it took 2.8 to 6 ms, and 28 ms.
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
# Explicit byte order: a cache can be carried to another machine.
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
    """Where a clip lies in the cache.

    Attributes:
        shard: Index into `Cache.shards`.
        start, stop: Its rows of frames, timestamps, times and egomotion.
        track_start, track_stop: Its rows of track.
        obstacles: Its rows (start, stop) of obstacles, in a cache that has them.
        unlabelled: Why nothing is known of other road users; empty where they are labelled.
        events: (start_us, text) of what people wrote about it.
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
    """Array -> dtype of a shard that has this header."""
    found = STORAGES[header["storage"]]
    return found | OBSTACLES if "obstacle_columns" in header else found


def pack_notes(notes: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """What a clip's row of the header says of others, events and phase, as one of its arrays."""
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
    """One chunk's arrays on the disk, mapped when they are asked for."""

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
        """(N, H, W, 3) uint8 RGB: mapped, or decoded as it is read."""
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
        """(N, 2, words) uint64: what `etl.clip.prints` makes of each frame, for the leak check."""
        return self._load("prints")

    @property
    def timestamps(self) -> np.ndarray:
        """(N, cameras) int64 µs: when each camera's picture was taken."""
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
        """(M, 9) float64 at 10 Hz, columns `TRACK_COLUMNS`, before and past the frames too."""
        return self._load("track")

    @property
    def obstacles(self) -> np.ndarray:
        """(K, 10) float64 others, columns `obstacles.COLUMNS`: anchor frame, m."""
        return self._load("obstacles")

    def describe(self, row: int) -> str:
        """What a message calls one of the frames."""
        for clip in clips_of(self):
            if clip.start <= row < clip.stop:
                return f"{self.folder}, clip {clip.clip_id}, frame {row - clip.start}"
        return f"{self.folder}, frame {row}"

    def arrays_of(self, clip: CachedClip) -> Arrays:
        """One clip's part of every array as it is stored, and what its header's row tells beside
        them: JPEGs stay encoded."""
        rows = (row for row in self.header["clips"] if row["clip_id"] == clip.clip_id)
        found = pack_notes(next(rows))
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
            found[name] = array[part]
        return found


# A mapping keeps its file open. A thousand shards of a random order of windows would go past what
# a process may open (1,024 files as most systems set it), and mapping one again takes 0.1 ms.
@functools.lru_cache(maxsize=256)
def _mapped(path: Path, *state: int) -> np.ndarray:
    return np.load(path, mmap_mode="r", allow_pickle=False)


def encode(arrays: Arrays, storage: str) -> Arrays:
    """A clip's arrays, with frames (N, H, W, 3) uint8, as `storage` keeps them.

    Raises:
        AvomniError: no storage has this name.
    """
    names = pick(STORAGES, storage, "storage", "processing.storage")
    encoded = {**arrays, **jpeg.encode(arrays["frames"])} if storage == "jpeg" else arrays
    more = [name for name in OBSTACLES if name in arrays]
    return {name: encoded[name] for name in (*names, *more)}


def shard_name(chunk: int) -> str:
    return f"shard_{chunk:04d}"


def open_shard(folder: Path) -> Shard:
    """One shard, its files checked for presence and size.

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
    """The clips of a shard that is the cache's number `place`."""
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
    """Write a shard, whole or not at all, in place of what is there.

    Args:
        folder: Where it will lie.
        common: Header fields; `storage` and `obstacle_columns` say which arrays there are.
        clips: clip_id, split and chunk of each, in order.
        load: clip_id -> its arrays as `encode` gives them, lazily: what is asked for is read, one
            clip at a time. What `pack_notes` makes goes into the clip's row of the header.

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
    _mapped.cache_clear()  # a mapping of the old one would keep its room on the disk taken
    shutil.rmtree(old, ignore_errors=True)
    return open_shard(folder)


def settle(folder: Path) -> None:
    """Undo what killed `write_shard`s left half-done in a cache in which no other one writes."""
    for left in [*folder.glob(".shard_*.old"), *folder.glob(".shard_*.new")]:
        settle_shard(folder / left.stem.removeprefix("."))


def settle_shard(folder: Path) -> None:
    """Undo what a killed `write_shard` of this one left half-done."""
    fresh, old = _beside(folder)
    if old.exists() and not folder.exists():
        os.replace(old, folder)
    for left in (fresh, old):
        shutil.rmtree(left, ignore_errors=True)


def _beside(folder: Path) -> tuple[Path, Path]:
    """Where a shard is written anew, and where the old one is put aside."""
    return folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")


def _joined(offsets: Iterable[np.ndarray], starts: Sequence[int]) -> Iterator[np.ndarray]:
    """The clips' own offsets as those of all their pictures together."""
    yield np.zeros(1, np.int64)
    for own, start in zip(offsets, starts, strict=True):
        yield own[1:] + start


def _ranges(counts: Sequence[int]) -> list[list[int]]:
    stops = np.cumsum(counts).tolist()
    return [[stop - count, stop] for stop, count in zip(stops, counts, strict=True)]


def file_state(path: Path, num_bytes: int) -> os.stat_result:
    """A file's state if it has its bytes: to touch a mapping past the end kills the process.

    Raises:
        AvomniError: it is missing, or has not the size that its header says.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        what = "is missing"
    else:
        if found.st_size == num_bytes:
            return found
        what = f"has {found.st_size:,} of {num_bytes:,} bytes"
    raise AvomniError(f"an array of the cache {what}", where=str(path), fix=BUILD_AGAIN)


def read_rows(path: Path, entry: Mapping[str, Any], start: int, out: np.ndarray) -> None:
    """Read the rows from `start` on into `out`, which says how many.

    The file is opened for this reading alone, which costs microseconds: nothing stays open, however
    many shards there are, and threads and processes share nothing. Other threads run meanwhile.

    Args:
        path: A .npy file.
        entry: Its entry in the shard's header: shape and bytes.
        start: The first row.
        out: C-contiguous, of the file's dtype. Where it does not start at a multiple of 64 bytes,
            as NumPy's own large arrays do not and PyTorch's do, the copy takes up to twice as long.

    Raises:
        AvomniError: the file is missing, cut short, or the system cannot read it.
    """
    file_state(path, entry["bytes"])
    num_rows, row_bytes = entry["shape"][0], out[0].nbytes
    # The rows end where the file does; before them lies the .npy header.
    offset = entry["bytes"] - (num_rows - start) * row_bytes
    left = memoryview(out).cast("B")
    try:
        file = os.open(path, os.O_RDONLY)
        try:
            while left:  # one call gives 2 GiB at most
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
    """Write an array (N, ...) whose rows come in pieces, whole or not at all.

    Returns:
        dtype, shape, bytes and sha256 of the file.

    Raises:
        AvomniError: no room on the disk.
    """
    digest, head = hashlib.sha256(), io.BytesIO()
    fields = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(head, fields)
    # A view without rows cannot be cast to bytes.
    rows = (np.ascontiguousarray(p, dtype=dtype).data.cast("B") for p in pieces if len(p))
    with files.write_whole(path) as file:
        for block in itertools.chain([head.getvalue()], rows):
            digest.update(block)
            file.write(block)
        size = file.tell()
    return {"dtype": dtype, "shape": list(shape), "bytes": size, "sha256": digest.hexdigest()}
