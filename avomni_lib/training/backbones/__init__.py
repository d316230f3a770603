"""The vision-language models that can be trained, each one file behind one small interface.

Nothing here loads torch before pixels are made, so that `plan` can count tokens on any machine.

qwen3_vl         Qwen3-VL: patches, token counts, chat text, LoRA pattern
qwen3_vl_size    its widths, depths and weights, for the estimates
qwen3_vl_layers  layers of it that transformers computes in many small kernels
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from avomni_lib.errors import pick
from avomni_lib.training.backbones.qwen3_vl import Qwen3VL

if TYPE_CHECKING:
    import numpy as np
    import torch


class Backbone(Protocol):
    """How frames and words become what one family of models takes."""

    name: str
    prompt_form: str  # recorded beside an adapter: training and serving must agree on it
    end_of_turn: str  # the token that ends an answer
    vision_token: str  # the placeholder that stands for one vision token

    @property
    def language_model(self) -> str:
        """What is in the full name of each module of the language model."""

    @property
    def lora_targets(self) -> tuple[str, ...]:
        """How the names of the modules end that LoRA adapts unless `model.lora_targets` says."""

    @property
    def side_multiple(self) -> int:
        """px; a grid's height and width are multiples of it."""

    @property
    def skip_modules(self) -> tuple[str, ...]:
        """Modules that are kept out of 4 bit."""

    @property
    def pixels(self) -> dict[str, float]:
        """How `inputs` normalises and cuts frames, for an adapter's record."""

    def num_vision_tokens(self, num_frames: int, height: int, width: int) -> int:
        """Tokens that a window's frames take."""

    def chat(self, text: str, *, num_frames: int, height: int, width: int, sample_hz: float) -> str:
        """One user turn, video first, then `text`, up to where the model's answer starts."""

    def positions(self, is_vision: np.ndarray, height: int, width: int) -> np.ndarray:
        """(L,) bool, true at the placeholders of vision tokens -> (axes, L) int64 positions."""

    def prepare(self, model: Any, fuse: bool = True) -> None:
        """What is changed about a loaded base model; its weights are not.

        `fuse` also replaces what transformers computes in many small kernels.
        """

    def inputs(self, frames: torch.Tensor, dtype: torch.dtype | None = None) -> dict[str, Any]:
        """uint8 frames (B, T, H, W, 3), on their device -> the model's vision inputs."""


BACKBONES = {"qwen3_vl": Qwen3VL}


def backbone(name: str, config: Any = None) -> Backbone:
    """The backbone called `name`, with the numbers of a model's `config` where one is given.

    Raises:
        AvomniError: there is none.
    """
    kind = pick(BACKBONES, name, "backbone", "model.backbone")
    return kind() if config is None else kind.from_config(config)
