"""LLaVA-OneVision in transformers: squares of 384 px, SigLIP's normalisation, times as text.

Supported are the repositories of llava-hf whose names end in -hf. LLaVA-OneVision-1.5 and -2 are
other models, whose code comes with the checkpoint and is never run here.

The vision tower takes only squares, so a grid is cut into them (`shared.squares`) and passed as one
video: 196 tokens per square and one for the end of the video. Unlike a single image, a video is
never tiled or padded.

The released prompt contains neither the times nor the boundaries of frames. Here a sentence states
them, as in the authors' LLaVA-Video.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from avomni_lib.errors import AvomniError
from avomni_lib.training.backbones.shared import decoder, layers, squares
from avomni_lib.training.backbones.shared.base import Video, refuse_other_model
from avomni_lib.training.backbones.shared.size import ModelSize, Vision

if TYPE_CHECKING:
    import torch

VIDEO_TOKEN = "<video>"
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
# SigLIP's, as in the released preprocessor_config.json; the class's defaults are CLIP's.
MEAN = STD = (0.5, 0.5, 0.5)
POOLED = 2  # patches along each side of a vision token
SERVED_TOKENS = 8192  # default of vLLM's --max-num-batched-tokens
TOWER = "siglip_vision_model"


@dataclass(frozen=True)
class LlavaOnevision(squares.InSquares):
    """The numbers of one LLaVA-OneVision; the defaults are those of every released size.

    Attributes:
        patch_size: Side of its patches, px; the remainder of a square at the right and bottom, 6 px
            of 384, is ignored.
    """

    image_size: int = 384
    patch_size: int = 14

    name = "llava_onevision"
    model_types = ("llava_onevision",)
    prompt_form = "llava_onevision/time_instruction"
    end_of_turn = TURN_END
    vision_token = VIDEO_TOKEN
    special_tokens = (VIDEO_TOKEN, TURN_START, TURN_END)
    mean, std = MEAN, STD
    adapters_in_vllm = False
    in_llama_cpp = False
    example = "llava-hf/llava-onevision-qwen2-7b-ov-hf"
    serving_note = (
        "The squares of all frames are passed as the frames of one video, in the order given by "
        "the sentence of times; each has the tower's own size, so none is shrunk."
    )
    refused = dict.fromkeys(
        ("llavaonevision1_5", "llava_onevision1_5", "llava_onevision2", "llava_qwen"),
        "it is code that comes with the checkpoint (remote code), which is never run here, and "
        "that of LLaVA-OneVision-1.5 does not run on transformers 5: take one of llava-hf's "
        "repositories that end in -ov-hf",
    )

    @classmethod
    def from_config(cls, config: Any) -> Self:
        vision = config.vision_config
        if vision.model_type != TOWER:
            raise AvomniError(
                f"the vision tower of the base model is a {vision.model_type!r}, not a {TOWER!r}",
                where="model.base_model",
                fix=f"name a checkpoint that has one, as {cls.example}",
            )
        return cls(vision.image_size, vision.patch_size)

    @property
    def token_px(self) -> float:
        return self.image_size / math.isqrt(self.tokens_per_square)

    @property
    def patches_per_square(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    @property
    def tokens_per_square(self) -> int:
        return math.ceil(self.image_size // self.patch_size / POOLED) ** 2

    def num_vision_tokens(self, videos: Sequence[Video]) -> int:
        return self.num_squares(videos) * self.tokens_per_square + 1

    def chat(self, text: str, videos: Sequence[Video]) -> str:
        """The user's turn, as formatted by the released chat template, with times before `text`."""
        pictures = VIDEO_TOKEN * self.num_vision_tokens(videos)
        words = f"{pictures}\n{self.time_instruction(videos)}\n{text}"
        return f"{TURN_START}user\n{words}{TURN_END}\n{TURN_START}assistant\n"

    def time_instruction(self, videos: Sequence[Video]) -> str:
        """Sentences that state the time of each frame and the images of which it consists."""
        times = [time_s for video in videos for time_s in video.times_s]
        stamps = ", ".join(f"{time_s:.2f} s" for time_s in times)
        sentences = [
            f"The video lasts for {times[-1] - times[0]:.2f} seconds, and {len(times)} frames are "
            f"taken from it, at {stamps}."
        ]
        for place, video in enumerate(videos):
            shown = self.squares_of(video)
            if len(videos) == 1:
                which = "Each frame is"
            elif place == 0:
                which = f"Each of the first {video.num_frames} frames is"
            else:
                which = f"Each of the next {video.num_frames} is"
            labels = [square.label for square in shown if square.label]
            if labels:
                sentences.append(f"{which} shown as pictures in this order: {', '.join(labels)}.")
            elif len(shown) > 1 or len(videos) > 1:
                plural = "pictures, row by row from the top left" if len(shown) > 1 else "picture"
                sentences.append(f"{which} shown as {len(shown)} {plural}.")
        return " ".join(sentences)

    def inputs(
        self,
        frames: Sequence[torch.Tensor],
        dtype: torch.dtype | None = None,
        videos: Sequence[Video] = (),
    ) -> dict[str, Any]:
        """Cut into squares and normalise on the frames' device.

        Returns:
            pixel_values_videos (B, squares, 3, image_size, image_size), frame by frame.
        """
        return {"pixel_values_videos": self.normalised(frames, dtype, videos)}

    def prepare(self, model: Any, fuse: bool = True) -> None:
        """Make the tower keep only the output of the used layer, without gradients.

        transformers collects the outputs of all layers and uses one: for two windows of 16 frames
        in four squares they would take 5.8 GB.
        """
        layers.keep_used(model.model.vision_tower, model.config.vision_feature_layer)
        if fuse:
            layers.fuse(model.model.language_model)

    @classmethod
    def size(cls, config: Mapping[str, Any]) -> ModelSize:
        text, vision = config["text_config"], config["vision_config"]
        # As in transformers, the language model's config counts too.
        tied = bool(config.get("tie_word_embeddings") or text.get("tie_word_embeddings"))
        layers = config.get("vision_feature_layer", -1)
        return ModelSize(
            decoder.language(text, tied),
            _tower(
                vision,
                text["hidden_size"],
                num_layers=1 if isinstance(layers, int) else len(layers),
                bias=config.get("multimodal_projector_bias", True),
            ),
        )

    @classmethod
    def released(cls, base_model: str) -> ModelSize | None:
        name = base_model.lower()
        if name.startswith("lmms-lab/llava-onevision"):
            other = ("-1.5-", "llavaonevision1_5"), ("-2-", "llava_onevision2"), ("", "llava_qwen")
            raise refuse_other_model(cls, next(kind for mark, kind in other if mark in name))
        if not re.search(r"llava-onevision-qwen2-.*-hf$", name):
            return None
        size = re.search(r"-qwen2-([0-9.]+b)-", name)
        if size is None or (text := RELEASED.get(size[1])) is None:
            return None
        return cls.size({"text_config": text, "vision_config": RELEASED_TOWER})

    def server_arguments(self, videos: Sequence[Video]) -> str:
        # vLLM refuses a video with more tokens than a batch, and expects one of 16 frames.
        needed = 1024 * (self.num_vision_tokens(videos) // 1024 + 1)
        return f"--max-num-batched-tokens {max(needed, SERVED_TOKENS)}"

    def request(self, question: str, videos: Sequence[Video]) -> dict[str, Any]:
        video = {"url": "data:video/jpeg;base64,FRAME_1_SQUARE_1,…,FRAME_2_SQUARE_1,…"}
        content = [
            {"type": "video_url", "video_url": video},
            {"type": "text", "text": f"{self.time_instruction(videos)}\n{question}"},
        ]
        return {
            "messages": [{"role": "user", "content": content}],
            # Without num_frames a server keeps the first 32.
            "media_io_kwargs": {"video": {"num_frames": -1}},
        }

    def processor_files(self, config: Any) -> dict[str, dict[str, Any]]:
        """Content of the released files with this config's numbers."""
        shared = self.processor_values() | {"processor_class": "LlavaOnevisionProcessor"}
        return {
            "preprocessor_config.json": shared
            | {
                "image_grid_pinpoints": config.image_grid_pinpoints,
                "image_processor_type": "LlavaOnevisionImageProcessorFast",
            },
            "video_preprocessor_config.json": shared
            | {"do_sample_frames": False, "video_processor_type": "LlavaOnevisionVideoProcessor"},
            "processor_config.json": {
                "num_image_tokens": self.patches_per_square,
                "vision_feature_select_strategy": config.vision_feature_select_strategy,
                "vision_aspect_ratio": config.vision_aspect_ratio,
                "processor_class": "LlavaOnevisionProcessor",
            },
        }


def _tower(vision: Mapping[str, Any], out: int, *, num_layers: int, bias: bool) -> Vision:
    """The SigLIP tower of a `vision_config`, and the projector into a width of `out`.

    Args:
        num_layers: Number of layers whose outputs the projector reads.
        bias: Whether the projector has biases.
    """
    wide, inner = vision["hidden_size"], vision["intermediate_size"]
    values = squares.COLOURS * vision["patch_size"] ** 2
    attention, mlp = 4 * wide**2 + 4 * wide, 2 * wide * inner + inner + wide
    block = attention + mlp + 4 * wide
    positions = (vision["image_size"] // vision["patch_size"]) ** 2
    tower = (values + 1 + positions) * wide + vision["num_hidden_layers"] * block + 2 * wide
    if vision.get("vision_use_head", True):
        tower += wide + attention + 2 * wide + mlp
    return Vision(
        wide,
        vision["num_hidden_layers"],
        vision["num_attention_heads"],
        inner,
        out,
        num_tower=tower,
        # The last term is the token that ends a video.
        num_mergers=num_layers * wide * out + out**2 + 2 * out * bias + out,
        values_per_patch=values,
        rotates=False,
    )


# The language models of the released sizes: Qwen2's configs, with two more tokens and the
# vocabulary padded to multiples of 64, as in transformers' conversion script.
RELEASED = {
    "0.5b": decoder.qwen2(896, 24, 14, 2, 4864, 152_000) | {"tie_word_embeddings": True},
    "7b": decoder.qwen2(3584, 28, 28, 4, 18_944, 152_128),
    "72b": decoder.qwen2(8192, 80, 64, 8, 29_568, 152_128),
}
# Also as in that script: SigLIP-so400m without its last layer and its head.
RELEASED_TOWER = {
    "model_type": TOWER,
    "hidden_size": 1152,
    "image_size": 384,
    "intermediate_size": 4304,
    "num_attention_heads": 16,
    "num_hidden_layers": 26,
    "patch_size": 14,
    "vision_use_head": False,
}
