"""Number of tokens of a sample without a tokenizer: vision exactly, text approximately."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from avomni_lib import files
from avomni_lib.dataset import cameras
from avomni_lib.errors import AvomniError
from avomni_lib.params import Params
from avomni_lib.training.backbones import Backbone, backbone
from avomni_lib.training.backbones.shared.size import VisionWork
from avomni_lib.training.model import model_path
from avomni_lib.training.prompt import history
from avomni_lib.training.prompt.conversation import prompt_text, videos_of
from avomni_lib.training.targets import target_of
from avomni_lib.training.targets.own import straight, usual_truth

# Approximates one token: a word with its leading space, a digit, a run of signs or whitespace.
# Long or rare words take two.
_PIECE = re.compile(r" ?[A-Za-z]+|\d|[^\sA-Za-z\d]+|\s+")


@dataclass(frozen=True)
class Tokens:
    """Numbers of tokens of one sample.

    Attributes:
        text: All other tokens.
        answer: The text tokens that bear the loss.
    """

    vision: int
    text: int
    answer: int
    work: VisionWork

    @property
    def total(self) -> int:
        return self.vision + self.text


def backbone_of(p: Params) -> Backbone:
    """The run's backbone, with the numbers of the base model's config if it is on disk.

    The hub is not queried: all released sizes of a family have the same numbers.
    """
    config = Path(model_path.base_location(p.model.base_model)) / "config.json"
    if not config.is_file():
        return backbone(p.model.backbone)
    return backbone(p.model.backbone, _attributes(files.read_json(config)))


def grid_warnings(p: Params) -> list[str]:
    """Reasons why the base model cannot take the grid; empty if it can."""
    try:
        kind = backbone_of(p)
        for video in videos_of(p, kind):
            kind.check(video)
    except AvomniError as error:
        return [f"{error.what}; {error.fix}"]
    return []


def tokens_per_sample(p: Params) -> Tokens:
    """Vision tokens (exact) and text tokens (estimated) of a window with its answer.

    Raises:
        AvomniError: the grid does not divide into the backbone's patches.
    """
    kind, asked = backbone_of(p), target_of(p)
    videos = videos_of(p, kind)
    for video in videos:
        kind.check(video)
    vision = kind.num_vision_tokens(videos)
    chat = kind.chat(
        prompt_text(cameras.grid(p.vision.cameras), asked, p.processing.own_from_s), videos
    )
    past = ""
    if p.prompt.ego_history:
        past = history.text_of(straight(-1, 16), asked, p.processing.own_from_s)
    answer = len(_PIECE.findall(asked.render(usual_truth()))) + 1
    specials = re.compile("|".join(map(re.escape, kind.special_tokens)))
    special = len(specials.findall(chat))
    plain = sum(len(_PIECE.findall(words)) for words in [*specials.split(chat), past])
    text = special + plain + answer - vision
    return Tokens(vision, text, answer, kind.vision_work(videos))


def _attributes(config: Any) -> Any:
    """A config.json with its keys as attributes."""
    if not isinstance(config, dict):
        return config
    return SimpleNamespace(**{name: _attributes(value) for name, value in config.items()})
