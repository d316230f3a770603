"""The tokens of one sample, counted without the tokenizer: vision exactly, text nearly."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from avomni_lib import files
from avomni_lib.dataset import cameras
from avomni_lib.params import Params
from avomni_lib.training.backbones import Backbone, backbone
from avomni_lib.training.model import load
from avomni_lib.training.prompt import history
from avomni_lib.training.prompt.conversation import prompt_text
from avomni_lib.training.targets import target_of
from avomni_lib.training.targets.own import straight, usual_truth

# What Qwen's tokenizer makes one token of: a special token, a word with the space before it, a
# digit, a run of signs or of whitespace. Long or rare words fall into two.
_SPECIAL = re.compile(r"<\|\w+\|>")
_PIECE = re.compile(r" ?[A-Za-z]+|\d|[^\sA-Za-z\d]+|\s+")


@dataclass(frozen=True)
class Tokens:
    """Tokens of one sample.

    Attributes:
        vision: What the frames take.
        text: All others.
        answer: Those of the text that bear the loss.
    """

    vision: int
    text: int
    answer: int

    @property
    def total(self) -> int:
        return self.vision + self.text


def grid_size(p: Params) -> tuple[int, int]:
    """(height, width) of the grid, px."""
    grid = cameras.grid(p.vision.cameras)
    return grid.rows * p.processing.tile_height, grid.cols * p.processing.tile_width


def backbone_of(p: Params) -> Backbone:
    """The run's backbone, with the base model's own numbers where it lies on this disk.

    A base model on the hub is not asked: all released sizes of a family have the same numbers.
    """
    config = Path(load.base_location(p.model.base_model)) / "config.json"
    if not config.is_file():
        return backbone(p.model.backbone)
    plain = files.read_json(config)
    vision = SimpleNamespace(**plain.get("vision_config", {}))
    kind = SimpleNamespace(model_type=plain.get("model_type"), vision_config=vision)
    return backbone(p.model.backbone, kind)


def tokens_per_sample(p: Params) -> Tokens:
    """Vision tokens (exact) and text tokens (estimated) of a window with its answer.

    Raises:
        AvomniError: the grid does not divide into the backbone's patches.
    """
    height, width = grid_size(p)
    kind, asked = backbone_of(p), target_of(p)
    length = p.processing.sequence_length
    vision = kind.num_vision_tokens(length, height, width)
    chat = kind.chat(
        prompt_text(cameras.grid(p.vision.cameras), asked),
        num_frames=length,
        height=height,
        width=width,
        sample_hz=p.processing.sample_hz,
    )
    told = history.text_of(straight(-1, 16), asked) if p.prompt.ego_history else ""
    answer = len(_PIECE.findall(asked.render(usual_truth()))) + 1
    special = len(_SPECIAL.findall(chat))
    plain = sum(len(_PIECE.findall(words)) for words in [*_SPECIAL.split(chat), told])
    return Tokens(vision, special + plain + answer - vision, answer)
