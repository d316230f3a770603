"""The base model of random weights: made on the device, saved, read in 4 bit, stored in 4 bit."""

from __future__ import annotations

import shutil
import time
from importlib import util
from pathlib import Path
from typing import Any

import torch

from avomni_lib.training.model import load
from tests import test_model, training_set
from tests.gpu.subject import Subject
from tests.gpu.trainings import clear_memory, memory_gb


def config_of(words: Any, quick: bool) -> Any:
    """The config of Qwen/Qwen3-VL-8B-Instruct, or the tiny one, with the ids of our own words.

    The vocabulary keeps its 151,936 entries: its two matrices are a seventh of the model.
    """
    small = training_set.config(words)
    if quick:
        return small
    config = test_model.qwen3_vl_8b().config
    for name in ("image", "video", "vision_start", "vision_end"):
        setattr(config, f"{name}_token_id", getattr(small, f"{name}_token_id"))
    for name in ("eos_token_id", "pad_token_id"):
        setattr(config.text_config, name, getattr(small.text_config, name))
    return config


def make(subject: Subject) -> dict[str, Any]:
    """Make the model on the device and save it in bf16 with its tokenizer.

    On the device, because 8.8 billion normal deviates take minutes on a host.
    """
    from transformers import AutoModelForImageTextToText

    words = training_set.make_words()
    config = config_of(words, subject.quick)
    on_gpu = torch.cuda.is_available()
    torch.manual_seed(0)
    started = time.perf_counter()
    with torch.device("cuda" if on_gpu else "cpu"):
        made = AutoModelForImageTextToText.from_config(
            config, dtype=torch.bfloat16 if on_gpu else torch.float32
        )
    if on_gpu:
        torch.cuda.synchronize()
    middle = time.perf_counter()
    made.save_pretrained(subject.bf16, max_shard_size="4GB")
    save_words(words, subject.bf16)
    return {
        "billions_of_weights": round(sum(w.numel() for w in made.parameters()) / 1e9, 3),
        "vocabulary": config.text_config.vocab_size,
        "make_seconds": round(middle - started, 1),
        "save_seconds": round(time.perf_counter() - middle, 1),
        "saved_gb": round(size_of(subject.bf16) / 1e9, 3),
    }


def size_of(folder: Path) -> int:
    """Bytes of a folder's files."""
    return sum(path.stat().st_size for path in folder.iterdir())


def save_words(words: Any, folder: Path) -> None:
    """The tokenizer, and the image and video processors that Unsloth insists on."""
    words.save_pretrained(folder)
    if util.find_spec("torchvision") is None:
        return
    from transformers import Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

    Qwen3VLProcessor(
        Qwen2VLImageProcessor(), words, Qwen3VLVideoProcessor(), chat_template=words.chat_template
    ).save_pretrained(folder)


def put_into_4_bit(subject: Subject) -> dict[str, Any]:
    """The base model read and put into 4 bit, then stored so: what the trainings start from."""
    shutil.rmtree(subject.nf4, ignore_errors=True)  # of an earlier measurement in the same place
    clear_memory(reset=True)
    started = time.perf_counter()
    base = load.load_base(subject.params("load", "4-cam"))
    seconds, peak = time.perf_counter() - started, memory_gb()
    footprint = base.model.get_memory_footprint()
    layers = [m for m in base.model.modules() if type(m).__name__ == "Linear4bit"]
    found = {
        "seconds": round(seconds, 1),
        "footprint_gb": round(footprint / 1e9, 3),
        "peak_memory_gb": peak,
        "layers_in_4_bit": len(layers),
        "choices": {name: list(choice) for name, choice in base.choices.items()},
    }
    # It takes its name only when it was read back: else the trainings start from bf16.
    unproven = subject.nf4.with_name("unproven")
    base.model.save_pretrained(unproven, max_shard_size="4GB")
    save_words(training_set.make_words(), unproven)
    del base, layers
    clear_memory()
    started = time.perf_counter()
    changed = {"model": {"base_model": str(unproven)}}
    stored = load.load_base(subject.params("load", "4-cam", **changed))
    found |= {
        "stored_gb": round(size_of(unproven) / 1e9, 3),
        "stored_seconds": round(time.perf_counter() - started, 1),
        "stored_as": stored.choices["quantisation"].value,
        "stored_same_footprint": stored.model.get_memory_footprint() == footprint,
    }
    unproven.rename(subject.nf4)
    return found
