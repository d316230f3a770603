"""The tile preview of 04_tiles: choose clip, window, frame, setup and tile size, see what it costs.

The run's own choice is read from the cache. Another one is read from the raw clips, as the ETL
would read it, so that it can be seen before an ETL is paid for; what was decoded stays in memory
within a bound.
"""

from __future__ import annotations

import html
from collections import OrderedDict

import ipywidgets
import numpy as np
from scipy.spatial.transform import Rotation

from avomni_lib.dataset import rig
from avomni_lib.dataset.catalog import Catalog
from avomni_lib.dataset.clip import Clip
from avomni_lib.dataset.evicted import read_evicted
from avomni_lib.errors import AvomniError
from avomni_lib.etl import build, sampling, tiling
from avomni_lib.etl.memmap import EGOMOTION_COLUMNS, Cache
from avomni_lib.etl.windows import Windows
from avomni_lib.notebook.plots import canvas, tiles
from avomni_lib.params import Params
from avomni_lib.training import estimate
from avomni_lib.training.adapter import CONFIDENTIAL

Tile = tuple[int, int]  # (width, height) px
SIZES = (0.5, 1, 1.5, 2)  # of the run's own tile
MEMORY_BYTES = 512 << 20
WIDE_PX = 760
PLAY_MS = 250


class RawFrames:
    """Grids of other choices than the run's, out of the raw clips; the last ones stay in memory."""

    def __init__(self, p: Params, limit_bytes: int = MEMORY_BYTES):
        self.p, self.limit_bytes = p, limit_bytes
        self._catalog: Catalog | None = None
        self._kept: OrderedDict[tuple, np.ndarray] = OrderedDict()

    def grid_frames(self, clip_id: str, times_us: np.ndarray, setup: str, tile: Tile) -> np.ndarray:
        """(T, H, W, 3) uint8 RGB at these times, each camera's last frame at or before them.

        Raises:
            AvomniError: a file of the clip is not on the disk, or damaged.
        """
        key = (clip_id, int(times_us[0]), int(times_us[-1]), setup, tile)
        if key not in self._kept:
            frames = self._decode(clip_id, times_us, rig.grid(setup), tile)
            self._kept[key] = frames
            while len(self._kept) > 1 and self.num_bytes > self.limit_bytes:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    @property
    def num_bytes(self) -> int:
        return sum(frames.nbytes for frames in self._kept.values())

    def _decode(self, clip_id: str, times_us: np.ndarray, grid: rig.Grid, tile: Tile) -> np.ndarray:
        self._catalog = self._catalog or Catalog.open(self.p.local_dir)
        self._need_raw(clip_id, grid)
        clip = Clip(self.p.local_dir, self._catalog, clip_id)
        recipe = build.recipe_of(_chosen(self.p, grid.name, tile))
        width, height = tiling.grid_size(grid, tile)
        images = np.zeros((len(times_us), height, width, 3), dtype=np.uint8)
        for camera in grid.cameras:
            stamps = clip.timestamps(camera.name)
            # Cameras that the run does not take may start later or end earlier than its own.
            wanted = np.clip(times_us, stamps[0], stamps[-1])
            place = tiling.tile_of(images, grid, tile, camera.name)
            sampling.draw_camera(clip, camera.name, wanted, stamps, recipe, place)
        return images

    def _need_raw(self, clip_id: str, grid: rig.Grid) -> None:
        """Say of evicted files that they are, not that they are missing."""
        evicted = read_evicted(self.p)
        chunk = self._catalog.chunk_of(clip_id)
        for path in self._catalog.files([chunk], [camera.name for camera in grid.cameras]):
            if path in evicted:
                raise AvomniError(
                    f"the raw files of this clip were evicted on {evicted[path]}; the cache holds "
                    "the run's own choice alone",
                    where=str(self.p.local_dir / path),
                    fix="look at the run's own setup and tile; another one needs raw files: a run "
                    "with download.evict_raw: false",
                )


class TilePreview(ipywidgets.VBox):
    """What the model sees of a window, where the car goes meanwhile, and what the choice costs.

    Args:
        p: The run; its cache must be there.
        clip_id: Shown first; the cache's first clip if None.
        window: The clip's window shown first.
        frame: The window's frame shown first.
    """

    def __init__(self, p: Params, clip_id: str | None = None, window: int = 0, frame: int = 0):
        self.p, self.cache = p, Cache.open(p.cache_dir)
        length, stride = p.processing.sequence_length, p.processing.stride
        self.windows = Windows(self.cache, length, stride)
        if not len(self.windows):
            raise AvomniError(
                f"no clip of the cache has the {length} frames of a window",
                where=str(p.cache_dir),
                fix="lower processing.sequence_length or raise processing.sample_hz",
            )
        self.raw = RawFrames(p)
        self._are_evicted = bool(read_evicted(p))
        self._first: dict[str, int] = {}
        self._count: dict[str, int] = {}
        for i in range(len(self.windows)):
            name = self.windows[i].clip_id
            self._first.setdefault(name, i)
            self._count[name] = self._count.get(name, 0) + 1
        self._make_controls(clip_id, window, frame)
        super().__init__(
            [
                ipywidgets.HBox([self.clip, self.setup, self.tile]),
                ipywidgets.HBox([self.window, self.frame, self.play]),
                self.note,
                ipywidgets.HBox([self.image, self.motion]),
            ]
        )
        for control in (self.clip, self.setup, self.tile, self.window, self.frame):
            control.observe(self._changed, names="value")
        self._show()

    @property
    def index(self) -> int:
        """The window shown, as an index into `windows`."""
        return self._first[self.clip.value] + self.window.value

    @property
    def is_own_choice(self) -> bool:
        """Whether the choice is the run's, so that the cache has it."""
        own = (self.p.vision.camera_setup, self._own_tile)
        return (self.setup.value, self.tile.value) == own

    def grid_frames(self) -> np.ndarray:
        """(T, H, W, 3) uint8 RGB of the window shown, as the model would see it.

        Raises:
            AvomniError: the choice needs raw files that are not on the disk, or damaged.
        """
        if self.is_own_choice:
            return self.windows.frames(self.index)
        times_us = self.windows.times_us(self.index)
        return self.raw.grid_frames(self.clip.value, times_us, self.setup.value, self.tile.value)

    def drive(self) -> tiles.Drive:
        """Where the car goes during the clip, with the window and the frame shown."""
        window = self.windows[self.index]
        clip, shard = self.cache.clips[window.clip_idx], self.cache.shards[window.shard]
        ego = dict(zip(EGOMOTION_COLUMNS, shard.egomotion[clip.start : clip.stop].T, strict=True))
        turn = Rotation.from_quat(np.stack([ego[name] for name in ("qx", "qy", "qz", "qw")], 1))
        times = shard.times[clip.start : clip.stop]
        start = window.start - clip.start
        return tiles.Drive(
            times_s=(times - times[0]) / 1e6,
            xy_m=np.stack([ego["x"], ego["y"]], axis=1),
            yaw_rad=turn.as_euler("ZYX")[:, 0],
            speed_mps=np.linalg.norm([ego["vx"], ego["vy"], ego["vz"]], axis=0),
            start=start,
            stop=start + self.windows.sequence_length,
            now=start + self.frame.value,
        )

    def cost(self) -> str:
        """What the choice costs, in words; or why the model would refuse it."""
        p = _chosen(self.p, self.setup.value, self.tile.value)
        choice = f"{self.setup.value}, tiles of {self.tile.value[0]}×{self.tile.value[1]}"
        try:
            tokens, (height, width) = estimate.tokens_per_sample(p), estimate.grid_size(p)
        except AvomniError as error:
            return f"{choice}: 05_train would refuse it: {error.what}"
        length, limit = p.processing.sequence_length, p.model.max_seq_length
        size = length * height * width * 3 / 1e6
        fits = "" if tokens.total <= limit else " (too long: 05_train would refuse it)"
        return (
            f"{choice}: {tokens.vision:,} vision tokens a window, about {tokens.total:,} of "
            f"{limit:,} tokens with the text{fits}, {size:.1f} MB a sample"
        )

    def figure(self) -> canvas.Picture:
        """The same as a static picture, for whoever reads the notebook without a kernel.

        Raises:
            AvomniError: as `grid_frames`.
        """
        image = self.grid_frames()[self.frame.value]
        return tiles.preview(image, rig.grid(self.setup.value), self.drive(), self.cost())

    def _make_controls(self, clip_id: str | None, window: int, frame: int) -> None:
        clips = {clip.clip_id: clip for clip in self.cache.clips if clip.clip_id in self._first}
        if clip_id is not None and clip_id not in clips:
            raise AvomniError(
                f"clip {clip_id} has no window in the cache",
                where=str(self.p.cache_dir),
                fix=f"choose one of its {len(clips)}, such as {next(iter(clips))}",
            )
        options = [(f"{canvas.short(name)} ({clips[name].split})", name) for name in clips]
        self.clip = ipywidgets.Dropdown(
            options=options, value=clip_id or options[0][1], description="clip"
        )
        self.setup = ipywidgets.ToggleButtons(
            options=list(rig.GRIDS), value=self.p.vision.camera_setup
        )
        self._own_tile = (self.p.processing.tile_width, self.p.processing.tile_height)
        self.tile = ipywidgets.Dropdown(
            options=[(f"{w}×{h}", (w, h)) for w, h in tile_sizes(self._own_tile)],
            value=self._own_tile,
            description="tile, px",
        )
        last = self._count[self.clip.value] - 1
        self.window = ipywidgets.IntSlider(
            min(window, last), 0, last, description="window", continuous_update=False
        )
        length = self.windows.sequence_length
        self.frame = ipywidgets.IntSlider(
            min(frame, length - 1), 0, length - 1, description="frame", continuous_update=False
        )
        self.play = ipywidgets.Play(min=0, max=length - 1, interval=PLAY_MS)
        ipywidgets.jslink((self.play, "value"), (self.frame, "value"))
        self.note = ipywidgets.HTML()
        self.image = ipywidgets.Image(format="png", layout={"max_width": "100%"})
        self.motion = ipywidgets.Image(format="png")

    def _changed(self, change: dict) -> None:
        if change["owner"] is self.clip:
            last = self._count[self.clip.value] - 1
            if self.window.value > last:
                self.window.max = last  # its value follows, and shows the clip
                return
            self.window.max = last
        self._show()

    def _show(self) -> None:
        """Draw the choice, or say why it cannot be drawn."""
        self.motion.value = tiles.motion(self.drive()).png()
        try:
            image = self.grid_frames()[self.frame.value]
        except AvomniError as error:
            self.note.value = _paragraph(f"This choice cannot be shown: {error}")
            self.image.value = b""
            return
        source = "the cache" if self.is_own_choice else "the raw clip"
        source += "; raw files are evicted" if self._are_evicted else ""
        notice = "" if self.p.dataset.source == "world" else f"\n{CONFIDENTIAL}"
        self.note.value = _paragraph(f"{self.cost()} (read from {source}){notice}")
        scale = canvas.scale_for(image.shape[1], WIDE_PX)
        named = canvas.name_tiles(image, rig.grid(self.setup.value), scale)
        self.image.value = canvas.encode_png(named)


def tile_sizes(own: Tile) -> list[Tile]:
    """The run's own tile and smaller and larger ones of its shape, sides in steps of 16 px."""
    sizes = {own}
    for factor in SIZES:
        sizes.add(tuple(max(round(side * factor / 16), 1) * 16 for side in own))
    return sorted(sizes)


def _chosen(p: Params, setup: str, tile: Tile) -> Params:
    """The run with another camera setup and tile size."""
    vision = p.vision.model_copy(update={"camera_setup": setup})
    size = {"tile_width": tile[0], "tile_height": tile[1]}
    return p.model_copy(
        update={"vision": vision, "processing": p.processing.model_copy(update=size)}
    )


def _paragraph(text: str) -> str:
    return "<p>" + html.escape(text).replace("\n", "<br>") + "</p>"
