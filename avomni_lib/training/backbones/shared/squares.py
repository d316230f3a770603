"""A grid cut into squares, for vision towers that take nothing else.

Where a camera's tile is just such a square, each camera is a picture of its own, named in words,
and an empty cell is no picture at all. Otherwise the grid is cut as a mosaic, and a square may hold
parts of several cameras.
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
        number: Its place, counted along the rows of squares.
        label: Name of the one camera that it shows; None where it may show several.
    """

    number: int
    label: str | None = None


@dataclass(frozen=True)
class InSquares(Backbone):
    """A family whose vision tower takes squares only.

    Attributes:
        image_size: px, side of the squares.
        patch_size: px, side of the tower's patches.
        mean, std: Of each colour's normalisation, of values from 0 to 1.
    """

    image_size: int
    patch_size: int

    mean: ClassVar[tuple[float, ...]]
    std: ClassVar[tuple[float, ...]]
    tower = "vision_tower"
    skip_modules = ("model.vision_tower", "model.multi_modal_projector", "lm_head")

    @property
    def pixels(self) -> dict[str, Any]:
        """Mean and spread of the normalisation, of values from 0 to 1, and the square's side."""
        return {"mean": list(self.mean), "std": list(self.std), "square": self.image_size}

    @property
    def side_multiple(self) -> int:
        return self.image_size

    @property
    @abstractmethod
    def patches_per_square(self) -> int:
        """Places of a square in the tower's sequence, a class token among them."""

    @property
    @abstractmethod
    def tokens_per_square(self) -> int: ...

    def check(self, video: Video) -> None:
        check(video, self.image_size)

    def squares_of(self, video: Video) -> tuple[Square, ...]:
        """The squares that a frame is shown as, row by row.

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
        """Pictures of a window."""
        return sum(video.num_frames * len(self.squares_of(video)) for video in videos)

    def pieces(self, rows: torch.Tensor, inputs: Mapping[str, Any]) -> int | None:
        """Squares, each a picture of its own."""
        return len(rows)

    def vision_work(self, videos: Sequence[Video]) -> VisionWork:
        num, each = self.num_squares(videos), self.patches_per_square
        return VisionWork(num * each, num * each**2)

    def normalised(
        self, frames: Sequence[torch.Tensor], dtype: torch.dtype | None, videos: Sequence[Video]
    ) -> torch.Tensor:
        """(B, squares, 3, image_size, image_size), in a window frame by frame; see `inputs`."""
        import torch

        shown = zip(frames, videos, strict=True)
        found = [cut(each, self.image_size, self.squares_of(video)) for each, video in shown]
        return normalise(torch.cat(found, dim=1), self.mean, self.std, dtype)

    def as_trained(self, values: dict[str, Any]) -> dict[str, Any]:
        return normalised_by(values, self.mean, self.std)

    def processor_values(self) -> dict[str, Any]:
        """What the released preprocessor files say of pictures and of videos alike."""
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
    """Refuse a grid that is not made of whole squares.

    Args:
        side: px of a square.

    Raises:
        AvomniError: a side of the grid is no multiple of it.
    """
    height, width = video.height, video.width
    if not height % side and not width % side and min(height, width) > 0:
        return
    rows = len(video.cells) or 1
    cols = len(video.cells[0]) if video.cells else 1
    # The nearest sides that whole tiles and whole squares make.
    high, wide = (_nearest(*each, side) for each in ((height, rows), (width, cols)))
    tiles = f"tile_width: {wide // cols} and tile_height: {high // rows}"
    raise AvomniError(
        f"a grid of {width}×{height} px does not divide into squares of {side} px, and the vision "
        "tower takes only squares: pixels of any other shape end up in the wrong places",
        where="processing.tile_width, processing.tile_height",
        fix=f"set {tiles} for a grid of {wide}×{high} px, or {side} for both: one camera a square",
    )


def _nearest(length: int, count: int, side: int) -> int:
    """The multiple of `side` nearest to `length` that `count` tiles of whole px make."""
    found = [
        each for each in range(side, 2 * length + (count + 1) * side, side) if not each % count
    ]
    return min(found, key=lambda each: abs(each - length))


def normalised_by(
    values: dict[str, Any], mean: Sequence[float], std: Sequence[float]
) -> dict[str, Any]:
    """A processor's file with these numbers wherever it says any: for pictures, and for videos.

    Published checkpoints say the one right and the other by the class's default, CLIP's.
    """
    own = {"image_mean": list(mean), "image_std": list(std)}
    return {
        name: normalised_by(value, mean, std) if isinstance(value, dict) else own.get(name, value)
        for name, value in values.items()
    }


def cut(frames: torch.Tensor, side: int, squares: Sequence[Square] = ()) -> torch.Tensor:
    """Frames -> their squares, frame by frame and in each row by row.

    Args:
        frames: (B, T, H, W, 3) uint8.
        side: px of a square.
        squares: Those that are shown; all if empty.

    Returns:
        (B, T·squares, 3, side, side) uint8.

    Raises:
        AvomniError: not uint8 frames of that shape, or a side that does not divide.
    """
    check_frames(frames)
    num_windows, num_frames, height, width, _ = frames.shape
    check(Video((0.0,) * num_frames, height, width), side)
    rows, cols = height // side, width // side
    found = frames.reshape(num_windows, num_frames, rows, side, cols, side, COLOURS)
    # -> window, frame, row and column of the square, colour, y, x
    found = found.permute(0, 1, 2, 4, 6, 3, 5).flatten(2, 3)
    if squares and len(squares) < rows * cols:
        found = found[:, :, [square.number for square in squares]]
    return found.flatten(1, 2)


def normalise(
    pixels: torch.Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """uint8 (…, 3, H, W) -> the same normalised, as transformers' processors compute it.

    Args:
        mean, std: Of each colour, of values from 0 to 1.
        dtype: Of the result; float32 if None. The arithmetic is float32 either way.
    """
    import torch

    # They fold the division by 255 into both numbers, so nothing else is equal to the last bit.
    shape = (COLOURS, 1, 1)
    middle, spread = (
        (torch.tensor(tuple(each), device=pixels.device) * LEVELS).reshape(shape)
        for each in (mean, std)
    )
    values = pixels.contiguous().float().sub_(middle).div_(spread)
    return values.to(dtype or torch.float32)
