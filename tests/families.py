"""Families of models beside Qwen3-VL, each small and of random weights, for the same tests.

A family more is an entry more of `FAMILIES`. Each has its own tokenizer: Qwen's pre-tokenizer over
a few hundred tokens, with the family's special tokens behind them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from avomni_lib import files
from avomni_lib.dataset import cameras
from avomni_lib.params import Params
from avomni_lib.training.backbones import Backbone, Video, backbone
from avomni_lib.training.prompt.conversation import Conversation, cells_of, prompt_text
from avomni_lib.training.targets import target
from tests import training_set
from tests.training_set import QWEN_TOWER, qwen_ids, text_config

FRAMES, HZ = training_set.FRAMES, training_set.HZ
TURNS = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% for content in message['content'] %}{% if content['type'] == 'text' %}"
    "{{ content['text'] }}{% else %}{{ '<PICTURE>\n' }}{% endif %}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Family:
    """A family and its small model.

    Attributes:
        tile: px, width and height of a camera's tile; the grid is 2×2 of them.
        special: What its tokenizer has beside Qwen's special tokens.
        picture: What stands for a picture in its chat template.
        words: What its prompt has beside the question's.
        make_config: Tokenizer -> transformers' config of the small model.
        left_out: What config.json does not say, as those of released checkpoints.
        processor: What a merged model's files for pictures and for videos both say.
        backbone: Its `model.backbone`, where that is not `name`.
        quantisation: What its base model is loaded in unless a parameter says.
        num_linears: Linear modules of the language model that 4 bit holds.
        adapted: Names of the modules that LoRA adapts, from the number of their layer on.
    """

    name: str
    tile: tuple[int, int]
    special: tuple[str, ...]
    picture: str
    words: str
    make_config: Callable[[Any], Any]
    processor: dict[str, Any]
    left_out: tuple[str, ...] = ()
    backbone: str = ""
    quantisation: str = "nf4"
    num_linears: int = 2 * 7
    adapted: tuple[str, ...] = tuple(
        f"{layer}.self_attn.{part}_proj" for layer in range(2) for part in "qkvo"
    )

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the grid, px."""
        return 2 * self.tile[1], 2 * self.tile[0]

    def tokenizer(self) -> Any:
        return _tokenizer(self.name)

    def kind(self) -> Backbone:
        return backbone(self.backbone or self.name, self.make_config(self.tokenizer()))

    def videos(self) -> tuple[Video, ...]:
        times = tuple(number / HZ for number in range(FRAMES))
        return (Video(times, *self.size, cells_of(cameras.grid("4-cam"))),)

    def windows(self, count: int) -> training_set.Stripes:
        return training_set.Stripes(count, (FRAMES, *self.size))

    def conversation(self) -> Conversation:
        return Conversation(
            self.tokenizer(),
            self.kind(),
            grid=cameras.grid("4-cam"),
            target=target("summary_v1"),
            videos=self.videos(),
            max_seq_length=512,
        )

    def make_base(self, folder: Path, seed: int = 0) -> Path:
        """Save a base model of random weights with its tokenizer into `folder`."""
        from transformers import AutoModelForImageTextToText, set_seed

        set_seed(seed)
        AutoModelForImageTextToText.from_config(self.make_config(self.tokenizer())).save_pretrained(
            folder
        )
        self.tokenizer().save_pretrained(folder)
        if self.left_out:
            config = files.read_json(folder / "config.json")
            kept = {name: value for name, value in config.items() if name not in self.left_out}
            files.write_json(folder / "config.json", kept)
        return folder

    def params(self, outputs: Path, base: Path, **changes: dict) -> Params:
        """Parameters of a training over `windows`; `changes` are sections of keys."""
        own = {
            "processing": {"tile_width": self.tile[0], "tile_height": self.tile[1]},
            "model": {"backbone": self.backbone or self.name},
            "training": {"gradient_checkpointing": True},
        }
        sections = {name: own.get(name, {}) | changes.get(name, {}) for name in {*own, *changes}}
        return training_set.params(outputs, base, **sections)


@functools.cache
def _tokenizer(name: str) -> Any:
    from avomni_world.tiny_base.tokenizer import make_tokenizer

    family, ask = FAMILIES[name], target("summary_v1")
    texts = [prompt_text(grid, ask) for grid in map(cameras.grid, ("4-cam", "7-cam"))]
    texts += [
        "user\nassistant\n",
        family.words,
        ask.render(training_set.Truth(1.5, 42.149, 42.0, 5.23)),
    ]
    made = make_tokenizer(texts, TURNS.replace("<PICTURE>", family.picture))
    made.add_tokens([AddedToken(each, special=True, normalized=False) for each in family.special])
    return made


def _internvl(tokenizer: Any) -> Any:
    from transformers import InternVLConfig

    return InternVLConfig(
        text_config=text_config(tokenizer, model_type="qwen3", head_dim=32),
        vision_config={
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "image_size": [56, 56],
            "patch_size": [14, 14],
            "attention_bias": True,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        tie_word_embeddings=False,
    )


def _llava_onevision(tokenizer: Any) -> Any:
    from transformers import LlavaOnevisionConfig

    return LlavaOnevisionConfig(
        text_config=text_config(tokenizer, model_type="qwen2"),
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "image_size": 44,  # 2 px of it are in no patch, as 6 of 384 are
            "patch_size": 14,
            "vision_use_head": False,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
    )


def _qwen3_5(tokenizer: Any) -> Any:
    from transformers import Qwen3_5Config

    rope = {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.5}
    return Qwen3_5Config(
        text_config=text_config(
            tokenizer,
            num_hidden_layers=4,
            head_dim=32,
            linear_key_head_dim=16,
            linear_value_head_dim=16,
            linear_num_key_heads=2,
            linear_num_value_heads=4,
            rope_parameters=rope | {"mrope_section": [3, 3, 2], "mrope_interleaved": True},
        ),
        vision_config=QWEN_TOWER,
        tie_word_embeddings=True,
        **qwen_ids(tokenizer),
    )


def _qwen3_vl_moe(tokenizer: Any) -> Any:
    from transformers import Qwen3VLMoeConfig

    rope = {"rope_type": "default", "rope_theta": 5e6}
    return Qwen3VLMoeConfig(
        text_config=text_config(
            tokenizer,
            head_dim=32,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=48,
            rope_parameters=rope | {"mrope_section": [6, 5, 5], "mrope_interleaved": True},
        ),
        vision_config=QWEN_TOWER | {"deepstack_visual_indexes": [0, 1]},
        tie_word_embeddings=False,
        **qwen_ids(tokenizer),
    )


def _qwen_family(name: str, **own: Any) -> Family:
    """Qwen's: tiles as `training_set`'s, and the numbers of its processor files."""
    return Family(
        name,
        tile=(48, 32),
        picture="<|vision_start|><|video_pad|><|vision_end|>",
        words="<0.1 seconds>",
        processor={"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "patch_size": 16},
        **own,
    )


FAMILIES = {
    each.name: each
    for each in (
        Family(
            "internvl",
            tile=(56, 28),
            special=("<img>", "</img>", "<IMG_CONTEXT>"),
            picture="<IMG_CONTEXT>",
            words="Frame1 at 0.00 s: front wide: rear left: \n",
            make_config=_internvl,
            processor={
                "image_mean": [0.485, 0.456, 0.406],
                "image_std": [0.229, 0.224, 0.225],
                "size": {"height": 56, "width": 56},
            },
            left_out=("tie_word_embeddings",),
        ),
        Family(
            "llava_onevision",
            tile=(44, 22),
            special=("<image>", "<video>"),
            picture="<video>",
            words="The video lasts for 0.30 seconds, and 4 frames are taken from it, at 0.00 s, "
            "0.10 s. Each frame is shown as 2 pictures, row by row from the top left.",
            make_config=_llava_onevision,
            processor={
                "image_mean": [0.5] * 3,
                "image_std": [0.5] * 3,
                "size": {"height": 44, "width": 44},
            },
        ),
        _qwen_family(
            "qwen3_5",
            special=(),
            make_config=_qwen3_5,
            quantisation="none",
            num_linears=3 * 8 + 7,
            adapted=(
                *(
                    f"{layer}.linear_attn.{part}"
                    for layer in range(3)
                    for part in ("in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b", "out_proj")
                ),
                *(f"3.self_attn.{part}_proj" for part in "qkvo"),
            ),
        ),
        _qwen_family(
            "qwen3_vl_moe",
            backbone="qwen3_vl",
            special=(),
            make_config=_qwen3_vl_moe,
            num_linears=2 * 4,  # experts are no linear modules
        ),
    )
}
