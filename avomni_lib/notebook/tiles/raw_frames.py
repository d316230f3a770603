"""Grids of any choice out of the raw clips, as the ETL would make them, each frame decoded once.

Decoded frames stay in memory as they came out of the decoder, at full size. Another tile size, fit
or setup scales them anew, by the ETL's own scaler, and decodes nothing.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Sequence

import av
import numpy as np

from avomni_lib.dataset import cameras
from avomni_lib.dataset.catalog import Catalog
from avomni_lib.dataset.clip import Clip, open_clip
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


class RawFrames:
    """Grid frames of other choices than the cache's.

    Args:
        limit_bytes: Of decoded frames in memory; the latest block is kept even where it is larger.

    Attributes:
        num_decoded: Frames that were decoded so far, over all cameras.
    """

    def __init__(self, p: Params, limit_bytes: int = MEMORY_BYTES):
        self.p, self.limit_bytes, self.num_decoded = p, limit_bytes, 0
        # By clip_id, camera and row of its timestamps, the one looked at last at the end.
        self._kept: OrderedDict[tuple[str, str, int], av.VideoFrame] = OrderedDict()
        self._stamps = functools.lru_cache(64)(self._read_stamps)

    @property
    def num_bytes(self) -> int:
        """Of the decoded frames that are in memory."""
        return sum(_size_of(frame) for frame in self._kept.values())

    @functools.cached_property
    def catalog(self) -> Catalog:
        return Catalog.of(self.p)

    def clip(self, clip_id: str, camera: str | None = None) -> Clip:
        """A clip where its files lie: the world may have cameras that the run did not fetch."""
        folder = self.p.local_dir
        if camera is not None:
            path = self.catalog.path(camera, self.catalog.chunk_of(clip_id))
            there = (each for each in runs.raw_folders(self.p) if (each / path).exists())
            folder = next(there, folder)
        return open_clip(folder, self.catalog, clip_id)

    def grid_frame(
        self, clip_id: str, times_us: np.ndarray, frame: int, choice: Choice
    ) -> np.ndarray:
        """(H, W, 3) uint8 RGB: one frame of a window, each camera's last one at or before its time.

        Args:
            times_us: (T,) of the window; the frames around `frame` are decoded with it.

        Raises:
            AvomniError: a file of the clip is not on the disk, evicted, or damaged.
        """
        block = frame // BLOCK * BLOCK
        image = np.zeros((1, *choice.size, 3), dtype=np.uint8)
        for camera in choice.grid.cameras:
            stamps = self._stamps(clip_id, camera.name)
            # Cameras that the run does not take may start later or end earlier than its own.
            times = np.clip(times_us[block : block + BLOCK], stamps[0], stamps[-1])
            rows = video.frame_indices(stamps, times, camera.name)
            shown = self._decoded(clip_id, camera.name, rows)[frame - block]
            tile = tiling.tile_of(image, choice.grid, choice.tile, camera.name)
            height, width = tile.shape[1:3]
            fitted = tiling.fit_tile(upright_size(shown), (width, height), choice.fit)
            fitted.place(picture(shown, *fitted.resized)[None], tile)
        excess = self.num_bytes - self.limit_bytes
        while excess > 0 and len(self._kept) > BLOCK * len(cameras.CAMERAS):
            excess -= _size_of(self._kept.popitem(last=False)[1])
        return image[0]

    def _decoded(
        self, clip_id: str, camera: str, rows: Sequence[int] | np.ndarray
    ) -> list[av.VideoFrame]:
        """Frames of one camera's video, out of memory or decoded now."""
        keys = [(clip_id, camera, int(row)) for row in rows]
        missing = np.unique([key[2] for key in keys if key not in self._kept])
        if len(missing):
            with stream.opened(self.clip(clip_id, camera).video(camera)) as source:
                video.check_clock(self._stamps(clip_id, camera), source)
                frames = dict(decode(source, missing))
            self.num_decoded += len(missing)
            self._kept |= {(clip_id, camera, int(missing[n])): frames[n] for n in frames}
        for key in keys:
            self._kept.move_to_end(key)
        return [self._kept[key] for key in keys]

    def _read_stamps(self, clip_id: str, camera: str) -> np.ndarray:
        """(N,) µs of the camera's frames; evicted files are told from missing ones."""
        path = self.catalog.path(camera, self.catalog.chunk_of(clip_id))
        if evicted := read_evicted(self.p).get(path):
            raise AvomniError(
                f"the raw files of this clip were evicted on {evicted}; the cache holds "
                "the run's own choice alone",
                where=str(self.p.local_dir / path),
                fix="look at the run's own setup, tile, fit and rate; another choice needs raw "
                "files: a run with download.evict_raw: false",
            )
        clip = self.clip(clip_id, camera)
        if not (clip.folder / path).exists():
            what = "is not on the disk: 02_download fetches the cameras of vision.cameras"
            fix = (
                "fetch it, into the raw files that all runs share: python -m avomni_lib run "
                "PARAMS.yaml --only 01 02 --set run.name=look --set vision.cameras=7-cam"
            )
            if self.p.rendered:
                what = "was not rendered: dataset.world.cameras does not name it"
                fix = "run 01 and 02 again with dataset.world.cameras: 7-cam"
            elif not self.p.is_fetched:
                what, fix = "is not in the folder", self.catalog.mend
            label = cameras.BY_NAME[camera].label
            raise AvomniError(f"{label} {what}", where=str(clip.folder / path), fix=fix)
        return clip.timestamps(camera)


def _size_of(frame: av.VideoFrame) -> int:
    return sum(plane.buffer_size for plane in frame.planes)
