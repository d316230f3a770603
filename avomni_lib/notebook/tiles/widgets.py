"""The widget of 04_tiles: select a frame and a tiling, and see the result and its cost.

The cache's own tiling is read from the cache; any other is read from the raw clips, as the ETL
would, so that it can be seen before the ETL is run.
"""

from __future__ import annotations

import contextlib
import html
from collections.abc import Iterator, Sequence
from typing import Any

import ipywidgets
import numpy as np

from avomni_lib import files
from avomni_lib.dataset import cameras
from avomni_lib.errors import AvomniError
from avomni_lib.etl.clip.tiling import FITS
from avomni_lib.notebook.plots import canvas, tiles
from avomni_lib.notebook.run import faults
from avomni_lib.notebook.tiles import params_file
from avomni_lib.notebook.tiles.choice import TilingChoice, cost, grid_of, in_short
from avomni_lib.notebook.tiles.preview import Listed, Place, Preview
from avomni_lib.params import Params
from avomni_lib.plan import Plan
from avomni_lib.training.prompt import tokens

WIDE_PX = 620  # smaller grids are enlarged to about this width, with the motion beside them
BELOW_PX = 950  # from this width on the motion is below the grid
CLASS, LABEL, INDENT = "avomni-tiles", "84px", "92px"
OWN_LIST = "own list"  # cameras in the order of the tiles
MOST_SHOWN = 400  # clips in the list at a time
LABELS = {camera.label: camera.name for camera in cameras.CAMERAS}
STYLE = f"""<style>
.{CLASS} select, .{CLASS} pre {{ font-family: var(--jp-code-font-family, monospace); }}
.{CLASS} select, .{CLASS} pre {{ font-size: 12px; }}
.{CLASS} pre {{ line-height: 1.35; margin: 2px 0; white-space: pre-wrap; }}
.{CLASS} p.refused {{ color: var(--jp-error-color1, #b3261e); }}
.{CLASS} .widget-html-content {{ line-height: 1.4; }}
.{CLASS} .widget-html-content p {{ margin: 2px 0; }}
.{CLASS} table {{ border-collapse: collapse; margin: 2px 0; }}
.{CLASS} table td {{ padding: 0 12px 0 0; line-height: 1.45; }}
.{CLASS} .avomni-label {{ text-align: right; }}
.{CLASS} .added {{ color: var(--jp-success-color1, #1b7f3b); font-weight: bold; }}
.{CLASS} .removed {{ color: var(--jp-error-color1, #b3261e); text-decoration: line-through; }}
</style>"""


def _wide(kind: type[ipywidgets.Widget], *values: Any, width: str = "430px", **named: Any) -> Any:
    """A control with its description in the left column."""
    return kind(*values, layout={"width": width}, style={"description_width": LABEL}, **named)


class PlaceControls(ipywidgets.VBox):
    """Controls for clip, window and frame: list, sliders (with arrow keys), buttons and player.

    Attributes:
        all: The controls on which the picture depends.
        is_offering: The list of clips is being changed; its events are to be ignored.
    """

    def __init__(self, listed: Sequence[Listed], clip_id: str):
        self._names = [(_listing_label(clip), clip.clip_id) for clip in listed]
        self.search = _wide(
            ipywidgets.Text, placeholder="train, Germany, 25cd …", description="find clip"
        )
        self.clip = ipywidgets.Select(rows=6, layout={"width": "430px"})
        self._offer(clip_id)
        self.window, self.frame = (
            _wide(ipywidgets.IntSlider, 0, 0, 0, description=name, continuous_update=False)
            for name in ("window", "frame")
        )
        self.play = ipywidgets.Play(min=0, interval=250, show_repeat=False)
        ipywidgets.jslink((self.play, "value"), (self.frame, "value"))
        small = {"layout": {"width": "40px"}}
        self.back = ipywidgets.Button(icon="step-backward", tooltip="one frame back", **small)
        self.ahead = ipywidgets.Button(icon="step-forward", tooltip="one frame ahead", **small)
        self.back.on_click(lambda _: self._step(-1))
        self.ahead.on_click(lambda _: self._step(1))
        self.search.observe(lambda _: self._offer(self.clip.value), names="value")
        player = ipywidgets.HBox([self.back, self.play, self.ahead])
        player.layout.margin = f"2px 0 0 {INDENT}"
        super().__init__([self.search, self.clip, self.window, self.frame, player])
        self.layout.margin = "0 16px 0 0"
        self.all = (self.clip, self.window, self.frame)

    def _step(self, by: int) -> None:
        """Step one frame forward or back, across the end of the window."""
        frame = self.frame.value + by
        if 0 <= frame <= self.frame.max:
            self.frame.value = frame
        elif 0 <= self.window.value + by <= self.window.max:
            self.window.value += by
            self.frame.value = 0 if by > 0 else self.frame.max

    def fit(self, num_windows: int, length: int, window: int, frame: int) -> None:
        """Set the ranges and values of the sliders."""
        self.window.max, self.frame.max = max(num_windows - 1, 0), length - 1
        self.window.value, self.frame.value = window, frame  # clamped by the slider
        self.play.max = length - 1

    def _offer(self, chosen: str) -> None:
        """List the clips that match all words of the search, and the selected one."""
        words = self.search.value.lower().split()
        fitting = [
            (label, name)
            for label, name in self._names
            if name == chosen or all(word in f"{label} {name}".lower() for word in words)
        ]
        start = max([name for _, name in fitting].index(chosen) - MOST_SHOWN // 2, 0)
        # Assigning options selects the first one for a moment.
        self.is_offering = True
        self.clip.options = fitting[start : start + MOST_SHOWN]
        self.clip.value = chosen
        self.is_offering = False


class ChoiceControls(ipywidgets.VBox):
    """Controls for setup, tile, fit, rate, length, and the overlay of vision tokens.

    Attributes:
        all: The controls on which the picture depends.
    """

    def __init__(self, own: TilingChoice, square_px: int):
        self._own = own
        self.setup = ipywidgets.ToggleButtons(
            options=[*dict.fromkeys([*cameras.GRIDS, own.setup, OWN_LIST])],
            value=own.setup,
            style={"button_width": "80px"},
        )
        # The widget's own description would be placed above it.
        label = ipywidgets.HTML("setup", layout={"width": LABEL, "margin": "2px 8px 0 0"})
        label.add_class("avomni-label")
        self.cameras = ipywidgets.TagsInput(
            value=[camera.label for camera in own.grid.cameras],
            allowed_tags=list(LABELS),
            allow_duplicates=False,
            placeholder="add a camera",
            layout={"width": "320px", "margin": f"2px 0 2px {INDENT}"},
        )
        self.add = ipywidgets.Dropdown(layout={"width": "180px", "margin": f"0 8px 2px {INDENT}"})
        self.add.observe(self._add, names="value")
        self._more = ipywidgets.HBox([self.add, ipywidgets.HTML("drag to order")])

        def number(kind: Any, value: float, low: float, most: float, name: str, step: float) -> Any:
            options = {"min": low, "max": most, "step": step, "description": name}
            return _wide(kind, value, width="180px", **options)

        whole, real = ipywidgets.BoundedIntText, ipywidgets.BoundedFloatText
        self.width = number(whole, own.tile[0], 8, 3840, "tile width", 16)
        self.height = number(whole, own.tile[1], 8, 2160, "height", 16)
        self.rate = number(real, own.sample_hz, 0.1, 60, "rate, Hz", 0.5)
        self.length = number(whole, own.sequence_length, 2, 512, "frames", 1)
        self.fit = _wide(
            ipywidgets.Dropdown, options=FITS, value=own.fit, description="fit", width="180px"
        )
        self.squares = ipywidgets.Checkbox(
            description=f"vision tokens ({square_px}×{square_px} px)", indent=False
        )
        self.squares.layout.margin = f"0 0 0 {INDENT}"
        pair = ipywidgets.HBox
        rows = [pair([label, self.setup]), self.cameras, self._more]
        rows += [pair([self.width, self.height]), pair([self.fit]), pair([self.rate, self.length])]
        super().__init__([*rows, self.squares])
        self.layout.margin = "0 16px 0 0"
        self.all = (self.setup, self.cameras, self.width, self.height, self.fit)
        self.all = (*self.all, self.rate, self.length, self.squares)
        self.settle()

    def settle(self) -> None:
        """Show the list of cameras if it is used, and keep at least one camera in it."""
        display = None if self.setup.value == OWN_LIST else "none"
        self.cameras.layout.display = self._more.layout.display = display
        if not self.cameras.value:
            self.cameras.value = [cameras.FRONT_WIDE.label]
        left = [label for label in LABELS if label not in self.cameras.value]
        self.add.options = [("add a camera", ""), *((label, label) for label in left)]
        self.add.value = ""

    def _add(self, change: dict) -> None:
        if change["new"]:
            self.cameras.value = [*self.cameras.value, change["new"]]

    def choice(self) -> TilingChoice:
        setup = self.setup.value
        grid = cameras.GRIDS.get(setup, self._own.grid)
        if setup == OWN_LIST:
            grid = grid_of([LABELS[label] for label in self.cameras.value])
        tile = self.width.value, self.height.value
        return TilingChoice(grid, tile, self.fit.value, self.rate.value, self.length.value)


class TilePreview(ipywidgets.VBox):
    """A window as the model sees it, the car's path, and the cost of the chosen tiling.

    Args:
        p: The run's parameters; it needs a cache or the raw clips of 02_download.
        clip_id, window, frame: What is shown first; by default of the first clip with a window.

    Raises:
        AvomniError: there is nothing to show, or no such clip.
    """

    def __init__(self, p: Params, clip_id: str | None = None, window: int = 0, frame: int = 0):
        self.p, self.preview = p, Preview(p)
        self._is_setting, self._before = False, TilingChoice.of(p)
        listed = self.preview.listed
        if clip_id is not None and clip_id not in listed:
            raise AvomniError(
                f"there is no clip {clip_id} in this run",
                where=str(p.run_dir),
                fix=f"choose one of its {len(listed)}, such as {next(iter(listed))}",
            )
        with_window = (name for name in listed if self.preview.count(name, self._before))
        clip_id = clip_id or next(with_window, next(iter(listed)))
        self._square_px = round(tokens.backbone_of(p).token_px)
        self.controls = ChoiceControls(self._before, self._square_px)
        self.place = PlaceControls(list(listed.values()), clip_id)
        # Aliases for tests and notebooks.
        self.clip, self.window, self.frame = self.place.all
        self.setup = self.controls.setup
        self.note, self.written, self.difference = (ipywidgets.HTML() for _ in range(3))
        self.image, self.motion = (
            ipywidgets.Image(format="png", layout={"max_width": "100%"}) for _ in range(2)
        )
        self.cost_table = ipywidgets.HTML(layout={"margin": "4px 32px 4px 0"})
        self.answer = ipywidgets.HTML(layout={"margin": "4px 0", "max_width": "520px"})
        self.path = _wide(
            ipywidgets.Text,
            files.from_root(params_file.default_path(p)),
            description="params file",
            continuous_update=False,
            width="460px",
        )
        self.write = ipywidgets.Button(description="write the choice", icon="save")
        self.path.observe(lambda _: self._show_difference(), names="value")
        self.write.on_click(lambda _: self._write())
        style = ipywidgets.HTML(STYLE, layout={"height": "0", "margin": "0"})
        rows = [
            [self.place, self.controls],
            [self.cost_table, self.answer],
            [self.note],
            [self.image, self.motion],
            [self.path, self.write, self.written],
            [self.difference],
        ]
        wrap = {"flex_flow": "row wrap", "align_items": "flex-start"}
        super().__init__([style, *(ipywidgets.HBox(row, layout=wrap) for row in rows)])
        self.add_class(CLASS)
        self._fit_place(window, frame)
        for control in (*self.controls.all, *self.place.all):
            control.observe(self._changed, names="value")
        self._show()

    @property
    def choice(self) -> TilingChoice:
        """The selected tiling."""
        return self.controls.choice()

    @property
    def shown(self) -> Place:
        """The selected clip, window and frame."""
        return Place(self.clip.value, self.window.value, self.frame.value)

    def grid_frame(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB of the selected frame, as the model would see it.

        Raises:
            AvomniError: raw files are needed, and they are missing or damaged.
        """
        return self.preview.grid_frame(self.shown, self.choice)

    def sheet(self) -> np.ndarray:
        """(height, width, 3) uint8 RGB: `grid_frame` as displayed, with the cameras' names."""
        squares = self._square_px if self.controls.squares.value else 0
        return tiles.named(self.grid_frame(), self.choice.grid, WIDE_PX, squares)

    def drive(self) -> tiles.WindowMotion:
        """The car's path during the clip, with the selected window and frame."""
        return self.preview.drive(self.shown, self.choice)

    def cost(self) -> Plan:
        """The cost of the choice, with warnings if 05_train would refuse it."""
        return cost(self.p, self.choice, self.preview.footage)

    def figure(self) -> canvas.Picture:
        """A static figure of the preview, for readers without a kernel.

        Raises:
            AvomniError: as `grid_frame`.
        """
        answer = self.preview.answer(self.shown, self.choice)
        title = in_short(self.cost())
        return tiles.preview(self.grid_frame(), self.choice.grid, self.drive(), title, answer)

    def figure_of(self, choice: TilingChoice) -> canvas.Picture:
        """The selected frame in another tiling with its cost, or the reason why not."""
        title = in_short(cost(self.p, choice, self.preview.footage))
        try:
            frame = self.preview.grid_frame(self.shown, choice)
        except AvomniError as error:
            return canvas.sentence(f"{title}. Not shown here: {error.what}")
        picture = canvas.Picture(900, canvas.height_of(frame, choice.grid, 880) + 60)
        canvas.show_grid(picture.subplots(), frame, choice.grid, 880)
        picture.finding(title)
        return picture

    def _changed(self, change: dict) -> None:
        if self._is_setting or self.place.is_offering:
            return
        with self._setting():
            owner = change["owner"]
            self.controls.settle()
            if owner is self.clip:
                self._fit_place(self.window.value, self.frame.value)
            elif owner in (self.controls.rate, self.controls.length):
                at = self.preview.nearest_window(self.shown, self._before, self.choice)
                self._fit_place(at, self.frame.value)
            is_new, self._before = self._before != self.choice, self.choice
        self._show(is_new)

    @contextlib.contextmanager
    def _setting(self) -> Iterator[None]:
        """Suppress drawing while controls are set."""
        self._is_setting = True
        try:
            yield
        finally:
            self._is_setting = False

    def _fit_place(self, window: int, frame: int) -> None:
        count = self.preview.count(self.clip.value, self.choice)
        self.place.fit(count, self.choice.sequence_length, window, frame)

    def _show(self, is_new_choice: bool = True) -> None:
        """Draw the choice, or show why it cannot be drawn."""
        if is_new_choice:
            self.cost_table.value = self.cost()._repr_html_()
            self._show_difference()
        try:
            if not self.preview.is_cached(self.choice):
                self.note.value = _paragraph("Reading the raw clip …")
            sheet = self.sheet()
            self.motion.value = tiles.motion(self.drive(), sheet.shape[1] > BELOW_PX).png()
            answer = self.preview.answer(self.shown, self.choice)
        except AvomniError as error:
            self.note.value = _paragraph(f"This choice cannot be shown: {error}", "refused")
            self.image.value, self.answer.value = b"", ""
            self.image.layout.display = "none"
            return
        self.image.layout.display = None
        self.image.value = canvas.encode_png(sheet)
        notice = f"\n{self.p.notice}" if self.p.notice else ""
        height, width = self.choice.size
        source = self.preview.source_in_words(self.choice)
        self.note.value = _paragraph(f"{width}×{height} px, read from {source}{notice}")
        self.answer.value = (
            f"<b>{self.p.training.target}</b>: the target text of this window"
            f"<pre>{html.escape(answer)}</pre>"
        )

    def _show_difference(self) -> None:
        """Show the difference that writing the choice would make to the params file."""
        self.written.value, path = "", files.resolve(self.path.value)
        difference, words = "", "The choice is what the run has already: nothing to write."
        try:
            text = params_file.text_of(path, self.p, self.choice)
            difference = params_file.difference(path, text)
        except AvomniError as error:
            words = str(error)
        self.write.disabled = not difference
        lines = [
            f'<span class="{kind}">{html.escape(line)}</span>'
            for number, line in enumerate(difference.splitlines())
            for kind in [{"+": "added", "-": "removed"}.get(line[:1], "") if number > 1 else ""]
        ]
        self.difference.value = f"<pre>{chr(10).join(lines)}</pre>" if lines else _paragraph(words)

    def _write(self) -> None:
        try:
            path = files.resolve(self.path.value)
            files.write_text(path, params_file.text_of(path, self.p, self.choice))
        except (AvomniError, OSError) as error:
            self.written.value = _paragraph(str(faults.in_words(error)), "refused")
            return
        self._show_difference()
        command = f"python -m avomni_lib run PARAMS.yaml {self.path.value}"
        self.written.value = _paragraph(f"Written. Run it: {command}")


def _listing_label(listed: Listed) -> str:
    """A clip's line in the list: id, split, country, speed, aligned with no-break spaces."""
    speeds = "speed not read"
    if listed.mean_mps is not None:
        speeds = f"{listed.mean_mps:4.1f}, at most {listed.max_mps:4.1f} m/s"
    name, country = canvas.short(listed.clip_id), listed.country or "-"
    return f"{name} {listed.split:<5} {country:<13.13} {speeds}".replace(" ", "\N{NO-BREAK SPACE}")


def _paragraph(text: str, kind: str = "") -> str:
    return f'<p class="{kind}">' + html.escape(text).replace("\n", "<br>") + "</p>"
