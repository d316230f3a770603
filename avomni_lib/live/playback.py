"""A clip of the run as live cameras: its videos, unpacked, are paced by their own times."""

from __future__ import annotations

from pathlib import Path

from avomni_lib import files
from avomni_lib.dataset import cameras
from avomni_lib.dataset.catalog import Catalog
from avomni_lib.dataset.clip import Clip
from avomni_lib.errors import AvomniError
from avomni_lib.etl.cache.memmap import Cache
from avomni_lib.params import Params


def held_out_clip(p: Params) -> str:
    """The first clip of `evaluation.split` in the run's cache.

    Raises:
        AvomniError: no cache, or no clip of the split.
    """
    for clip in Cache.open(p.cache_dir).clips:
        if clip.split == p.evaluation.split:
            return str(clip.clip_id)
    raise AvomniError(
        f"the cache has no clip of the split {p.evaluation.split!r} to play",
        where=str(p.cache_dir),
        fix="name addresses in live.sources, or choose another evaluation.split",
    )


def as_cameras(p: Params, clip_id: str, folder: Path) -> Params:
    """The same run with the clip's videos as its live cameras.

    Args:
        folder: Where the videos go, called by their cameras.

    Raises:
        AvomniError: the clip's raw files are not there (they may have been evicted).
    """
    clip = Clip(p.local_dir, Catalog.of(p), clip_id)
    sources, firsts = {}, {}
    for camera in cameras.grid(p.vision.cameras).cameras:
        path = folder / f"{camera.name}.mp4"
        with files.write_whole(path) as file:
            file.write(clip.video(camera.name).read())
        sources[camera.name] = str(path)
        firsts[camera.name] = int(clip.timestamps(camera.name)[0])
    # Each file begins with its own first frame, which the cameras did not take at one moment.
    offsets = {name: (first - min(firsts.values())) / 1e3 for name, first in firsts.items()}
    live = p.live.model_copy(update={"sources": sources, "clock": "file", "offset_ms": offsets})
    return p.model_copy(update={"live": live})
