"""Records everything that changes a model's input or expected answer, and compares it on use.

Every parameter counts unless `NOT_SEEN` lists it with a reason, so that a new parameter is compared
by default. The same holds for the fields of the cache's header.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from avomni_lib.dataset import cameras
from avomni_lib.errors import AvomniError
from avomni_lib.etl.clip.trajectory import Trajectory
from avomni_lib.params import Params
from avomni_lib.training.backbones import Backbone
from avomni_lib.training.prompt import history, past
from avomni_lib.training.prompt.conversation import prompt_text, videos_of
from avomni_lib.training.targets import target_of
from avomni_lib.training.targets.own import source_of

# Reason -> parameters that change neither the model's input nor the expected answer.
NOT_SEEN = {
    "it names a place, or says what a machine costs": (
        *("run.name", "run.outputs_dir", "run.price_per_hour", "dataset.local_dir"),
        *("dataset.endpoint", "dataset.allow_plain_http"),
    ),
    "it decides which drives are read, not how a window of them is shown": (
        *("run.seed", "dataset.source", "dataset.repo_id", "dataset.revision"),
        *("dataset.license_accepted", "dataset.audit", "download.target_chunks"),
        *("download.target_size_gb", "download.chunks", "download.max_workers"),
        *("download.evict_raw", "download.evict_shared"),
        *(f"download.clips.{key}" for key in ("splits", "countries", "hours", "platforms")),
        *(f"download.clips.{key}" for key in ("event_clusters", "clip_ids", "balance_by")),
        "download.clips.max_clips",
        *(f"dataset.world.{key}" for key in ("seed", "town", "num_chunks", "clips_per_chunk")),
        *(f"dataset.world.{key}" for key in ("clip_seconds", "cameras", "strays", "codec")),
        *("dataset.world.width", "dataset.world.height"),
        *("dataset.lerobot.profile", "dataset.lerobot.is_local"),
    ),
    "it decides which windows are taken from a clip": ("processing.stride", "processing.align"),
    "it decides how fast the cache is built": (
        *("processing.engine", "processing.num_workers", "processing.clip_timeout_s"),
    ),
    "every decoder returns the same pixels": ("processing.decoder",),
    "it decides what is kept to tell the ground truth from": (
        *("processing.horizon_s", "processing.obstacles"),
    ),
    "it decides how the simulator is driven": (
        *(f"driving.{key}" for key in ("num_episodes", "policies", "seconds", "traffic", "events")),
        *("driving.hop", "driving.smoothing", "driving.batch_size"),
    ),
    "it repeats processing.sequence_length": ("vision.window_size",),
    "the rows of older frames and their size are compared instead": (
        *("processing.past.seconds", "processing.past.hz", "processing.past.scale"),
    ),
    "the whole question is compared instead": ("prompt.question",),
    "the grid is compared instead": ("vision.cameras",),
    "the weights of the base model are compared instead": ("model.base_model",),
    "the resulting quantisation is compared instead": ("model.load_in_4bit",),
    "both backends compute the same": ("model.backend",),
    "a longer sample is refused, never cut off": ("model.max_seq_length",),
    "it stands in the adapter's own adapter_config.json": (
        *("model.lora_rank", "model.lora_alpha", "model.lora_dropout", "model.lora_targets"),
    ),
    "it decides how the weights are learned, not what for": tuple(
        f"training.{key}"
        for key in (
            *("batch_size", "gradient_accumulation_steps", "num_processes"),
            *("learning_rate", "num_epochs", "max_steps", "optimizer", "lr_scheduler"),
            *("warmup_ratio", "weight_decay", "max_grad_norm", "gradient_checkpointing"),
            *("save_steps", "save_total_limit", "logging_steps", "report_to", "heldout_windows"),
            *("patience", "blind_steps"),
        )
    ),
    "it says where live cameras are, and how their frames come together": tuple(
        f"live.{key}"
        for key in (
            *("sources", "clock", "offset_ms", "deadline_ms", "max_age_s", "hop", "seconds"),
            *("server", "record", "port"),
        )
    ),
    "it decides how an evaluation asks and what it shows; 06's result names it": tuple(
        f"evaluation.{key}"
        for key in (
            *("split", "max_windows", "batch_size", "max_new_tokens", "num_worst"),
            *("num_samples", "temperature", "top_p", "constrained", "server"),
            *("protocol", "protocol_ids"),
        )
    ),
}
# Fields of a cache's header for which the same holds: its generator and source, and data beside
# frames and poses that only the ground truth needs.
NOT_SHOWN = {"generator", "source", "decoder", "horizon_s", "align"}
NOT_SHOWN |= {"obstacle_columns", "obstacle_labels"}
CLIPPED = 60  # longest value in a message, in characters
# Example of past motion, for which the text of `prompt.ego_history` is recorded.
_PAST = Trajectory(
    t_s=np.array([-0.4, -0.2, 0.0]),
    xy_m=np.array([[-4.0, 0.5], [-2.0, 0.25], [0.0, 0.0]]),
    yaw_rad=np.zeros(3),
    speed_mps=10.0,
)


def parameter_names() -> list[str]:
    """Dotted names of the parameters that change the model's input or expected answer."""
    ignored = {name for names in NOT_SEEN.values() for name in names}
    return [name for name in flat(Params().values()) if name not in ignored]


def shown(header: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a cache's header that determine the frames of a window."""
    return {name: value for name, value in header.items() if name not in NOT_SHOWN}


def what_the_model_sees(
    p: Params, kind: Backbone, base: str, quantisation: str, header: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything that determines the model's input and the expected answer, as plain values.

    Args:
        kind: The backbone with the base model's numbers.
        base: Identifies the base model's weights and tokenizer (`load.base_digest`).
        quantisation: How the weights are loaded: "nf4", "none", or "stored" if the checkpoint is
            quantised.
        header: Header of the cache (`Cache.header`); empty without a cache.
    """
    about, grid = target_of(p), cameras.grid(p.vision.cameras)
    question = prompt_text(grid, about, p.processing.own_from_s)
    prompt = None  # for a grid that does not divide into patches, to report all differences
    with contextlib.suppress(AvomniError):
        prompt = kind.chat(question, videos_of(p, kind))
    return {
        **{name: p.values(name)[name] for name in parameter_names()},
        # The key keeps the name of the first records. The cells of a custom grid are compared by
        # the question and the cache's header.
        "vision.camera_setup": grid.name,
        "base_digest": base,
        "quantisation": quantisation,
        "pixels": kind.pixels,
        "question": question,
        "prompt": prompt and shortened(prompt, kind.vision_token),
        **({"target_source": source.sha256} if (source := source_of(about)) else {}),
        **older_frames(p, kind),
        "past_motion": history.text_of(_PAST, about, p.processing.own_from_s)
        if p.prompt.ego_history
        else None,
        "answer": about.pattern,
        "end_of_answer": kind.end_of_turn,
        "cache": shown(header),
    }


def older_frames(p: Params, kind: Backbone) -> dict[str, Any]:
    """Rows and scale of a window's older frames; empty without any, so that records from before
    `processing.past` existed stay the same."""
    if not p.processing.reach:
        return {}
    return {"offsets": list(past.offsets(p, kind)), "past_scale": p.processing.past.scale}


def refuse_other(then: Mapping[str, Any] | None, now: Mapping[str, Any], where: str) -> None:
    """Refuse to use an adapter with other inputs than it was trained with.

    Args:
        then: `what_the_model_sees` of its training, from its record.
        now: The same for the present use; the cache is compared if there is one.
        where: The adapter's folder.

    Raises:
        AvomniError: names every difference with both values.
    """
    if not isinstance(then, Mapping) or not then:
        raise AvomniError(
            "the adapter's record.json does not say what the model saw in training: an earlier "
            "version of this program wrote it",
            where=where,
            fix="run 05_train again with this version",
        )
    without = set() if now["cache"] else {"cache"}
    before, after = (
        flat({name: value for name, value in values.items() if name not in without})
        for values in (then, now)
    )
    lines = [
        f"{name}: trained with {_words(before, after, name)}, now {_words(after, before, name)}"
        for name in dict.fromkeys([*before, *after])
        if name not in before or name not in after or before[name] != after[name]
    ]
    if lines:
        raise AvomniError(
            "the adapter was trained with other inputs than it is used with now:"
            + "".join(f"\n  - {line}" for line in lines),
            where=where,
            fix="set these parameters back to what it was trained with (and run 03_etl where the "
            "cache differs), or train again: python -m avomni_lib run PARAMS.yaml --from 03_etl",
        )


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested plain values to dotted names."""
    flattened: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flattened |= flat(value, f"{prefix}{name}.")
        else:  # JSON turns tuples into lists
            flattened[f"{prefix}{name}"] = list(value) if isinstance(value, tuple) else value
    return flattened


def shortened(text: str, token: str) -> str:
    """Replace repetitions of `token` by their count: a prompt has thousands of them."""
    return re.sub(
        f"(?:{re.escape(token)}){{2,}}", lambda run: f"{token}×{len(run[0]) // len(token)}", text
    )


def _words(values: Mapping[str, Any], others: Mapping[str, Any], name: str) -> str:
    """One of two differing values as text; of a long one, the part around the first difference."""
    if name not in values:
        return "(not recorded)"
    text, other = repr(values[name]), repr(others.get(name))
    if len(text) <= CLIPPED:
        return text
    start = next((i for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), 0)
    start = max(min(start, len(text) - CLIPPED) - 10, 0)
    return ("…" if start else "") + text[start : start + CLIPPED] + "…"
