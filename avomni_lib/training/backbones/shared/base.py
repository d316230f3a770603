"""What a backbone is: all that this program knows of one family of models stands in one file.

A family is a class that derives from `Backbone`. Nothing in it loads torch before pixels are made,
so that `plan` can count tokens and memory on any machine.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from avomni_lib.errors import AvomniError
from avomni_lib.hardware import Choice
from avomni_lib.training.backbones.shared.size import ModelSize, VisionWork

if TYPE_CHECKING:
    import numpy as np
    import torch


@dataclass(frozen=True)
class Video:
    """The frames that a window shows at one size: one video, or older frames shown smaller first.

    Attributes:
        times_s: s of each frame, counted from the window's first frame of all; in order, but not
            evenly spaced where older frames are sparser.
        height, width: The grid's, px.
        cells: Rows of the grid's cells: the label of a camera, None where a cell is empty. Empty
            where nothing is known of them.
    """

    times_s: tuple[float, ...]
    height: int
    width: int
    cells: tuple[tuple[str | None, ...], ...] = ()

    @property
    def num_frames(self) -> int:
        return len(self.times_s)

    def __str__(self) -> str:
        return f"{self.num_frames} frames of {self.width}×{self.height} px"


class Backbone(ABC):
    """How frames and words become what one family of models takes.

    Attributes:
        model_types: `model_type` of the configs that it can train.
        prompt_form: Recorded beside an adapter: training and serving must agree on it.
        end_of_turn: The token that ends an answer.
        vision_token: The placeholder that stands for one vision token.
        special_tokens: All that `chat` writes; each is one token of the tokenizer.
        frames_per_patch: Frames in one patch: sparse older frames come in groups of so many
            neighbours, as the vision tower has never seen frames paired that are further apart.
        side_multiple: px; a grid's height and width are multiples of it.
        token_px: px, side of what one vision token shows.
        takes_token_types: `generate` is given `mm_token_type_ids`.
        language_model: What is in the full name of each module of the language model.
        lora_targets: How the names of the modules end that LoRA adapts unless `model.lora_targets`
            says.
        skip_modules: Modules that are kept out of 4 bit.
        sixteen_bit_because: Why `model.load_in_4bit` is off unless it is set; None: it is on.
        tower: Name of the vision tower's module, if it sees pictures in `pieces` that know nothing
            of each other; empty: nothing that it saw is kept for the next window.
        in_unsloth: Whether Unsloth has a path for the family.
        adapters_in_vllm: Whether vLLM serves an adapter beside a base model of the family.
        in_llama_cpp: Whether llama.cpp's converters read the family's checkpoints.
        example: A checkpoint on the hub, for messages.
        refused: `model_type` of a near relative that cannot be trained -> why, and what to take.
        serving_note: What who serves the model has to know of its prompt, for the card.
    """

    name: ClassVar[str]
    model_types: ClassVar[tuple[str, ...]]
    prompt_form: ClassVar[str]
    end_of_turn: ClassVar[str]
    vision_token: ClassVar[str]
    special_tokens: ClassVar[tuple[str, ...]]
    takes_token_types: ClassVar[bool] = False
    language_model: ClassVar[str] = "language_model"
    lora_targets: ClassVar[tuple[str, ...]] = ("q_proj", "k_proj", "v_proj", "o_proj")
    skip_modules: ClassVar[tuple[str, ...]]
    sixteen_bit_because: ClassVar[str | None] = None
    tower: ClassVar[str] = ""
    in_unsloth: ClassVar[bool] = False
    adapters_in_vllm: ClassVar[bool] = True
    in_llama_cpp: ClassVar[bool] = True
    example: ClassVar[str]
    refused: ClassVar[Mapping[str, str]] = {}
    serving_note: ClassVar[str] = ""

    @property
    def frames_per_patch(self) -> int:
        return 1

    @property
    @abstractmethod
    def side_multiple(self) -> int: ...

    @property
    def token_px(self) -> float:
        return self.side_multiple

    @property
    def choices(self) -> dict[str, Choice]:
        """What the family computes one way or another on this machine, by name."""
        return {}

    @classmethod
    @abstractmethod
    def from_config(cls, config: Any) -> Self:
        """With the numbers of a model's whole config, whose `model_type` is one of `model_types`.

        Args:
            config: transformers' config, or one with the same attributes read from config.json.

        Raises:
            AvomniError: a number that the family cannot train with.
        """

    @property
    @abstractmethod
    def pixels(self) -> dict[str, Any]:
        """How `inputs` normalises and cuts frames, for an adapter's record."""

    @abstractmethod
    def check(self, video: Video) -> None:
        """Refuse a video of a shape that the family cannot see.

        Raises:
            AvomniError: the grid does not divide into what the vision tower takes.
        """

    @abstractmethod
    def num_vision_tokens(self, videos: Sequence[Video]) -> int:
        """Placeholders in the prompt of a window."""

    @abstractmethod
    def chat(self, text: str, videos: Sequence[Video]) -> str:
        """One user turn, videos first, then `text`, up to where the model's answer starts."""

    def positions(self, is_vision: np.ndarray, videos: Sequence[Video]) -> np.ndarray:
        """Where each token stands for the rotary embedding; here one after the other.

        Args:
            is_vision: (L,) bool, true at the placeholders.

        Returns:
            (axes, L) int64, or (L,) where the family has one axis.
        """
        import numpy as np

        return np.arange(len(is_vision), dtype=np.int64)

    @abstractmethod
    def inputs(
        self,
        frames: Sequence[torch.Tensor],
        dtype: torch.dtype | None = None,
        videos: Sequence[Video] = (),
    ) -> dict[str, Any]:
        """Frames -> the model's vision inputs, computed on the device that they are on.

        Args:
            frames: (B, T, H, W, 3) uint8 RGB of each of the window's videos.
            dtype: Of the pixel values; float32 if None. The arithmetic is float32 either way.
            videos: What the window shows, where it matters which cells are empty.
        """

    def pieces(self, rows: torch.Tensor, inputs: Mapping[str, Any]) -> int | None:
        """Into how many equal pieces, which it sees apart, the tower's pictures fall.

        Args:
            rows: What the tower is given; pieces lie one after the other along its first axis.
            inputs: What else it is given.

        Returns:
            None where they are not equal.
        """
        return None

    def frames_seen(self, rows: torch.Tensor, inputs: Mapping[str, Any]) -> int:
        """Frames in what the tower is given, or squares where it is given these."""
        return len(rows)

    def inputs_of(self, inputs: Mapping[str, Any], num: int) -> dict[str, Any]:
        """What the tower is given beside `num` of the pieces."""
        return dict(inputs)

    def prepare(self, model: Any, fuse: bool = True) -> None:
        """What is changed about a loaded base model; its weights are not.

        Args:
            fuse: Also replace what transformers computes in many small kernels.
        """
        return None

    @classmethod
    @abstractmethod
    def size(cls, config: Mapping[str, Any]) -> ModelSize:
        """Widths, depths and weights that a `config.json` says.

        Raises:
            KeyError: it lacks a number.
        """

    @classmethod
    def released(cls, base_model: str) -> ModelSize | None:
        """The size of a released model by its name on the hub; None for another.

        Raises:
            AvomniError: by its name it is a near relative that cannot be trained.
        """
        return None

    @abstractmethod
    def vision_work(self, videos: Sequence[Video]) -> VisionWork:
        """What the vision tower goes through for one window."""

    def processor_files(self, config: Any) -> dict[str, dict[str, Any]]:
        """File name -> content: how servers prepare pictures, for a base model that has none."""
        return {}

    def as_trained(self, values: dict[str, Any]) -> dict[str, Any]:
        """A base model's own processor file, so that servers normalise as the training did."""
        return values

    def server_arguments(self, videos: Sequence[Video]) -> str:
        """What `vllm serve` is told beside the length of a prompt, so that it takes a window."""
        return ""

    @abstractmethod
    def request(self, question: str, videos: Sequence[Video]) -> dict[str, Any]:
        """What a request to vLLM holds, so that its prompt and pixels are those of the training.

        Pictures are told apart by words in capitals that stand for their base64.

        Returns:
            `messages`, and what else the server has to be told.
        """


def check_frames(frames: torch.Tensor) -> None:
    """Refuse what is not (B, T, H, W, 3) uint8.

    Raises:
        AvomniError: its shape and dtype.
    """
    import torch

    if frames.ndim != 5 or frames.shape[-1] != 3 or frames.dtype != torch.uint8:
        raise AvomniError(
            f"frames are {tuple(frames.shape)} {frames.dtype}, expected (B, T, H, W, 3) torch.uint8"
        )


def refuse_other_model(kind: type[Backbone], model_type: Any) -> AvomniError:
    """The error for a base model of another family."""
    return AvomniError(
        f"the base model is a {model_type!r}, not a {' or '.join(map(repr, kind.model_types))}",
        where="model.base_model",
        fix=kind.refused.get(
            model_type,
            f"name a checkpoint of that family, as {kind.example}, or set model.backbone to what "
            "the base model is",
        ),
    )
