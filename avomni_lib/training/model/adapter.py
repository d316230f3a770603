"""An adapter on disk: its weights, its card, and the record of everything they depend on."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from avomni_lib import files
from avomni_lib.dataset import cameras
from avomni_lib.errors import AvomniError
from avomni_lib.hardware import Choice
from avomni_lib.params import Params
from avomni_lib.training.export.card import card
from avomni_lib.training.fit import checkpoints
from avomni_lib.training.model.model_input import older_frames, shortened, what_the_model_sees
from avomni_lib.training.prompt.conversation import Conversation
from avomni_lib.training.targets.own import source_of

RECORD_FILE, WEIGHTS_FILE = "record.json", "adapter_model.safetensors"
# Files from which an adapter is loaded; its card may be edited.
LOADED = (WEIGHTS_FILE, "adapter_config.json", RECORD_FILE)
# Parameters of the training that change only its speed, memory, checkpoints or logs.
NOT_LEARNED = (
    *("batch_size", "gradient_accumulation_steps", "num_processes"),
    *("gradient_checkpointing", "save_steps", "save_total_limit", "logging_steps", "report_to"),
    "blind_steps",
)


def adapter_dir(p: Params) -> Path:
    """Folder of a run's trained adapter."""
    return p.run_dir / ("adapter_blind" if p.training.blind else "adapter")


def read_record(folder: Path) -> dict[str, Any]:
    """Read an adapter's record, see `record_of`.

    Raises:
        AvomniError: there is no adapter in `folder`, or its record is damaged.
    """
    path = Path(folder) / RECORD_FILE
    if not path.exists():
        raise AvomniError("no trained adapter", where=str(folder), fix="run 05_train first")
    try:
        return dict(files.read_json(path))
    except (AvomniError, TypeError, ValueError):
        raise _damaged(folder, f"{RECORD_FILE} is not a JSON object") from None


def fetch(name: str, commit: str) -> Path:
    """Download an adapter from the hub into the hub client's cache; returns its folder.

    Args:
        name: owner/name of a model repository.
        commit: 40 hex digits.

    Raises:
        AvomniError: it does not exist, or was not written by this program.
    """
    from transformers.utils import cached_file

    folder = None
    for file in (*LOADED, checkpoints.CHECKSUMS_FILE):
        try:
            folder = Path(cached_file(name, file, revision=commit)).parent
        except OSError as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise AvomniError(
                f"{file} of the adapter cannot be fetched: {reason}",
                where=f"{name}@{commit}",
                fix="name a repository that holds all files of an adapter that 05_train wrote",
            ) from None
    assert folder is not None
    return folder


def check_whole(folder: Path) -> None:
    """Verify the checksums of the files from which an adapter is loaded.

    Raises:
        AvomniError: one of them is missing or has changed.
    """
    if reason := checkpoints.checksum_fault(Path(folder), only=LOADED):
        raise _damaged(folder, reason)


def record_of(
    p: Params,
    windows: Any,
    conversation: Conversation,
    base_digest: str,
    choices: Mapping[str, Choice],
) -> dict[str, Any]:
    """Everything that the adapter's weights depend on; its hash identifies the training.

    Settings that change only the last bits are left out: how the windows of a step are divided into
    batches and processes (and, with `model.lora_dropout`, which inputs are dropped). So a training
    can be resumed with fewer GPUs, or with smaller batches after it ran out of memory.
    """
    _, height, width, _ = windows.frame_shape
    # Windows that are not from a cache may have no header.
    header = getattr(windows.cache, "header", {})
    source = header.get("source", {})
    chosen = {name: choice.value for name, choice in choices.items()}
    quantisation = chosen.get("quantisation", "unknown")
    training = p.values("training")["training"]
    training = {name: value for name, value in training.items() if name not in NOT_LEARNED}
    windows_per_step = p.training.batch_size * p.training.gradient_accumulation_steps
    return {
        "format": 2,
        # Compared as a whole when the adapter is used (`model_input.refuse_other`).
        "sees": what_the_model_sees(p, conversation.backbone, base_digest, quantisation, header),
        "base_model": p.model.base_model,
        "base_digest": base_digest,
        "prompt_form": conversation.backbone.prompt_form,
        "question": conversation.words,
        "prompt": shortened(conversation.text, conversation.backbone.vision_token),
        "prompt_tokens": len(conversation.prompt_ids),
        "request": conversation.backbone.request(conversation.words, conversation.videos),
        "server_arguments": conversation.backbone.server_arguments(conversation.videos),
        "target": p.training.target,
        **({"target_source": own.sha256} if (own := source_of(conversation.target)) else {}),
        "ego_history": p.prompt.ego_history,
        "camera_setup": cameras.grid(p.vision.cameras).name,
        "sequence_length": p.processing.sequence_length,
        **older_frames(p, conversation.backbone),
        "grid_size": [height, width],
        "sample_hz": p.processing.sample_hz,
        "stride": p.processing.stride,
        "seed": p.run.seed,
        "model": _model_values(p),
        "training": training | {"windows_per_step": windows_per_step},
        # Without the card's number, which depends on the rank.
        "choices": {name: value.partition(":")[0] for name, value in chosen.items()},
        "source": p.dataset.source,
        "repo_id": source.get("repo_id"),
        "revision": source.get("revision"),
        "cache": windows.cache.digest,
        "training_clip_ids": sorted({windows[i].clip_id for i in range(len(windows))}),
        "num_windows": len(windows),
        "notice": p.notice,  # None for clips of the rendered world, which may be shared
    }


def export(
    tuned: Any, folder: Path, record: dict[str, Any], figures: Mapping[str, Any] | None = None
) -> None:
    """Write the adapter atomically: weights, their config, a card, the record and checksums.

    Args:
        figures: Figures of the training, for the card.
    """
    partial = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(partial, ignore_errors=True)
    tuned.save_pretrained(str(partial), save_embedding_layers=False)
    files.write_text(partial / "README.md", card(record, figures))
    files.write_json(partial / RECORD_FILE, record)
    checkpoints.write_checksums(partial)
    checkpoints.rename_folder(partial, folder)


def _model_values(p: Params) -> dict[str, Any]:
    """The section `model`, with `lora_targets` only if it is set, so that records from before this
    key existed stay the same."""
    values: dict[str, Any] = p.values("model")["model"]
    if values["lora_targets"] is None:
        del values["lora_targets"]
    return values


def _damaged(folder: Path, reason: str) -> AvomniError:
    return AvomniError(
        f"the adapter is damaged: {reason}",
        where=str(folder),
        fix="remove the folder and run 05_train again, which writes it again from the last "
        "checkpoint; or copy the folder again from where it is whole",
    )
