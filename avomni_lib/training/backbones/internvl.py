"""InternVL3 and 3.5 in transformers: squares of 448 px, ImageNet's normalisation, timed frames.

Supported are the repositories whose names end in -hf. The others are `internvl_chat`, whose code
comes with the checkpoint and is never run here.

The vision tower takes only squares, and silently misplaces the patches of any other shape. A grid
is therefore cut into squares (`shared.squares`), and one that does not divide is refused. Unlike in
the released image processor, images are not shrunk and no thumbnail of the whole is added.

The released processor numbers frames without times. Here the time follows the number:
`Frame1 at 0.00 s: `. The rest of the prompt is identical to the released one, token for token.
Several squares of a frame are separate images on separate lines, as the chat template formats a
request with several images, so a server's prompt is the same.
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

IMAGE_TOKEN, IMAGE_START, IMAGE_END = "<IMG_CONTEXT>", "<img>", "</img>"
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
# ImageNet's, as in the released preprocessor_config.json and in the authors' own training code. The
# defaults of transformers' classes are CLIP's.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class InternVL(squares.InSquares):
    """The numbers of one InternVL; the defaults are those of every released size.

    Attributes:
        downsample_ratio: Ratio of vision tokens to patches along a side.
    """

    image_size: int = 448
    patch_size: int = 14
    downsample_ratio: float = 0.5

    name = "internvl"
    model_types = ("internvl",)
    prompt_form = "internvl/timed_frames"
    end_of_turn = TURN_END
    vision_token = IMAGE_TOKEN
    special_tokens = (IMAGE_TOKEN, IMAGE_START, IMAGE_END, TURN_START, TURN_END)
    mean, std = MEAN, STD
    in_llama_cpp = False  # it reads only the layout of the repositories without -hf
    example = "OpenGVLab/InternVL3_5-8B-HF"
    serving_note = (
        "Each frame is introduced by its number and time, followed by its squares as images, not "
        "as a video: for a video, a server omits the times and shrinks each frame to one square. "
        "The request below shows the first frame and the last; those between have the same form. "
        "The tokenizer of the released repositories states a length of 8,192 tokens; if a server "
        "takes that as a limit, raise model_max_length in tokenizer_config.json."
    )
    refused = {
        "internvl_chat": "it is code that comes with the checkpoint (remote code), which is never "
        "run here: take the repository of the same name that ends in -hf",
    }

    @classmethod
    def from_config(cls, config: Any) -> Self:
        vision = config.vision_config
        image, patch = (_side(getattr(vision, n), n) for n in ("image_size", "patch_size"))
        backbone = cls(image, patch, getattr(config, "downsample_ratio", cls.downsample_ratio))
        merged = round(1 / backbone.downsample_ratio)
        if image % patch or image // patch % merged:
            raise AvomniError(
                f"the vision tower's squares of {image} px do not divide into patches of {patch} "
                f"px, {merged} by {merged} of them a token",
                where="model.base_model",
            )
        return backbone

    @property
    def token_px(self) -> float:
        return self.patch_size / self.downsample_ratio

    @property
    def patches_per_square(self) -> int:
        """Length of the tower's sequence for a square: its patches and the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1

    @property
    def tokens_per_square(self) -> int:
        return round(self.image_size // self.patch_size * self.downsample_ratio) ** 2

    def num_vision_tokens(self, videos: Sequence[Video]) -> int:
        return self.num_squares(videos) * self.tokens_per_square

    def chat(self, text: str, videos: Sequence[Video]) -> str:
        """The user's turn, as formatted by the released chat template and processor, with times."""
        picture = f"{IMAGE_START}{IMAGE_TOKEN * self.tokens_per_square}{IMAGE_END}"
        lines, number = [], 0
        for video in videos:
            labels = [square.label for square in self.squares_of(video)]
            named = [f"{label}: {picture}" if label else picture for label in labels]
            for time_s in video.times_s:
                number += 1
                lines.append(f"Frame{number} at {time_s:.2f} s: " + "\n".join(named))
        words = "\n".join([*lines, text])
        return f"{TURN_START}user\n{words}{TURN_END}\n{TURN_START}assistant\n"

    def inputs(
        self,
        frames: Sequence[torch.Tensor],
        dtype: torch.dtype | None = None,
        videos: Sequence[Video] = (),
    ) -> dict[str, Any]:
        """Cut into squares and normalise on the frames' device.

        Returns:
            pixel_values (B·squares, 3, image_size, image_size), window by window, frame by frame.
        """
        return {"pixel_values": self.normalised(frames, dtype, videos).flatten(0, 1)}

    def prepare(self, model: Any, fuse: bool = True) -> None:
        """Disable gradients of the frozen tower, and record in the config if the head is tied."""
        layers.without_gradients(model.model.vision_tower)
        # Many config.json files omit that the head is not tied, and the class's default is that it
        # is. Loading handles it, but the saved config has to state it.
        embedding = model.get_input_embeddings().weight
        model.config.tie_word_embeddings = model.lm_head.weight is embedding
        if fuse:
            layers.fuse(model.model.language_model)

    @classmethod
    def size(cls, config: Mapping[str, Any]) -> ModelSize:
        text, vision = config["text_config"], config["vision_config"]
        tied = bool(text.get("tie_word_embeddings", False))
        ratio = config.get("downsample_ratio", cls.downsample_ratio)
        return ModelSize(
            decoder.language(text, tied),
            _tower(vision, text["hidden_size"], ratio),
        )

    @classmethod
    def released(cls, base_model: str) -> ModelSize | None:
        words = set(re.split(r"[^a-z0-9]+", base_model.lower()))
        if "opengvlab" in words and "internvl" in base_model.lower() and "hf" not in words:
            raise refuse_other_model(cls, "internvl_chat")
        if "internvl3" not in words or "hf" not in words:
            return None
        table = RELEASED_3_5 if "5" in words else RELEASED_3
        sizes = words & table.keys()
        if len(sizes) != 1 or any(re.fullmatch(r"a\d+b", word) for word in words):
            return None  # with experts: another architecture
        size = sizes.pop()
        return cls.size({"text_config": table[size], "vision_config": _released_tower(size)})

    def server_arguments(self, videos: Sequence[Video]) -> str:
        return f"""--limit-mm-per-prompt '{{"image": {self.num_squares(videos)}}}'"""

    def request(self, question: str, videos: Sequence[Video]) -> dict[str, Any]:
        """The first and the last frame; those between have the same form."""
        frames = [(time_s, self.squares_of(video)) for video in videos for time_s in video.times_s]
        content: list[dict[str, Any]] = []
        for number in sorted({1, len(frames)}):
            time_s, shown = frames[number - 1]
            words = f"Frame{number} at {time_s:.2f} s: "
            for place, square in enumerate(shown, start=1):
                words += f"{square.label}: " if square.label else ""
                if words:
                    content.append({"type": "text", "text": words})
                url = f"data:image/jpeg;base64,FRAME_{number}_SQUARE_{place}"
                content.append({"type": "image_url", "image_url": {"url": url}})
                words = ""
        content.append({"type": "text", "text": question})
        return {"messages": [{"role": "user", "content": content}]}

    def processor_files(self, config: Any) -> dict[str, dict[str, Any]]:
        """Content of the released files, with the video part that many checkpoints lack.

        Without it a server would normalise videos with CLIP's mean, the default of the class.
        """
        shared = self.processor_values() | {"processor_class": "InternVLProcessor"}
        return {
            "preprocessor_config.json": shared
            | {"crop_to_patches": False, "image_processor_type": "GotOcr2ImageProcessorFast"},
            "video_preprocessor_config.json": shared
            | {"do_sample_frames": False, "video_processor_type": "InternVLVideoProcessor"},
            "processor_config.json": {
                "image_seq_length": self.tokens_per_square,
                "processor_class": "InternVLProcessor",
            },
        }


def _side(value: Any, name: str) -> int:
    """The side of a square, given as a number or as height and width."""
    sides = {value} if isinstance(value, int) else set(value)
    if len(sides) != 1:
        raise AvomniError(
            f"the vision tower's {name} is {'×'.join(map(str, value))} px, which is no square",
            where="model.base_model",
            fix=f"name a checkpoint that takes squares, as {InternVL.example}",
        )
    return int(sides.pop())


def _tower(vision: Mapping[str, Any], out: int, downsample_ratio: float) -> Vision:
    """The vision tower of a `vision_config`, and the projector into a width of `out`."""
    wide, inner = vision["hidden_size"], vision["intermediate_size"]
    image, patch = (_side(vision[name], name) for name in ("image_size", "patch_size"))
    values = squares.COLOURS * patch**2
    norm = wide if vision.get("norm_type") == "rms_norm" else 2 * wide
    block = 4 * wide**2 + wide + 2 * wide * inner + inner + wide + 2 * norm
    block += 2 * wide  # scales of both residuals
    block += 3 * wide * bool(vision.get("attention_bias"))
    block += 2 * wide * bool(vision.get("use_qk_norm"))
    positions = (image // patch) ** 2 + 1
    embeddings = (values + 1 + 1 + positions) * wide  # patches, class token and positions
    embeddings += wide * bool(vision.get("use_mask_token"))
    last = 0 if vision.get("use_mean_pooling", True) else 2 * wide
    merged = wide * math.floor(1 / downsample_ratio) ** 2
    depth = vision["num_hidden_layers"]
    return Vision(
        wide,
        depth,
        vision["num_attention_heads"],
        inner,
        out,
        num_tower=embeddings + depth * block + last,
        num_mergers=2 * merged + merged * out + out + out**2 + out,
        values_per_patch=values,
        rotates=False,
    )


# The language models of the released sizes: Qwen2.5, InternLM3 (9B), and Qwen3 in 3.5. Sources: the
# authors' model zoo, the configs of Qwen2.5, Qwen3 and internlm3-8b-instruct, and the vocabulary of
# 151,674 of MindSpeed-MM's examples/internvl3. The head is not tied in any size: only then do the
# weights add up to the published totals.
RELEASED_3 = {
    "1b": decoder.qwen2(896, 24, 14, 2, 4864, 151_674),
    "2b": decoder.qwen2(1536, 28, 12, 2, 8960, 151_674),
    "8b": decoder.qwen2(3584, 28, 28, 4, 18_944, 151_674),
    "9b": decoder.qwen2(4096, 48, 32, 2, 10_240, 128_512) | {"model_type": "llama"},
    "14b": decoder.qwen2(5120, 48, 40, 8, 13_824, 151_674),
    "38b": decoder.qwen2(5120, 64, 40, 8, 27_648, 151_674),
    "78b": decoder.qwen2(8192, 80, 64, 8, 29_568, 151_674),
}
RELEASED_3_5 = {
    "1b": decoder.qwen3(1024, 28, 16, 8, 3072, 151_936),
    "2b": decoder.qwen3(2048, 28, 16, 8, 6144, 151_936),
    "4b": decoder.qwen3(2560, 36, 32, 8, 9728, 151_936),
    "8b": decoder.qwen3(4096, 36, 32, 8, 12_288, 151_936),
    "14b": decoder.qwen3(5120, 40, 40, 8, 17_408, 151_936),
    "38b": decoder.qwen3(5120, 64, 64, 8, 25_600, 151_936),
}
LARGE = ("38b", "78b")  # with InternViT-6B; all others have InternViT-300M


def _released_tower(size: str) -> dict[str, Any]:
    shared = {"image_size": (448, 448), "patch_size": (14, 14)}
    if size in LARGE:
        return shared | {
            "hidden_size": 3200,
            "num_hidden_layers": 45,
            "num_attention_heads": 25,
            "intermediate_size": 12_800,
            "norm_type": "rms_norm",
            "use_qk_norm": True,
        }
    return shared | {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "attention_bias": True,
    }
