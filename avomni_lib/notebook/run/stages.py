"""The stages: what each is for, what it needs, and every parameter that it reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from avomni_lib import files
from avomni_lib.evaluation.ladder import KEPT_FILE
from avomni_lib.training.fit import job


@dataclass(frozen=True)
class Stage:
    """One notebook.

    Attributes:
        purpose: What it is for.
        needs: Stages that must be done before it.
        reads: Parameters that it reads.
        keeps: What it goes on from after a kill, in the run's folder; `--force` removes it.
        is_report: No stage reads what it makes; those that need it only come after it.
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


_SOURCE = (
    *(f"dataset.{key}" for key in ("source", "repo_id", "revision", "endpoint", "local_dir")),
    *("dataset.license_accepted", "dataset.world"),
    *(f"download.{key}" for key in ("target_chunks", "target_size_gb", "chunks", "clips")),
    *("download.evict_raw", "vision.cameras", "processing.obstacles", "run.seed"),
)
_CACHE = tuple(
    f"processing.{key}"
    for key in (
        *("sample_hz", "tile_width", "tile_height", "fit", "decoder", "storage", "horizon_s"),
        "obstacles",
    )
)
_TILES = tuple(f"processing.{key}" for key in ("sample_hz", "tile_width", "tile_height", "fit"))
_WINDOWS = (
    *("processing.sequence_length", "processing.stride"),
    *(f"processing.past.{key}" for key in ("seconds", "hz", "scale")),
)
# What the cost of a choice is reckoned from.
_PLAN = (
    "run.price_per_hour",
    *(f"model.{key}" for key in ("base_model", "backbone", "max_seq_length", "load_in_4bit")),
    *("model.lora_rank", "model.lora_targets", "training.target", "training.batch_size"),
    *("training.gradient_accumulation_steps", "training.gradient_checkpointing"),
    *("training.num_epochs", "training.max_steps", "training.num_processes", "training.optimizer"),
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
        ("vision.cameras", "download.evict_raw", *_CACHE),
        ("cache",),
    ),
    Stage(
        "04_tiles",
        "what the model will see",
        ("03_etl",),
        (*_WINDOWS, "vision.cameras", "prompt", *_TILES, *_PLAN),
    ),
    Stage(
        "05_train",
        "the adapter",
        ("03_etl",),
        job.READS,
        ("checkpoints", "checkpoints_blind"),
    ),
    Stage(
        "06_evaluate",
        "the score",
        ("03_etl", "05_train"),
        ("run.seed", "processing.stride", *job.SEEN, "model", "training.target", "evaluation"),
        (f"06_evaluate/{KEPT_FILE}",),
    ),
)
BY_NAME = {stage.name: stage for stage in STAGES}
