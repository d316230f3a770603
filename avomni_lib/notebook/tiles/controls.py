"""The controls of the tile preview: which place of which clip, and how it is tiled."""

from __future__ import annotations

import html
from collections.abc import Sequence

import ipywidgets

from avomni_lib.dataset import cameras
from avomni_lib.etl.clip.tiling import FITS
from avomni_lib.notebook.plots import canvas
from avomni_lib.notebook.tiles.choice import OWN_LIST, Choice
from avomni_lib.notebook.tiles.clips import Listed
from avomni_lib.params import Params

CLASS, LABEL, INDENT = "avomni-tiles", "84px", "92px"
PLAY_MS = 250
MOST_SHOWN = 400  # clips in the list at a time
LABELS = {camera.label: camera.name for camera in cameras.CAMERAS}
STYLE = f"""<style>
.{CLASS} select {{ font-family: var(--jp-code-font-family, monospace); font-size: 12px; }}
.{CLASS} pre {{ font-family: var(--jp-code-font-family, monospace); font-size: 12px; }}
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


class PlaceControls(ipywidgets.VBox):
    """Clip, window and frame: by list, slider, buttons and player; sliders heed the arrow keys.

    Attributes:
        all: What a picture follows from.
        is_offering: The list of clips is being changed; what it says meanwhile does not count.
    """

    def __init__(self, listed: Sequence[Listed], clip_id: str, p: Params):
        self._names = [(listing_label(each), each.clip_id) for each in listed]
        self.is_offering = False
        self.search = ipywidgets.Text(
            placeholder="train, Germany, 25cd …",
            description="find clip",
            layout={"width": "430px"},
            style={"description_width": LABEL},
        )
        self.clip = ipywidgets.Select(rows=6, layout={"width": "430px"})
        self._offer(clip_id)
        self.window, self.frame = _slider("window"), _slider("frame")
        self.play = ipywidgets.Play(min=0, interval=PLAY_MS, show_repeat=False)
        ipywidgets.jslink((self.play, "value"), (self.frame, "value"))
        self.back = ipywidgets.Button(icon="step-backward", tooltip="one frame back")
        self.ahead = ipywidgets.Button(icon="step-forward", tooltip="one frame ahead")
        for button, by in ((self.back, -1), (self.ahead, 1)):
            button.layout.width = "40px"
            button.on_click(lambda _, by=by: self.step(by))
        self.search.observe(lambda _: self._offer(self.clip.value), names="value")
        player = ipywidgets.HBox([self.back, self.play, self.ahead])
        player.layout.margin = f"2px 0 0 {INDENT}"
        super().__init__([self.search, self.clip, self.window, self.frame, player])
        self.layout.margin = "0 16px 0 0"
        self.all = (self.clip, self.window, self.frame)

    def step(self, by: int) -> None:
        """A frame on or back, over the window's end into the next one."""
        frame = self.frame.value + by
        if 0 <= frame <= self.frame.max:
            self.frame.value = frame
        elif 0 <= self.window.value + by <= self.window.max:
            self.window.value += by
            self.frame.value = 0 if by > 0 else self.frame.max

    def fit(self, num_windows: int, length: int, window: int, frame: int) -> None:
        """Set the sliders' ends, and their values within them."""
        for slider, last, value in (
            (self.window, max(num_windows - 1, 0), window),
            (self.frame, length - 1, frame),
        ):
            slider.max = last
            slider.value = min(value, last)
        self.play.max = length - 1

    def _offer(self, chosen: str) -> None:
        """List the clips that have all words of the search, and the chosen one in any case."""
        words = self.search.value.lower().split()
        fitting = [
            (label, name)
            for label, name in self._names
            if name == chosen or all(word in f"{label} {name}".lower() for word in words)
        ]
        place = next((i for i, (_, name) in enumerate(fitting) if name == chosen), 0)
        start = max(place - MOST_SHOWN // 2, 0)
        # New options choose the first of them for a moment, which is nobody's wish.
        self.is_offering = True
        self.clip.options = fitting[start : start + MOST_SHOWN]
        self.clip.value = chosen
        self.is_offering = False


class ChoiceControls(ipywidgets.VBox):
    """Setup, tile, fit, rate, length, and whether the squares of vision tokens are drawn.

    Attributes:
        all: What a picture follows from.
    """

    def __init__(self, own: Choice, square_px: int):
        self._own = own
        self.setup = ipywidgets.ToggleButtons(
            options=[*dict.fromkeys([*cameras.GRIDS, own.setup, OWN_LIST])],
            value=own.setup,
            style={"button_width": "80px"},
        )
        # Its own description would stand above it.
        label = ipywidgets.HTML("setup", layout={"width": LABEL, "margin": "2px 8px 0 0"})
        label.add_class("avomni-label")
        self.cameras = ipywidgets.TagsInput(
            value=[camera.label for camera in own.grid.cameras],
            allowed_tags=list(LABELS),
            allow_duplicates=False,
            placeholder="add a camera",
            layout={"width": "320px", "margin": f"2px 0 2px {INDENT}"},
        )
        number = {"layout": {"width": "180px"}, "style": {"description_width": LABEL}}
        self.width = ipywidgets.BoundedIntText(
            own.tile[0], min=8, max=3840, step=16, description="tile width", **number
        )
        self.height = ipywidgets.BoundedIntText(
            own.tile[1], min=8, max=2160, step=16, description="height", **number
        )
        self.add = ipywidgets.Dropdown(layout={"width": "180px", "margin": f"0 8px 2px {INDENT}"})
        self.add.observe(self._add, names="value")
        self._more = ipywidgets.HBox([self.add, ipywidgets.HTML("drag to order")])
        self.fit = ipywidgets.Dropdown(options=FITS, value=own.fit, description="fit", **number)
        self.rate = ipywidgets.BoundedFloatText(
            own.sample_hz, min=0.1, max=60, step=0.5, description="rate, Hz", **number
        )
        self.length = ipywidgets.BoundedIntText(
            own.sequence_length, min=2, max=512, description="frames", **number
        )
        self.squares = ipywidgets.Checkbox(
            description=f"vision tokens ({square_px}×{square_px} px)", indent=False
        )
        self.squares.layout.margin = f"0 0 0 {INDENT}"
        pair = ipywidgets.HBox
        super().__init__(
            [
                pair([label, self.setup]),
                self.cameras,
                self._more,
                pair([self.width, self.height]),
                pair([self.fit]),
                pair([self.rate, self.length]),
                self.squares,
            ]
        )
        self.layout.margin = "0 16px 0 0"
        self.all = (self.setup, self.cameras, self.width, self.height, self.fit)
        self.all = (*self.all, self.rate, self.length, self.squares)
        self.settle()

    def settle(self) -> None:
        """Show the list of cameras where it counts, and never let it be empty."""
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

    def choice(self) -> Choice:
        setup = self.setup.value
        own = tuple(LABELS[label] for label in self.cameras.value) if setup == OWN_LIST else ()
        return Choice(
            setup,
            self._own.cameras if setup == self._own.setup else own,
            (self.width.value, self.height.value),
            self.fit.value,
            self.rate.value,
            self.length.value,
        )


def listing_label(listed: Listed) -> str:
    """A clip's line in the list: id, split, country, speed."""
    speeds = "speed not read"
    if listed.mean_mps is not None:
        speeds = f"{listed.mean_mps:4.1f}, at most {listed.max_mps:4.1f} m/s"
    # Spaces that a list does not run together.
    line = (
        f"{canvas.short(listed.clip_id)} {listed.split:<5} {listed.country or '-':<13.13} {speeds}"
    )
    return line.replace(" ", "\N{NO-BREAK SPACE}")


def diff_html(difference: str) -> str:
    """A unified diff as HTML; nothing of nothing."""
    kinds = {"+": "added", "-": "removed"}
    lines = []
    for number, line in enumerate(difference.splitlines()):
        kind = kinds.get(line[:1], "") if number > 1 else ""
        lines.append(f'<span class="{kind}">{html.escape(line)}</span>')
    return f"<pre>{chr(10).join(lines)}</pre>" if lines else ""


def _slider(name: str) -> ipywidgets.IntSlider:
    return ipywidgets.IntSlider(
        0,
        0,
        0,
        description=name,
        continuous_update=False,
        layout={"width": "430px"},
        style={"description_width": LABEL},
    )
