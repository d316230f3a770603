"""The model card: what an adapter or a merged model was made from and for, and how to use it.

An adapter's card is a function of the record and of what was learned alone, so that a training that
was killed and went on ends with the same one. A card states terms, never that a use is allowed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from avomni_lib.training.export import usage
from avomni_lib.training.export.usage import block
from avomni_lib.training.fit import heldout
from avomni_lib.training.targets.form import figure_in_words

KINDS = {"adapter": ("LoRA adapter", "peft"), "merged": ("Merged model", "transformers")}
# What follows from the training alone; nothing else of 05's figures stands in an adapter's card.
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
}


def card(
    record: Mapping[str, Any],
    figures: Mapping[str, Any] | None = None,
    kind: str = "adapter",
    score: Mapping[str, Any] | None = None,
) -> str:
    """The card in Markdown, with YAML front matter.

    Args:
        record: `adapter.record_of`; a merged model's names its `dtype` too.
        figures: 05's, as in `result.json`; an adapter's card shows those of `LEARNED` alone.
        kind: "adapter" or "merged".
        score: 06's figures, for a merged model's card alone: an adapter is there before its score.
    """
    merged = kind == "merged"
    parts = [
        _front_matter(record, kind),
        f"**{record['notice']}**" if record["notice"] else "",
        f"# {KINDS[kind][0]} for {record['base_model']}",
        _opening(record, merged),
        _answers(record),
        _data(record, merged),
        _training(record, figures or {}, merged),
        _score(score) if merged and score else "",
        _prompt(record),
        usage.loading(record, kind),
        usage.serving(record, kind),
        usage.conversion(record, kind),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(record: Mapping[str, Any], kind: str) -> str:
    # A merged model holds the weights of its base model, which come under their own terms.
    ours = record["notice"] is None and (kind == "adapter" or record["base_model"] == "tiny")
    values = {
        "base_model": record["base_model"],
        "base_model_relation": "adapter" if kind == "adapter" else "finetune",
        "library_name": KINDS[kind][1],
        "pipeline_tag": "video-text-to-text",
        "license": "mit" if ours else "other",
        "tags": ["avomni", "driving", "lora", record["model"]["backbone"]],
    }
    return f"---\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1000)}---"


def _opening(record: Mapping[str, Any], merged: bool) -> str:
    made = f"Trained on {'clips that are not ours' if record['notice'] else 'rendered drives'}."
    what = (
        f" The base model's weights as they were trained around, in {record['dtype']}, with the "
        "adapter folded in."
        if merged
        else ""
    )
    return f"{made}{what} All that its weights follow from stands in `record.json`."


def _answers(record: Mapping[str, Any]) -> str:
    height, width = record["grid_size"]
    rows = {
        "target": _target(record),
        "cameras": f"{record['camera_setup']}, one grid of {width}×{height} px a frame",
        "frames": f"{record['sequence_length']} at {record['sample_hz']:g} Hz",
    }
    return f"## What it answers\n\n{_table(rows)}\n\n{block([record['question']])}"


def _target(record: Mapping[str, Any]) -> str:
    source = record.get("target_source")
    own = f", code of its maker's own (sha256 of its source {source})" if source else ""
    return f"`{record['target']}`{own}"


def _data(record: Mapping[str, Any], merged: bool) -> str:
    clips, windows = len(record["training_clip_ids"]), record["num_windows"]
    rows = {
        "data set": record.get("repo_id") or "not recorded",
        "source": record.get("source") or "not recorded",
        "revision": record.get("revision") or "not recorded",
        "clips": f"{clips:,} of the split train",
        "windows": f"{windows:,}, one every {record['stride']} frames",
        "cache": f"sha256 {record['cache']}",
    }
    parts = [f"## Data\n\n{_table(rows)}"]
    if record["notice"]:
        parts.append(
            "The data set's own terms bind what is made from it: read them on its page and decide. "
            "This card does not say that a use is within them."
        )
    if merged and record["base_model"] != "tiny":
        parts.append("The base model's own terms hold for these weights too.")
    return "\n\n".join(parts)


def _training(record: Mapping[str, Any], figures: Mapping[str, Any], merged: bool) -> str:
    rows = {name: value for name, value in record["model"].items() if name != "base_model"}
    rows |= {name: value for name, value in record["training"].items() if value is not None}
    rows["seed"] = record["seed"]
    rows |= {name: value for name, value in record["choices"].items() if name not in rows}
    shown = LEARNED | (MEASURED if merged else {})
    came_out = {words: figures[name] for name, words in shown.items() if name in figures}
    if best := heldout.best(figures.get("heldout", [])):
        (figure, error), step = heldout.figure_of(best), best["step"]
        words, unit = figure_in_words(figure)
        name = f"{words} on held-out windows" + (f", {unit}" if unit else "")
        came_out[name] = f"{error:.3f} after step {step:,.0f}"
    tables = [_table(rows)] + ([_table(came_out)] if came_out else [])
    return "\n\n".join(["## Training", *tables])


def _score(score: Mapping[str, Any]) -> str:
    ladder, valid = score["ladder"], score["valid_share"]
    lines = [f"| answered by | {ladder[0]['metric']} | 95 % interval |", "| --- | --- | --- |"]
    for row in ladder:
        spread = "none" if row["low"] is None else f"{row['low']:.3f} to {row['high']:.3f}"
        lines.append(f"| {row['name']} | {row['value']:.3f} | {spread} |")
    read = f"; {valid:.1%} of its answers can be read" if valid is not None else ""
    return (
        f"## Score\n\nOn {score['num_windows']:,} windows of {score['num_clips']:,} held-out "
        f"clips{read}. It is the adapter's, before merging. Splits: sha256 "
        f"{score.get('split_sha256')}.\n\n" + "\n".join(lines)
    )


def _prompt(record: Mapping[str, Any]) -> str:
    form = record["prompt_form"]
    parts = [
        f"## How it is asked\n\nPrompt form `{form}`. Training and serving must agree on it and on "
        "the size of the frames."
    ]
    if "prompt" in record:
        parts += [
            block([record["prompt"]]),
            f"These are {record['prompt_tokens']:,} tokens; a server's own count "
            "(`usage.prompt_tokens`) must be the same.",
        ]
    if form == "qwen3_vl/outer_vision_pair":
        parts.append(
            "transformers from 5.10 on keeps the outer `<|vision_start|>`…`<|vision_end|>` pair "
            "around the frames' own pairs, as here. Before 5.10 it was dropped, two tokens fewer, "
            "and vLLM follows the transformers version that it runs with. A server's processor "
            "also shrinks a window whose frames × height × width exceeds `longest_edge` of its "
            "video_preprocessor_config.json, and from 5.22 on (announced) frames of more than 768 "
            "tokens, unless it is told `do_resize: false`."
        )
    return "\n\n".join(parts)


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
