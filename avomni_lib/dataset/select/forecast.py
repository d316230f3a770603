"""What a run would fetch, estimated without the hub, from what is published of the data set."""

from __future__ import annotations

from dataclasses import dataclass

from avomni_lib.dataset.catalog import optional_features, required_features
from avomni_lib.dataset.select.sizes import CLIPS_A_CHUNK, clip_bytes
from avomni_lib.params import Params

MB_METADATA, NUM_METADATA_FILES = 34, 5


@dataclass(frozen=True)
class Forecast:
    """Estimates: the chunks that a run takes, their clips, files and bytes."""

    num_chunks: int
    num_clips: int
    num_files: int
    num_bytes: int
    note: str


def forecast(p: Params) -> Forecast:
    """Whole chunks within download.target_chunks (or as many as are named) and target_size_gb.

    With `download.evict_raw` one chunk alone must fit.
    """
    features = (*required_features(p), *optional_features(p))
    wanted = p.download.target_chunks if p.download.chunks is None else len(p.download.chunks)
    metadata, clips = MB_METADATA * 1e6, CLIPS_A_CHUNK
    note = "not asked; sizes are those of chunk 0"
    if world := p.rendered:
        wanted, metadata, clips = min(wanted, world.num_chunks), 0.0, world.clips_per_chunk
        note = "not asked; estimated from seconds and pixels"
    chunk_bytes = clips * sum(clip_bytes(p, name) for name in features)
    most = max(int((p.download.target_size_gb * 1e9 - metadata) // chunk_bytes), 0)
    num_chunks = wanted if p.download.evict_raw and most else min(wanted, most)
    return Forecast(
        num_chunks,
        num_chunks * clips,
        num_chunks * len(features) + NUM_METADATA_FILES,
        int(num_chunks * chunk_bytes + metadata),
        note,
    )
