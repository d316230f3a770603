"""The sections of a params file: every parameter, its type, bounds, default and meaning.

The defaults are the embedded demo's, as `params/demo.yaml` states them (a test compares).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator

from avomni_lib import grids, hardware, own_code
from avomni_lib.lerobot_section import LeRobotParams
from avomni_lib.section import ROWS, Section

LONGEST_NAME = 200
TARGETS = ("summary_v1", "future_v1", "meta_v1", "coc_v1", "full_v1")  # that are built in
# Each file of that folder is a family of models; it is listed, as importing it is not ours here.
BACKBONES = tuple(
    sorted(
        path.stem
        for path in (Path(__file__).parent / "training" / "backbones").glob("*.py")
        if path.stem != "__init__"
    )
)
SPECIAL_TOKEN = re.compile(r"<\|[^|<>]*\|>")


def _path(value: str) -> str:
    if value.startswith("~") and not re.match(r"~(/|$)", value):
        raise ValueError("of paths with ~ only ~/… is known, which is your own home: write it out")
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
# transformers' own, `INTEGRATION_TO_CALLBACK`, which is not imported to read parameters.
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
    """The run's name and where everything that it makes goes."""

    name: str = Field(
        "demo",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$",
        max_length=100,
        description="folder below outputs_dir",
    )
    seed: Seed = Field(0, description="of everything random: LoRA's start, the order of windows")
    outputs_dir: PathText = Field("outputs", description="relative paths start at the project root")
    price_per_hour: Annotated[float, Field(ge=0)] | None = Field(
        None, description="of the rented machine, in your currency; plans then say what it costs"
    )


class WorldParams(Section):
    """The rendered drives of the embedded default (`dataset.source: world`)."""

    seed: Seed = Field(11, description="a clip is a function of this and of its number")
    town: str = Field(
        "harbour", description="look, camera heights and speeds; `meadow` is the tiny base's own"
    )
    num_chunks: Count = Field(2, description="chunks published")
    clips_per_chunk: Count = Field(50, description="clips in each")
    clip_seconds: Annotated[float, Field(ge=1, le=3600)] = Field(8.0, description="s of video")
    cameras: (
        Literal["4-cam", "6-cam", "7-cam"]
        | Annotated[tuple[grids.CameraName, ...], Field(min_length=1)]
    ) = Field("4-cam", description="that are rendered: of a preset, or names; others are absent")
    codec: Literal["h264", "hevc"] = Field("h264", description="of each camera's video")
    width: Pixels = Field(128, description="px of each camera's video")
    height: Pixels = Field(72, description="px of each camera's video")
    strays: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0,
        description="share of the clips whose car begins beside its lane, or turned away from it, "
        "and comes back",
    )

    @property
    def camera_names(self) -> tuple[str, ...]:
        """The cameras that are rendered, in the rig's order."""
        rows = grids.PRESETS[self.cameras] if isinstance(self.cameras, str) else (self.cameras,)
        return tuple(name for name in grids.NAMES if any(name in row for row in rows))


class ClipsParams(Section):
    """Which clips are wanted; what is null asks for nothing. All that are named must hold."""

    splits: tuple[Literal["train", "val", "test"], ...] | None = Field(
        None, description="of the data set's own column"
    )
    countries: tuple[str, ...] | None = Field(None, description="full names, as Germany")
    hours: tuple[Annotated[int, Field(ge=0, le=23)], ...] | None = Field(
        None, description="hours of the day"
    )
    platforms: tuple[str, ...] | None = Field(None, description="as hyperion_8.1")
    event_clusters: tuple[str, ...] | None = Field(
        None, description="of reasoning/ood_reasoning.parquet"
    )
    clip_ids: tuple[str, ...] | None = Field(None, description="these clips and no others")
    balance_by: Literal["split", "country", "hour", "platform", "event_cluster"] | None = Field(
        None,
        description="as many clips of each; without max_clips as many as the smallest has",
    )
    max_clips: Positive | None = Field(
        None, description="clips at most, drawn by run.seed; null is all"
    )


class DatasetParams(Section):
    """Which data set, where from, and where its raw files are kept."""

    source: Literal["world", "hub", "folder", "lerobot"] = Field(
        "world",
        description="rendered world, Hugging Face, a folder that holds the files, or LeRobot v3",
    )
    repo_id: str = Field(
        "avomni/rendered-world",
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*/[A-Za-z0-9_][A-Za-z0-9_.-]*$",
        description="dataset repository on the hub; what the rendered world is called",
    )
    revision: str | None = Field(
        None, description="40-hex commit; null takes main's once and records it"
    )
    endpoint: str | None = Field(
        None, description="another hub's address; null is HF_ENDPOINT, or huggingface.co"
    )
    allow_plain_http: bool = Field(
        False,
        description="send the token also to an http:// address of another machine, where everyone "
        "on the way can read it",
    )
    local_dir: PathText = Field("outputs/data/demo", description="raw files, shared by all runs")
    license_accepted: bool = Field(
        False, description="you read the data set's licence and decided; see README"
    )
    audit: Literal["quick", "full"] = Field(
        "full",
        description="depth of 01: names, sizes and zip directories; or hashes, streams, clocks, "
        "ego motion and calibration too",
    )
    world: WorldParams = WorldParams()
    lerobot: LeRobotParams = LeRobotParams()

    @field_validator("endpoint")
    @classmethod
    def _endpoint_has_no_password(cls, endpoint: str | None) -> str | None:
        # A run keeps its parameters in notebooks, result.json and its report.
        if endpoint is not None and "@" in endpoint:
            raise ValueError(
                "dataset.endpoint: a user and password do not belong into a params file, as every "
                "run keeps a copy of it: set the variable HF_ENDPOINT to the whole address instead"
            )
        return endpoint


class DownloadParams(Section):
    """How much of the data set is taken."""

    target_chunks: Positive = Field(2, description="chunks wanted (about 100 clips each)")
    target_size_gb: PositiveFloat = Field(1.0, description="GB (1e9) of raw files at most")
    chunks: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None, description="these chunks; null: the first, or those with the most wanted clips"
    )
    max_workers: Workers = Field(4, description="files fetched at a time")
    evict_raw: bool = Field(
        False,
        description="03 fetches, reads and removes chunk after chunk; target_size_gb then bounds "
        "raw files and cache together",
    )
    evict_shared: bool = Field(
        False,
        description="evict_raw also removes what other runs of dataset.local_dir have chosen and "
        "not read yet; false refuses",
    )
    clips: ClipsParams = ClipsParams()


class PastParams(Section):
    """Older frames, further apart, that a window shows before its own."""

    seconds: Annotated[float, Field(gt=0, le=3600)] | None = Field(
        None,
        description="s before the window's own frames, over which older ones are shown too, out of "
        "the same cache; null shows none",
    )
    hz: Annotated[float, Field(gt=0, le=1000)] = Field(
        1.0,
        description="moments of the past a second; each is as many neighbouring frames as the "
        "backbone joins in a patch, which is two for Qwen",
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
    """Clips to the cache, and the cache to windows."""

    sequence_length: Annotated[int, Field(ge=2, le=100_000)] = Field(
        16, description="frames in a window, which answers speak of"
    )
    stride: Positive = Field(8, description="frames from one window's start to the next one's")
    sample_hz: Annotated[float, Field(gt=0, le=1000)] = Field(
        10.0, description="sampled frames a second"
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
        "auto", description="auto says what it took and why"
    )
    storage: Literal["raw", "jpeg"] = Field(
        "raw", description="frames as bytes, or as JPEG of quality 90: a tenth of the disk"
    )
    engine: Literal["local", "ray"] = Field(
        "local", description="processes of this machine, or of a Ray cluster"
    )
    num_workers: Workers | None = Field(None, description="processes; null is one a core")
    clip_timeout_s: Annotated[float, Field(gt=0, le=86_400)] = Field(
        600.0,
        description="s that reading a clip may take; one that takes longer is lost, and tried "
        "again by the next run",
    )
    horizon_s: Annotated[float, Field(ge=0, le=3600)] = Field(
        6.4, description="s of ego motion kept after a clip's last frame"
    )
    align: Literal["keyframes"] | None = Field(
        None,
        description="keyframes: wanted times are moved by half a step at most, so that more of "
        "their frames are key frames, which decode alone; null moves none",
    )
    obstacles: bool = Field(
        True, description="keep where other road users are, which coc_v1 and full_v1 speak of"
    )
    past: PastParams = PastParams()

    @property
    def past_starts(self) -> tuple[int, ...]:
        """The first row of each moment of the past, counted from the window's first frame: below
        0, the oldest first."""
        seconds, hz = self.past.seconds, self.past.hz
        num = int(seconds * hz + 1e-9) if seconds else 0
        return tuple(-round(n * self.sample_hz / hz) for n in range(num, 0, -1))

    @property
    def reach(self) -> int:
        """Rows between a window's oldest frame and its first one of `sequence_length`."""
        return -min(self.past_starts, default=0)

    @property
    def own_from_s(self) -> float:
        """s from a window's oldest frame to the first of `sequence_length`."""
        return self.reach / self.sample_hz


class VisionParams(Section):
    """What the model sees."""

    cameras: ROWS = Field(
        "4-cam",
        description="the grid: 4-cam (2×2), 6-cam (2×3: all around, without the front tele), 7-cam "
        "(3×3), or rows of camera names with null for an "
        "empty cell, as [[camera_front_wide_120fov, null], …], a name that is repeated over a "
        "rectangle of cells for one larger tile, or module:attribute of such rows "
        "(vision.camera_setup is its old name)",
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
        description="hub name or folder; `tiny` is the package's own",
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
        description="NF4 with double quantisation; false is bf16 (fp32 on a CPU); null is what "
        "suits the backbone",
    )
    max_seq_length: Annotated[int, Field(ge=16)] = Field(
        1024, description="tokens; a longer sample is refused"
    )
    lora_rank: Positive = Field(64, description="higher learns more and takes more memory")
    lora_alpha: Positive = Field(64, description="scale of the adapter is alpha / rank")
    lora_dropout: Fraction = Field(0.0, description="share of adapter inputs dropped")
    lora_targets: tuple[ModuleName, ...] | None = Field(
        None,
        description="modules of the language model that LoRA adapts, by the ends of their names, "
        "as [q_proj, v_proj]; null is the backbone's own: q, k, v and o of the attention, and the "
        "projections of linear attention",
    )

    @field_validator("backbone")
    @classmethod
    def _names_a_backbone(cls, name: str) -> str:
        if name not in BACKBONES:
            raise ValueError(f"choose one of {', '.join(BACKBONES)}")
        return name


class PromptParams(Section):
    """What the prompt asks, and what stands in it besides the question."""

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
        description="what the model must say about a window: its speed and path (summary_v1), the "
        "next 6.4 s (future_v1), the manoeuvre of the next 3 s (meta_v1), its cause (coc_v1), all "
        "of these (full_v1), or module:attribute of a target of your own",
    )
    batch_size: Positive = Field(8, description="windows that one process takes at a time")
    gradient_accumulation_steps: Positive = Field(
        1,
        description="batches gathered before the optimizer moves, over all processes: more of them "
        "change the speed, not what is learned",
    )
    num_processes: Workers = Field(
        1, description="processes of this machine, one a GPU; divides gradient_accumulation_steps"
    )
    learning_rate: PositiveFloat = Field(1.0e-3, description="peak, after the warm-up")
    num_epochs: PositiveFloat = Field(3, description="passes over the training windows")
    max_steps: Positive | None = Field(
        None, description="optimizer steps at most; null is all epochs"
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
        description="newest checkpoints that are kept, besides the best one; where the last is "
        "damaged the one before it serves",
    )
    logging_steps: Positive = Field(1, description="optimizer steps between lines of metrics")
    report_to: Reporter = Field(
        "none",
        description="who gets the metrics besides metrics.jsonl, by the name that transformers' "
        "Trainer has for it; trackio and tensorboard keep them here, others may send them away",
    )
    heldout_windows: Positive | None = Field(
        32,
        description="windows of the split val answered at each checkpoint; the adapter of the best "
        "one comes out; null takes the last",
    )
    patience: Positive | None = Field(
        None,
        description="stop after so many checkpoints without a better held-out figure; null never",
    )
    blind_steps: Annotated[int, Field(ge=0)] = Field(
        60,
        description="optimizer steps of a second adapter that is trained on black frames, for the "
        "ladder; at most as many as the first one's, 0 trains none",
    )
    blind: bool = Field(
        False, description="train on black frames; 05 sets it by itself for the second adapter"
    )

    @field_validator("target")
    @classmethod
    def _names_a_target(cls, name: str) -> str:
        return own_code.need_known(name, TARGETS)

    @field_validator("optimizer")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if mistake := hardware.unknown_optimizer(name):
            raise ValueError(f"training.optimizer: {'; '.join(mistake)}")
        return name


class EvaluationParams(Section):
    """How the score is made."""

    split: Literal["val", "test"] = Field("test", description="held-out clips to answer for")
    max_windows: Positive | None = Field(None, description="evenly thinned to these; null is all")
    batch_size: Positive = Field(16, description="windows answered at a time")
    max_new_tokens: Annotated[int, Field(ge=16)] = Field(
        64, description="tokens an answer may have"
    )
    num_worst: Positive = Field(4, description="worst windows shown, and as many typical ones")
    num_samples: Annotated[int, Field(ge=0)] = Field(
        6, description="sampled answers a window, where the answer is a future: minADE's"
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
        description="score by a public protocol, on its clips and no others, which are never "
        "learned from: pai_644 is alpamayo-recipes' (docs/evaluation.md)",
    )
    protocol_ids: PathText | None = Field(
        None,
        description="file of clip ids in place of the published ones, which are fetched: parquet "
        "with `key` or `clip_id`, or an id a line",
    )
    server: ServerText | None = Field(
        None,
        description="address of an OpenAI endpoint, up to /v1, that has base and adapters; null "
        "answers here",
    )
