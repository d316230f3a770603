"""`--shard i/n`: builds a cache in several independent processes, on one or more machines.

A share makes the parts of every n-th clip and no shards; when all shares are done, an ordinary
build makes the shards from the parts.
"""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections import Counter
from typing import Any

from avomni_lib import files
from avomni_lib.dataset.catalog import Catalog
from avomni_lib.dataset.clip import open_clip
from avomni_lib.dataset.select.manifest import read_chosen
from avomni_lib.errors import AvomniError
from avomni_lib.etl.run import build, engines, forecast
from avomni_lib.etl.run.parts import make_part
from avomni_lib.params import Params
from avomni_lib.plan import Bar

log = logging.getLogger(__name__)


def parse(text: str) -> tuple[int, int]:
    """Parse `"3/16"` to (3, 16).

    Raises:
        AvomniError: the text is not I/N with 1 ≤ I ≤ N.
    """
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip(), re.ASCII)
    index, count = map(int, match.groups()) if match else (0, 0)
    if not 1 <= index <= count:
        raise AvomniError(
            f"{text!r} is no share",
            where="--shard",
            fix="write I/N with I from 1 to N: the first of sixteen is 1/16, the last 16/16",
        )
    return index, count


def build_share(p: Params, index: int, count: int, progress: type[Bar] = Bar) -> dict[str, Any]:
    """Make the missing parts of the clips `index`, `index + count`, … (from 1).

    Several shares may work on one folder at a time; a killed one resumes where it stopped. Damaged
    and lost clips are tried again by the build that follows, which lists their reasons.

    Returns:
        share, num_clips in it, num_made, num_there (existed before), num_damaged, num_lost,
        seconds, cpu_seconds.

    Raises:
        AvomniError: 02_download has not run; `download.evict_raw` is set; no room on the disk; a
            build works on this cache.
    """
    started = time.monotonic()
    chosen = read_chosen(p)
    if p.download.evict_raw:
        raise AvomniError(
            "shares need all raw files at hand, and with download.evict_raw they come and go",
            where="--shard",
            fix="set download.evict_raw: false and run 02_download, or run 03_etl without --shard",
        )
    busy = "a build of the whole works on this cache"
    with files.hold(p.cache_dir / ".lock", busy, shared=True):
        works = build.works(p, chosen, build.common_header(p, chosen))
        clips = [(work, clip["clip_id"]) for work in works for clip in work.clips]
        clips = clips[index - 1 :: count]
        missing = {work.chunk: set(work.missing()) for work in works}
        todo = [(work, clip_id) for work, clip_id in clips if clip_id in missing[work.chunk]]
        left_out, cpu_s = Counter[str](), 0.0
        if todo:
            clip = open_clip(p.local_dir, Catalog.of(p), todo[0][1])
            num_bytes = len(todo) * forecast.clip_bytes(
                p, forecast.clip_seconds(p, clip), p.processing.storage, forecast.JPEG_SHARE_MOST
            )
            files.need_room(p.cache_dir, num_bytes, "this share of the cache")
        recipe = build.recipe_of(p)
        jobs = (build.job_of(p, work, clip_id, recipe) for work, clip_id in todo)
        with (
            progress(total=len(todo), unit="clip", label="ETL, a share") as bar,
            contextlib.closing(engines.run(p, make_part, jobs)) as outcomes,
        ):
            for job, outcome in outcomes if todo else ():
                if outcome.reason:
                    state = "lost" if outcome.is_lost else "damaged"
                    left_out[state] += 1
                    log.warning("clip %s is %s: %s", job.clip_id, state, outcome.reason)
                cpu_s += outcome.cpu_s
                bar.update(1, ", ".join(f"{count} {state}" for state, count in left_out.items()))
    return {
        "share": f"{index}/{count}",
        "num_clips": len(clips),
        "num_made": len(todo) - left_out.total(),
        "num_there": len(clips) - len(todo),
        "num_damaged": left_out["damaged"],
        "num_lost": left_out["lost"],
        "seconds": round(time.monotonic() - started, 2),
        "cpu_seconds": round(cpu_s, 2),
    }
