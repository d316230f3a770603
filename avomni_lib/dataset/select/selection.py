"""What a run takes from its source: the licence first, then the catalog, the chunks, the files."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
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
from avomni_lib.dataset.select import manifest as chosen_file
from avomni_lib.dataset.select.chunks import ChunkChoice, Ranking, choose_chunks, rank
from avomni_lib.dataset.select.forecast import estimated
from avomni_lib.errors import AvomniError
from avomni_lib.params import Params

# NVIDIA Autonomous Vehicle Dataset License Agreement, section 1, as the data set's card quotes it.
LICENSE_CLAUSE = (
    "internal development of autonomous vehicles and automated driving assisted systems "
    "using NVIDIA technology"
)
LICENSE_OWNER = "nvidia/"


@dataclass(frozen=True)
class Selection:
    """What a run takes.

    Attributes:
        catalog: Of the pinned revision.
        choice: The chunks, and why these.
        features: What a clip must have.
        files: Metadata first, then chunk by chunk.
        clip_ids: Split -> the wanted clips: they have all features and fit download.clips.
        optional: Features that are fetched too, and that a clip may lack.
    """

    catalog: Catalog
    choice: ChunkChoice
    features: tuple[str, ...]
    files: tuple[RemoteFile, ...]
    clip_ids: dict[str, tuple[str, ...]]
    optional: tuple[str, ...] = ()

    @property
    def num_clips(self) -> int:
        return sum(map(len, self.clip_ids.values()))

    @property
    def num_bytes(self) -> int:
        return sum(file.size for file in self.files)

    def places(self, more: Iterable[int] = ()) -> dict[str, tuple[str, int | None]]:
        """Path -> (feature, chunk) of every file of the chunks, and of more; ("", None) of tables
        about all clips."""
        places: dict[str, tuple[str, int | None]] = {file.path: ("", None) for file in self.files}
        for chunk in (*self.choice.chunks, *more):
            for feature in (*self.features, *self.optional):
                for path in self.catalog.files([chunk], [feature]):
                    places[path] = (feature, chunk)
        return places


def source_in_words(p: Params) -> str:
    if p.rendered:
        return "the rendered world, by a hub on 127.0.0.1"
    return p.dataset.repo_id if p.dataset.source == "hub" else str(p.local_dir)


def license_question(p: Params) -> str | None:
    """What the user has to decide before anything is fetched, or None."""
    if p.dataset.source != "hub" or p.dataset.license_accepted:
        return None
    if p.dataset.repo_id.startswith(LICENSE_OWNER):
        return (
            f"the licence of {p.dataset.repo_id} grants use for your "
            f'"{LICENSE_CLAUSE}", keeps the data confidential and ends 12 months after the download'
        )
    return f"{p.dataset.repo_id} comes under its owner's licence"


def need_license(p: Params) -> None:
    """The gate before the first byte.

    Raises:
        AvomniError: the user has not stated a decision.
    """
    question = license_question(p)
    if question:
        raise AvomniError(
            f"dataset.license_accepted is false: {question}",
            where=f"https://huggingface.co/datasets/{p.dataset.repo_id}",
            fix="read the licence, decide whether your use is within it, and state your decision: "
            "dataset.license_accepted: true",
        )


def need_folder(p: Params) -> None:
    """Nothing is made where a folder was promised.

    Raises:
        AvomniError: `dataset.source: folder`, and there is none.
    """
    if p.dataset.source == "folder" and not p.local_dir.is_dir():
        raise AvomniError(
            "dataset.source is folder, and the folder does not exist",
            where=str(p.local_dir),
            fix="set dataset.local_dir to a folder in the data set's layout",
        )


def pinned(p: Params, hub: Hub | None) -> Hub | None:
    """Without dataset.revision a run stays at the commit that its first download took."""
    if hub is None or hub.revision:
        return hub
    try:
        before = chosen_file.read_chosen(p)
    except AvomniError:
        return hub
    return hub.at(before.revision) if before.repo_id == hub.repo_id else hub


@contextlib.contextmanager
def opened(p: Params, hub: Hub | None) -> Iterator[tuple[Hub | None, Verified, Selection]]:
    """The pinned hub, what is verified, and the choice; the folder is held as long as it lasts.

    Raises:
        AvomniError: as `select`; the licence is not decided on, or the folder is not there.
    """
    need_license(p)
    need_folder(p)
    hub = pinned(p, hub)
    with hold(p.local_dir):
        verified = Verified(p.local_dir)
        yield hub, verified, select(p, hub, verified)


def select(p: Params, hub: Hub | None, verified: Verified) -> Selection:
    """Fetch the metadata if need be, and choose.

    The caller has seen to the licence and holds the folder.

    Args:
        hub: From `pinned`; None where `local_dir` already holds everything.

    Raises:
        AvomniError: the access, the metadata or the choice of chunks.
    """
    if hub is not None:
        hub.check_access()
        metadata = _fetch_metadata(p.local_dir, hub, verified)
    else:
        metadata = _on_disk(p.local_dir, METADATA_FILES)
    catalog = Catalog.of(p)
    ranking = rank(catalog, p)
    features = (*required_features(p), *catalog.listed(optional_features(p)))
    paths = catalog.files(ranking.chunks, features)
    if hub is not None:
        return _selection(catalog, p, ranking, _Listing(hub, metadata, paths))
    return _selection(catalog, p, ranking, metadata | _on_disk(p.local_dir, paths))


def listed(p: Params, hub: Hub | None) -> list[dict[str, Any]]:
    """What a download takes, a row a file: path, feature, chunk, size (bytes), is_here.

    A file is here whose bytes are on the disk, checked already or not; the tables about all clips
    have no feature and no chunk.

    Raises:
        AvomniError: as `select`; the licence is not decided on.
    """
    with opened(p, hub) as (_, verified, selection):
        places = selection.places()
    rows = []
    for file in selection.files:
        feature, chunk = places[file.path]
        here = bool(verified.known(file) or verified.needs_hash(file))
        row = {"path": file.path, "feature": feature or None, "chunk": chunk, "size": file.size}
        rows.append(row | {"is_here": here})
    return rows


def foretell(p: Params) -> Selection | None:
    """What `select` would choose, from the metadata that lie in local_dir: no hub is asked.

    Sizes are estimates, from what is published of the data set; chunks and clips are the same, but
    for files that the source lacks. None where the metadata are not there.

    Raises:
        AvomniError: as `select`, but for the access.
    """
    if not any((p.local_dir / path).is_file() for path in (PRESENCE_FILE, OLD_PRESENCE_FILE)):
        return None
    if not all((p.local_dir / path).is_file() for path in (FEATURES_FILE, INDEX_FILE)):
        return None
    catalog = Catalog.of(p)
    ranking = rank(catalog, p)
    return _selection(catalog, p, ranking, estimated(catalog, ranking.chunks, p))


def _selection(
    catalog: Catalog, p: Params, ranking: Ranking, sizes: Mapping[str, RemoteFile]
) -> Selection:
    features = required_features(p)
    choice = choose_chunks(catalog, sizes, p, ranking)
    split = catalog.clips.split[choice.rows]
    clip_ids = {
        name: catalog.clips.ids(choice.rows[split == place]) for place, name in enumerate(SPLITS)
    }
    metadata = [sizes[path] for path in METADATA_FILES if path in sizes]
    optional = catalog.listed(optional_features(p))
    paths = catalog.files(choice.chunks, (*features, *optional))
    extra = set(catalog.files(choice.chunks, optional))
    taken = [sizes[path] for path in paths if path not in extra or path in sizes]
    return Selection(catalog, choice, features, (*metadata, *taken), clip_ids, optional)


class _Listing(Mapping[str, RemoteFile]):
    """What the hub lists of a row of paths, asked for in its batches, as far as it is looked at."""

    def __init__(self, hub: Hub, known: dict[str, RemoteFile], paths: Sequence[str]):
        self._hub, self._known, self._paths = hub, dict(known), paths
        self._place = {path: place for place, path in enumerate(paths)}
        self._num_asked = 0

    def __getitem__(self, path: str) -> RemoteFile:
        while self._num_asked <= self._place.get(path, -1):
            batch = self._paths[self._num_asked : self._num_asked + PATHS_A_REQUEST]
            self._known |= self._hub.sizes(batch)
            self._num_asked += len(batch)
        return self._known[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)


def content_revision(files: Iterable[tuple[str, str]]) -> str:
    """40 hex for a folder that has no commit: a hash of (path, sha256)."""
    listing = "".join(f"{sha256} {path}\n" for path, sha256 in sorted(files))
    return hashlib.sha1(listing.encode()).hexdigest()


def _fetch_metadata(folder: Path, hub: Hub, verified: Verified) -> dict[str, RemoteFile]:
    listed = hub.sizes(METADATA_FILES)
    if PRESENCE_FILE in listed:
        listed.pop(OLD_PRESENCE_FILE, None)
    for path in (INDEX_FILE, FEATURES_FILE):
        if path not in listed:
            raise AvomniError(
                f"not a data set in the expected layout: it has no {path}",
                where=hub.page,
                fix="check dataset.repo_id and dataset.revision",
            )
    for path in METADATA_FILES:
        if path not in listed:
            # Another revision's table must not be taken for this one's.
            (folder / path).unlink(missing_ok=True)
            continue
        remote = listed[path]
        if verified.known(remote):
            continue
        if not verified.needs_hash(remote) or verified.find(remote):
            hub.fetch(remote, folder)
            verified.remember(remote)
    verified.save()
    return listed


def _on_disk(folder: Path, paths: Iterable[str]) -> dict[str, RemoteFile]:
    return {
        path: RemoteFile(path, (folder / path).stat().st_size)
        for path in paths
        if (folder / path).is_file()
    }
