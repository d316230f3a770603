"""The tile preview of 04_tiles: choose what is looked at and how it is tiled, see what it costs.

The cache's own choice is read from the cache. Any other is read from the raw clips, as the ETL
would read it, so that it can be seen before an ETL is paid for.
"""

from __future__ import annotations

import contextlib
import html
from collections.abc import Iterator

import ipywidgets
import numpy as np

from avomni_lib import files
from avomni_lib.errors import AvomniError
from avomni_lib.notebook.plots import canvas, tiles
from avomni_lib.notebook.tiles import controls, params_file
from avomni_lib.notebook.tiles.choice import Choice
from avomni_lib.notebook.tiles.controls import ChoiceControls, PlaceControls
from avomni_lib.notebook.tiles.cost import cost, in_short
from avomni_lib.notebook.tiles.preview import Place, Preview, source_in_words
from avomni_lib.params import Params
from avomni_lib.plan import Plan
from avomni_lib.training.model.adapter import CONFIDENTIAL
from avomni_lib.training.prompt import tokens

WIDE_PX = 620  # smaller grids are enlarged to about this: the motion has room beside them
BELOW_PX = 950  # from this width on it stands below


class TilePreview(ipywidgets.VBox):
    """What the model sees of a window, where the car goes meanwhile, and what the choice costs.

    Args:
        p: The run; its cache must be there, or the raw clips that 02_download has fetched.
        clip_id: Shown first; the first clip if None.
        window: The clip's window shown first.
        frame: The window's frame shown first.

    Raises:
        AvomniError: there is nothing to show; no such clip.
    """

    def __init__(self, p: Params, clip_id: str | None = None, window: int = 0, frame: int = 0):
        self.p, self.preview = p, Preview(p)
        self._is_setting = False
        self._before = Choice.of(p)
        listed = list(self.preview.clips.listed.values())
        if clip_id is not None and clip_id not in self.preview.clips.listed:
            raise AvomniError(
                f"there is no clip {clip_id} in this run",
                where=str(p.run_dir),
                fix=f"choose one of its {len(listed)}, such as {listed[0].clip_id}",
            )
        self._square_px = round(tokens.backbone_of(p).token_px)
        self.controls = ChoiceControls(self._before, self._square_px)
        self.place = PlaceControls(listed, clip_id or self._first_with_window(), p)
        self.note = ipywidgets.HTML()
        self.image = ipywidgets.Image(format="png", layout={"max_width": "100%"})
        self.motion = ipywidgets.Image(format="png", layout={"max_width": "100%"})
        self.cost_table = ipywidgets.HTML(layout={"margin": "4px 32px 4px 0"})
        self.answer = ipywidgets.HTML(layout={"margin": "4px 0", "max_width": "520px"})
        self._make_writer()
        super().__init__(self._rows())
        self.add_class(controls.CLASS)
        self._fit_place(window, frame)
        for control in (*self.controls.all, *self.place.all):
            control.observe(self._changed, names="value")
        self._show()

    # What tests and notebooks set.
    @property
    def clip(self) -> ipywidgets.Select:
        return self.place.clip

    @property
    def window(self) -> ipywidgets.IntSlider:
        return self.place.window

    @property
    def frame(self) -> ipywidgets.IntSlider:
        return self.place.frame

    @property
    def setup(self) -> ipywidgets.ToggleButtons:
        return self.controls.setup

    @property
    def choice(self) -> Choice:
        """The tiling that is set."""
        return self.controls.choice()

    @property
    def shown(self) -> Place:
        """The clip, window and frame that are set."""
        return Place(self.clip.value, self.window.value, self.frame.value)

    def grid_frame(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB of the frame shown, as the model would see it.

        Raises:
            AvomniError: the choice needs raw files that are not on the disk, or damaged.
        """
        return self.preview.grid_frame(self.shown, self.choice)

    def sheet(self) -> np.ndarray:
        """(height, width, 3) uint8 RGB: `grid_frame` with the cameras' names, as it is shown."""
        squares = self._square_px if self.controls.squares.value else 0
        return tiles.named(self.grid_frame(), self.choice.grid, WIDE_PX, squares)

    def drive(self) -> tiles.Drive:
        """Where the car goes during the clip, with the window and the frame shown."""
        return self.preview.drive(self.shown, self.choice)

    def cost(self) -> Plan:
        """What the choice costs, and why the model would refuse it where it would."""
        return cost(self.p, self.choice, self.preview.footage())

    def figure(self) -> canvas.Picture:
        """The same as a static picture, for whoever reads the notebook without a kernel.

        Raises:
            AvomniError: as `grid_frame`.
        """
        answer = self.preview.answer(self.shown, self.choice)
        title = in_short(self.cost())
        return tiles.preview(self.grid_frame(), self.choice.grid, self.drive(), title, answer)

    def figure_of(self, choice: Choice) -> canvas.Picture:
        """The frame shown in another grid, and what that costs; or why it cannot be shown."""
        title = in_short(cost(self.p, choice, self.preview.footage()))
        try:
            frame = self.preview.grid_frame(self.shown, choice)
        except AvomniError as error:
            return canvas.sentence(f"{title}. Not shown here: {error.what}")
        picture = canvas.Picture(900, canvas.height_of(frame, choice.grid, 880) + 60)
        canvas.show_grid(picture.subplots(), frame, choice.grid, 880)
        picture.finding(title)
        return picture

    def _first_with_window(self) -> str:
        names = list(self.preview.clips.listed)
        return next((n for n in names if self.preview.count(n, self._before)), names[0])

    def _make_writer(self) -> None:
        where = params_file.shown(params_file.default_path(self.p))
        self.path = ipywidgets.Text(
            where,
            description="params file",
            continuous_update=False,
            layout={"width": "460px"},
            style={"description_width": controls.LABEL},
        )
        self.write = ipywidgets.Button(description="write the choice", icon="save")
        self.difference, self.written = ipywidgets.HTML(), ipywidgets.HTML()
        self.path.observe(lambda _: self._show_difference(), names="value")
        self.write.on_click(lambda _: self._write())

    def _rows(self) -> list[ipywidgets.Widget]:
        wrap = {"flex_flow": "row wrap", "align_items": "flex-start"}
        box = ipywidgets.HBox
        return [
            ipywidgets.HTML(controls.STYLE, layout={"height": "0", "margin": "0"}),
            box([self.place, self.controls], layout=wrap),
            box([self.cost_table, self.answer], layout=wrap),
            self.note,
            box([self.image, self.motion], layout=wrap),
            box([self.path, self.write, self.written], layout=wrap),
            self.difference,
        ]

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
        """Controls that are set meanwhile draw nothing."""
        self._is_setting = True
        try:
            yield
        finally:
            self._is_setting = False

    def _fit_place(self, window: int, frame: int) -> None:
        count = self.preview.count(self.clip.value, self.choice)
        self.place.fit(count, self.choice.sequence_length, window, frame)

    def _show(self, is_new_choice: bool = True) -> None:
        """Draw the choice, or say why it cannot be drawn."""
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
        notice = "" if self.p.is_ours_to_show else f"\n{CONFIDENTIAL}"
        height, width = self.choice.size
        self.note.value = _paragraph(
            f"The grid is {width}×{height} px, read from "
            f"{source_in_words(self.preview, self.choice)}{notice}"
        )
        self.answer.value = (
            f"<b>{self.p.training.target}</b>: what the model must say about this window"
            f"<pre>{html.escape(answer)}</pre>"
        )

    def _text(self) -> tuple[str, str]:
        """(the params file's new text, the difference to what it is)."""
        path = files.resolve(self.path.value)
        text = params_file.text_of(path, self.p, self.choice)
        return text, params_file.difference(path, text)

    def _show_difference(self) -> None:
        self.written.value = ""
        try:
            difference = self._text()[1]
        except AvomniError as error:
            difference, told = "", str(error)
        else:
            told = "" if difference else "The choice is what the run has already: nothing to write."
        self.write.disabled = not difference
        self.difference.value = controls.diff_html(difference) or _paragraph(told)

    def _write(self) -> None:
        try:
            text, _ = self._text()
            params_file.write(files.resolve(self.path.value), text)
        except AvomniError as error:
            self.written.value = _paragraph(str(error), "refused")
            return
        self._show_difference()
        self.written.value = _paragraph(
            f"Written. Run it: python -m avomni_lib run PARAMS.yaml {self.path.value}"
        )


def _paragraph(text: str, kind: str = "") -> str:
    return f'<p class="{kind}">' + html.escape(text).replace("\n", "<br>") + "</p>"
