"""Every parameter of the schema, and for each another value that a params file may have."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from avomni_lib.params import Params

# Where another value cannot be told from the type alone.
OTHERS = {
    "run.price_per_hour": 2.5,
    "dataset.revision": "0" * 40,
    "dataset.endpoint": "https://mirror.example",
    "dataset.world.clip_seconds": 9.0,
    "dataset.world.cameras": "7-cam",
    "dataset.lerobot.profile": "rig",
    "download.chunks": [1],
    "download.clips.splits": ["train"],
    "download.clips.countries": ["Germany"],
    "download.clips.hours": [7],
    "download.clips.platforms": ["hyperion_8"],
    "download.clips.event_clusters": ["other"],
    "download.clips.clip_ids": ["a"],
    "download.clips.balance_by": "hour",
    "download.clips.max_clips": 2,
    "processing.align": "keyframes",
    "processing.num_workers": 3,
    "processing.past.seconds": 1.0,
    "processing.past.hz": 2.0,
    "processing.past.scale": 0.5,
    "vision.cameras": "7-cam",
    "prompt.question": "How fast does the car go?",
    "model.load_in_4bit": False,
    "model.lora_targets": ["q_proj", "v_proj"],
    "training.max_steps": 5,
    "training.target": "future_v1",
    "training.optimizer": "adamw_torch",
    "training.heldout_windows": 4,
    "live.sources": {"camera_front_wide_120fov": "a.mp4"},
    "live.offset_ms": {"camera_front_wide_120fov": 5.0},
    "evaluation.protocol": "pai_644",
    "evaluation.protocol_ids": "ids.txt",
    "evaluation.server": "http://127.0.0.1:8000/v1",
    "live.server": "http://127.0.0.1:8000/v1",
    "live.record": "outputs/record",
    "driving.policies": ["expert"],
    "driving.events": ["cut_in"],
}
# What else has to change with it for the file to be valid.
WITH = {
    "processing.past.hz": {"processing.past.seconds": 2.0},
    "processing.past.scale": {"processing.past.seconds": 2.0},
    "training.patience": {"training.heldout_windows": 4},
    "training.num_processes": {"training.gradient_accumulation_steps": 2},
    "evaluation.protocol": {"training.target": "future_v1"},
    "evaluation.protocol_ids": {
        "evaluation.protocol": "pai_644",
        "training.target": "future_v1",
    },
}
# Without another value: there is one backbone, and a window size repeats the sequence length.
ALONE = {"model.backbone", "vision.window_size"}


def names(model: type[BaseModel] = Params, prefix: str = "") -> list[str]:
    """The dotted names of all parameters."""
    found = []
    for key, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found += names(field.annotation, f"{prefix}{key}.")
        else:
            found.append(prefix + key)
    return found


def value_of(p: Params, name: str) -> Any:
    value: Any = p
    for part in name.split("."):
        value = getattr(value, part)
    return value


def changed(p: Params, name: str, value: Any = None) -> Params:
    """The same parameters with another value of one; what hangs together changes with it."""
    value = other(p, name) if value is None else value
    values = p.values()
    also = WITH.get(name, {})
    if name == "download.evict_raw" and p.dataset.source == "folder":
        also = {"dataset.source": "hub"}  # what nobody can fetch again is not evicted
    for each, new in {**also, name: value}.items():
        *sections, key = each.split(".")
        place = values
        for section in sections:
            place = place[section]
        place[key] = new
    if name == "processing.sequence_length":
        values["vision"]["window_size"] = None
    return Params.from_values(values)


def other(p: Params, name: str) -> Any:
    value, annotation = value_of(p, name), _annotation(name)
    if name in OTHERS:
        return OTHERS[name]
    if get_origin(annotation) is Literal:
        return next(each for each in get_args(annotation) if each != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value * 2 if value else 1
    if isinstance(value, float):
        return value / 2 or 0.25
    if isinstance(value, str):
        return f"{value}_2"
    if value is None:
        return 3
    raise AssertionError(f"say in OTHERS what {name} may be besides {value!r}")


def _annotation(name: str) -> Any:
    model: Any = Params
    for part in name.split("."):
        model = model.model_fields[part].annotation
    return model
