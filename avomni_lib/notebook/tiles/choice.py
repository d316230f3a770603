"""A choice of tiling (cameras, tile size, rate) to preview before the ETL is run, and its cost.

The cost is estimated with the same arithmetic as the plan of a run.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from avomni_lib import files
from avomni_lib.dataset import cameras
from avomni_lib.dataset.cameras import Grid
from avomni_lib.dataset.clip import Clip
from avomni_lib.errors import AvomniError
from avomni_lib.etl.run import engines, forecast
from avomni_lib.etl.run.forecast import VideoProperties
from avomni_lib.etl.video import reader as video
from avomni_lib.params import Params
from avomni_lib.plan import Plan, gigabytes, minutes
from avomni_lib.training.fit import job
from avomni_lib.training.forecast import estimate
from avomni_lib.training.forecast.memory import size_of
from avomni_lib.training.model.model_path import TINY
from avomni_lib.training.prompt import samples
from avomni_lib.training.prompt.tokens import Tokens

OWN_GRID = "own grid"
REFUSED = "05_train would refuse it"
# Keys of a params file that a choice changes, by section.
KEYS = {
    "vision": ("cameras", "window_size"),
    "processing": ("tile_width", "tile_height", "fit", "sample_hz", "sequence_length"),
}


@dataclass(frozen=True)
class TilingChoice:
    """The tiling settings that 04 can change.

    Attributes:
        grid: Rows and columns of the cameras.
        tile: (width, height) px of one camera.
        fit: `letterbox`, `crop` or `stretch`.
        sample_hz: Sampled frames per second.
        sequence_length: Frames in a window.
    """

    grid: Grid
    tile: tuple[int, int]
    fit: str
    sample_hz: float
    sequence_length: int

    @classmethod
    def of(cls, p: Params) -> TilingChoice:
        """The choice of a run's parameters."""
        work, grid = p.processing, cameras.grid(p.vision.cameras)
        tile = work.tile_width, work.tile_height
        return cls(grid, tile, work.fit, work.sample_hz, work.sequence_length)

    def __str__(self) -> str:
        width, height = self.tile
        how = "" if self.fit == "stretch" else f", {self.fit}"
        return f"{self.setup}, tiles of {width}×{height}{how}"

    @property
    def setup(self) -> str:
        """The name of a preset (`4-cam`), or `own grid`."""
        value = self.grid.value
        return value if isinstance(value, str) else OWN_GRID

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the grid, px."""
        return self.grid.rows * self.tile[1], self.grid.cols * self.tile[0]

    def with_larger(self, name: str) -> TilingChoice:
        """The same cameras, one of which (`name`) is enlarged to two rows and columns."""
        others = [camera.name for camera in self.grid.cameras if camera.name != name]
        grids = [_around(name, others, cols) for cols in (3, 4)]
        return replace(self, grid=min(grids, key=lambda grid: len(grid.cells)))

    def laid_over(self, p: Params) -> Params:
        """The run's parameters with this choice."""
        keys = KEYS["processing"]
        values = (*self.tile, self.fit, self.sample_hz, self.sequence_length)
        # An unchanged grid keeps its name, which may be `module:attribute`.
        same = self.grid.value == cameras.grid(p.vision.cameras).value
        vision: dict[str, Any] = {} if same else {"cameras": self.grid.value}
        vision |= {"window_size": self.sequence_length} if p.vision.window_size else {}
        processing = p.processing.model_copy(update=dict(zip(keys, values, strict=True)))
        changed = {"processing": processing, "vision": p.vision.model_copy(update=vision)}
        return p.model_copy(update=changed)


def _around(name: str, others: Sequence[str], cols: int) -> Grid:
    """A grid with `name` in the upper left four cells, and the others to its right and below."""
    left = iter(others)
    rows = [[name, name, *(next(left, None) for _ in range(cols - 2))] for _ in range(2)]
    while len(others) > (len(rows) - 2) * cols + 2 * (cols - 2):
        rows.append([next(left, None) for _ in range(cols)])
    return Grid.of_rows(tuple(map(tuple, rows)))


def grid_of(names: Sequence[str]) -> Grid:
    """A grid of cameras in the given order, as square as possible, wide rather than high."""
    cols = math.ceil(math.sqrt(len(names)))
    cells = (*names, *[None] * (-len(names) % cols))
    return Grid.of_rows(tuple(cells[i : i + cols] for i in range(0, len(cells), cols)))


@dataclass(frozen=True)
class Footage:
    """The run's clips: their number, duration and video properties."""

    num_clips: int
    seconds: float
    video: VideoProperties

    @classmethod
    def of(cls, p: Params, num_clips: int, clip: Clip | None) -> Footage:
        """Taken from one raw clip, or from published figures if there is none."""
        return cls(num_clips, forecast.clip_seconds(p, clip), forecast.clip_video(p, clip))


def cost(p: Params, choice: TilingChoice, footage: Footage) -> Plan:
    """The cost of a choice: tokens, MB per sample, GB and minutes of the ETL, seconds per step.

    Figures: `vision_tokens`, `tokens`, `sample_mb`, `cache_gb`, `etl_seconds` and `step_seconds`;
    the tokens and `step_seconds` are missing if unknown.
    """
    laid, length, limit = choice.laid_over(p), choice.sequence_length, p.model.max_seq_length
    storage, num_clips = laid.processing.storage, footage.num_clips
    decoder = video.choose_decoder(laid.processing.decoder)[0]
    clip_cpu_s = footage.video.cpu_s(choice.sample_hz, decoder) * len(choice.grid.cameras)
    clip_cpu_s += forecast.clip_bytes(laid, footage.seconds, "raw") * forecast.STORE_S[storage]
    cache_bytes = num_clips * forecast.clip_bytes(laid, footage.seconds, storage)
    workers, _ = engines.num_workers(p)
    etl_s = num_clips * clip_cpu_s / workers
    figures = {"cache_gb": cache_bytes / 1e9, "etl_seconds": etl_s}
    tokens, older, warnings = None, 0, []
    row = ("vision tokens", "none", "the grid does not divide into the model's squares")
    try:
        older = len(samples.past_of(laid))
        tokens = estimate.tokens_per_sample(laid)
    except AvomniError as error:
        warnings.append(f"{REFUSED}: {error.what}")
    else:
        figures |= {"vision_tokens": tokens.vision, "tokens": tokens.total}
        share = f"about {tokens.total:,} of {limit:,} ({100 * tokens.total / limit:.0f} %)"
        row = ("vision tokens", f"{tokens.vision:,}", f"with the text {share}")
        if tokens.total > limit:
            warnings.append(
                f"too long: {REFUSED}; about {tokens.total:,} tokens a sample, "
                f"model.max_seq_length is {limit:,}"
            )
    step_s, note = _step_seconds(p, laid, tokens)
    if step_s is not None:
        figures["step_seconds"] = step_s
    seconds = (length - 1) / choice.sample_hz
    sample_mb = (older + length) * choice.size[0] * choice.size[1] * 3 / 1e6
    figures["sample_mb"] = sample_mb
    rows = [
        row,
        ("a sample", f"{sample_mb:.1f} MB", f"{length} frames in {seconds:g} s"),
        *(estimate.past_rows(laid) if older else []),
        ("cache", gigabytes(cache_bytes), f"clips: {num_clips:,}, as {storage}"),
        ("ETL", minutes(etl_s), f"estimated, {workers} workers"),
        ("a step", "not known" if step_s is None else f"{step_s:.3g} s", note),
    ]
    return Plan(f"{choice}, {choice.sample_hz:g} Hz", rows, warnings, figures)


def in_short(costs: Plan) -> str:
    """The cost on one line, for the title of a figure."""
    if "tokens" not in costs.figures:
        return f"{costs.title}: {costs.warnings[0]}"
    too_long = f" (too long: {REFUSED})" if costs.warnings else ""
    size = f"{costs.figures['sample_mb']:.1f} MB a sample".replace(" ", "\N{NO-BREAK SPACE}")
    window = f"{costs.figures['vision_tokens']:,} vision tokens a window"
    return f"{costs.title}: {window}, {costs.rows[0][2]}{too_long}, {size}"


def _step_seconds(p: Params, laid: Params, tokens: Tokens | None) -> tuple[float | None, str]:
    """Seconds per optimizer step, measured by 05 or estimated, and a note on the source."""
    size = size_of(p)
    if tokens is None or size is None:
        return None, "no tokens to count" if tokens is None else "of no known size"
    step_s = estimate.expected_seconds(laid, size, tokens)
    windows = f"{estimate.windows_per_step(p)} windows; "
    with contextlib.suppress(AvomniError, KeyError, TypeError):
        then = files.read_json(p.checkpoints_dir / job.PARAMS_FILE)
        same = ("processing", "vision", "model", "training")
        if {name: then[name] for name in same} == p.values(*same):
            timed = files.read_json(p.checkpoints_dir / job.PROBE_FILE)["value"]
            expected_s = estimate.expected_seconds(p, size, estimate.tokens_per_sample(p))
            step_s *= float(timed["seconds_per_step"]) / expected_s
            return step_s, f"{windows}from the steps that 05_train timed here"
    if p.model.base_model == TINY:
        return None, "05_train times some; the tiny base runs on the CPU"
    return step_s, f"{windows}estimated on an {estimate.CARD}, not measured"
