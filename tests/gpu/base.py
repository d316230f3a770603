"""The base model of random weights: made on the device, saved, read in 4 bit, stored in 4 bit."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from importlib import util
from pathlib import Path
from typing import Any

import torch

from avomni_lib.training.backbones import internvl, llava_onevision, qwen3_5
from avomni_lib.training.model import load
from tests import families, test_model, training_set
from tests.gpu.subject import QWEN3_VL, Subject
from tests.gpu.trainings import clear_memory, memory_gb


def _qwen3_5_4b() -> Any:
    from transformers import Qwen3_5Config

    return Qwen3_5Config(**qwen3_5.RELEASED_4B)


def _internvl_8b() -> Any:
    from transformers import InternVLConfig

    tower = internvl._released_tower("8b")
    text = internvl.RELEASED_3_5["8b"]
    return InternVLConfig(text_config=text, vision_config=tower, tie_word_embeddings=False)


def _llava_onevision_7b() -> Any:
    from transformers import LlavaOnevisionConfig

    text, tower = llava_onevision.RELEASED["7b"], llava_onevision.RELEASED_TOWER
    return LlavaOnevisionConfig(text_config=text, vision_config=tower)


# Backbone -> config of a released size.
FULL: dict[str, Callable[[], Any]] = {
    QWEN3_VL: lambda: test_model.qwen3_vl_8b().config,
    "qwen3_5": _qwen3_5_4b,
    "internvl": _internvl_8b,
    "llava_onevision": _llava_onevision_7b,
}
IDS = ("image", "video", "vision_start", "vision_end")


def config_of(subject: Subject) -> Any:
    """The config of a released size, or the tiny one, with the ids of our own words.

    The vocabulary keeps all its entries: of Qwen3-VL-8B its two matrices are a seventh.
    """
    words = subject.words()
    if subject.backbone == QWEN3_VL:
        small = training_set.config(words)
    else:
        small = families.FAMILIES[subject.backbone].make_config(words)
    if subject.quick:
        return small
    config = FULL[subject.backbone]()
    for name in (f"{each}_token_id" for each in IDS):
        if getattr(small, name, None) is not None:
            setattr(config, name, getattr(small, name))
    for name in ("eos_token_id", "pad_token_id"):
        setattr(config.text_config, name, getattr(small.text_config, name))
    return config


def make(subject: Subject) -> dict[str, Any]:
    """Make the model on the device and save it in bf16 with its tokenizer.

    On the device, because 8.8 billion normal deviates take minutes on a host.
    """
    from transformers import AutoModelForImageTextToText

    words, config = subject.words(), config_of(subject)
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
    save_words(subject.words(), unproven)
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
