"""Qwen3-VL: uint8 frames to patches on the device, token counts, and the text around a video.

The released video processor is not used: it takes about 330 ms and 88 MB of float32 per window on
the host, and its `size["longest_edge"]` limits T·H·W, not an edge, so that large windows are
silently shrunk. The computation here equals the processor's with `do_resize=False`, bit for bit on
a CPU (tests/test_qwen3_vl.py) and to 6e-8 on an H200 (tests/gpu).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from avomni_lib.errors import AvomniError
from avomni_lib.training.backbones.shared import decoder, layers
from avomni_lib.training.backbones.shared.base import Backbone, Video, check_frames
from avomni_lib.training.backbones.shared.size import (
    Block,
    Language,
    ModelSize,
    Vision,
    VisionWork,
)

if TYPE_CHECKING:
    import torch

VIDEO_TOKEN = "<|video_pad|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
# image_mean = image_std = 0.5 of values in 0..1
MEAN = STD = 127.5
COLOURS = 3


@dataclass(frozen=True)
class Qwen3VL(Backbone):
    """The numbers of one Qwen3-VL; the defaults are those of every released size.

    Attributes:
        patch_size: Side of the vision tower's patches, px.
        merge_size: Number of patches along each side of a vision token.
        temporal_patch_size: Number of frames in one patch.
    """

    patch_size: int = 16
    merge_size: int = 2
    temporal_patch_size: int = 2

    name = "qwen3_vl"
    model_types: ClassVar[tuple[str, ...]] = ("qwen3_vl", "qwen3_vl_moe")
    # transformers >= 5.10 keeps the chat template's outer <|vision_start|>…<|vision_end|> around
    # the frames' own pairs; before it, and in servers built on that, the pair was dropped.
    prompt_form = "qwen3_vl/outer_vision_pair"
    end_of_turn = TURN_END
    vision_token = VIDEO_TOKEN
    special_tokens: ClassVar[tuple[str, ...]] = (
        VIDEO_TOKEN,
        VISION_START,
        VISION_END,
        TURN_START,
        TURN_END,
    )
    takes_token_types = True
    # The vision tower's attention is a fused `qkv` and `proj`; only the language model is adapted.
    skip_modules = ("model.visual", "lm_head")
    tower = "visual"
    in_unsloth = True
    example = "unsloth/Qwen3-VL-8B-Instruct-bnb-4bit"
    serving_note = (
        "transformers from 5.10 on keeps the outer `<|vision_start|>`…`<|vision_end|>` pair around "
        "the frames' own pairs, as here. Before 5.10 it was dropped, two tokens fewer, and vLLM "
        "follows the transformers version that it runs with. A server's processor also shrinks a "
        "window whose frames × height × width exceeds `longest_edge` of its "
        "video_preprocessor_config.json, and from 5.22 on (announced) frames of more than 768 "
        "tokens, unless the request has `do_resize: false`."
    )

    @classmethod
    def from_config(cls, config: Any) -> Self:
        vision = config.vision_config
        return cls(vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size)

    @property
    def pixels(self) -> dict[str, Any]:
        """Mean and standard deviation for values from 0 to 255, and the sizes of patches."""
        return {"mean": MEAN, "std": STD, **asdict(self)}

    @property
    def frames_per_patch(self) -> int:
        return self.temporal_patch_size

    @property
    def side_multiple(self) -> int:
        return self.patch_size * self.merge_size

    def check(self, video: Video) -> None:
        height, width = video.height, video.width
        if height % self.side_multiple or width % self.side_multiple or min(height, width) < 1:
            raise AvomniError(
                f"a grid of {width}×{height} px does not divide into squares of "
                f"{self.side_multiple} px (patch {self.patch_size} × merge {self.merge_size})",
                where="processing.tile_width, processing.tile_height",
                fix="choose a tile size whose grid has sides that are multiples of "
                f"{self.side_multiple} px",
            )

    def grid_thw(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Temporal patches, patch rows and columns of a video; an odd last frame is repeated.

        Raises:
            AvomniError: a side is not a multiple of patch × merge.
        """
        self.check(Video((0.0,) * num_frames, height, width))
        num_temporal = -(-num_frames // self.temporal_patch_size)
        return num_temporal, height // self.patch_size, width // self.patch_size

    def num_vision_tokens(self, videos: Sequence[Video]) -> int:
        grids = [self.grid_thw(video.num_frames, video.height, video.width) for video in videos]
        return sum(t * h * w for t, h, w in grids) // self.merge_size**2

    def timestamps_s(self, times_s: Sequence[float]) -> list[float]:
        """Timestamps in the prompt, one per temporal patch: mean of its first and last frame's.

        They are relative to the window's first frame, so that they do not reveal its position in
        the clip.
        """
        size = self.temporal_patch_size
        times = [*times_s] + [times_s[-1]] * (-len(times_s) % size)
        return [(times[i] + times[i + size - 1]) / 2 for i in range(0, len(times), size)]

    def positions(self, is_vision: np.ndarray, videos: Sequence[Video]) -> np.ndarray:
        """Positions of the tokens for Qwen3-VL's rotary embedding.

        Text advances by one per token on all three axes. The tokens of a temporal patch share one
        time and count rows and columns; the following text continues after the longer side. The
        same as `get_rope_index` of transformers' Qwen3-VL, without its transfers between host and
        device.

        Returns:
            (3, L) int64: time, row and column.
        """
        patches = []
        for video in videos:
            t, rows, cols = self.grid_thw(video.num_frames, video.height, video.width)
            rows, cols = rows // self.merge_size, cols // self.merge_size
            row, col = np.divmod(np.arange(rows * cols), cols)
            patches += [(np.stack([np.zeros_like(row), row, col]), max(rows, cols))] * t
        # Temporal patches are separated by text: each run of placeholders is one.
        edges = np.flatnonzero(np.diff(is_vision)) + 1
        positions, start, in_order = [], 0, iter(patches)
        for run in np.split(is_vision, edges):
            if len(run) and run[0]:
                patch, longer = next(in_order)
                positions.append(patch + start)
                start += longer
            else:
                positions.append(np.broadcast_to(np.arange(len(run)) + start, (3, len(run))))
                start += len(run)
        return np.concatenate(positions, axis=1).astype(np.int64)

    def pieces(self, rows: torch.Tensor, inputs: Mapping[str, Any]) -> int | None:
        """Temporal patches, within which the tower's attention is confined."""
        times, *sizes = inputs["grid_thw"].T.tolist()
        return sum(times) if all(len(set(sides)) == 1 for sides in sizes) else None

    def frames_seen(self, rows: torch.Tensor, inputs: Mapping[str, Any]) -> int:
        return int(inputs["grid_thw"][:, 0].sum()) * self.temporal_patch_size

    def inputs_of(self, inputs: Mapping[str, Any], num: int) -> dict[str, Any]:
        grid = inputs["grid_thw"][:1].clone()
        grid[0, 0] = num
        return {**inputs, "grid_thw": grid}

    def prepare(self, model: Any, fuse: bool = True) -> None:
        """Replace modules of a loaded base model by equivalent, faster and safer ones.

        Args:
            fuse: Also its norms and the vision tower's attention, which Unsloth replaces itself.
        """
        layers.embed_by_one_product(model)
        if fuse:
            layers.fuse(model)
        else:
            layers.copy_views(model)

    def chat(self, text: str, videos: Sequence[Video]) -> str:
        """The user's turn, as formatted by Qwen3-VL's chat template and transformers' processor."""
        words = ""
        for video in videos:
            _, h, w = self.grid_thw(video.num_frames, video.height, video.width)
            pads = VIDEO_TOKEN * (h * w // self.merge_size**2)
            patches = "".join(
                f"<{second:.1f} seconds>{VISION_START}{pads}{VISION_END}"
                for second in self.timestamps_s(video.times_s)
            )
            words += f"{VISION_START}{patches}{VISION_END}"
        return f"{TURN_START}user\n{words}{text}{TURN_END}\n{TURN_START}assistant\n"

    def inputs(
        self,
        frames: Sequence[torch.Tensor],
        dtype: torch.dtype | None = None,
        videos: Sequence[Video] = (),
    ) -> dict[str, Any]:
        """Normalise and cut into patches on the frames' device.

        Returns:
            pixel_values_videos (B·Σt·h·w, 3·temporal·patch·patch), window by window, and
            video_grid_thw (B·videos, 3) int64.

        Raises:
            AvomniError: the frames have another shape or dtype, or do not divide into patches.
        """
        import torch

        patched = [self._patches(part) for part in frames]
        pixels = torch.cat([patches for patches, _ in patched], dim=1).flatten(0, 1)
        pixels = (pixels.float() - MEAN) / STD
        grid = torch.tensor([grid for _, grid in patched] * len(frames[0]), dtype=torch.int64)
        return {
            "pixel_values_videos": pixels.to(dtype or torch.float32),
            "video_grid_thw": grid.to(pixels.device),
        }

    def _patches(self, frames: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int, int]]:
        """uint8 (B, t·h·w, 3·temporal·patch·patch) of one video, and its t, h, w."""
        import torch

        check_frames(frames)
        num_windows, num_frames, height, width, channels = frames.shape
        t, h, w = self.grid_thw(num_frames, height, width)
        size, merge, patch = self.temporal_patch_size, self.merge_size, self.patch_size
        if pad := t * size - num_frames:
            frames = torch.cat([frames, frames[:, -1:].expand(-1, pad, -1, -1, -1)], dim=1)
        patches = frames.reshape(
            num_windows, t, size, h // merge, merge, patch, w // merge, merge, patch, channels
        )
        # -> window, time, merged row, merged column, row and column in it, channel, frame, y, x
        patches = patches.permute(0, 1, 3, 6, 4, 7, 9, 2, 5, 8)
        return patches.reshape(num_windows, t * h * w, -1), (t, h, w)

    @classmethod
    def size(cls, config: Mapping[str, Any]) -> ModelSize:
        text, vision = config["text_config"], config["vision_config"]
        language = Language(
            text["hidden_size"],
            cls.blocks(text),
            text["vocab_size"],
            tied=bool(config.get("tie_word_embeddings", False)),
        )
        deepstack = len(vision.get("deepstack_visual_indexes", ()))
        return ModelSize(language, tower(vision, deepstack))

    @classmethod
    def blocks(cls, text: Mapping[str, Any]) -> tuple[Block, ...]:
        """The decoder layers of a `text_config` by kind, those with experts last."""
        block = decoder.block({**text, "model_type": "qwen3"})
        # Key of the released config.json, or that written by transformers.
        experts = text.get("num_experts") or text.get("num_local_experts")
        if not experts:
            return (block,)
        every, plain = text.get("decoder_sparse_step") or 1, text.get("mlp_only_layers") or ()
        num_sparse = sum(
            layer not in plain and not (layer + 1) % every for layer in range(block.count)
        )
        sparse = decoder.block({**text, "model_type": "qwen3_moe", "num_experts": experts})
        kinds = (block, block.count - num_sparse), (sparse, num_sparse)
        return tuple(replace(kind, count=count) for kind, count in kinds if count)

    @classmethod
    def released(cls, base_model: str) -> ModelSize | None:
        words = set(re.split(r"[^a-z0-9]+", base_model.lower()))
        sizes = words & RELEASED.keys()
        if not {"qwen3", "vl"} <= words or len(sizes) != 1:
            return None
        name = sizes.pop()
        text, vision = RELEASED[name]
        if ("a3b" in words) is not ("num_experts" in text):
            return None
        tied = name in TIED
        size = cls.size({"text_config": text, "vision_config": vision, "tie_word_embeddings": tied})
        return replace(size, stored_4bit={"bnb", "4bit"} <= words)

    def vision_work(self, videos: Sequence[Video]) -> VisionWork:
        grids = [self.grid_thw(video.num_frames, video.height, video.width) for video in videos]
        patches = sum(t * h * w for t, h, w in grids)
        return VisionWork(patches, sum(t * (h * w) ** 2 for t, h, w in grids))

    def request(self, question: str, videos: Sequence[Video]) -> dict[str, Any]:
        video = {"url": "data:video/jpeg;base64,FRAME_1,FRAME_2,…"}
        content = [
            {"type": "video_url", "video_url": video},
            {"type": "text", "text": question},
        ]
        times = videos[-1].times_s
        sample_hz = (len(times) - 1) / ((times[-1] - times[0]) or 1)
        return {
            "messages": [{"role": "user", "content": content}],
            # Without num_frames it keeps the first 32.
            "media_io_kwargs": {"video": {"fps": sample_hz, "num_frames": -1}},
            # Processors shrink large windows, newer ones large frames.
            "mm_processor_kwargs": {"do_sample_frames": False, "do_resize": False},
        }

    def processor_files(self, config: Any) -> dict[str, dict[str, Any]]:
        """Content of the released files with these numbers; sizes are px in total."""
        shared = {
            "patch_size": self.patch_size,
            "temporal_patch_size": self.temporal_patch_size,
            "merge_size": self.merge_size,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
            "processor_class": "Qwen3VLProcessor",
        }
        image = {"longest_edge": 16_777_216, "shortest_edge": 65_536}
        video = {"longest_edge": 25_165_824, "shortest_edge": 4_096}
        return {
            "preprocessor_config.json": shared
            | {"size": image, "image_processor_type": "Qwen2VLImageProcessorFast"},
            "video_preprocessor_config.json": shared
            | {"size": video, "video_processor_type": "Qwen3VLVideoProcessor"},
        }


def tower(vision: Mapping[str, Any], deepstack: int) -> Vision:
    """The vision tower of a `vision_config` of Qwen3-VL.

    Args:
        deepstack: Number of layers whose features are added in the language model's first layers.
    """
    wide, inner, out = (
        vision[key] for key in ("hidden_size", "intermediate_size", "out_hidden_size")
    )
    values = COLOURS * vision["temporal_patch_size"] * vision["patch_size"] ** 2
    block = 4 * wide**2 + 2 * wide * inner + (3 + 1 + 1) * wide + inner + 4 * wide
    merged = wide * vision["spatial_merge_size"] ** 2
    merger = merged**2 + merged + merged * out + out
    return Vision(
        wide,
        vision["depth"],
        vision["num_heads"],
        inner,
        out,
        num_tower=(values + 1 + vision["num_position_embeddings"]) * wide + vision["depth"] * block,
        # The mergers of the deepstack normalise after merging.
        num_mergers=(1 + deepstack) * merger + 2 * wide + deepstack * 2 * merged,
        values_per_patch=values,
        kept_layers=deepstack,
    )


def vision_numbers(hidden: int, depth: int, intermediate: int, out: int) -> dict[str, Any]:
    """The config of a released vision tower; other numbers are the same in every size."""
    return {
        "hidden_size": hidden,
        "depth": depth,
        "num_heads": 16,
        "intermediate_size": intermediate,
        "out_hidden_size": out,
        "num_position_embeddings": 2304,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }


def _vision(*numbers: int) -> dict[str, Any]:
    return vision_numbers(*numbers) | {"deepstack_visual_indexes": (0, 0, 0)}


# As in config.json of Qwen/Qwen3-VL-{2B,4B,8B,32B}-Instruct of October 2025. That of 30B-A3B was
# not read: the numbers are Qwen3-30B-A3B's, and make 31.07e9 weights.
RELEASED = {
    "2b": (decoder.qwen3(2048, 28, 16, 8, 6144, 151_936), _vision(1024, 24, 4096, 2048)),
    "4b": (decoder.qwen3(2560, 36, 32, 8, 9728, 151_936), _vision(1024, 24, 4096, 2560)),
    "8b": (decoder.qwen3(4096, 36, 32, 8, 12_288, 151_936), _vision(1152, 27, 4304, 4096)),
    "30b": (
        decoder.qwen3(2048, 48, 32, 4, 6144, 151_936)
        | {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768},
        _vision(1152, 27, 4304, 2048),
    ),
    "32b": (decoder.qwen3(5120, 64, 64, 8, 25_600, 151_936), _vision(1152, 27, 4304, 5120)),
}
TIED = ("2b", "4b")  # the head shares the embedding's weights
