"""A base model of random weights and windows of moving stripes, for the tests of training."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import trl

from avomni_lib.dataset import cameras
from avomni_lib.params import Params
from avomni_lib.training.backbones import Video, backbone
from avomni_lib.training.model import adapter, load, model_path
from avomni_lib.training.prompt import samples
from avomni_lib.training.prompt.conversation import Conversation, prompt_text
from avomni_lib.training.targets import target

CHAT_TEMPLATE = Path(trl.__file__).parent / "chat_templates" / "qwen3_vl.jinja"
HEIGHT, WIDTH, FRAMES, HZ = 64, 96, 4, 10.0


@dataclass(frozen=True)
class Truth:
    duration_s: float
    path_m: float
    chord_m: float
    speed_mps: float


@dataclass(frozen=True)
class Window:
    clip_id: str
    number: int
    split: str = "train"


class Stripes:
    """Windows whose stripes move with their speed: a function of the index, as a cache's are."""

    cache = SimpleNamespace(digest="stripes")

    def __init__(self, count: int, shape: tuple[int, int, int] = (FRAMES, HEIGHT, WIDTH)):
        self.count, self.shape = count, shape

    @property
    def frame_shape(self) -> tuple[int, int, int, int]:
        return (*self.shape, 3)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Window:
        return Window(f"clip-{index // 4}", index % 4)

    def truth(self, index: int) -> Truth:
        speed = 1.0 + 20.0 * (index * 0.61803 % 1)
        duration = (self.shape[0] - 1) / HZ
        return Truth(duration, speed * duration, speed * duration, speed)

    def frames(self, index: int) -> np.ndarray:
        length, height, width = self.shape
        rows = np.arange(height)[None, :, None, None]
        shift = (self.truth(index).speed_mps * np.arange(length))[:, None, None, None]
        shade = (rows * 8 + shift + index) % 256
        return np.broadcast_to(shade, (length, height, width, 3)).astype(np.uint8)

    def read_into(self, index: int, out: np.ndarray) -> None:
        out[:] = self.frames(index)


class Uneven(Stripes):
    """Windows whose answers, causes of `coc_v1`, have 30 to 66 tokens."""

    def truth(self, index: int) -> SimpleNamespace:
        event = "car ahead slows " * (3, 5, 7)[index % 3]
        told = vars(super().truth(index))
        return SimpleNamespace(**told, scene=SimpleNamespace(event=event))


@functools.cache
def make_words():
    from avomni_world.tiny_base.tokenizer import make_tokenizer

    ask = target("summary_v1")
    texts = [prompt_text(grid, ask) for grid in map(cameras.grid, ("4-cam", "7-cam"))]
    texts += ["user\nassistant\n seconds>", ask.render(Truth(1.5, 42.149, 42.0, 5.23))]
    return make_tokenizer(texts, CHAT_TEMPLATE.read_text())


def conversation(
    tokenizer=None, max_seq_length: int = 512, asked: str = "summary_v1", own=None
) -> Conversation:
    """The conversation about `Stripes`."""
    return Conversation(
        tokenizer or make_words(),
        backbone("qwen3_vl"),
        grid=cameras.grid("4-cam"),
        target=own or target(asked),
        videos=[Video(tuple(number / HZ for number in range(FRAMES)), HEIGHT, WIDTH)],
        max_seq_length=max_seq_length,
    )


def logits(model: Any, talk: Conversation, windows: Any, indices: Sequence[int]) -> Any:
    """(tokens, vocabulary): what a model predicts for windows with their true answers."""
    import torch

    batch = samples.batch_of(indices, windows, talk)
    lengths = [len(samples.sample_of(index, windows, talk)) for index in indices]
    is_token = torch.arange(batch.pop("labels").shape[1]) < torch.tensor(lengths)[:, None]
    batch |= talk.inputs(torch.stack([torch.from_numpy(windows.frames(i)) for i in indices]))
    with torch.inference_mode():
        return model(**batch).logits[is_token]


def apart(left: Any, right: Any) -> float:
    """Their difference, rms, in units of the right one's spread."""
    return float((left - right).pow(2).mean().sqrt() / right.std())


def text_config(tokenizer: Any, **numbers: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **numbers,
    }


def qwen_ids(tokenizer: Any) -> dict[str, int]:
    return {
        f"{name}_id": tokenizer.convert_tokens_to_ids(f"<|{token}|>")
        for name, token in (
            *(("image_token", "image_pad"), ("video_token", "video_pad")),
            *(("vision_start_token", "vision_start"), ("vision_end_token", "vision_end")),
        )
    }


QWEN_TOWER = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 2,
    "out_hidden_size": 64,
    "num_position_embeddings": 64,
}


def config(tokenizer):
    """A Qwen3-VL of 0.2 M parameters."""
    from transformers import Qwen3VLConfig

    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [6, 5, 5]}
    return Qwen3VLConfig(
        text_config=text_config(
            tokenizer,
            head_dim=32,
            rope_parameters=rope | {"mrope_interleaved": True},
            tie_word_embeddings=True,
        ),
        vision_config=QWEN_TOWER | {"deepstack_visual_indexes": [0, 1]},
        tie_word_embeddings=True,
        **qwen_ids(tokenizer),
    )


def make_model(seed: int = 0):
    """A base model of random weights."""
    from transformers import Qwen3VLForConditionalGeneration, set_seed

    set_seed(seed)
    return Qwen3VLForConditionalGeneration(config(make_words()))


def make_base(folder: Path, seed: int = 0) -> Path:
    """Save a base model of random weights with its tokenizer into `folder`."""
    words, model = make_words(), make_model(seed)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def params(outputs: Path, base: Path, **changes: dict) -> Params:
    """Parameters of a training over `Stripes`; `changes` are sections of keys."""
    values = {
        "run": {"name": "test", "outputs_dir": str(outputs), "seed": 3},
        "dataset": {"source": "world"},
        "processing": {"sequence_length": FRAMES, "stride": 2, "sample_hz": HZ}
        | {"tile_width": WIDTH // 2, "tile_height": HEIGHT // 2, "obstacles": False},
        "model": {"base_model": str(base), "max_seq_length": 512},
        "training": {
            "batch_size": 2,
            "gradient_accumulation_steps": 2,
            "num_epochs": 1,
            "learning_rate": 1e-2,
            "gradient_checkpointing": False,
            "save_steps": 2,
            "heldout_windows": None,
            "blind_steps": 100,
        },
    }
    for section, keys in changes.items():
        values[section] = values.get(section, {}) | keys
    return Params.from_values(values)


def make_adapter(p: Params) -> Any:
    """Write an adapter of random numbers, large enough that it changes what is said; returns the
    model with it."""
    import torch

    base = load.load_base(p)
    tuned = load.add_adapter(base.model, p, backbone("qwen3_vl", base.model.config))
    torch.manual_seed(0)
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(std=0.1)
    digest = load.base_digest(model_path.base_location(p.model.base_model), base.model.config)
    record = adapter.record_of(p, Stripes(8), conversation(), digest, base.choices)
    adapter.export(tuned, adapter.adapter_dir(p), record)
    return tuned
