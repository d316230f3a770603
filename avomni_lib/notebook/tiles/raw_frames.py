"""Grids for any choice of tiling from the raw clips, as the ETL would compose them.

Decoded frames are kept in memory at full size, so that another tile size, fit or setup only scales
them again, with the ETL's scaler.
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
from avomni_lib.notebook.clip_table import open_there
from avomni_lib.notebook.tiles.choice import TilingChoice
from avomni_lib.params import Params

MEMORY_BYTES = 1 << 30
BLOCK = 16  # number of frames of a window that are decoded together


class RawFrames:
    """Grid frames for choices that the cache does not have.

    Args:
        limit_bytes: Limit of decoded frames in memory; the latest block is always kept.

    Attributes:
        num_decoded: Number of frames decoded so far, over all cameras.
    """

    def __init__(self, p: Params, limit_bytes: int = MEMORY_BYTES):
        self.p, self.limit_bytes, self.num_decoded = p, limit_bytes, 0
        # (clip_id, camera, row of its timestamps) -> frame, the least recently used first.
        self._kept: OrderedDict[tuple[str, str, int], av.VideoFrame] = OrderedDict()
        self._stamps = functools.lru_cache(64)(self._read_stamps)

    @property
    def num_bytes(self) -> int:
        """Size of the decoded frames in memory."""
        return sum(_size_of(frame) for frame in self._kept.values())

    @functools.cached_property
    def catalog(self) -> Catalog:
        return Catalog.of(self.p)

    def clip(self, clip_id: str, camera: str | None = None) -> Clip:
        """A clip, opened in the folder with its files.

        The rendered world may have cameras that the run did not download.
        """
        there = camera and open_there(self.p, self.catalog, clip_id, camera)
        return there or open_clip(self.p.local_dir, self.catalog, clip_id)

    def grid_frame(
        self, clip_id: str, times_us: np.ndarray, frame: int, choice: TilingChoice
    ) -> np.ndarray:
        """(H, W, 3) uint8 RGB: one frame of a window, each camera's last one at or before its time.

        Args:
            times_us: (T,) times of the window; the frames around `frame` are decoded with it.

        Raises:
            AvomniError: a file of the clip is missing, evicted or damaged.
        """
        block = frame // BLOCK * BLOCK
        image = np.zeros((1, *choice.size, 3), dtype=np.uint8)
        for camera in choice.grid.cameras:
            stamps = self._stamps(clip_id, camera.name)
            # Cameras outside the run's grid may start later or end earlier.
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
        """Frames of one camera's video, from memory or decoded."""
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
        """(N,) timestamps of the camera's frames in µs.

        Raises:
            AvomniError: the files are evicted, missing or damaged.
        """
        path = self.catalog.path(camera, self.catalog.chunk_of(clip_id))
        if evicted := read_evicted(self.p).get(path):
            raise AvomniError(
                f"the raw files of this clip were evicted on {evicted}; the cache holds "
                "only the run's own choice",
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
