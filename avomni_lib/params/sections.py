"""The sections of a params file: every parameter, its type, bounds, default and meaning.

The defaults are the embedded demo's, as `params/demo.yaml` states them (a test compares).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator

from avomni_lib import hardware
from avomni_lib.params import grids, user_code
from avomni_lib.params.lerobot import LeRobotParams
from avomni_lib.params.section import ROWS, Section

LONGEST_NAME = 200
TARGETS = ("summary_v1", "future_v1", "meta_v1", "coc_v1", "full_v1")  # built in
# Each module of that folder is a model family. They are listed by file name: importing them from
# here would break the order of layers.
_BACKBONES_DIR = Path(__file__).parents[1] / "training" / "backbones"
BACKBONES = tuple(sorted(path.stem for path in _BACKBONES_DIR.glob("[!_]*.py")))
SPECIAL_TOKEN = re.compile(r"<\|[^|<>]*\|>")


def _path(value: str) -> str:
    if value.startswith("~") and not re.match(r"~(/|$)", value):
        raise ValueError("~ may only stand for your own home, as in ~/…: write the path out")
    if any(len(part.encode(errors="surrogateescape")) > LONGEST_NAME for part in value.split("/")):
        raise ValueError(f"a name in this path is longer than {LONGEST_NAME} bytes")
    return value


Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=1, le=10_000)]
Pixels = Annotated[int, Field(ge=32, le=8192, multiple_of=2)]
PositiveFloat = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Workers = Annotated[int, Field(ge=1, le=1024)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
ModuleName = Annotated[
    str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*$", max_length=100)
]
# As transformers' `INTEGRATION_TO_CALLBACK`, which would be slow to import here.
# fmt: off
Reporter = Literal[
    "none", "azure_ml", "clearml", "codecarbon", "comet_ml", "dagshub", "dvclive", "flyte",
    "kubeflow", "mlflow", "neptune", "swanlab", "tensorboard", "trackio", "wandb",
]
# fmt: on
# Relative paths start at the project root; ~/ is the user's home.
PathText = Annotated[str, AfterValidator(_path)]
ServerText = Annotated[str, Field(pattern=r"^https?://[^\s@]+$")]


class RunParams(Section):
    """The run's name and where its outputs go."""

    name: str = Field(
        "demo",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$",
        max_length=100,
        description="folder below outputs_dir",
    )
    seed: Seed = Field(0, description="for everything random: LoRA's start, the order of windows")
    outputs_dir: PathText = Field("outputs", description="relative paths start at the project root")
    price_per_hour: Annotated[float, Field(ge=0)] | None = Field(
        None, description="of the rented machine, in your currency; plans then show the cost"
    )


class WorldParams(Section):
    """The rendered drives of the embedded default (`dataset.source: world`)."""

    seed: Seed = Field(11, description="a clip depends only on this and on its number")
    town: str = Field(
        "harbour",
        description="look, camera heights and speeds; the tiny base was trained in `meadow`",
    )
    num_chunks: Count = Field(2, description="chunks published")
    clips_per_chunk: Count = Field(50, description="clips in each")
    clip_seconds: Annotated[float, Field(ge=1, le=3600)] = Field(8.0, description="s of video")
    cameras: grids.Preset | Annotated[tuple[grids.CameraName, ...], Field(min_length=1)] = Field(
        "4-cam", description="cameras to render: a preset's, or names; others are absent"
    )
    codec: Literal["h264", "hevc"] = Field("h264", description="of each camera's video")
    width: Pixels = Field(128, description="px of each camera's video")
    height: Pixels = Field(72, description="px of each camera's video")
    strays: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0,
        description="share of the clips in which the car starts beside its lane, or turned away "
        "from it, and returns",
    )

    @property
    def camera_names(self) -> tuple[str, ...]:
        """The cameras that are rendered, in the rig's order."""
        rows = grids.PRESETS[self.cameras] if isinstance(self.cameras, str) else (self.cameras,)
        return tuple(name for name in grids.NAMES if any(name in row for row in rows))


class ClipsParams(Section):
    """Which clips are wanted; all criteria must hold, null sets none."""

    splits: tuple[Literal["train", "val", "test"], ...] | None = Field(
        None, description="of the data set's own column"
    )
    countries: tuple[str, ...] | None = Field(None, description="full names, such as Germany")
    hours: tuple[Annotated[int, Field(ge=0, le=23)], ...] | None = Field(
        None, description="hours of the day"
    )
    platforms: tuple[str, ...] | None = Field(None, description="such as hyperion_8.1")
    event_clusters: tuple[str, ...] | None = Field(
        None, description="of reasoning/ood_reasoning.parquet"
    )
    clip_ids: tuple[str, ...] | None = Field(None, description="these clips and no others")
    balance_by: Literal["split", "country", "hour", "platform", "event_cluster"] | None = Field(
        None,
        description="take equally many clips of each value; without max_clips, as many as the "
        "rarest value has",
    )
    max_clips: Positive | None = Field(
        None, description="at most this many clips, drawn by run.seed; null takes all"
    )


class DatasetParams(Section):
    """The data set, its source, and where its raw files are kept."""

    source: Literal["world", "hub", "folder", "lerobot"] = Field(
        "world",
        description="rendered world, Hugging Face, a folder with the files, or LeRobot v3",
    )
    repo_id: str = Field(
        "avomni/rendered-world",
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*/[A-Za-z0-9_][A-Za-z0-9_.-]*$",
        description="dataset repository on the hub; for the rendered world, its name",
    )
    revision: str | None = Field(
        None, description="40-hex commit; null takes the newest of main once and records it"
    )
    endpoint: str | None = Field(
        None, description="another hub's address; null is HF_ENDPOINT, or huggingface.co"
    )
    allow_plain_http: bool = Field(
        False,
        description="also send the token to an http:// address of another machine, where anyone "
        "on the network path can read it",
    )
    local_dir: PathText = Field("outputs/data/demo", description="raw files, shared by all runs")
    license_accepted: bool = Field(
        False, description="you have read and accept the data set's licence; see README"
    )
    audit: Literal["quick", "full"] = Field(
        "full",
        description="depth of 01: quick checks names, sizes and zip directories; full also hashes, "
        "streams, clocks, ego motion and calibration",
    )
    world: WorldParams = WorldParams()
    lerobot: LeRobotParams = LeRobotParams()

    @field_validator("endpoint")
    @classmethod
    def _endpoint_has_no_password(cls, endpoint: str | None) -> str | None:
        # A run's parameters are written into notebooks, result.json and reports.
        if endpoint is not None and "@" in endpoint:
            raise ValueError(
                "dataset.endpoint: a user and password do not belong into a params file, as every "
                "run keeps a copy of it: set the variable HF_ENDPOINT to the whole address instead"
            )
        return endpoint


class DownloadParams(Section):
    """How much of the data set is downloaded."""

    target_chunks: Positive = Field(2, description="chunks wanted (about 100 clips each)")
    target_size_gb: PositiveFloat = Field(1.0, description="GB (1e9) of raw files at most")
    chunks: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None,
        description="numbers of the chunks to take; null takes the first, or those with the most "
        "wanted clips",
    )
    max_workers: Workers = Field(4, description="files fetched at a time")
    evict_raw: bool = Field(
        False,
        description="03 fetches, reads and removes one chunk after another; target_size_gb then "
        "bounds raw files and cache together",
    )
    evict_shared: bool = Field(
        False,
        description="evict_raw also removes files that other runs of dataset.local_dir have chosen "
        "and not read yet; false refuses",
    )
    clips: ClipsParams = ClipsParams()


class PastParams(Section):
    """Older frames, further apart, that precede a window's consecutive frames."""

    seconds: Annotated[float, Field(gt=0, le=3600)] | None = Field(
        None,
        description="s before the window's consecutive frames from which older ones are shown too, "
        "out of the same cache; null shows none",
    )
    hz: Annotated[float, Field(gt=0, le=1000)] = Field(
        1.0,
        description="past moments per second; each has as many neighbouring frames as the backbone "
        "joins in a patch (two for Qwen)",
    )
    scale: float = Field(
        1.0, description="size of older frames: 1, or 0.5 or 0.25 by averaging squares of pixels"
    )

    @field_validator("scale")
    @classmethod
    def _averages_whole_squares(cls, scale: float) -> float:
        if scale not in (1.0, 0.5, 0.25):
            raise ValueError("older frames are shown at a scale of 1, 0.5 or 0.25")
        return scale


class ProcessingParams(Section):
    """How clips become the cache, and the cache becomes windows."""

    sequence_length: Annotated[int, Field(ge=2, le=100_000)] = Field(
        16, description="consecutive frames in a window, which the answer is about"
    )
    stride: Positive = Field(8, description="frames from one window's start to the next one's")
    sample_hz: Annotated[float, Field(gt=0, le=1000)] = Field(
        10.0, description="sampled frames per second"
    )
    tile_width: Annotated[int, Field(ge=8, le=1_000_000)] = Field(
        48, description="px of one camera in the grid"
    )
    tile_height: Annotated[int, Field(ge=8, le=1_000_000)] = Field(
        32, description="px of one camera in the grid"
    )
    fit: Literal["letterbox", "crop", "stretch"] = Field(
        "stretch", description="how a camera fills its tile"
    )
    decoder: Literal["auto", "pyav", "decord"] = Field(
        "auto", description="video decoder; auto reports its choice and why"
    )
    storage: Literal["raw", "jpeg"] = Field(
        "raw", description="frames as bytes, or as JPEG of quality 90: a tenth of the disk"
    )
    engine: Literal["local", "ray"] = Field(
        "local", description="processes of this machine, or of a Ray cluster"
    )
    num_workers: Workers | None = Field(None, description="processes; null is one per core")
    clip_timeout_s: Annotated[float, Field(gt=0, le=86_400)] = Field(
        600.0,
        description="time limit in s for reading a clip; beyond it the clip is lost, and the next "
        "run tries again",
    )
    horizon_s: Annotated[float, Field(ge=0, le=3600)] = Field(
        6.4, description="s of ego motion kept after a clip's last frame"
    )
    align: Literal["keyframes"] | None = Field(
        None,
        description="keyframes: shift the wanted times by at most half a step, so that more of "
        "their frames are key frames, which decode alone; null shifts none",
    )
    obstacles: bool = Field(
        True, description="keep the positions of other road users, which coc_v1 and full_v1 need"
    )
    past: PastParams = PastParams()

    @property
    def past_starts(self) -> tuple[int, ...]:
        """First row of each past moment relative to the window's start: negative, oldest first."""
        seconds, hz = self.past.seconds, self.past.hz
        num = int(seconds * hz + 1e-9) if seconds else 0
        return tuple(-round(n * self.sample_hz / hz) for n in range(num, 0, -1))

    @property
    def reach(self) -> int:
        """Rows from a window's oldest frame to the first of its `sequence_length` frames."""
        return -min(self.past_starts, default=0)

    @property
    def own_from_s(self) -> float:
        """Seconds from a window's oldest frame to the first of its `sequence_length` frames."""
        return self.reach / self.sample_hz


class VisionParams(Section):
    """What the model sees."""

    cameras: ROWS = Field(
        "4-cam",
        description="the grid: 4-cam (2×2), 6-cam (2×3: all around, without the front tele), 7-cam "
        "(3×3); or rows of camera names with null for an empty cell, such as "
        "[[camera_front_wide_120fov, null], …], where a name repeated over a rectangle of cells is "
        "one larger tile; or module:attribute of such rows (vision.camera_setup is its old name)",
    )
    window_size: int | None = Field(
        None, description="must equal processing.sequence_length, or be left out"
    )

    @field_validator("cameras", mode="before")
    @classmethod
    def _is_a_grid(cls, value: Any) -> Any:
        return grids.checked(value)


class ModelParams(Section):
    """The base model and its adapter."""

    base_model: PathText = Field(
        "tiny",
        description="hub name or folder; `tiny` is built into the package",
    )
    backbone: str = Field(
        "qwen3_vl",
        description=f"the base model's family: {', '.join(BACKBONES)}",
    )
    backend: Literal["auto", "unsloth", "transformers"] = Field(
        "auto", description="auto: Unsloth on an accelerator"
    )
    load_in_4bit: bool | None = Field(
        None,
        description="NF4 with double quantisation; false is bf16 (fp32 on a CPU); null is the "
        "backbone's default",
    )
    max_seq_length: Annotated[int, Field(ge=16)] = Field(
        1024, description="tokens; longer samples are refused"
    )
    lora_rank: Positive = Field(64, description="higher learns more and takes more memory")
    lora_alpha: Positive = Field(64, description="scale of the adapter is alpha / rank")
    lora_dropout: Fraction = Field(0.0, description="share of adapter inputs dropped")
    lora_targets: tuple[ModuleName, ...] | None = Field(
        None,
        description="modules of the language model that LoRA adapts, by the ends of their names, "
        "such as [q_proj, v_proj]; null is the backbone's default: q, k, v and o of the attention, "
        "and the projections of linear attention",
    )

    @field_validator("backbone")
    @classmethod
    def _names_a_backbone(cls, name: str) -> str:
        if name not in BACKBONES:
            raise ValueError(f"choose one of {', '.join(BACKBONES)}")
        return name


class PromptParams(Section):
    """The question of the prompt, and what else the prompt contains."""

    question: str | None = Field(
        None, description="what the model is asked about a window; null is the target's question"
    )
    ego_history: bool = Field(
        False,
        description="1.6 s of the car's past motion as text; it ends before what the answer is "
        "about begins",
    )

    @field_validator("question")
    @classmethod
    def _has_no_special_tokens(cls, question: str | None) -> str | None:
        if question is not None and (token := SPECIAL_TOKEN.search(question)):
            raise ValueError(f"holds {token[0]}, a token that the chat template is made of")
        return question


class TrainingParams(Section):
    """How the adapter is trained."""

    target: str = Field(
        "summary_v1",
        description="what the model predicts from a window: its speed and path (summary_v1), the "
        "next 6.4 s (future_v1), the manoeuvre of the next 3 s (meta_v1), its cause (coc_v1), all "
        "of these (full_v1), or module:attribute of your own target",
    )
    batch_size: Positive = Field(5, description="windows that one process takes at a time")
    gradient_accumulation_steps: Positive = Field(
        1,
        description="batches per optimizer step, over all processes; the number of processes "
        "changes the speed, not the result",
    )
    num_processes: Workers = Field(
        1, description="processes on this machine, one per GPU; divides gradient_accumulation_steps"
    )
    learning_rate: PositiveFloat = Field(1.0e-3, description="peak, after the warm-up")
    num_epochs: PositiveFloat = Field(2, description="passes over the training windows")
    max_steps: Positive | None = Field(
        None, description="maximum number of optimizer steps; null runs all epochs"
    )
    optimizer: str = Field(
        "paged_adamw_8bit",
        description="a name of transformers' `optim`; one that this machine cannot run is refused "
        "before a model is loaded",
    )
    lr_scheduler: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="after the warm-up"
    )
    warmup_ratio: Fraction = Field(0.03, description="share of the steps")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.0, description="AdamW's")
    max_grad_norm: PositiveFloat = Field(1.0, description="gradients are clipped to this norm")
    gradient_checkpointing: bool = Field(False, description="less memory, a third more time")
    save_steps: Positive = Field(70, description="optimizer steps between checkpoints")
    save_total_limit: Annotated[int, Field(ge=2, le=1000)] = Field(
        2,
        description="newest checkpoints to keep, besides the best one; if the last is damaged, the "
        "one before it is used",
    )
    logging_steps: Positive = Field(1, description="optimizer steps between lines of metrics")
    report_to: Reporter = Field(
        "none",
        description="where metrics go besides metrics.jsonl, by the name that transformers' "
        "Trainer uses; trackio and tensorboard keep them here, others may upload them",
    )
    heldout_windows: Positive | None = Field(
        32,
        description="windows of the split val answered at each checkpoint; the best checkpoint's "
        "adapter is kept; null keeps the last",
    )
    patience: Positive | None = Field(
        None,
        description="stop after this many checkpoints without a better held-out figure; null never "
        "stops",
    )
    blind_steps: Annotated[int, Field(ge=0)] = Field(
        60,
        description="optimizer steps of a second adapter that is trained on black frames, for the "
        "ladder; at most as many as the first one's, 0 trains none",
    )
    blind: bool = Field(
        False, description="train on black frames; 05 sets this for the second adapter"
    )

    @field_validator("target")
    @classmethod
    def _names_a_target(cls, name: str) -> str:
        return user_code.need_known(name, TARGETS)

    @field_validator("optimizer")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if mistake := hardware.unknown_optimizer(name):
            raise ValueError(f"training.optimizer: {'; '.join(mistake)}")
        return name


class EvaluationParams(Section):
    """How the model is scored."""

    split: Literal["val", "test"] = Field("test", description="held-out clips to answer for")
    max_windows: Positive | None = Field(
        None, description="at most this many windows, evenly spaced; null takes all"
    )
    batch_size: Positive = Field(16, description="windows answered at a time")
    max_new_tokens: Annotated[int, Field(ge=16)] = Field(
        64, description="tokens an answer may have"
    )
    num_worst: Positive = Field(4, description="worst windows shown, and as many typical ones")
    num_samples: Annotated[int, Field(ge=0)] = Field(
        6, description="sampled answers per window for minADE, if the target is a future path"
    )
    temperature: PositiveFloat = Field(0.6, description="of the sampled answers")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(
        0.98, description="share of the likeliest tokens that sampled answers choose from"
    )
    constrained: bool = Field(
        False, description="let the model choose only among tokens that keep the answer's form"
    )
    protocol: Literal["pai_644"] | None = Field(
        None,
        description="score by a public protocol, on exactly its clips, which are then kept out of "
        "training: pai_644 is that of alpamayo-recipes (docs/evaluation.md)",
    )
    protocol_ids: PathText | None = Field(
        None,
        description="file of clip ids to use instead of fetching the published ones: parquet "
        "with `key` or `clip_id`, or one id per line",
    )
    server: ServerText | None = Field(
        None,
        description="address of an OpenAI endpoint, up to /v1, that serves base and adapters; null "
        "answers in this process",
    )
