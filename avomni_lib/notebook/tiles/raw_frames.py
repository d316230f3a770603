"""Grids of any choice out of the raw clips, as the ETL would make them, each frame decoded once.

Decoded frames stay in memory as they came out of the decoder, at full size. Another tile size, fit
or setup scales them anew, by the ETL's own scaler, and decodes nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import av
import numpy as np

from avomni_lib.dataset import cameras
from avomni_lib.dataset.catalog import Catalog
from avomni_lib.dataset.clip import Clip
from avomni_lib.dataset.select.evicted import read_evicted
from avomni_lib.errors import AvomniError
from avomni_lib.etl.clip import tiling
from avomni_lib.etl.video import reader as video
from avomni_lib.etl.video import stream
from avomni_lib.etl.video.pyav_reader import decode, picture, upright_size
from avomni_lib.notebook.run import runs
from avomni_lib.notebook.tiles.choice import Choice
from avomni_lib.params import Params

MEMORY_BYTES = 1 << 30
BLOCK = 16  # frames of a window that are decoded in one go
Key = tuple[str, str, int]  # clip_id, camera, row of its timestamps


class RawFrames:
    """Grid frames of other choices than the cache's.

    Args:
        limit_bytes: Of decoded frames in memory; the latest block is kept even where it is larger.

    Attributes:
        num_decoded: Frames that were decoded so far, over all cameras.
    """

    def __init__(self, p: Params, limit_bytes: int = MEMORY_BYTES):
        self.p, self.limit_bytes = p, limit_bytes
        self.num_decoded = 0
        self._catalog: Catalog | None = None
        self._kept: OrderedDict[Key, av.VideoFrame] = OrderedDict()
        self._stamps: OrderedDict[tuple[str, str], np.ndarray] = OrderedDict()

    @property
    def num_bytes(self) -> int:
        """Of the decoded frames that are in memory."""
        return sum(_size_of(frame) for frame in self._kept.values())

    @property
    def catalog(self) -> Catalog:
        self._catalog = self._catalog or Catalog.of(self.p)
        return self._catalog

    def clip(self, clip_id: str, camera: str | None = None) -> Clip:
        """A clip where its files lie: the rendered world has cameras that the run did not fetch."""
        folder = self.p.local_dir
        if camera is not None:
            path = self.catalog.path(camera, self.catalog.chunk_of(clip_id))
            there = (each for each in runs.raw_folders(self.p) if (each / path).exists())
            folder = next(there, folder)
        return Clip(folder, self.catalog, clip_id)

    def grid_frame(
        self, clip_id: str, times_us: np.ndarray, frame: int, choice: Choice
    ) -> np.ndarray:
        """(H, W, 3) uint8 RGB: one frame of a window, each camera's last one at or before its time.

        Args:
            times_us: (T,) of the window; the frames around `frame` are decoded with it.

        Raises:
            AvomniError: a file of the clip is not on the disk, evicted, or damaged.
        """
        grid, block = choice.grid, frame // BLOCK * BLOCK
        height, width = choice.size
        image = np.zeros((1, height, width, 3), dtype=np.uint8)
        for camera in grid.cameras:
            rows = self._rows(clip_id, camera.name, times_us[block : block + BLOCK])
            shown = self._decoded(clip_id, camera.name, rows)[frame - block]
            self._place(shown, tiling.tile_of(image, grid, choice.tile, camera.name), choice.fit)
        self._forget()
        return image[0]

    def grid_frames(self, clip_id: str, times_us: np.ndarray, choice: Choice) -> np.ndarray:
        """(T, H, W, 3) uint8 RGB of a whole window; see `grid_frame`."""
        frames = range(len(times_us))
        return np.stack([self.grid_frame(clip_id, times_us, k, choice) for k in frames])

    def _place(self, shown: av.VideoFrame, tile: np.ndarray, fit: str) -> None:
        height, width = tile.shape[1:3]
        fitted = tiling.fit_tile(upright_size(shown), (width, height), fit)
        fitted.place(picture(shown, *fitted.resized)[None], tile)

    def _rows(self, clip_id: str, camera: str, times_us: np.ndarray) -> np.ndarray:
        """Which frames of the camera's video show these times."""
        key = (clip_id, camera)
        if key not in self._stamps:
            self._need_raw(clip_id, camera)
            self._stamps[key] = self.clip(clip_id, camera).timestamps(camera)
            while len(self._stamps) > 64:
                self._stamps.popitem(last=False)
        stamps = self._stamps[key]
        # Cameras that the run does not take may start later or end earlier than its own.
        return video.frame_indices(stamps, np.clip(times_us, stamps[0], stamps[-1]), camera)

    def _decoded(
        self, clip_id: str, camera: str, rows: Sequence[int] | np.ndarray
    ) -> list[av.VideoFrame]:
        """Frames of one camera's video, out of memory or decoded now."""
        keys = [(clip_id, camera, int(row)) for row in rows]
        missing = np.unique([key[2] for key in keys if key not in self._kept])
        if len(missing):
            with stream.opened(self.clip(clip_id, camera).video(camera)) as source:
                video.check_clock(self._stamps[clip_id, camera], source)
                frames = dict(decode(source, missing))
            self.num_decoded += len(missing)
            self._kept |= {(clip_id, camera, int(missing[n])): frames[n] for n in frames}
        for key in keys:
            self._kept.move_to_end(key)
        return [self._kept[key] for key in keys]

    def _forget(self) -> None:
        """Let the frames go that were not looked at for longest, but not the latest block."""
        excess = self.num_bytes - self.limit_bytes
        while excess > 0 and len(self._kept) > BLOCK * len(cameras.CAMERAS):
            excess -= _size_of(self._kept.popitem(last=False)[1])

    def _need_raw(self, clip_id: str, camera: str) -> None:
        """Say of evicted files that they are, not that they are missing."""
        evicted = read_evicted(self.p)
        path = self.catalog.path(camera, self.catalog.chunk_of(clip_id))
        if path in evicted:
            raise AvomniError(
                f"the raw files of this clip were evicted on {evicted[path]}; the cache holds "
                "the run's own choice alone",
                where=str(self.p.local_dir / path),
                fix="look at the run's own setup, tile, fit and rate; another choice needs raw "
                "files: a run with download.evict_raw: false",
            )
        folder = self.clip(clip_id, camera).folder
        if not (folder / path).exists() and self.p.dataset.source == "folder":
            raise AvomniError(
                f"{cameras.BY_NAME[camera].label} is not in the folder",
                where=str(folder / path),
                fix=self.catalog.mend,
            )
        if not (folder / path).exists():
            raise AvomniError(
                f"{cameras.BY_NAME[camera].label} is not on the disk: 02_download fetches the "
                f"cameras of vision.cameras, {cameras.grid(self.p.vision.cameras)}",
                where=str(folder / path),
                fix="fetch it, into the raw files that all runs share: python -m avomni_lib run "
                "PARAMS.yaml --only 01 02 --set run.name=look --set vision.cameras=7-cam",
            )


def _size_of(frame: av.VideoFrame) -> int:
    return sum(plane.buffer_size for plane in frame.planes)
