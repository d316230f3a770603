"""Selection of a run's files and clips from its source, after the check of the licence."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from avomni_lib.dataset.catalog import (
    FEATURES_FILE,
    INDEX_FILE,
    METADATA_FILES,
    OLD_PRESENCE_FILE,
    PRESENCE_FILE,
    SPLITS,
    Catalog,
    optional_features,
    required_features,
)
from avomni_lib.dataset.download.hub import PATHS_A_REQUEST, Hub
from avomni_lib.dataset.download.remote import RemoteFile
from avomni_lib.dataset.download.verified import Verified, hold
from avomni_lib.dataset.lerobot import layout
from avomni_lib.dataset.select import manifest
from avomni_lib.dataset.select.chunks import ChunkChoice, Ranking, choose_chunks, rank
from avomni_lib.dataset.select.forecast import NUM_EPISODE_TABLES, estimated
from avomni_lib.errors import AvomniError
from avomni_lib.params import NOT_ANONYMISED, Params

# NVIDIA Autonomous Vehicle Dataset License Agreement, section 1, as the data set's card quotes it.
LICENSE_CLAUSE = (
    "internal development of autonomous vehicles and automated driving assisted systems "
    "using NVIDIA technology"
)
LICENSE_OWNER = "nvidia/"
EPISODE_FILES_AT_ONCE = 100  # per request; L2D has one file of 100,000 episodes


@dataclass(frozen=True)
class Selection:
    """The files and clips that a run takes."""

    catalog: Catalog  # of the pinned revision
    choice: ChunkChoice
    features: tuple[str, ...]  # required features of a clip
    files: tuple[RemoteFile, ...]  # metadata first, then chunk by chunk
    clip_ids: dict[str, tuple[str, ...]]  # split -> wanted clips that have all features
    optional: tuple[str, ...] = ()  # features that are fetched too, but not required

    @property
    def num_clips(self) -> int:
        return sum(map(len, self.clip_ids.values()))

    @property
    def num_bytes(self) -> int:
        return sum(file.size for file in self.files)

    def places(self, more: Iterable[int] = ()) -> dict[str, tuple[str, int | None]]:
        """Path -> (feature, chunk) for all files of the chunks, and of `more` chunks.

        Tables about all clips have ("", None).
        """
        places: dict[str, tuple[str, int | None]] = {file.path: ("", None) for file in self.files}
        for chunk in (*self.choice.chunks, *more):
            for feature in (*self.features, *self.optional):
                for path in self.catalog.files([chunk], [feature]):
                    places[path] = (feature, chunk)
        return places


def source_in_words(p: Params) -> str:
    if p.rendered:
        return "the rendered world, by a hub on 127.0.0.1"
    return p.dataset.repo_id if p.is_fetched else str(p.local_dir)


def license_question(p: Params) -> str | None:
    """What the user must decide before anything is fetched, or None."""
    if p.rendered or not p.is_fetched or p.dataset.license_accepted:
        return None
    if p.lerobot_profile and p.notice == NOT_ANONYMISED:  # the licence is known and free
        return None
    if p.dataset.repo_id.startswith(LICENSE_OWNER):
        return (
            f"the licence of {p.dataset.repo_id} grants use for your "
            f'"{LICENSE_CLAUSE}", keeps the data confidential and ends 12 months after the download'
        )
    return f"{p.dataset.repo_id} comes under its owner's licence"


def need_license(p: Params) -> None:
    """Raise until the user has accepted the licence; called before the first byte is fetched."""
    question = license_question(p)
    if question:
        raise AvomniError(
            f"dataset.license_accepted is false: {question}",
            where=f"https://huggingface.co/datasets/{p.dataset.repo_id}",
            fix="read the licence, decide whether your use is within it, and state your decision: "
            "dataset.license_accepted: true",
        )


@contextlib.contextmanager
def opened(p: Params, hub: Hub | None) -> Iterator[tuple[Hub | None, Verified, Selection]]:
    """Yield the pinned hub, the record of verified files, and the selection; holds the folder.

    Without dataset.revision, a run keeps the commit of its first download.

    Raises:
        AvomniError: as `select`; the licence is not accepted, or the folder does not exist.
    """
    need_license(p)
    if not p.is_fetched and not p.local_dir.is_dir():
        raise AvomniError(
            f"dataset.source is {p.dataset.source}, and the folder does not exist",
            where=str(p.local_dir),
            fix="set dataset.local_dir to a folder in the data set's layout",
        )
    if hub is not None and not hub.revision:
        with contextlib.suppress(AvomniError):
            before = manifest.read_chosen(p)
            hub = hub.at(before.revision) if before.repo_id == hub.repo_id else hub
    with hold(p.local_dir):
        verified = Verified(p.local_dir)
        yield hub, verified, select(p, hub, verified)


def select(p: Params, hub: Hub | None, verified: Verified) -> Selection:
    """Fetch the metadata if needed, and select; the caller must hold the folder, as `opened` does.

    Args:
        hub: None if `local_dir` has all files.

    Raises:
        AvomniError: no access, invalid metadata, or no chunks can be chosen.
    """
    sizes: Mapping[str, RemoteFile]
    if hub is None:
        catalog = Catalog.of(p)
        ranking = rank(catalog, p)
        paths = (*catalog.metadata_files, *catalog.files(ranking.chunks, _features(catalog, p)))
        present = [path for path in paths if (p.local_dir / path).is_file()]
        sizes = {path: RemoteFile(path, (p.local_dir / path).stat().st_size) for path in present}
    else:
        hub.check_access()
        metadata = _fetch_metadata(p, hub, verified)
        catalog = Catalog.of(p)
        ranking = rank(catalog, p)
        sizes = _Listing(hub, metadata, catalog.files(ranking.chunks, _features(catalog, p)))
    return _selection(catalog, p, ranking, sizes)


def listed(p: Params, hub: Hub | None) -> list[dict[str, Any]]:
    """One row per file of a download: path, feature, chunk, size (bytes), is_here.

    `is_here` is true if the file is on the disk, verified or not. Tables about all clips have no
    feature and no chunk.

    Raises:
        AvomniError: as `opened`.
    """
    with opened(p, hub) as (_, verified, selection):
        places = selection.places()
    return [
        {
            "path": file.path,
            "feature": places[file.path][0] or None,
            "chunk": places[file.path][1],
            "size": file.size,
            "is_here": bool(verified.known(file) or verified.needs_hash(file)),
        }
        for file in selection.files
    ]


def selection_offline(p: Params) -> Selection | None:
    """What `select` would choose by the metadata in local_dir, without requests to the hub.

    Sizes are estimates from published figures; chunks and clips are the same, unless the source
    lacks files. None if the metadata are missing.

    Raises:
        AvomniError: as `select`, except for access.
    """
    tables = {path for path in METADATA_FILES if (p.local_dir / path).is_file()}
    is_known = {FEATURES_FILE, INDEX_FILE} <= tables
    is_known = is_known and bool({PRESENCE_FILE, OLD_PRESENCE_FILE} & tables)
    if p.lerobot_profile:
        is_known = len(layout.metadata_files(p.local_dir)) >= NUM_EPISODE_TABLES
    if not is_known:
        return None
    catalog = Catalog.of(p)
    ranking = rank(catalog, p)
    return _selection(catalog, p, ranking, estimated(catalog, ranking.chunks, p))


def _features(catalog: Catalog, p: Params) -> tuple[str, ...]:
    return (*required_features(p), *catalog.listed(optional_features(p)))


def _selection(
    catalog: Catalog, p: Params, ranking: Ranking, sizes: Mapping[str, RemoteFile]
) -> Selection:
    choice = choose_chunks(catalog, sizes, p, ranking)
    split = catalog.clips.split[choice.rows]
    clip_ids = {
        name: catalog.clips.ids(choice.rows[split == place]) for place, name in enumerate(SPLITS)
    }
    optional = catalog.listed(optional_features(p))
    extra = {*catalog.metadata_files, *catalog.files(choice.chunks, optional)}
    paths = (*catalog.metadata_files, *catalog.files(choice.chunks, _features(catalog, p)))
    taken = tuple(sizes[path] for path in paths if path not in extra or path in sizes)
    return Selection(catalog, choice, required_features(p), taken, clip_ids, optional)


class _Listing(dict[str, RemoteFile]):
    """The hub's entries for these paths, requested in batches on access."""

    def __init__(self, hub: Hub, known: dict[str, RemoteFile], paths: Sequence[str]):
        super().__init__(known)
        self._hub, self._unasked = hub, dict.fromkeys(paths)

    def __contains__(self, path: object) -> bool:
        while path in self._unasked:
            batch = list(itertools.islice(self._unasked, PATHS_A_REQUEST))
            self.update(self._hub.sizes(batch))
            for asked in batch:
                del self._unasked[asked]
        return super().__contains__(path)


def content_revision(files: Iterable[tuple[str, str]]) -> str:
    """A revision for a folder without a commit: 40 hex digits, a hash of (path, sha256) pairs."""
    listing = "".join(f"{sha256} {path}\n" for path, sha256 in sorted(files))
    return hashlib.sha1(listing.encode()).hexdigest()


def _fetch_metadata(p: Params, hub: Hub, verified: Verified) -> dict[str, RemoteFile]:
    """Fetch the tables about all clips or episodes; returns the hub's entries for them."""
    folder, kind = p.local_dir, "data set in the expected layout"
    known: Sequence[str] = METADATA_FILES
    needed = (FEATURES_FILE, INDEX_FILE)
    if p.lerobot_profile:
        kind, known = "LeRobot v3 data set", layout.metadata_files(folder)
        needed = (layout.INFO_FILE, layout.episode_files(1)[0])
        listed = hub.sizes([layout.INFO_FILE, layout.TASKS_FILE])
        number, episodes = 0, dict[str, RemoteFile]()
        while len(episodes) == number:
            number += EPISODE_FILES_AT_ONCE
            episodes = hub.sizes(layout.episode_files(number))
        listed |= episodes
    else:
        listed = hub.sizes(METADATA_FILES)
        if PRESENCE_FILE in listed:
            listed.pop(OLD_PRESENCE_FILE, None)
    for path in needed:
        if path not in listed:
            raise AvomniError(
                f"not a {kind}: it has no {path}",
                where=hub.page,
                fix="check dataset.repo_id and dataset.revision",
            )
    for path in known:
        if path not in listed:  # remove another revision's table
            (folder / path).unlink(missing_ok=True)
    for remote in listed.values():
        is_known = verified.known(remote)
        if not is_known and (not verified.needs_hash(remote) or verified.find(remote)):
            hub.fetch(remote, folder)
            verified.remember(remote)
    verified.save()
    return listed
