"""The model card of an adapter or merged model: its training, its purpose and how to use it.

The template is `card.md.jinja`. An adapter's card depends only on the record and the results of
learning, so that a training that was killed and resumed has the same card. A card states terms,
never that a use is allowed. The commands follow the documentation and source of vLLM and llama.cpp
of autumn 2026.
"""

from __future__ import annotations

import functools
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import yaml

from avomni_lib.training.backbones import family
from avomni_lib.training.fit import heldout
from avomni_lib.training.model.model_path import base_place
from avomni_lib.training.targets.form import figure_in_words

TEMPLATE = "card.md.jinja"
KINDS = {"adapter": ("LoRA adapter", "peft"), "merged": ("Merged model", "transformers")}
# Figures of 05 that do not depend on the machine; an adapter's card has only these.
LEARNED = {
    "optimizer_steps": "optimizer steps",
    "first_loss": "loss, first steps",
    "last_loss": "loss, last steps",
    "trainable_parameters": "trainable parameters",
    "tokens_per_sample": "tokens a sample",
}
MEASURED = {
    "train_seconds": "seconds of training",
    "seconds_per_step": "seconds a step",
    "data_wait_share": "share of them that waited for data",
    "peak_memory": "peak memory, GB",
    "gpu_busy_pct": "cards busy, % of the time",
    "gpu_watts": "watts, all cards",
    "gpu_celsius": "°C of the hottest card",
    "energy_kwh": "kWh of training",
    "joules_per_sample": "joules a sample",
}
SERVED_NAME = "avomni"
# Allowed values of vLLM's `--max-lora-rank`.
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
GGUF_TYPES = {"bfloat16": "bf16", "float16": "f16"}


def card(
    record: Mapping[str, Any],
    figures: Mapping[str, Any] | None = None,
    kind: str = "adapter",
    score: Mapping[str, Any] | None = None,
    measured: bool = False,
) -> str:
    """The card in Markdown, with YAML front matter.

    Args:
        record: `adapter.record_of`, with `dtype` for a merged model.
        figures: Figures of 05, as in `result.json`; an adapter's card shows only `LEARNED`.
        kind: "adapter" or "merged".
        score: Figures of 06, only for a merged model, as an adapter is written before its score.
        measured: Show 05's times, memory and energy on an adapter's card too.
    """
    merged, choices = kind == "merged", record["choices"]
    backbone = family(record["model"]["backbone"])
    return _template().render(
        front_matter=_front_matter(record, kind),
        title=KINDS[kind][0],
        record=record,
        merged=merged,
        score=score,
        tiny=record["base_model"] == "tiny",
        dtype=choices.get("dtype", "bfloat16"),
        # Modules that stay in 16 bit if the base model was quantised on loading.
        skipped=list(backbone.skip_modules) if choices.get("quantisation") == "nf4" else None,
        commands=commands(record, kind),
        serving_note=backbone.serving_note,
        request=json.dumps(
            {"model": SERVED_NAME, "temperature": 0, **record["request"]},
            indent=1,
            ensure_ascii=False,
        ),
        **_tables(record, figures or {}, merged or measured),
    )


def commands(
    record: Mapping[str, Any],
    kind: str = "adapter",
    folder: str | None = None,
) -> dict[str, list[str]]:
    """Commands for `vllm` and `llama.cpp`; empty lists if they do not support the model.

    Args:
        record: `adapter.record_of`, with `dtype` for a merged model.
        kind: "adapter" or "merged".
        folder: Its folder; None is a placeholder.
    """
    folder = shlex.quote(folder or f"PATH/TO/{kind}")
    length = f"--max-model-len {record['model']['max_seq_length']} {record['server_arguments']}"
    length, backbone = length.rstrip(), family(record["model"]["backbone"])
    if kind == "merged":
        served = f"{folder} --served-model-name {SERVED_NAME} --dtype {record['dtype']} {length}"
        convert = f"python convert_hf_to_gguf.py {folder} --outtype {GGUF_TYPES[record['dtype']]}"
        gguf = [
            f"{convert} --outfile {SERVED_NAME}.gguf",
            f"{convert} --outfile mmproj-{SERVED_NAME}.gguf --mmproj",
        ]
    else:
        base = shlex.quote(base_place(record["base_model"]))
        rank = record["model"]["lora_rank"]
        room = next((size for size in VLLM_RANKS if size >= rank), rank)
        adapter = f"--enable-lora --lora-modules {SERVED_NAME}={folder} --max-lora-rank {room}"
        served = f"{base} {adapter} {length}"
        # llama.cpp's converter refuses the config of a 4-bit base.
        gguf = [
            f"python convert_lora_to_gguf.py {folder} --base PATH/TO/merged --outtype f16 "
            f"--outfile {SERVED_NAME}-lora.gguf"
        ]
    # By default vLLM samples as in the base model's generation_config.json.
    vllm = [f"vllm serve {served} --generation-config vllm"]
    return {
        "vllm": vllm if kind == "merged" or backbone.adapters_in_vllm else [],
        "llama.cpp": gguf if backbone.in_llama_cpp else [],
    }


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters["json"] = json.dumps
    return environment.get_template(TEMPLATE)


def _front_matter(record: Mapping[str, Any], kind: str) -> str:
    # A merged model contains the base model's weights, which have their own terms.
    ours = record["notice"] is None and (kind == "adapter" or record["base_model"] == "tiny")
    values = {
        "base_model": record["base_model"],
        "base_model_relation": "adapter" if kind == "adapter" else "finetune",
        "library_name": KINDS[kind][1],
        "pipeline_tag": "video-text-to-text",
        "license": "mit" if ours else "other",
        "tags": ["avomni", "driving", "lora", record["model"]["backbone"]],
    }
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1000)


def _tables(
    record: Mapping[str, Any], figures: Mapping[str, Any], measured: bool
) -> dict[str, str | None]:
    height, width = record["grid_size"]
    source = record.get("target_source")
    note = f", defined by the user (sha256 of its source {source})" if source else ""
    answers = {
        "target": f"`{record['target']}`{note}",
        "cameras": f"{record['camera_setup']}, one grid of {width}×{height} px a frame",
        "frames": f"{record['sequence_length']} at {record['sample_hz']:g} Hz",
    }
    if older := record.get("offsets"):
        seconds, scale = -older[0] / record["sample_hz"], record["past_scale"]
        small = "" if scale == 1 else f", at {scale:g} of their size"
        answers["frames"] += f", after {len(older)} older ones from {seconds:g} s before{small}"
    data = {
        "data set": record.get("repo_id") or "not recorded",
        "source": record.get("source") or "not recorded",
        "revision": record.get("revision") or "not recorded",
        "clips": f"{len(record['training_clip_ids']):,} of the split train",
        "windows": f"{record['num_windows']:,}, one every {record['stride']} frames",
        "cache": f"sha256 {record['cache']}",
    }
    settings = {name: value for name, value in record["model"].items() if name != "base_model"}
    settings |= {name: value for name, value in record["training"].items() if value is not None}
    settings["seed"] = record["seed"]
    settings |= {name: value for name, value in record["choices"].items() if name not in settings}
    shown = LEARNED | (MEASURED if measured else {})
    learned = {words: figures[name] for name, words in shown.items() if name in figures}
    if best := heldout.best(figures.get("heldout", [])):
        (figure, error), step = heldout.figure_of(best), best["step"]
        words, unit = figure_in_words(figure)
        name = f"{words} on held-out windows" + (f", {unit}" if unit else "")
        learned[name] = f"{error:.3f} after step {step:,.0f}"
    return {
        "answers": _table(answers),
        "data": _table(data),
        "settings": _table(settings),
        "learned": _table(learned) if learned else None,
    }


def _table(rows: Mapping[str, Any]) -> str:
    lines = [f"| {name} | {_cell(value)} |" for name, value in rows.items()]
    return "\n".join(["| | |", "| --- | --- |", *lines])


def _cell(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name.removesuffix('_gb')} {_cell(one)}" for name, one in value.items())
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value).replace("|", "\\|")
