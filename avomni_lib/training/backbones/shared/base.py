"""The interface of backbones: everything specific to one family of models.

A family is a subclass of `Backbone`. torch is only imported when pixels are processed, so that
`plan` can count tokens and memory on any machine.
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
    """Frames of a window that have the same size; downscaled older frames are a separate video.

    Attributes:
        times_s: Time of each frame in s since the window's first frame; ascending, not necessarily
            evenly spaced.
        height, width: Size of the grid, px.
        cells: Rows of the grid's cells: the label of a camera, or None for an empty cell. Empty if
            unknown.
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
    """Converts frames and text to the inputs of one family of models.

    Attributes:
        model_types: `model_type` of supported configs.
        prompt_form: Version of the prompt's format, recorded with an adapter; training and serving
            must agree on it.
        end_of_turn: The token that ends an answer.
        vision_token: The placeholder of one vision token.
        special_tokens: All special tokens that `chat` writes; each is one token of the tokenizer.
        frames_per_patch: Number of frames in one patch. Sparse older frames come in groups of this
            many consecutive frames, as the vision tower was not trained on pairs further apart.
        side_multiple: A grid's height and width must be multiples of it, px.
        token_px: Side of the square that one vision token covers, px.
        takes_token_types: Whether `generate` takes `mm_token_type_ids`.
        lora_targets: Ends of the names of modules that LoRA adapts by default.
        skip_modules: Modules that are not quantised.
        sixteen_bit_because: Reason why `model.load_in_4bit` is off by default; None if it is on.
        tower: Name of the vision tower's module if it processes independent `pieces`; empty
            disables the feature cache.
        in_unsloth: Whether Unsloth supports the family.
        adapters_in_vllm: Whether vLLM serves adapters for the family.
        in_llama_cpp: Whether llama.cpp's converters read the family's checkpoints.
        example: A checkpoint on the hub, for messages.
        refused: `model_type` of a related but unsupported model -> reason and alternative.
        serving_note: Notes on the prompt for serving the model, for the card.
    """

    name: ClassVar[str]
    model_types: ClassVar[tuple[str, ...]]
    prompt_form: ClassVar[str]
    end_of_turn: ClassVar[str]
    vision_token: ClassVar[str]
    special_tokens: ClassVar[tuple[str, ...]]
    takes_token_types: ClassVar[bool] = False
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
        """Choices of implementation on this machine, by name."""
        return {}

    @classmethod
    @abstractmethod
    def from_config(cls, config: Any) -> Self:
        """A backbone with the numbers of a model's config, with `model_type` in `model_types`.

        Args:
            config: transformers' config, or an object with the attributes of config.json.

        Raises:
            AvomniError: a number is not supported.
        """

    @property
    @abstractmethod
    def pixels(self) -> dict[str, Any]:
        """Normalisation and cutting of frames in `inputs`, for an adapter's record."""

    @abstractmethod
    def check(self, video: Video) -> None:
        """Refuse a video of an unsupported shape.

        Raises:
            AvomniError: the grid does not divide into what the vision tower takes.
        """

    @abstractmethod
    def num_vision_tokens(self, videos: Sequence[Video]) -> int:
        """Number of placeholders in the prompt of a window."""

    @abstractmethod
    def chat(self, text: str, videos: Sequence[Video]) -> str:
        """One user turn, the videos followed by `text`, up to the start of the model's answer."""

    def positions(self, is_vision: np.ndarray, videos: Sequence[Video]) -> np.ndarray:
        """Positions of the tokens for the rotary embedding; by default consecutive.

        Args:
            is_vision: (L,) bool, true at the placeholders.

        Returns:
            (axes, L) int64, or (L,) if the family has one axis.
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
        """The model's vision inputs, computed on the frames' device.

        Args:
            frames: (B, T, H, W, 3) uint8 RGB for each of the window's videos.
            dtype: Type of the pixel values; None is float32. Computed in float32 in any case.
            videos: The window's videos, needed by families that skip empty cells.
        """

    def pieces(self, rows: torch.Tensor, inputs: Mapping[str, Any]) -> int | None:
        """Number of equal pieces that the vision tower processes independently.

        Args:
            rows: The tower's input; pieces are consecutive along its first axis.
            inputs: Its other inputs.

        Returns:
            None if the pieces are not equal.
        """
        return None

    def frames_seen(self, rows: torch.Tensor, inputs: Mapping[str, Any]) -> int:
        """Number of frames in the tower's input, or of squares if it takes these."""
        return len(rows)

    def inputs_of(self, inputs: Mapping[str, Any], num: int) -> dict[str, Any]:
        """The tower's other inputs for `num` of the pieces."""
        return dict(inputs)

    def prepare(self, model: Any, fuse: bool = True) -> None:
        """Modify a loaded base model's forward passes, but not its weights.

        Args:
            fuse: Also replace modules that transformers computes in many small kernels.
        """
        return None

    @classmethod
    @abstractmethod
    def size(cls, config: Mapping[str, Any]) -> ModelSize:
        """Widths, depths and weights according to a `config.json`.

        Raises:
            KeyError: a number is missing.
        """

    @classmethod
    def released(cls, base_model: str) -> ModelSize | None:
        """The size of a released model by its name on the hub; None if it is unknown.

        Raises:
            AvomniError: by its name it is a related but unsupported model.
        """
        return None

    @abstractmethod
    def vision_work(self, videos: Sequence[Video]) -> VisionWork:
        """The load of the vision tower for one window."""

    def processor_files(self, config: Any) -> dict[str, dict[str, Any]]:
        """File name -> content of preprocessor configs, for base models that lack them."""
        return {}

    def as_trained(self, values: dict[str, Any]) -> dict[str, Any]:
        """Adapt a base model's preprocessor config so that servers normalise as in training."""
        return values

    def server_arguments(self, videos: Sequence[Video]) -> str:
        """Further arguments of `vllm serve` that a window requires."""
        return ""

    @abstractmethod
    def request(self, question: str, videos: Sequence[Video]) -> dict[str, Any]:
        """A request to vLLM whose prompt and pixels are those of the training.

        Names in capitals stand for base64 images.

        Returns:
            `messages` and further fields.
        """


def check_frames(frames: torch.Tensor) -> None:
    """Refuse frames that are not (B, T, H, W, 3) uint8.

    Raises:
        AvomniError: names their shape and dtype.
    """
    import torch

    if frames.ndim != 5 or frames.shape[-1] != 3 or frames.dtype != torch.uint8:
        raise AvomniError(
            f"frames are {tuple(frames.shape)} {frames.dtype}, expected (B, T, H, W, 3) torch.uint8"
        )


def refuse_other_model(kind: type[Backbone], model_type: Any) -> AvomniError:
    return AvomniError(
        f"the base model is a {model_type!r}, not a {' or '.join(map(repr, kind.model_types))}",
        where="model.base_model",
        fix=kind.refused.get(
            model_type,
            f"name a checkpoint of that family, as {kind.example}, or set model.backbone to what "
            "the base model is",
        ),
    )
