"""The episodes of a LeRobot data set as a catalog of clips.

A chunk is the set of episodes whose videos and rows are in the same files, one per key.
Neighbouring chunks share files, as the keys' files begin at different episodes; a shared file is
fetched and counted once.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from avomni_lib.dataset import names
from avomni_lib.dataset.catalog import EITHER, Catalog, Feature
from avomni_lib.dataset.clip_index import SPLITS, ClipIndex, Event, Values
from avomni_lib.dataset.findings import NOTED, ODD, SET, Finding
from avomni_lib.dataset.lerobot import layout
from avomni_lib.dataset.lerobot.clip import EpisodeClip, EpisodeEntry
from avomni_lib.dataset.lerobot.layout import Episodes, Info
from avomni_lib.dataset.lerobot.profile import Profile, profile_of
from avomni_lib.errors import AvomniError

EGOMOTION = "egomotion"
# Out of ten sessions, one is held out for val and one for test.
DEALT = ("train", "val", "test", *["train"] * 7)


def clip_id_of(index: int) -> str:
    return f"episode_{index:06d}"


class EpisodeIndex(ClipIndex):
    """The episodes as a clip index: a clip is an episode, ordered by number.

    Args:
        places: (E, K) int64 file numbers of each episode, which determine its chunk.

    Attributes:
        files: (chunks, K) int64 file numbers of each chunk.
        remarks: Findings about sessions and overlaps in the whole data set.
    """

    def __init__(self, folder: Path, info: Info, episodes: Episodes, places: np.ndarray):
        import pandas as pd

        self._folder, self.path = folder, folder / "meta/episodes"
        self._episodes, self._fps = episodes, info.fps
        self._tables, self._values = {}, {}
        ids = [clip_id_of(index) for index in episodes.index.tolist()]
        self.clip_ids = pa.array(ids, pa.string())
        self._names = pd.Index(ids)
        self.remarks: list[Finding] = []
        faults = dict(episodes.faults)
        self.is_valid = self._tiles()
        # Nothing is fetched for episodes that are left out; they are put into chunk 0.
        used = np.flatnonzero(self.is_valid)
        self.files, chunk = np.unique(places[used], axis=0, return_inverse=True)
        self.chunk = np.zeros(len(ids), np.int64)
        self.chunk[used] = chunk.reshape(-1)
        self.split = self._split(info, faults)
        self.faults = {ids[row]: reason for row, reason in faults.items()}
        self.is_named = np.ones(len(ids), bool)
        self.is_named[list(faults)] = False

    def values(self, attribute: str) -> Values:
        """`split` only; other attributes of an episode are unknown."""
        if attribute == "split":
            return Values(SPLITS, self.split)
        return Values((), np.full(len(self), -1, np.int32))

    def events(self, clip_id: str) -> tuple[Event, ...]:
        """The episode's task as an event at every second.

        The task applies to the whole episode, whereas an event describes the time around its start.
        """
        row = self.row_of(clip_id)
        text, seconds = self._episodes.tasks[row], self._episodes.length[row] / self._fps
        return tuple(Event(n * 1_000_000, text) for n in range(math.ceil(seconds)) if text)

    def _split(self, info: Info, faults: dict[int, str]) -> np.ndarray:
        """(E,) int32 index into `SPLITS`.

        The splits of info.json are used if it has more than `train`. Else sessions are assigned in
        the order of the files, repeating `DEALT`: no recording is in two splits, and a small
        selection has clips of every split. If info.json divides a session, the split of its first
        episode applies, and episodes in another split get a fault.
        """
        episodes, index = self._episodes, self._episodes.index
        sessions = episodes.session or tuple(self.clip_ids.to_pylist())
        declared = np.full(len(index), -1, np.int32)
        if {*info.splits} <= {*SPLITS} and len(info.splits) > 1:
            for name, (start, stop) in info.splits.items():
                within = (index >= start) & (index < stop)
                for row in np.flatnonzero(within & (declared >= 0)).tolist():
                    both = f"{SPLITS[declared[row]]} and {name}"
                    faults.setdefault(row, f"info.json puts it into two splits, {both}")
                declared[within] = SPLITS.index(name)
        order = np.lexsort((index, self.chunk, ~self.is_valid)).tolist()
        dealt = {s: n for n, s in enumerate(dict.fromkeys(sessions[row] for row in order))}
        by_session: dict[str, int] = {}
        split = np.empty(len(index), np.int32)
        num_torn = 0
        for row, session in enumerate(sessions):
            place = int(declared[row])
            if place < 0:
                place = SPLITS.index(DEALT[dealt[session] % len(DEALT)])
            split[row] = by_session.setdefault(session, place)
            if split[row] != place:
                num_torn += 1
                faults.setdefault(
                    row,
                    f"its session {names.shown(session)} is in the split "
                    f"{SPLITS[split[row]]}, and info.json puts it into {SPLITS[place]}",
                )
        if num_torn:
            reason = f"{num_torn} episodes are in another split than the rest of their session"
            self.remarks.append(Finding(ODD, "a session in two splits", reason, SET))
        return split

    def _tiles(self) -> np.ndarray:
        """(E,) bool: the episodes to use; of overlapping ones in a session, the earlier."""
        episodes = self._episodes
        keep = np.ones(len(episodes.index), bool)
        first, last = episodes.first_ns, episodes.last_ns
        if first is None or last is None or episodes.session is None:
            return keep
        until: dict[str, int] = {}
        for row in np.lexsort((episodes.index, first)).tolist():
            session = episodes.session[row]
            if row in episodes.faults or not last[row] > first[row]:
                continue
            if first[row] <= until.get(session, -1):
                keep[row] = False
            else:
                until[session] = int(last[row])
        if num := int((~keep).sum()):
            reason = (
                f"{num:,} of {len(keep):,} episodes share time with an earlier one of their "
                "session: they are left out"
            )
            self.remarks.append(Finding(NOTED, "episodes that overlap", reason, SET))
        return keep


class EpisodeCatalog(Catalog):
    """The contents of a LeRobot data set; created by `EpisodeCatalog.read`."""

    clip_type = EpisodeClip
    mend = EITHER
    clips: EpisodeIndex

    def __init__(
        self, folder: Path, info: Info, profile: Profile, episodes: Episodes, profile_name: str
    ):
        self.info, self.profile, self.episodes = info, profile, episodes
        self._profile_name = profile_name
        self._key = {name: key for name, key in profile.cameras.items() if key in episodes.spans}
        self._key[EGOMOTION] = "data"
        features = {name: Feature(name, "", {}) for name in self._key}
        # Ordered by key, so that chunks that share files are neighbours.
        keys = list(self._key.values())
        columns = [
            column
            for key in keys
            for column in (episodes.spans[key].chunk, episodes.spans[key].file)
        ]
        self._keys = keys
        index = EpisodeIndex(folder, info, episodes, np.stack(columns, axis=1))
        self._files = index.files
        super().__init__(folder, features, index, None)
        self.metadata_files = layout.metadata_files(folder)

    @classmethod
    def read(cls, folder: Path, profile_name: str) -> EpisodeCatalog:
        """Read the tables of a folder.

        Raises:
            AvomniError: a table is missing or not in the layout; the data set lacks columns of the
                profile.
        """
        folder, profile = Path(folder), profile_of(profile_name)
        info = layout.read_info(folder)
        axes = info.axes(profile.state)
        if absent := [name for name in profile.axes if name not in axes]:
            there = ", ".join(axes) or "no names"
            raise AvomniError(
                f"{profile.state} has no {', '.join(absent)}; it has {there}",
                where=info.path,
                fix=f"the profile {profile_name} is of another data set: set "
                "dataset.lerobot.profile",
            )
        episodes = layout.read_episodes(folder, info, profile)
        return cls(folder, info, profile, episodes, profile_name)

    def presence(self, feature: str) -> np.ndarray:
        """(clips,) bool: an episode without faults has all features of the data set."""
        self._feature(feature)
        return self.clips.is_named

    def path(self, feature: str, chunk: int) -> str:
        """The file of one feature of one chunk, relative to the folder."""
        self._feature(feature)
        key = self._key[feature]
        column = 2 * self._keys.index(key)
        chunk_index, file_index = self._files[chunk, column : column + 2].tolist()
        template = self.info.data_path if key == "data" else self.info.video_path
        path = template.format(video_key=key, chunk_index=chunk_index, file_index=file_index)
        names.need("the path of a file", path, names.path_fault(path), self.info.path)
        return path

    def clips_in(self, feature: str, chunk: int) -> tuple[str, ...]:
        """The valid clips whose data of the feature are in the same file as the chunk's."""
        column = 2 * self._keys.index(self._key[feature])
        places = self._files[:, column : column + 2]
        same = (places == places[chunk]).all(axis=1)
        rows = np.flatnonzero(same[self.clips.chunk] & self.clips.is_valid & self.clips.is_named)
        return self.clips.ids(rows)

    def parts(self, clip_ids: Iterable[str]) -> tuple[EpisodeEntry, ...]:
        return tuple(map(self.episode, clip_ids))

    def episode(self, clip_id: str) -> EpisodeEntry:
        """One episode as plain values, which worker processes can receive."""
        row = self.clips.row_of(clip_id)
        spans = {
            name: (float(span.start_s[row]), float(span.stop_s[row]))
            for name, span in ((n, self.episodes.spans[k]) for n, k in self._key.items())
            if name != EGOMOTION
        }
        return EpisodeEntry(
            clip_id,
            int(self.episodes.index[row]),
            int(self.episodes.length[row]),
            self.info.fps,
            self._profile_name,
            self.info.axes(self.profile.state),
            spans,
        )

    def remarks(self) -> Iterator[Finding]:
        """Remarks on the whole data set."""
        yield from self.clips.remarks
        for what, reason in self.profile.remarks:
            yield Finding(NOTED, what, reason, SET)

    def expected_bytes(self, path: str) -> int:
        """Size of a file estimated from published figures; 0 if there are none."""
        return self._expected.get(path, 0)

    @functools.cached_property
    def _expected(self) -> dict[str, int]:
        sizes: dict[str, int] = {}
        if (published := self.profile.published) is None:
            return sizes
        for feature, key in self._key.items():
            last = np.zeros(len(self._files))
            stop_s = np.nan_to_num(self.episodes.spans[key].stop_s)
            np.maximum.at(last, self.clips.chunk, stop_s)
            for chunk in self.chunks:
                num_bytes = published.bytes_a_data_file
                if key != "data":
                    num_bytes = last[chunk] * published.bytes_a_s
                path = self.path(feature, chunk)
                sizes[path] = max(sizes.get(path, 0), int(num_bytes))
        return sizes
