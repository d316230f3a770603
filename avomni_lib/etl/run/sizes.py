"""What the chunks of a run will take, told by what lies there already: clips, shards, raw files."""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence

from avomni_lib.dataset.catalog import Catalog
from avomni_lib.dataset.clip import Clip
from avomni_lib.dataset.download.remote import RemoteFile
from avomni_lib.dataset.select.manifest import Chosen
from avomni_lib.etl.run import costs, disk_budget
from avomni_lib.etl.run.disk_budget import Load, Moment
from avomni_lib.etl.run.parts import ChunkWork
from avomni_lib.params import Params


class Gauge:
    """Weighs chunks; learns as their raw files come and their shards are made.

    Args:
        chosen: The run's files.
        works: All its chunks.
        done: Those whose shards are whole.

    Attributes:
        remote: Chunk -> its raw files.
        seconds: Of a clip, at most.
        shards: Chunk -> bytes on the disk of those that are done.
        parts: Chunk -> bytes of its parts, and of a shard that is still to be made anew from them.
    """

    def __init__(
        self, p: Params, chosen: Chosen, works: Sequence[ChunkWork], done: Collection[int]
    ):
        self.p, self._works, self._done = p, {work.chunk: work for work in works}, set(done)
        self.remote = {work.chunk: _remote_files(p, chosen, work) for work in works}
        self.seconds, self._clip_bytes = costs.most_seconds(p), 0.0
        there = [work for work in works if work.has_raw()]
        for work in there[:1]:
            self.learn_seconds(work.chunk)
        self.shards = {work.chunk: 0 for work in works}
        self.parts = {work.chunk: costs.size_below([work.parts_folder]) for work in works}
        for work in works:
            if work.shard:
                held = self.shards if work.chunk in self._done else self.parts
                held[work.chunk] += self.learn_size(work.chunk)
        metadata = costs.metadata_bytes(p, chosen, works)
        self.start = Moment(metadata, sum(self.shards.values()))

    @property
    def left(self) -> list[Load]:
        """The chunks without a whole shard; first those of which most lies there: they free it."""
        loads = [self.load(chunk) for chunk in self._works if chunk not in self._done]
        return sorted(loads, key=lambda load: (-load.here - self.parts[load.chunk], load.chunk))

    def load(self, chunk: int) -> Load:
        clips, measured = len(self._works[chunk].clips), self._clip_bytes or None
        raw = sum(disk_budget.blocks(file.size) for file in self.remote[chunk])
        here = sum(costs.here(self.p, file) for file in self.remote[chunk])
        return costs.load_of(self.p, chunk, (raw, here), clips, self.seconds, measured)

    def learn_seconds(self, chunk: int) -> None:
        """Clips are as long as the first of a chunk that is there."""
        clips = self._works[chunk].clips
        if clips:
            clip = Clip(self.p.local_dir, self._catalog, clips[0]["clip_id"])
            self.seconds = costs.most_seconds(self.p, clip)

    def learn_size(self, chunk: int) -> int:
        """Clips take what they took in the shard where they were largest; returns its bytes."""
        size, found = costs.size_below([self._works[chunk].shard_folder]), self._works[chunk].shard
        if found is not None and found.header["clips"]:
            self._clip_bytes = max(self._clip_bytes, size / len(found.header["clips"]))
        return size

    @functools.cached_property
    def _catalog(self) -> Catalog:
        return Catalog.of(self.p)


def _remote_files(p: Params, chosen: Chosen, work: ChunkWork) -> list[RemoteFile]:
    """A chunk's raw files as chosen."""
    names = [path.relative_to(p.local_dir).as_posix() for path in work.raw]
    listed = [(name, chosen.files[name]) for name in names if name in chosen.files]
    return [RemoteFile(name, file["size"], file["sha256"]) for name, file in listed]
