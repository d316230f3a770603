"""Prompt, tokens and labels of a sample; only the answer bears the loss.

Every window of a run has the same prompt. It contains the cameras and the order of the grid, but
nothing that differs between windows: no clip_id, time of day or position in the clip. Only with
`prompt.ego_history` a text about the car's past motion is added (`history`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from avomni_lib.dataset import cameras
from avomni_lib.errors import AvomniError
from avomni_lib.params import Params
from avomni_lib.training.backbones import Backbone, Video
from avomni_lib.training.prompt import past
from avomni_lib.training.targets import Target

if TYPE_CHECKING:
    import torch

IGNORED = -100  # label without loss, the default of torch's cross entropy


def prompt_text(grid: cameras.Grid, target: Target, own_from_s: float = 0.0) -> str:
    """The text of the prompt, the same for every window.

    Args:
        own_from_s: Time in the video (s) at which the frames begin that the question is about.
    """
    rows = [", ".join(label or "empty" for label in row) for row in cells_of(grid)]
    shape = f"{grid.rows}x{grid.cols}"
    uneven = "A camera that is named in several cells is one picture over all of them. "
    older = (
        f"Frames before {own_from_s:.1f} seconds are older; the question is about the video from "
        "then on. "
    )
    return (
        f"The video shows {len(grid.cameras)} cameras of one car in a {shape} grid. "
        f"Rows from the top: {'; '.join(rows)}. "
        f"{uneven if grid.is_uneven else ''}{older if own_from_s else ''}{target.question}"
    )


def frame_shape(videos: Sequence[Video]) -> tuple[int, int, int, int]:
    """(T, H, W, 3) of a window in the cache, at the size of its last video."""
    num_frames = sum(video.num_frames for video in videos)
    return num_frames, videos[-1].height, videos[-1].width, 3


def grid_size(p: Params) -> tuple[int, int]:
    """(height, width) of the grid, px."""
    grid = cameras.grid(p.vision.cameras)
    return grid.rows * p.processing.tile_height, grid.cols * p.processing.tile_width


def videos_of(p: Params, kind: Backbone) -> tuple[Video, ...]:
    """The videos of a window: its frames at one size, or older ones downscaled before them.

    Raises:
        AvomniError: see `past.videos`.
    """
    height, width = grid_size(p)
    cells = cells_of(cameras.grid(p.vision.cameras))
    return past.videos(p, kind, Video((), height, width, cells))


def cells_of(grid: cameras.Grid) -> tuple[tuple[str | None, ...], ...]:
    """Labels of the cameras, by rows; None for an empty cell."""
    labels = [cell and cell.label for cell in grid.cells]
    return tuple(tuple(labels[i : i + grid.cols]) for i in range(0, len(labels), grid.cols))


@dataclass(frozen=True)
class Sample:
    """One tokenised sample; arrays are int64 and (L,) unless stated otherwise.

    Attributes:
        input_ids: Tokens of the prompt and, for training, of the answer with its end token.
        labels: The same for tokens with loss, -100 for the others.
        positions: (axes, L) or (L,), positions for the rotary embedding.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    positions: np.ndarray

    def __len__(self) -> int:
        return len(self.input_ids)


class Conversation:
    """The conversation of a run: a prompt that is tokenised once, and the answers.

    Args:
        backbone: Defines the chat format and the video placeholders.
        max_seq_length: Limit of tokens; a longer sample is refused.
        own_from_s: See `prompt_text`.
        ego_history: Whether prompts contain the car's past motion, whose text is passed to
            `prompt` and `sample`.

    Raises:
        AvomniError: the tokenizer lacks the backbone's special tokens.
    """

    def __init__(
        self,
        tokenizer: Any,
        backbone: Backbone,
        *,
        grid: cameras.Grid,
        target: Target,
        videos: Sequence[Video],
        max_seq_length: int,
        own_from_s: float = 0.0,
        ego_history: bool = False,
    ):
        self.tokenizer, self.backbone, self.target = tokenizer, backbone, target
        self.ego_history, self.own_from_s = ego_history, own_from_s
        self.videos = tuple(videos)
        self.frame_shape = frame_shape(videos)
        self.max_seq_length = max_seq_length
        for video in self.videos:
            backbone.check(video)
        self.num_vision_tokens = backbone.num_vision_tokens(videos)
        self.size = " and ".join(map(str, videos))
        self.vision_id = self._token_id(backbone.vision_token)
        self.end_id = self._token_id(backbone.end_of_turn)
        self.words = words = prompt_text(grid, target, own_from_s)
        self._refuse_special_tokens(target.question)
        self.text = backbone.chat(words, videos)
        self.prompt_ids = self._encode(self.text)
        # The words follow a special token, so that the text before them can be tokenised alone.
        place = self.text.rindex(words)
        self._head = self._encode(self.text[:place])
        self._turn = self.text[place + len(words) :]
        placed = int((self.prompt_ids == self.vision_id).sum())
        if placed != self.num_vision_tokens:
            raise AvomniError(
                f"the prompt holds {placed} vision tokens, the window has {self.num_vision_tokens}",
                where=f"tokenizer of the base model, {self.size}",
            )

    def prompt(self, history: str = "") -> Sample:
        """The prompt without an answer, for generation.

        Args:
            history: Text of the car's past motion, appended to the question.

        Raises:
            AvomniError: it is longer than max_seq_length.
        """
        ids = self._asked(history)
        return self._sample(ids, len(ids))

    def sample(self, answer: str, history: str = "") -> Sample:
        """The prompt with an answer and its end token; only these bear the loss.

        The answer is tokenised separately, as the model generates it after the prompt.

        Raises:
            AvomniError: it is longer than max_seq_length; samples are never truncated.
        """
        asked = self._asked(history)
        ids = np.concatenate([asked, self._encode(answer), [self.end_id]])
        return self._sample(ids, len(asked))

    def _asked(self, history: str) -> np.ndarray:
        if not history:
            return self.prompt_ids
        return np.concatenate([self._head, self._encode(self.words + history + self._turn)])

    def text_of(self, ids: Sequence[int]) -> str:
        """Generated tokens as text, with `<think>` but without end of turn and padding."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def _sample(self, ids: np.ndarray, num_prompt: int) -> Sample:
        if len(ids) > self.max_seq_length:
            raise AvomniError(
                f"a sample is {len(ids):,} tokens, model.max_seq_length is {self.max_seq_length:,} "
                f"({self.num_vision_tokens:,} vision tokens for {self.size})",
                where="model.max_seq_length",
                fix="lower processing.tile_width and tile_height or processing.sequence_length, "
                "or raise model.max_seq_length; a sample is never cut off",
            )
        labels = ids.copy()
        labels[:num_prompt] = IGNORED
        is_vision = ids == self.vision_id
        return Sample(ids, labels, self.backbone.positions(is_vision, self.videos))

    def inputs(self, frames: torch.Tensor, dtype: torch.dtype | None = None) -> dict[str, Any]:
        """The model's vision inputs of whole windows, computed on the frames' device.

        Args:
            frames: (B, T, H, W, 3) uint8 RGB, from the cache.
            dtype: Type of the pixel values; None is float32.
        """
        return self.backbone.inputs(past.shown(frames, self.videos), dtype, self.videos)

    def _encode(self, text: str) -> np.ndarray:
        return np.asarray(self.tokenizer.encode(text, add_special_tokens=False), dtype=np.int64)

    def _refuse_special_tokens(self, question: str) -> None:
        added = self.tokenizer.added_tokens_decoder.values()
        special = [token.content for token in added if token.special]
        if token := next((token for token in special if token and token in question), None):
            raise AvomniError(
                f"the question holds {token!r}, a special token of the base model: {question!r}",
                where="prompt.question, or the question of training.target",
                fix="ask in plain words; the chat template's tokens are put around them",
            )

    def _token_id(self, token: str) -> int:
        ids = self._encode(token)
        if len(ids) != 1:
            raise AvomniError(
                f"the base model's tokenizer has no token {token!r}, it reads {len(ids)} tokens",
                where="model.base_model",
                fix=f"name a checkpoint of the backbone {self.backbone.name!r}",
            )
        return int(ids[0])


def padded(samples: Sequence[Sample], pad_id: int) -> dict[str, torch.Tensor]:
    """Samples padded on the right, one row each, for training.

    No attention mask is needed, as causal attention ignores padding on the right. A mask for 65,536
    tokens would have 4.3e9 entries, and any mask prevents torch's fastest attention kernels.

    Returns:
        input_ids and labels (B, L) and position_ids (axes, B, L) or (B, L), int64.
    """
    import torch
    from torch.nn.utils.rnn import pad_sequence

    def fill(rows: Sequence[np.ndarray], value: int) -> torch.Tensor:
        columns = pad_sequence([torch.from_numpy(row.T) for row in rows], padding_value=value)
        return columns.permute(*reversed(range(columns.ndim))).contiguous()

    return {
        "input_ids": fill([sample.input_ids for sample in samples], pad_id),
        "labels": fill([sample.labels for sample in samples], IGNORED),
        "position_ids": fill([sample.positions for sample in samples], 0),
    }
