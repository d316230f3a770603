"""Qwen3-VL: uint8 frames to patches on the device, token counts, and the words around a video.

The released video processor is not called: it takes some 330 ms and 88 MB of float32 a window on
the host, and its `size["longest_edge"]` bounds T·H·W, not an edge, so that large windows are shrunk
without a word. What it computes with `do_resize=False` is computed here, equal to the last bit on a
CPU (tests/test_qwen3_vl.py) and to 6e-8 on an H200 (tests/gpu).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from avomni_lib.errors import AvomniError
from avomni_lib.training.backbones import qwen3_vl_layers
from avomni_lib.training.model import attention

if TYPE_CHECKING:
    import torch

VIDEO_TOKEN = "<|video_pad|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
# image_mean = image_std = 0.5 of values in 0..1
MEAN = STD = 127.5


@dataclass(frozen=True)
class Qwen3VL:
    """The numbers of one Qwen3-VL; the defaults are those of every released size.

    Attributes:
        patch_size: px, side of the vision tower's square.
        merge_size: Patches merged along each side into one vision token.
        temporal_patch_size: Frames in one patch.
    """

    patch_size: int = 16
    merge_size: int = 2
    temporal_patch_size: int = 2

    name = "qwen3_vl"
    # transformers >= 5.10 keeps the chat template's outer <|vision_start|>…<|vision_end|> around
    # the frames' own pairs; before it, and in servers built on that, the pair was dropped.
    prompt_form = "qwen3_vl/outer_vision_pair"
    end_of_turn = TURN_END
    vision_token = VIDEO_TOKEN
    # The vision tower's attention is a fused `qkv` and `proj`; only the language model is adapted.
    language_model = "language_model"
    lora_targets = ("q_proj", "k_proj", "v_proj", "o_proj")
    skip_modules = ("model.visual", "lm_head")

    @classmethod
    def from_config(cls, config: Any) -> Qwen3VL:
        """The numbers of a `Qwen3VLConfig`.

        Raises:
            AvomniError: the config is another model's.
        """
        if config.model_type != "qwen3_vl":
            raise AvomniError(
                f"the base model is a {config.model_type!r}, not a 'qwen3_vl'",
                where="model.base_model",
                fix="name a Qwen3-VL checkpoint, or set model.backbone to what the base model is",
            )
        vision = config.vision_config
        return cls(vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size)

    @property
    def pixels(self) -> dict[str, float]:
        """Mean and spread of the normalisation, in grey levels of 255, and the patches' sizes."""
        return {"mean": MEAN, "std": STD, **asdict(self)}

    @property
    def side_multiple(self) -> int:
        return self.patch_size * self.merge_size

    def grid_thw(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Temporal patches, patch rows, patch columns of a window.

        Raises:
            AvomniError: a side is not a multiple of patch × merge.
        """
        if height % self.side_multiple or width % self.side_multiple or min(height, width) < 1:
            raise AvomniError(
                f"a grid of {width}×{height} px does not divide into squares of "
                f"{self.side_multiple} px (patch {self.patch_size} × merge {self.merge_size})",
                where="processing.tile_width, processing.tile_height",
                fix="choose a tile size whose grid has sides that are multiples of "
                f"{self.side_multiple} px",
            )
        num_temporal = -(-num_frames // self.temporal_patch_size)  # an odd end is padded
        return num_temporal, height // self.patch_size, width // self.patch_size

    def num_vision_tokens(self, num_frames: int, height: int, width: int) -> int:
        t, h, w = self.grid_thw(num_frames, height, width)
        return t * h * w // self.merge_size**2

    def timestamps_s(self, num_frames: int, sample_hz: float) -> list[float]:
        """Seconds that the prompt names, one a temporal patch: mean of its first and last frame's.

        Counted from the window's first frame: nothing tells where in a clip the window lies.
        """
        size = self.temporal_patch_size
        frames = list(range(num_frames)) + [num_frames - 1] * (-num_frames % size)
        starts = range(0, len(frames), size)
        return [(frames[i] / sample_hz + frames[i + size - 1] / sample_hz) / 2 for i in starts]

    def positions(self, is_vision: np.ndarray, height: int, width: int) -> np.ndarray:
        """Where each token stands, as Qwen3-VL's rotary embedding counts it.

        Text goes on by one a token on all three axes. A temporal patch's tokens share one time and
        count rows and columns; what follows goes on after the longer side. As `get_rope_index` of
        transformers' Qwen3-VL has it, without its round trips between host and device.

        Args:
            is_vision: (L,) bool, true at the placeholders of vision tokens.
            height, width: The grid's, px.

        Returns:
            (3, L) int64: time, row and column.
        """
        rows, cols = (side // self.side_multiple for side in (height, width))
        row, col = np.divmod(np.arange(rows * cols), cols)
        patch = np.stack([np.zeros_like(row), row, col])
        # Each temporal patch stands between words of its own: a run of placeholders is one.
        edges = np.flatnonzero(np.diff(is_vision)) + 1
        found, start = [], 0
        for run in np.split(is_vision, edges):
            if len(run) and run[0]:
                found.append(patch + start)
                start += max(rows, cols)
            else:
                found.append(np.broadcast_to(np.arange(len(run)) + start, (3, len(run))))
                start += len(run)
        return np.concatenate(found, axis=1).astype(np.int64)

    def prepare(self, model: Any, fuse: bool = True) -> None:
        """Let a loaded base model compute the same in fewer and safer kernels.

        Args:
            fuse: Its norms and the vision tower's attention too; Unsloth has its own.
        """
        qwen3_vl_layers.embed_by_one_product(model)
        if fuse:
            qwen3_vl_layers.fuse(model)
        else:
            attention.copy_views(model)

    def chat(self, text: str, *, num_frames: int, height: int, width: int, sample_hz: float) -> str:
        """The user's turn as Qwen3-VL's chat template and transformers' processor word it."""
        t, h, w = self.grid_thw(num_frames, height, width)
        pads = VIDEO_TOKEN * (h * w // self.merge_size**2)
        patches = "".join(
            f"<{second:.1f} seconds>{VISION_START}{pads}{VISION_END}"
            for second in self.timestamps_s(num_frames, sample_hz)
        )
        return (
            f"{TURN_START}user\n{VISION_START}{patches}{VISION_END}{text}{TURN_END}\n"
            f"{TURN_START}assistant\n"
        )

    def inputs(self, frames: torch.Tensor, dtype: torch.dtype | None = None) -> dict[str, Any]:
        """Normalise and patchify on the device that the frames are on.

        Args:
            frames: (B, T, H, W, 3) uint8 RGB.
            dtype: Of the pixel values; float32 if None. The arithmetic is float32 either way.

        Returns:
            pixel_values_videos (B·t·h·w, 3·temporal·patch·patch) and video_grid_thw (B, 3) int64.

        Raises:
            AvomniError: not uint8 frames of that shape, or a side that does not divide.
        """
        import torch

        if frames.ndim != 5 or frames.shape[-1] != 3 or frames.dtype != torch.uint8:
            raise AvomniError(
                f"frames are {tuple(frames.shape)} {frames.dtype}, "
                "expected (B, T, H, W, 3) torch.uint8"
            )
        num_windows, num_frames, height, width, channels = frames.shape
        t, h, w = self.grid_thw(num_frames, height, width)
        size, merge, patch = self.temporal_patch_size, self.merge_size, self.patch_size
        if pad := t * size - num_frames:
            frames = torch.cat([frames, frames[:, -1:].expand(-1, pad, -1, -1, -1)], dim=1)
        patches = frames.reshape(
            num_windows, t, size, h // merge, merge, patch, w // merge, merge, patch, channels
        )
        # -> window, time, merged row, merged column, row and column in it, channel, frame, y, x
        patches = patches.permute(0, 1, 3, 6, 4, 7, 9, 2, 5, 8).reshape(
            num_windows * t * h * w, channels * size * patch * patch
        )
        pixels = (patches.float() - MEAN) / STD
        grid = torch.tensor([[t, h, w]] * num_windows, dtype=torch.int64, device=frames.device)
        return {"pixel_values_videos": pixels.to(dtype or torch.float32), "video_grid_thw": grid}
