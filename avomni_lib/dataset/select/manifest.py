"""`chosen.json`: files and clips of a run; written last by 02_download, read by later stages."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from avomni_lib import files
from avomni_lib.dataset.catalog import METADATA_FILES, SPLITS, Catalog
from avomni_lib.dataset.clip_index import MAX_CHUNK
from avomni_lib.dataset.lerobot import layout
from avomni_lib.dataset.names import name_fault, need, path_fault, size_fault
from avomni_lib.errors import AvomniError
from avomni_lib.params import Params

FILE = "chosen.json"
CHOOSE_AGAIN = (
    "run 02_download again, which chooses anew or fetches the tables of its revision: "
    "python -m avomni_lib run PARAMS.yaml --only 02_download --force"
)


@dataclass(frozen=True)
class Chosen:
    """The files and clips of a run."""

    repo_id: str
    revision: str  # 40 hex: the source's commit; for `dataset.source: folder` a hash of the files
    chunks: tuple[int, ...]  # in the order of selection
    clip_ids: Mapping[str, tuple[str, ...]]  # split -> clips with all required features
    files: Mapping[str, Mapping[str, Any]]  # path below local_dir -> {"size": bytes, "sha256": hex}
    chosen_on: str | None = None  # the day (ISO) on which a licence's term starts
    local_dir: str | None = None  # folder of the raw files

    @property
    def num_clips(self) -> int:
        return sum(map(len, self.clip_ids.values()))

    @property
    def num_bytes(self) -> int:
        return sum(file["size"] for file in self.files.values())

    @property
    def digest(self) -> str:
        """A sha256 without day and folder: equal digests mean equal input for 03_etl."""
        values = asdict(self)
        del values["chosen_on"], values["local_dir"]
        return files.hash_json(values)


def path_of(p: Params) -> Path:
    return p.run_dir / FILE


def write_chosen(p: Params, chosen: Chosen) -> None:
    files.write_json(path_of(p), asdict(chosen))


def read_chosen(p: Params) -> Chosen:
    """Read chosen.json; names, paths and sizes in it are checked.

    Raises:
        AvomniError: 02_download has not run yet, or the file is damaged.
    """
    path, where = path_of(p), str(path_of(p))
    if not path.exists():
        raise AvomniError(
            "no raw files have been chosen for this run yet",
            where=where,
            fix="run 02_download first: python -m avomni_lib run PARAMS.yaml --only 02_download",
        )
    values = files.read_json(path)
    try:
        chosen = Chosen(
            values["repo_id"],
            values["revision"],
            tuple(values["chunks"]),
            {split: tuple(ids) for split, ids in values["clip_ids"].items()},
            values["files"],
            values.get("chosen_on"),
            values.get("local_dir"),
        )
        for clip_id in itertools.chain.from_iterable(chosen.clip_ids.values()):
            need("the clip id", clip_id, name_fault(clip_id), where, CHOOSE_AGAIN)
        for name, file in chosen.files.items():
            size = file["size"]
            need("the path of a file", name, path_fault(name), where, CHOOSE_AGAIN)
            need(f"the size of {name}", size, size_fault(size), where, CHOOSE_AGAIN)
        for chunk in chosen.chunks:
            is_chunk = type(chunk) is int and 0 <= chunk < MAX_CHUNK
            need("the chunk", chunk, None if is_chunk else "it is no number", where, CHOOSE_AGAIN)
        return chosen
    except (KeyError, TypeError, AttributeError) as error:
        raise AvomniError(
            f"not a {FILE} of this version: {error!r}", where=where, fix=CHOOSE_AGAIN
        ) from None


def open_catalog(p: Params, chosen: Chosen) -> Catalog:
    """Open the catalog on the disk, which must be the one that the run chose from.

    Raises:
        AvomniError: its tables have changed since, or a chosen clip has another chunk or split in
            them.
    """
    if changed := changed_metadata(p, chosen):
        raise AvomniError(
            "the catalog is not the one that 02_download chose from; changed or gone since: "
            + ", ".join(changed),
            where=str(p.local_dir),
            fix=CHOOSE_AGAIN,
        )
    catalog, seen = Catalog.of(p), set[str]()
    for split, ids in chosen.clip_ids.items():
        for clip_id, row in zip(ids, catalog.clips.rows(ids).tolist(), strict=True):
            chunk, now = int(catalog.clips.chunk[row]), SPLITS[catalog.clips.split[row]]
            faults = {
                "is chosen twice": clip_id in seen,
                "is not listed": row < 0,
                "is marked as not valid": not catalog.clips.is_valid[row],
                f"lies in chunk {chunk}, which was not chosen": chunk not in chosen.chunks,
                f"was of the split {split} and is of {now}": now != split,
            }
            seen.add(clip_id)
            if fault := next((text for text, holds in faults.items() if holds), None):
                raise AvomniError(
                    "the catalog does not have the chosen clips as they were chosen: "
                    f"clip {clip_id} {fault}",
                    where=str(path_of(p)),
                    fix=CHOOSE_AGAIN,
                )
    return catalog


def changed_metadata(p: Params, chosen: Chosen) -> list[str]:
    """The tables of the catalog that have changed since the run chose; reads and hashes all."""
    changed: list[str] = []
    tables: tuple[str, ...] = METADATA_FILES
    if p.lerobot_profile:
        chosen_tables = (name for name in chosen.files if name.startswith("meta/"))
        tables = tuple(dict.fromkeys([*chosen_tables, *layout.metadata_files(p.local_dir)]))
    for name in tables:
        path, entry = p.local_dir / name, chosen.files.get(name)
        now = files.sha256_file(path) if path.is_file() else None
        if now != (entry and entry["sha256"]):
            changed.append(name)
    return changed


def missing_files(p: Params) -> list[str]:
    """The chosen files that are missing or have another size; reads no content."""
    listed = read_chosen(p).files.items()
    states = {name: files.state_of(p.local_dir / name) for name, _ in listed}
    return [name for name, file in listed if (states[name] or (None,))[0] != file["size"]]
