"""Which chunks a run takes, under a number of chunks and a number of gigabytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from avomni_lib.dataset.catalog import METADATA_FILES, Catalog, required_features
from avomni_lib.dataset.remote import RemoteFile
from avomni_lib.errors import AvomniError
from avomni_lib.params import Params

# Weighed beyond target_chunks, to take the place of chunks that lack files.
NUM_SPARE = 8


@dataclass(frozen=True)
class Choice:
    """The chunks that a run takes, why these, and what they weigh with the metadata.

    Attributes:
        passed: Chunks that would have been taken but for a fault -> the fault.
    """

    chunks: tuple[int, ...]
    reason: str
    num_bytes: int
    passed: Mapping[int, str]


def candidates(catalog: Catalog, p: Params) -> tuple[int, ...]:
    """The chunks to weigh: the named ones, else the first.

    Raises:
        AvomniError: a named chunk does not exist; it says which do.
    """
    if p.download.chunks is None:
        return catalog.chunks[: p.download.target_chunks + NUM_SPARE]
    if not p.download.chunks:
        raise AvomniError(
            "download.chunks is empty", fix="name chunks, or leave it out to take the first"
        )
    chunks = tuple(dict.fromkeys(p.download.chunks))
    for chunk in chunks:
        catalog.clip_ids(chunk)
    return chunks


def choose_chunks(catalog: Catalog, sizes: Mapping[str, RemoteFile], p: Params) -> Choice:
    """The first chunks within download.target_chunks and target_size_gb, or the named ones.

    A chunk whose files the source lacks is passed over, unless it was named.

    Args:
        sizes: What the source lists of the candidates' files and the metadata.

    Raises:
        AvomniError: a named chunk cannot be used, or the budget is too small for the named ones or
            for even one.
    """
    features = required_features(p)
    is_named = p.download.chunks is not None
    total = sum(sizes[path].size for path in METADATA_FILES if path in sizes)
    taken: list[int] = []
    passed: dict[int, str] = {}
    limit = ""
    for chunk in candidates(catalog, p):
        paths = catalog.files([chunk], features)
        fault = _fault(catalog, sizes, chunk, paths, features)
        if fault and is_named:
            raise AvomniError(
                f"chunk {chunk} cannot be used: {fault}",
                where="download.chunks",
                fix="name other chunks, or leave it out to take the first",
            )
        if fault:
            passed[chunk] = fault
            continue
        with_it = total + sum(sizes[path].size for path in paths)
        if with_it > p.download.target_size_gb * 1e9:
            if is_named or not taken:
                raise _too_small(p, chunk, with_it)
            limit = f"chunk {chunk} would make it {with_it / 1e9:.2f} GB"
            break
        taken.append(chunk)
        total = with_it
        if len(taken) == p.download.target_chunks and not is_named:
            break
    over = [f"chunk {chunk} is passed over: {fault}" for chunk, fault in passed.items()]
    if not taken:
        raise AvomniError(
            "no chunk can be used: " + "; ".join(over[:3]),
            where=str(catalog.folder),
            fix="check dataset.revision and vision.camera_setup",
        )
    reason = "; ".join([_reason(p, len(taken), limit), *over])
    return Choice(tuple(taken), reason, total, passed)


def _fault(
    catalog: Catalog,
    sizes: Mapping[str, RemoteFile],
    chunk: int,
    paths: Sequence[str],
    features: Sequence[str],
) -> str | None:
    missing = [path for path in paths if path not in sizes]
    if missing:
        return f"the source lacks {missing[0]}"
    if not catalog.usable(chunk, features):
        return "none of its clips has all of " + ", ".join(features)
    return None


def _reason(p: Params, num_taken: int, limit: str) -> str:
    if p.download.chunks is not None:
        return "named by download.chunks"
    if limit:
        return f"as many as fit download.target_size_gb: {p.download.target_size_gb:g} ({limit})"
    if num_taken < p.download.target_chunks:
        return f"all there are (download.target_chunks: {p.download.target_chunks})"
    return f"the first, by download.target_chunks: {p.download.target_chunks}"


def _too_small(p: Params, chunk: int, num_bytes: int) -> AvomniError:
    taken = "all named chunks up to" if p.download.chunks else "even the first chunk,"
    gigabytes = num_bytes / 1e9
    return AvomniError(
        f"{taken} {chunk}, with {p.vision.camera_setup} and metadata, take {gigabytes:.4g} GB; "
        f"the budget is {p.download.target_size_gb:g} GB",
        where="download.target_size_gb",
        fix=f"set it to {gigabytes * 1.001:.4g} or more, or take fewer chunks or cameras",
    )
