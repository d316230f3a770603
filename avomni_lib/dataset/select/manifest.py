"""`chosen.json`: what a run has fetched; written last, read by the stages after it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from avomni_lib import files
from avomni_lib.dataset import names
from avomni_lib.dataset.catalog import METADATA_FILES, SPLITS, Catalog
from avomni_lib.dataset.clip_index import MAX_CHUNK
from avomni_lib.errors import AvomniError
from avomni_lib.params import Params

FILE = "chosen.json"
CHOOSE_AGAIN = (
    "run 02_download again, which chooses anew or fetches the tables of its revision: "
    "python -m avomni_lib run PARAMS.yaml --only 02_download --force"
)


@dataclass(frozen=True)
class Chosen:
    """The files and clips of a run.

    Attributes:
        repo_id: As in the parameters.
        revision: 40 hex: the source's commit; for `dataset.source: folder` a hash of the files.
        chunks: In the order in which they were chosen.
        clip_ids: Split -> the clips that have every feature that the run needs.
        files: Path below local_dir -> {"size": bytes, "sha256": hex}.
        chosen_on: The day (ISO) of the choice, from which a licence's term counts; None where an
            earlier version wrote the file.
        local_dir: Where the raw files lie; None likewise.
    """

    repo_id: str
    revision: str
    chunks: tuple[int, ...]
    clip_ids: Mapping[str, tuple[str, ...]]
    files: Mapping[str, Mapping[str, Any]]
    chosen_on: str | None = None
    local_dir: str | None = None

    @property
    def num_clips(self) -> int:
        return sum(map(len, self.clip_ids.values()))

    @property
    def num_bytes(self) -> int:
        return sum(file["size"] for file in self.files.values())

    @property
    def digest(self) -> str:
        """A sha256 of all but day and folder: the same digest means the same input for 03."""
        values = asdict(self)
        del values["chosen_on"], values["local_dir"]
        return files.hash_json(values)


def path_of(p: Params) -> Path:
    return p.run_dir / FILE


def write_chosen(p: Params, chosen: Chosen) -> None:
    files.write_json(path_of(p), asdict(chosen))


def read_chosen(p: Params) -> Chosen:
    """What the run's 02_download has fetched.

    Raises:
        AvomniError: it has not run yet, or the file is damaged.
    """
    path = path_of(p)
    if not path.exists():
        raise AvomniError(
            "no raw files have been chosen for this run yet",
            where=str(path),
            fix="run 02_download first: python -m avomni_lib run PARAMS.yaml --only 02_download",
        )
    values = files.read_json(path)
    try:
        clip_ids = {split: tuple(ids) for split, ids in values["clip_ids"].items()}
        chosen = Chosen(
            values["repo_id"],
            values["revision"],
            tuple(values["chunks"]),
            clip_ids,
            values["files"],
            values.get("chosen_on"),
            values.get("local_dir"),
        )
        _check(chosen, str(path))
        return chosen
    except (KeyError, TypeError, AttributeError) as error:
        raise AvomniError(
            f"not a {FILE} of this version: {error!r}", where=str(path), fix=CHOOSE_AGAIN
        ) from None


def open_catalog(p: Params, chosen: Chosen) -> Catalog:
    """The catalog on the disk, which has to be the one that the run chose from.

    Raises:
        AvomniError: its tables have changed since, or a chosen clip has not exactly the place in
            them that it was chosen for.
    """
    if changed := changed_metadata(p, chosen):
        raise AvomniError(
            f"the catalog is not the one that 02_download chose from: {', '.join(changed)} "
            f"{'has' if len(changed) == 1 else 'have'} changed or gone since",
            where=str(p.local_dir),
            fix=CHOOSE_AGAIN,
        )
    catalog = Catalog.of(p)
    if wrong := _misplaced(catalog, chosen):
        more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise AvomniError(
            f"the catalog does not have the chosen clips as they were chosen: {wrong[0]}{more}",
            where=str(path_of(p)),
            fix=CHOOSE_AGAIN,
        )
    return catalog


def changed_metadata(p: Params, chosen: Chosen) -> list[str]:
    """The tables of the catalog that have another content than when the run chose; all are read."""
    changed = []
    for name in METADATA_FILES:
        path, entry = p.local_dir / name, chosen.files.get(name)
        now = files.sha256_file(path) if path.is_file() else None
        if now != (entry and entry["sha256"]):
            changed.append(name)
    return changed


def _misplaced(catalog: Catalog, chosen: Chosen) -> list[str]:
    """Clips that are not of the chosen chunks and splits, or are chosen twice, each in words."""
    wrong, seen = [], set[str]()
    for split, ids in chosen.clip_ids.items():
        for clip_id, row in zip(ids, catalog.clips.rows(ids).tolist(), strict=True):
            why = ""
            if clip_id in seen:
                why = "is chosen twice"
            elif row < 0:
                why = "is not listed"
            elif not catalog.clips.is_valid[row]:
                why = "is marked as not valid"
            elif (chunk := int(catalog.clips.chunk[row])) not in chosen.chunks:
                why = f"lies in chunk {chunk}, which was not chosen"
            elif (now := SPLITS[catalog.clips.split[row]]) != split:
                why = f"was of the split {split} and is of {now}"
            seen.add(clip_id)
            if why:
                wrong.append(f"clip {clip_id} {why}")
    return wrong


def _check(chosen: Chosen, where: str) -> None:
    """What leads to a file, as it may have been written by another program or hand."""
    for clip_id in itertools.chain.from_iterable(chosen.clip_ids.values()):
        names.need("the clip id", clip_id, names.name_fault(clip_id), where, CHOOSE_AGAIN)
    for name, file in chosen.files.items():
        names.need("the path of a file", name, names.path_fault(name), where, CHOOSE_AGAIN)
        names.need(
            f"the size of {name}", file["size"], names.size_fault(file["size"]), where, CHOOSE_AGAIN
        )
    for chunk in chosen.chunks:
        fault = None if type(chunk) is int and 0 <= chunk < MAX_CHUNK else "it is no chunk's number"
        names.need("the chunk", chunk, fault, where, CHOOSE_AGAIN)


def missing_files(p: Params) -> list[str]:
    """The chosen files that are gone from the disk or have another size. Reads no content."""
    gone = []
    for name, file in read_chosen(p).files.items():
        path = p.local_dir / name
        if not path.is_file() or path.stat().st_size != file["size"]:
            gone.append(name)
    return gone
