"""Cuts grids into squares, for vision towers that take only squares.

If a camera's tile is exactly one square, every camera is a separate image with its name in the
prompt, and empty cells are skipped. Otherwise the whole grid is cut, and a square may contain parts
of several cameras.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from avomni_lib.errors import AvomniError
from avomni_lib.training.backbones.shared.base import Backbone, Video, check_frames
from avomni_lib.training.backbones.shared.size import VisionWork

if TYPE_CHECKING:
    import torch

COLOURS = 3
LEVELS = 255  # grey levels of a uint8


class Square(NamedTuple):
    """A square of a grid.

    Attributes:
        number: Index of the square, row by row.
        label: Name of its camera; None if it may contain several.
    """

    number: int
    label: str | None = None


@dataclass(frozen=True)
class InSquares(Backbone):
    """A family whose vision tower takes only squares.

    Attributes:
        image_size: Side of the squares, px.
        patch_size: Side of the tower's patches, px.
        mean, std: Normalisation of each colour, for values from 0 to 1.
    """

    image_size: int
    patch_size: int

    mean: ClassVar[tuple[float, ...]]
    std: ClassVar[tuple[float, ...]]
    tower = "vision_tower"
    skip_modules = ("model.vision_tower", "model.multi_modal_projector", "lm_head")

    @property
    def pixels(self) -> dict[str, Any]:
        """Mean and standard deviation for values from 0 to 1, and the side of the squares."""
        return {"mean": list(self.mean), "std": list(self.std), "square": self.image_size}

    @property
    def side_multiple(self) -> int:
        return self.image_size

    @property
    @abstractmethod
    def patches_per_square(self) -> int:
        """Length of the tower's sequence for a square, including a class token."""

    @property
    @abstractmethod
    def tokens_per_square(self) -> int: ...

    def check(self, video: Video) -> None:
        check(video, self.image_size)

    def squares_of(self, video: Video) -> tuple[Square, ...]:
        """The squares of a frame, row by row.

        Raises:
            AvomniError: see `check`.
        """
        self.check(video)
        side, cells = self.image_size, video.cells
        rows, cols = video.height // side, video.width // side
        if cells and (len(cells), len(cells[0])) == (rows, cols):
            labels = enumerate(cell for row in cells for cell in row)
            return tuple(Square(number, label) for number, label in labels if label is not None)
        return tuple(Square(number) for number in range(rows * cols))

    def num_squares(self, videos: Sequence[Video]) -> int:
        return sum(video.num_frames * len(self.squares_of(video)) for video in videos)

    def pieces(self, rows: torch.Tensor, inputs: Mapping[str, Any]) -> int | None:
        """Every square is an independent image."""
        return len(rows)

    def vision_work(self, videos: Sequence[Video]) -> VisionWork:
        num, patches = self.num_squares(videos), self.patches_per_square
        return VisionWork(num * patches, num * patches**2)

    def normalised(
        self, frames: Sequence[torch.Tensor], dtype: torch.dtype | None, videos: Sequence[Video]
    ) -> torch.Tensor:
        """(B, squares, 3, image_size, image_size), frame by frame; see `inputs`."""
        import torch

        parts = [
            cut(part, self.image_size, self.squares_of(video))
            for part, video in zip(frames, videos, strict=True)
        ]
        return normalise(torch.cat(parts, dim=1), self.mean, self.std, dtype)

    def as_trained(self, values: dict[str, Any]) -> dict[str, Any]:
        return normalised_by(values, self.mean, self.std)

    def processor_values(self) -> dict[str, Any]:
        """Values that the released preprocessor configs have for images and videos alike."""
        return {
            "size": {"height": self.image_size, "width": self.image_size},
            "image_mean": list(self.mean),
            "image_std": list(self.std),
            "do_resize": True,
            "do_rescale": True,
            "do_normalize": True,
            "do_convert_rgb": True,
        }


def check(video: Video, side: int) -> None:
    """Refuse a grid that does not consist of whole squares.

    Args:
        side: Side of a square, px.

    Raises:
        AvomniError: a side of the grid is not a multiple of `side`.
    """
    height, width = video.height, video.width
    if not height % side and not width % side and min(height, width) > 0:
        return
    rows = len(video.cells) or 1
    cols = len(video.cells[0]) if video.cells else 1
    # The nearest size that consists of whole tiles and whole squares.
    high, wide = _nearest(height, rows, side), _nearest(width, cols, side)
    tiles = f"tile_width: {wide // cols} and tile_height: {high // rows}"
    raise AvomniError(
        f"a grid of {width}×{height} px does not divide into squares of {side} px, and the vision "
        "tower takes only squares: pixels of any other shape end up in the wrong places",
        where="processing.tile_width, processing.tile_height",
        fix=f"set {tiles} for a grid of {wide}×{high} px, or {side} for both: one camera a square",
    )


def _nearest(length: int, count: int, side: int) -> int:
    """The multiple of `side` nearest to `length` that divides into `count` tiles of whole px."""
    multiples = range(side, 2 * length + (count + 1) * side, side)
    return min((m for m in multiples if not m % count), key=lambda m: abs(m - length))


def normalised_by(
    values: dict[str, Any], mean: Sequence[float], std: Sequence[float]
) -> dict[str, Any]:
    """A preprocessor config with these numbers for images and for videos.

    Published checkpoints have one of them right and the other at the class's default, CLIP's.
    """
    new = {"image_mean": list(mean), "image_std": list(std)}
    return {
        name: normalised_by(value, mean, std) if isinstance(value, dict) else new.get(name, value)
        for name, value in values.items()
    }


def cut(frames: torch.Tensor, side: int, squares: Sequence[Square] = ()) -> torch.Tensor:
    """Cut frames into squares, frame by frame and row by row.

    Args:
        frames: (B, T, H, W, 3) uint8.
        side: Side of a square, px.
        squares: The squares to keep; all if empty.

    Returns:
        (B, T·squares, 3, side, side) uint8.

    Raises:
        AvomniError: the frames have another shape or dtype, or do not divide into squares.
    """
    check_frames(frames)
    num_windows, num_frames, height, width, _ = frames.shape
    check(Video((0.0,) * num_frames, height, width), side)
    rows, cols = height // side, width // side
    parts = frames.reshape(num_windows, num_frames, rows, side, cols, side, COLOURS)
    # -> window, frame, row and column of the square, colour, y, x
    parts = parts.permute(0, 1, 2, 4, 6, 3, 5).flatten(2, 3)
    if squares and len(squares) < rows * cols:
        parts = parts[:, :, [square.number for square in squares]]
    return parts.flatten(1, 2)


def normalise(
    pixels: torch.Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Normalise uint8 (…, 3, H, W) as transformers' processors do.

    Args:
        mean, std: Normalisation of each colour, for values from 0 to 1.
        dtype: Type of the result; None is float32. Computed in float32 in any case.
    """
    import torch

    # Like the processors, fold the division by 255 into both numbers, for bit-identical results.
    shape = (COLOURS, 1, 1)
    middle, spread = (
        (torch.tensor(tuple(numbers), device=pixels.device) * LEVELS).reshape(shape)
        for numbers in (mean, std)
    )
    values = pixels.contiguous().float().sub_(middle).div_(spread)
    return values.to(dtype or torch.float32)
