"""`--shard i/n`: one of several processes, on one machine or many, that make a cache's parts.

A share makes the parts of every n-th clip and assembles nothing; when all are through, an ordinary
build finds the parts and makes the shards of them.
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
    """`"3/16"` -> (3, 16).

    Raises:
        AvomniError: not two numbers, or the first is not among 1 to the second.
    """
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip(), re.ASCII)
    index, count = map(int, found.groups()) if found else (0, 0)
    if not 1 <= index <= count:
        raise AvomniError(
            f"{text!r} is no share",
            where="--shard",
            fix="write I/N with I from 1 to N: the first of sixteen is 1/16, the last 16/16",
        )
    return index, count


def build_share(p: Params, index: int, count: int, progress: type[Bar] = Bar) -> dict[str, Any]:
    """Make the parts of the clips `index`, `index + count`, … (from 1), but those that are there.

    Several shares may work at one time over one folder; a killed one goes on where it was. What a
    share leaves out as damaged or lost, the build that follows tries again and lists with the
    reason.

    Returns:
        share, num_clips in it, num_made, num_there before, num_damaged, num_lost, seconds,
        cpu_seconds.

    Raises:
        AvomniError: 02_download has not run; raw files are evicted; no room on the disk; a build
            works on this cache.
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
