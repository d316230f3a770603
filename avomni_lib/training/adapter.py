"""An adapter on the disk: its weights, its card, and the record of what they follow from."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from avomni_lib import files
from avomni_lib.dataset import rig
from avomni_lib.errors import AvomniError
from avomni_lib.hardware import Choice
from avomni_lib.params import Params
from avomni_lib.training.checkpoints import rename_folder
from avomni_lib.training.conversation import Conversation, prompt_text

RECORD_FILE = "record.json"
CONFIDENTIAL = "contains confidential data: do not share"


def adapter_dir(p: Params) -> Path:
    """Where the trained adapter of a run lies."""
    return p.run_dir / "adapter"


def read_record(folder: Path) -> dict[str, Any]:
    """What an adapter was made from and for.

    Raises:
        AvomniError: there is no whole adapter in `folder`.
    """
    path = Path(folder) / RECORD_FILE
    if not path.exists():
        raise AvomniError("no trained adapter", where=str(folder), fix="run 05_train first")
    return files.read_json(path)


def record_of(
    p: Params,
    windows: Any,
    talk: Conversation,
    base_digest: str,
    choices: Mapping[str, Choice],
    num_ranks: int = 1,
) -> dict[str, Any]:
    """All that the adapter's weights follow from; its hash names the training."""
    num_frames, height, width, _ = windows.frames(0).shape
    training = p.values("training")["training"]
    # How often it is written down changes nothing about the weights.
    training = {k: v for k, v in training.items() if k not in ("save_steps", "logging_steps")}
    return {
        "format": 1,
        "base_model": p.model.base_model,
        "base_digest": base_digest,
        "prompt_form": talk.backbone.prompt_form,
        "question": prompt_text(rig.grid(p.vision.camera_setup), talk.target),
        "target": p.training.target,
        "camera_setup": p.vision.camera_setup,
        "sequence_length": num_frames,
        "grid_size": [height, width],
        "sample_hz": p.processing.sample_hz,
        "stride": p.processing.stride,
        "seed": p.run.seed,
        "model": p.values("model")["model"],
        "training": training,
        # `cuda:1` is another rank's card, not another training.
        "choices": {name: choice.value.partition(":")[0] for name, choice in choices.items()},
        "num_ranks": num_ranks,
        "cache": windows.cache.digest,
        "training_clip_ids": sorted({windows[i].clip_id for i in range(len(windows))}),
        "num_windows": len(windows),
        # A rendered drive is our own; whatever else was trained on is not ours to pass on.
        "notice": None if p.dataset.source == "world" else CONFIDENTIAL,
    }


def export(tuned: Any, folder: Path, record: dict[str, Any]) -> None:
    """Write the adapter whole: weights, their config, a card and the record."""
    partial = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(partial, ignore_errors=True)
    tuned.save_pretrained(str(partial), save_embedding_layers=False)
    card = [
        f"# LoRA adapter for {record['base_model']}",
        f"**{record['notice']}**" if record["notice"] else "Trained on rendered drives.",
        f"Answers `{record['target']}` about {record['sequence_length']} frames of the "
        f"{record['camera_setup']} grid at {record['sample_hz']:g} Hz; everything else: "
        f"`{RECORD_FILE}`.",
    ]
    files.write_text(partial / "README.md", "\n\n".join(card) + "\n")
    files.write_json(partial / RECORD_FILE, record)
    rename_folder(partial, folder)
