"""What all pictures share: a figure that shows itself, colours for every eye, named tiles."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Sequence

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from avomni_lib.dataset.cameras import Grid

DPI = 100
MAX_WIDTH_PX = 1200
# Ten colours that stay apart under colour-vision deficiency: M. A. Petroff, arXiv:2107.02270.
COLOURS = tuple(matplotlib.style.library["petroff10"]["axes.prop_cycle"].by_key()["color"])
BLUE, ORANGE, RED, GREY, PURPLE = COLOURS[:5]
LIGHT = "#e4e6e6"
INK = "#22262a"
CAPTION_PX, GUTTER_PX = 18, 4  # above and between tiles
BANNER_PX = 24
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# Of small letters on a drawing.
ON_WHITE = {"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85}


class Picture(Figure):
    """A figure that a notebook shows once, with no pyplot state to close.

    pyplot keeps every figure that it makes alive, and the inline backend shows it a second time; a
    plain `Figure` has neither fault, but shows no picture until somebody imports pyplot.
    """

    def __init__(self, width_px: int, height_px: int):
        super().__init__(
            figsize=(min(width_px, MAX_WIDTH_PX) / DPI, height_px / DPI),
            dpi=DPI,
            layout="constrained",
            facecolor="white",
        )
        self._has_banner = False

    def finding(self, text: str) -> None:
        """Put what the picture shows above it, as a sentence."""
        lines = textwrap.wrap(text, int(self.get_figwidth() * DPI / 10.6))  # px of a bold letter
        look = {"fontsize": 12, "fontweight": "bold", "color": INK}
        self.suptitle("\n".join(lines), x=0.01, ha="left", **look)

    def note(self, text: str) -> None:
        """Say below the picture how to read it."""
        self.supxlabel(text, fontsize=9, color=INK)

    def banner(self, text: str) -> None:
        """Write a line across the foot of the picture, once; the picture grows by it."""
        if self._has_banner:
            return
        self._has_banner = True
        height_px = self.get_figheight() * DPI + BANNER_PX
        share = BANNER_PX / height_px
        self.set_figheight(height_px / DPI)
        self.get_layout_engine().set(rect=(0, share, 1, 1 - share))
        look = {"fontsize": 10, "color": "white", "fontweight": "bold"}
        look["bbox"] = {"facecolor": RED, "edgecolor": RED, "pad": 3}
        self.text(0.5, share / 2, text, ha="center", va="center", **look)

    def png(self) -> bytes:
        """The picture as PNG bytes."""
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=DPI)
        return buffer.getvalue()

    _repr_png_ = png


def sentence(text: str) -> Picture:
    """A picture where there is nothing to draw: it says so."""
    picture = Picture(1000, 60)
    picture.finding(text)
    return picture


def quiet(axes: Axes, grid: str | None = "y", x: str = "", y: str = "") -> Axes:
    """Leave the frame of an axes to its two readable sides, and name them."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    if grid:
        axes.grid(axis=grid, color=LIGHT, linewidth=0.8)
    axes.tick_params(colors=INK, labelsize=9)
    if x:
        axes.set_xlabel(x, fontsize=9)
    if y:
        axes.set_ylabel(y, fontsize=9)
    return axes


def bare(axes: Axes) -> Axes:
    """An axes that only holds an image or text."""
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    return axes


def head(axes: Axes, text: str, size: float = 10, **look: str) -> None:
    """A title at the left of an axes."""
    axes.set_title(text, fontsize=size, loc="left", color=INK, **look)


def square_view(axes: Axes, x_m: np.ndarray, y_m: np.ndarray, least_m: float) -> None:
    """The ground from above, forward up: the same scale both ways, `least_m` wide at least.

    Args:
        x_m, y_m: Forward and to the left of all that is drawn.
    """
    # A straight drive must not look like a wiggle.
    reach = max(float(np.ptp(x_m)), float(np.ptp(y_m)), least_m) * 0.55
    for set_limits, values in ((axes.set_xlim, -y_m), (axes.set_ylim, x_m)):
        middle = (float(values.min()) + float(values.max())) / 2
        set_limits(middle - reach, middle + reach)
    axes.set_aspect("equal")
    quiet(axes, "both", "m to the right", "m forward")


def short(clip_id: str) -> str:
    """The first eight characters of a UUID, which tell the clips of a run apart; other names whole.

    Of one longer than 20 characters the end, where names of a series differ.
    """
    if _UUID.fullmatch(clip_id):
        return clip_id[:8]
    return clip_id if len(clip_id) <= 20 else f"…{clip_id[-19:]}"


def scale_for(width_px: int, wanted_px: int) -> int:
    """The whole factor by which small grids are enlarged for the eye; never less than 1."""
    return max(wanted_px // width_px, 1)


def name_tiles(
    image: np.ndarray, grid: Grid, scale: int = 1, caption_px: int = CAPTION_PX
) -> np.ndarray:
    """A grid image taken apart, with each camera's name above its tile: no pixel is covered.

    Args:
        image: (H, W, 3) uint8 RGB, the grid as the model sees it.
        scale: Whole factor by which pixels are repeated.
        caption_px: Height of a band; more where the result will be shrunk.

    Returns:
        (height, width, 3) uint8 RGB; `tile_box` tells where each tile lies.
    """
    last = tile_box(image.shape, grid, grid.rows - 1, grid.cols - 1, scale, caption_px)
    sheet = Image.new("RGB", last[2:], "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=caption_px * 0.72)
    large = image.repeat(scale, axis=0).repeat(scale, axis=1)
    for place, camera in enumerate(grid.cells):
        row, col = divmod(place, grid.cols)
        left, top, right, bottom = tile_box(image.shape, grid, row, col, scale, caption_px)
        height, width = bottom - top, right - left
        if camera is not None:
            if (row, col) != grid.cell_of(camera.name):
                continue  # a part of a larger tile
            rows, cols = grid.span_of(camera.name)
            height, width = height * rows, width * cols
        y, x = row * (bottom - top), col * (right - left)
        sheet.paste(Image.fromarray(large[y : y + height, x : x + width]), (left, top))
        if camera is not None:
            draw.text((left + 3, top - caption_px), camera.label, fill=INK, font=font)
    return np.asarray(sheet)


def tile_box(
    shape: Sequence[int],
    grid: Grid,
    row: int,
    col: int,
    scale: int = 1,
    caption_px: int = CAPTION_PX,
) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) px of a tile in what `name_tiles` returns."""
    tile_height, tile_width = shape[0] // grid.rows * scale, shape[1] // grid.cols * scale
    top = row * (tile_height + caption_px) + caption_px
    left = col * (tile_width + GUTTER_PX)
    return left, top, left + tile_width, top + tile_height


def show_grid(axes: Axes, image: np.ndarray, grid: Grid, width_px: int, caption: str = "") -> None:
    """A grid with its cameras' names, in an axes that is `width_px` wide on the picture."""
    scale = scale_for(image.shape[1], width_px)
    shrunk = max(image.shape[1] * scale / width_px, 1.0)
    show_image(axes, name_tiles(image, grid, scale, round(CAPTION_PX * shrunk)), caption)


def height_of(image: np.ndarray, grid: Grid, width_px: int) -> int:
    """px that `show_grid` needs for an image at that width."""
    return int(width_px * image.shape[0] / image.shape[1]) + grid.rows * CAPTION_PX


def encode_png(image: np.ndarray) -> bytes:
    """(H, W, 3) uint8 RGB as PNG bytes."""
    buffer = io.BytesIO()
    # Level 1 takes half the time of level 6 and a fifth more bytes.
    Image.fromarray(image).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def show_image(axes: Axes, image: np.ndarray, caption: str = "") -> None:
    """An image with a caption below it; small ones are enlarged pixel by pixel."""
    bare(axes).imshow(image, interpolation="nearest" if image.shape[1] < 400 else "antialiased")
    axes.set_anchor("N")
    if caption:
        axes.set_xlabel(caption, fontsize=9, color=INK)


def in_rows(
    images: Sequence[np.ndarray], captions: Sequence[str], title: str, cols: int = 5
) -> Picture:
    """Images (H, W, 3) uint8 RGB of one size with a line below each, `cols` in a row."""
    cell_px = (MAX_WIDTH_PX - 20) // cols
    cols = min(cols, max(len(images), 1))
    num_rows = max(-(-len(images) // cols), 1)
    height, width = images[0].shape[:2] if len(images) else (9, 16)
    cell_height_px = int(cell_px * height / width) + 26
    picture = Picture(max(cell_px * cols, 560), 60 + cell_height_px * num_rows)
    for place, axes in enumerate(picture.subplots(num_rows, cols, squeeze=False).flat):
        bare(axes)
        if place < len(images):
            show_image(axes, images[place], captions[place])
    picture.finding(title)
    # Few clips make a narrow picture, whose title takes a second line.
    lines = picture.get_suptitle().count("\n")
    picture.set_figheight(picture.get_figheight() + 0.22 * lines)
    return picture


def evenly(count: int, most: int) -> list[int]:
    """At most so many numbers below `count`, evenly chosen, the first and the last among them."""
    return np.rint(np.linspace(0, count - 1, min(most, count))).astype(int).tolist()


def shortened(text: str, length: int) -> str:
    """Text of one line with at most `length` characters."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1] + "…"


def wrapped(text: str, width: int) -> str:
    """Text broken into lines of at most `width` characters, its own line breaks kept."""
    lines = text.splitlines() or [""]
    return "\n".join("\n".join(textwrap.wrap(line, width)) or "" for line in lines)


def fit(text: str, width: int, num_lines: int) -> list[str]:
    """Text in lines of at most `width` characters; what does not fit is cut off and marked."""
    lines = wrapped(text, width).splitlines()
    return lines if len(lines) <= num_lines else [*lines[: num_lines - 1], "…"]
