"""The notebooks as stages: requirements, parameters that each reads, and one-line summaries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avomni_lib import files
from avomni_lib.evaluation.ladder import KEPT_FILE
from avomni_lib.params import Params
from avomni_lib.plan import gigabytes
from avomni_lib.training.fit import job


@dataclass(frozen=True)
class Stage:
    """One notebook.

    Attributes:
        purpose: Short description.
        needs: Stages that must be done before it.
        reads: Parameters that it reads.
        keeps: Paths in the run's folder from which it resumes after a kill; `--force` removes them.
        is_report: No stage reads its outputs; stages that need it only have to come after it.
    """

    name: str
    purpose: str
    needs: tuple[str, ...]
    reads: tuple[str, ...]
    keeps: tuple[str, ...] = ()
    is_report: bool = False

    @property
    def notebook(self) -> Path:
        return files.PROJECT_ROOT / "notebooks" / f"{self.name}.ipynb"


def _keys(section: str, keys: str) -> tuple[str, ...]:
    return tuple(f"{section}.{key}" for key in keys.split())


_SOURCE = (
    *_keys("dataset", "source repo_id revision endpoint local_dir license_accepted world lerobot"),
    *_keys("download", "target_chunks target_size_gb chunks clips evict_raw"),
    *("vision.cameras", "processing.obstacles", "run.seed"),
)
_TILES = _keys("processing", "sample_hz tile_width tile_height fit align")
_CACHE = (*_TILES, *_keys("processing", "decoder storage horizon_s obstacles"))
_WINDOWS = _keys("processing", "sequence_length stride past.seconds past.hz past.scale")
_TRAINING = (
    "target batch_size gradient_accumulation_steps gradient_checkpointing num_epochs max_steps "
    "num_processes optimizer"
)
_LIVE = (
    *_keys("evaluation", "split max_new_tokens constrained"),
    *_keys("live", "sources clock offset_ms deadline_ms max_age_s hop seconds server"),
)
_DRIVING = (
    *_keys("driving", "num_episodes policies seconds traffic events hop smoothing"),
    *_keys("evaluation", "max_new_tokens constrained"),
    *_keys("dataset.world", "town width height"),
    "live.hop",
)
# Parameters of the cost estimate in 04.
_PLAN = (
    "run.price_per_hour",
    *_keys("model", "base_model backbone max_seq_length load_in_4bit lora_rank lora_targets"),
    *_keys("training", _TRAINING),
)

STAGES = (
    Stage(
        "01_audit",
        "what the source holds, what is on disk, what is damaged",
        (),
        ("dataset.audit", "processing.horizon_s", *_SOURCE),
        is_report=True,
    ),
    Stage("02_download", "the chosen chunks, whole and checked", ("01_audit",), _SOURCE),
    Stage(
        "03_etl",
        "clips to the cache of grid frames",
        ("02_download",),
        ("vision.cameras", "download.evict_raw", "dataset.lerobot.profile", *_CACHE),
        ("cache",),
    ),
    Stage(
        "04_tiles",
        "what the model will see",
        ("03_etl",),
        (*_WINDOWS, "vision.cameras", "prompt", *_TILES, *_PLAN),
    ),
    Stage("05_train", "the adapter", ("03_etl",), job.READS, ("checkpoints", "checkpoints_blind")),
    Stage(
        "06_evaluate",
        "the score",
        ("03_etl", "05_train"),
        ("run.seed", "processing.stride", *job.SEEN, "model", "training.target", "evaluation"),
        (f"06_evaluate/{KEPT_FILE}",),
    ),
    Stage(
        "07_live",
        "live cameras, answered as they come",
        ("03_etl", "05_train"),
        (*job.SEEN, "model", "training.target", *_LIVE),
        is_report=True,
    ),
)
# Only in runs that set `driving.num_episodes`; the target needs a path.
DRIVE = Stage(
    "08_drive",
    "the model at the wheel of a simulated car",
    ("03_etl", "05_train"),
    ("run.seed", *job.SEEN, "model", "training.target", *_DRIVING),
    ("08_drive/episodes",),
    is_report=True,
)
BY_NAME = {stage.name: stage for stage in (*STAGES, DRIVE)}


def stages_of(p: Params) -> tuple[Stage, ...]:
    """The stages of a run, in their order."""
    return STAGES if p.driving.num_episodes is None else (*STAGES, DRIVE)


def in_short(name: str, figures: Mapping[str, Any]) -> str:
    """One-line summary of a stage's figures."""
    try:
        return HEADLINES[name](figures) if figures else ""
    except (LookupError, TypeError, ValueError, AttributeError):
        return "its figures are damaged"


def _audit(f: Mapping[str, Any]) -> str:
    counts = [
        f"{num} {'not on the disk yet' if state == 'missing' else state}"
        for state, num in f["clips_by_state"].items()
        if num
    ]
    return f"{f['num_clips']} clips in {f['num_files']} files, {', '.join(counts)}"


def _etl(f: Mapping[str, Any]) -> str:
    num = f.get("num_lost", 0)
    lost = f"{num} lost (run the same command again: it tries them again), " if num else ""
    clips = f"{f['num_clips']} clips, {f['num_damaged']} left out, {lost}"
    return f"{clips}{f['num_windows']} windows, {gigabytes(f['cache_bytes'])}"


def _download(f: Mapping[str, Any]) -> str:
    later = f.get("bytes_to_fetch", 0)
    words = f"{gigabytes(f['bytes'])}, {gigabytes(f['bytes_fetched'])} fetched"
    return words + (f", {gigabytes(later)} to be fetched by 03" if later else "")


def _score(f: Mapping[str, Any]) -> str:
    rows = {row["name"]: row for row in f["ladder"]}
    model = rows["adapted"]
    interval = "" if model["low"] is None else f" ({model['low']:.2f} to {model['high']:.2f})"
    others = [f"{n} {rows[n]['value']:.2f}" for n in ("mean", "base", "ego_motion") if n in rows]
    return (
        f"{model['metric']} {model['value']:.2f}{interval}; {', '.join(others)}; "
        f"{model['valid_share']:.0%} of answers can be read "
        f"({model['num_windows']} windows, {model['num_clips']} clips)"
    )


def _live(f: Mapping[str, Any]) -> str:
    words = f"{f['num_answers']} answers to {f['num_ticks']} ticks"
    if total := f["latency_s"].get("total"):
        words += f", {total['p50']:.2f} s from frame to answer (p95 {total['p95']:.2f})"
    return words + f"; {f['num_overtaken']} windows overtaken, {f['num_gaps']} gaps"


def _drive(f: Mapping[str, Any]) -> str:
    scores = ", ".join(f"{row['name']} {row['scene_score']:.2f}" for row in f["drive"])
    return f"scene score: {scores} ({f['drive'][0]['num_episodes']} episodes)"


HEADLINES = {
    "01_audit": _audit,
    "02_download": _download,
    "03_etl": _etl,
    "04_tiles": lambda f: f"{f['vision_tokens']} vision tokens, {f['tokens_per_sample']} in all",
    "05_train": lambda f: f["headline"],
    "06_evaluate": _score,
    "07_live": _live,
    "08_drive": _drive,
}
