"""Public evaluation protocols: their clips, the time of prediction, and published results.

`pai_644` is that of NVlabs/alpamayo-recipes (Apache-2.0), recipes/alpamayo1_5_quant/eval.py: 644
clips of PhysicalAI-Autonomous-Vehicles, predicted at t0 = 5.1 s of each, 64 points over the next
6.4 s, and the best of six sampled answers by the mean distance (minADE). The clips' ids are fetched
from there; this project does not include them.
"""

from __future__ import annotations

import io
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from avomni_lib import files
from avomni_lib.dataset.catalog import FEATURES_FILE, INDEX_FILE, Catalog, ranges
from avomni_lib.dataset.select.forecast import estimated
from avomni_lib.errors import AvomniError
from avomni_lib.params import Params
from avomni_lib.plan import gigabytes

URL = (
    "https://github.com/NVlabs/alpamayo-recipes/raw/e5864245096c07e732ac714415ae505dd0f0f559/"
    "recipes/alpamayo1_5_quant/1005_7cam_gold_eval_metadb_public.parquet"
)
TIMEOUT_S, MOST_BYTES = 60, 50_000_000
COLUMNS = ("key", "clip_id")


@dataclass(frozen=True)
class Protocol:
    """Number of clips and samples, time of prediction, and seed of the samples.

    Attributes:
        quoted: Published results by the protocol, not reproduced here: name, source, and values by
            measure.
    """

    name: str
    num_clips: int
    t0_us: int
    num_samples: int
    seed: int
    quoted: tuple[dict[str, Any], ...]


PAI_644 = Protocol(
    "pai_644",
    num_clips=644,
    t0_us=5_100_000,
    num_samples=6,
    seed=42,
    quoted=(
        {
            "name": "Alpamayo-1.5",
            "source": "NVlabs/alpamayo-recipes, by its makers, on the first 100 of the clips",
            "min_ade_6_4s_m": 0.854,
        },
        {
            "name": "Qwen-Drive-1.0-4B",
            "source": "QwenLM's model card of September 2026, by its makers",
            "min_ade_3s_m": 0.34,
            "min_ade_5s_m": 0.96,
        },
    ),
)
PROTOCOLS = {PAI_644.name: PAI_644}


def protocol_of(p: Params) -> Protocol | None:
    return PROTOCOLS[p.evaluation.protocol] if p.evaluation.protocol else None


def ids_file(p: Params) -> Path:
    """The file of ids: `evaluation.protocol_ids`, or the one fetched for the run."""
    given = p.evaluation.protocol_ids
    return files.resolve(given) if given else p.run_dir / f"{p.evaluation.protocol}.parquet"


def clip_ids(p: Params, fetch: bool = True) -> tuple[str, ...]:
    """The protocol's clips in their order; the published list is fetched once per run.

    Args:
        fetch: Whether to fetch the list if it is not on the disk.

    Raises:
        AvomniError: the list cannot be fetched or read, or has the wrong length.
    """
    path = ids_file(p)
    if not path.exists():
        if p.evaluation.protocol_ids or not fetch:
            raise AvomniError(
                "the protocol's clip ids are not on the disk",
                where=str(path),
                fix="name a file of ids in evaluation.protocol_ids, or let 05 or 06 fetch the "
                f"published one: leave it null, or save {URL} there",
            )
        _fetch(path)
    ids = _read(path)
    num_clips = PROTOCOLS[str(p.evaluation.protocol)].num_clips
    if not p.evaluation.protocol_ids and len(ids) != num_clips:
        raise AvomniError(
            f"{len(ids)} clip ids, and the protocol has {num_clips}",
            where=str(path),
            fix="delete the file, so that it is fetched again; if it stays, its makers have changed"
            " it: name the file that you mean in evaluation.protocol_ids",
        )
    return ids


def _fetch(path: Path) -> None:
    try:
        with urllib.request.urlopen(URL, timeout=TIMEOUT_S) as response:
            content = response.read(MOST_BYTES)
        pq.read_schema(io.BytesIO(content))
    except (OSError, pa.ArrowInvalid, urllib.error.URLError) as error:
        raise AvomniError(
            f"the protocol's clip ids cannot be fetched: {error}",
            where=URL,
            fix="fetch the file yourself, and name it in evaluation.protocol_ids",
        ) from None
    files.write_bytes(path, content)


def _read(path: Path) -> tuple[str, ...]:
    """The ids in a parquet file's column `key` or `clip_id`, or in the lines of a text file."""
    fix = f"a parquet table with a column {' or '.join(COLUMNS)}, or a text file with an id a line"
    try:
        if path.suffix == ".parquet":
            names = pq.read_schema(path).names
            column = next((name for name in COLUMNS if name in names), None)
            if column is None:
                what = f"no column of clip ids; there are {', '.join(names)}"
                raise AvomniError(what, where=str(path), fix=fix)
            rows = pq.read_table(path, columns=[column])[column].to_pylist()
        else:
            rows = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError, pa.ArrowInvalid) as error:
        what = f"the clip ids cannot be read: {error}"
        raise AvomniError(what, where=str(path), fix=fix) from None
    ids = tuple(dict.fromkeys(str(row).strip() for row in rows if row and str(row).strip()))
    if not ids:
        raise AvomniError("no clip id in the file", where=str(path), fix=fix)
    return ids


def rows(p: Params) -> tuple[list[tuple[str, str, str]], dict[str, object]]:
    """(rows, figures) of a plan: the chunks of the protocol's clips and their size.

    Nothing is fetched; the row says what is missing.
    """
    protocol = protocol_of(p)
    if protocol is None:
        return [], {}
    try:
        ids = clip_ids(p, fetch=False)
    except AvomniError as error:
        return [("protocol", protocol.name, f"{error.what}: {error.where}; {error.fix}")], {}
    asked = f"{len(ids):,} clips at {protocol.t0_us / 1e6:g} s, K = {protocol.num_samples}"
    if missing := [n for n in (INDEX_FILE, FEATURES_FILE) if not (p.local_dir / n).is_file()]:
        note = f"in which chunks is not known before 01_audit: no {', '.join(missing)}"
        return [("protocol", asked, f"{note} in {p.local_dir}")], {}
    catalog = Catalog.of(p)
    known = set(catalog.clip_ids()).intersection(ids)
    chunks = sorted({catalog.chunk_of(clip_id) for clip_id in known})
    num_bytes = sum(file.size for file in estimated(catalog, chunks, p).values())
    note = f"in {len(chunks):,} chunks, {gigabytes(num_bytes)} (estimated): {ranges(chunks)}"
    if len(known) < len(ids):
        note += f"; {len(ids) - len(known):,} of them this source does not have"
    figures = {
        "protocol_clips": len(ids),
        "protocol_chunks": chunks,
        "protocol_gb": round(num_bytes / 1e9, 3),
    }
    return [("protocol", asked, note)], figures
