"""Shared by all figures: the base class, a colour-blind-safe palette, grids with camera names."""

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
# Ten colours for readers with colour-vision deficiency: M. A. Petroff, arXiv:2107.02270.
COLOURS = tuple(matplotlib.style.library["petroff10"]["axes.prop_cycle"].by_key()["color"])
BLUE, ORANGE, RED, GREY, PURPLE = COLOURS[:5]
LIGHT = "#e4e6e6"
INK = "#22262a"
CAPTION_PX, GUTTER_PX = 18, 4  # above and between tiles
BANNER_PX = 24
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# Background of small text on a plot.
ON_WHITE = {"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85}


class Picture(Figure):
    """A matplotlib figure that a notebook shows once, without pyplot.

    pyplot keeps its figures alive, and the inline backend shows them a second time. A plain
    `Figure` avoids both, but has no image representation until pyplot is imported.
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
        """Set the title, a sentence that states the result."""
        lines = textwrap.wrap(text, int(self.get_figwidth() * DPI / 10.6))  # px of a bold letter
        look = {"fontsize": 12, "fontweight": "bold", "color": INK}
        self.suptitle("\n".join(lines), x=0.01, ha="left", **look)

    def note(self, text: str) -> None:
        """Set a note below the figure that explains how to read it."""
        self.supxlabel(text, fontsize=9, color=INK)

    def banner(self, text: str) -> None:
        """Add a line at the foot of the figure, once; the figure grows by its height."""
        if self._has_banner:
            return
        self._has_banner = True
        height_px = self.get_figheight() * DPI + BANNER_PX
        share = BANNER_PX / height_px
        self.set_figheight(height_px / DPI)
        if note := self.get_supxlabel():
            # The layout puts a note at the foot whatever `rect` says: two empty lines lift it.
            self.note(f"{note}\n\n")
        else:
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
    """A figure with only a sentence, for when there is nothing to draw."""
    picture = Picture(1000, 60)
    picture.finding(text)
    return picture


def quiet(axes: Axes, grid: str | None = "y", x: str = "", y: str = "") -> Axes:
    """Style an axes: no top and right spines, a light grid, and labels."""
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
    """Style an axes that holds only an image or text."""
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    return axes


def head(axes: Axes, text: str, size: float = 10, **look: str) -> None:
    """Set a left-aligned title of an axes."""
    axes.set_title(text, fontsize=size, loc="left", color=INK, **look)


def square_view(axes: Axes, x_m: np.ndarray, y_m: np.ndarray, least_m: float) -> None:
    """Set equal scales for a view from above, with x (forward) up and y to the left.

    All points are in view, and at least `least_m`.
    """
    # With unequal scales a straight drive would look like a wiggle.
    reach = max(float(np.ptp(x_m)), float(np.ptp(y_m)), least_m) * 0.55
    for set_limits, values in ((axes.set_xlim, -y_m), (axes.set_ylim, x_m)):
        middle = (float(values.min()) + float(values.max())) / 2
        set_limits(middle - reach, middle + reach)
    axes.set_aspect("equal")
    quiet(axes, "both", "m to the right", "m forward")


def short(clip_id: str) -> str:
    """A short label of a clip: the first eight characters of a UUID, otherwise the name.

    Only the end of a name longer than 20 characters is kept, where names of a series differ.
    """
    if _UUID.fullmatch(clip_id):
        return clip_id[:8]
    return clip_id if len(clip_id) <= 20 else f"…{clip_id[-19:]}"


def scale_for(width_px: int, wanted_px: int) -> int:
    """The integer factor by which a small grid is enlarged for display, at least 1."""
    return max(wanted_px // width_px, 1)


def name_tiles(
    image: np.ndarray, grid: Grid, scale: int = 1, caption_px: int = CAPTION_PX
) -> np.ndarray:
    """Separate the tiles of a grid image and write each camera's name above its tile.

    Args:
        image: (H, W, 3) uint8 RGB, the grid as the model sees it.
        scale: Integer factor by which pixels are repeated.
        caption_px: Height of a caption; larger if the result will be shrunk.

    Returns:
        (height, width, 3) uint8 RGB; see `tile_box` for the positions of the tiles.
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
                continue  # not the upper left cell of a larger tile
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
    """Draw a grid with its cameras' names in an axes that is `width_px` wide."""
    scale = scale_for(image.shape[1], width_px)
    shrunk = max(image.shape[1] * scale / width_px, 1.0)
    show_image(axes, name_tiles(image, grid, scale, round(CAPTION_PX * shrunk)), caption)


def height_of(image: np.ndarray, grid: Grid, width_px: int) -> int:
    """Height in px that `show_grid` needs for an image at that width."""
    return int(width_px * image.shape[0] / image.shape[1]) + grid.rows * CAPTION_PX


def encode_png(image: np.ndarray) -> bytes:
    """(H, W, 3) uint8 RGB as PNG bytes."""
    buffer = io.BytesIO()
    # Level 1 takes half the time of level 6 and a fifth more bytes.
    Image.fromarray(image).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def show_image(axes: Axes, image: np.ndarray, caption: str = "") -> None:
    """Draw an image with a caption below it; small images are enlarged without interpolation."""
    bare(axes).imshow(image, interpolation="nearest" if image.shape[1] < 400 else "antialiased")
    axes.set_anchor("N")
    if caption:
        axes.set_xlabel(caption, fontsize=9, color=INK)


def in_rows(
    images: Sequence[np.ndarray], captions: Sequence[str], title: str, cols: int = 5
) -> Picture:
    """Images (H, W, 3) uint8 RGB of equal size with captions, `cols` per row."""
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
    # The title of a narrow figure takes more lines.
    lines = picture.get_suptitle().count("\n")
    picture.set_figheight(picture.get_figheight() + 0.22 * lines)
    return picture


def evenly(count: int, most: int) -> list[int]:
    """At most `most` indices below `count`, evenly spaced, including the first and the last."""
    return np.rint(np.linspace(0, count - 1, min(most, count))).astype(int).tolist()


def shortened(text: str, length: int) -> str:
    """Text of one line with at most `length` characters."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1] + "…"


def wrapped(text: str, width: int) -> str:
    """Text wrapped to lines of at most `width` characters; line breaks are kept."""
    lines = text.splitlines() or [""]
    return "\n".join("\n".join(textwrap.wrap(line, width)) or "" for line in lines)


def fit(text: str, width: int, num_lines: int) -> list[str]:
    """At most `num_lines` lines of `width` characters; the rest is cut off and marked."""
    lines = wrapped(text, width).splitlines()
    return lines if len(lines) <= num_lines else [*lines[: num_lines - 1], "…"]
