"""Figures of closed-loop driving: the ladder of policies, the course of drives, a film."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from avomni_lib import files
from avomni_lib.driving import geometry
from avomni_lib.driving.drive import StoredDrive, over_time
from avomni_lib.driving.scores import BOX, terms
from avomni_lib.evaluation.claims import FEWEST_CLIPS
from avomni_lib.evaluation.scores import MODEL
from avomni_lib.notebook.pages import wording
from avomni_lib.notebook.pages.wording import is_number
from avomni_lib.notebook.plots import canvas
from avomni_lib.notebook.plots.ladder import draw_whiskers, name_rows, whisker_of

COLS = 4
FILM_PX, AHEAD_M, BEHIND_M = 420, 45.0, 15.0  # size of the film's frames, and the range shown
FRAME_STEPS = 2  # steps of 0.1 s between frames of the film
GRASS, TAR, LINE, OTHER = "#dfe7d8", "#b9bdc1", "#f7f7f7", canvas.GREY


def ladder(figures: Mapping[str, Any]) -> canvas.Picture:
    """Each policy's scene score with its interval, of `driving.ladder.figures`."""
    rows = figures["drive"]
    picture = canvas.Picture(1000, 130 + 34 * len(rows))
    axes = canvas.quiet(picture.subplots(), "x", "scene score (more is better)")
    _scene_scores(axes, rows)
    name_rows(axes, rows)
    picture.note("Whiskers: 95 % interval, by resampling the episodes, the same for all policies.")
    picture.finding(_finding(rows))
    return picture


def open_and_closed(
    figures: Mapping[str, Any], open_loop: Sequence[Mapping[str, Any]]
) -> canvas.Picture:
    """The policies by their open-loop error (06's ladder, empty without one) and scene score."""
    errors = {row["name"]: row for row in open_loop if row["metric"] == "ade_m"}
    rows = [row for row in figures["drive"] if row["name"] in errors]
    if not rows:
        return canvas.sentence("06_evaluate has no errors of paths of this run to set beside these")
    picture = canvas.Picture(1100, 130 + 36 * len(rows))
    left, right = picture.subplots(1, 2, sharey=True)
    draw_whiskers(left, [whisker_of(row["name"], errors[row["name"]], "value") for row in rows])
    _scene_scores(right, rows)
    canvas.quiet(left, "x", "open loop: ADE, m (less is better)")
    canvas.quiet(right, "x", "closed loop: scene score (more is better)")
    name_rows(left, rows)
    by_error = min(rows, key=lambda row: errors[row["name"]]["value"])
    by_score = max(rows, key=lambda row: row["scene_score"])
    picture.finding(
        f"Nearest to the recorded path: {wording.row(by_error['name'])}. "
        f"Drives best: {wording.row(by_score['name'])}"
    )
    return picture


def _scene_scores(axes: canvas.Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    draw_whiskers(axes, [whisker_of(row["name"], row, "scene_score") for row in rows])
    axes.set_xlim(-0.02, 1.25)
    axes.set_xticks(np.linspace(0, 1, 6))


def _finding(rows: Sequence[Mapping[str, Any]]) -> str:
    num = rows[0]["num_episodes"]
    model = next((row for row in rows if row["name"] == MODEL), None)
    if model is None:
        return f"The scene score of each policy, {num} episodes"
    text = f"The {wording.row(MODEL)}: scene score {wording.number(model['scene_score'])}"
    if num < FEWEST_CLIPS:
        return f"{text} in {num} episodes: too few to tell it from others, it takes {FEWEST_CLIPS}"
    known = [row for row in rows if row is not model and is_number(row["difference_low"])]
    beaten = [wording.row(row["name"]) for row in known if row["difference_high"] < 0]
    ahead = [wording.row(row["name"]) for row in known if row["difference_low"] > 0]
    text += f" in {num} episodes"
    text += f"; better than {', '.join(beaten)}" if beaten else ""
    return text + (f"; behind {', '.join(ahead)}" if ahead else "")


def lane(drives: Sequence[StoredDrive]) -> canvas.Picture:
    """Offset from the lane, heading relative to it and excess speed of drives over time.

    A drive that collides or leaves the road is red up to that moment and dotted after it.
    """
    picture = canvas.Picture(1000, 620)
    places = picture.subplots(3, 1, sharex=True)
    num_failed = 0
    for drive in drives:
        table, scores = over_time(drive), terms(drive.episode)
        until = len(table) if scores.cut_s is None else int((table.time_s <= scores.cut_s).sum())
        colour = canvas.RED if scores.failure else canvas.BLUE
        num_failed += scores.failure is not None
        too_fast = table.speed_mps - table.recorded_mps
        for axes, values in zip(places, (table.left_m, table.turned_deg, too_fast), strict=True):
            axes.plot(table.time_s[:until], values[:until], color=colour, linewidth=1.0, alpha=0.7)
            axes.plot(table.time_s[until - 1 :], values[until - 1 :], ":", color=colour, alpha=0.3)
            if scores.failure:
                axes.plot(table.time_s[until - 1], values[until - 1], "x", color=colour)
    units = ("m left of the lane", "° left of the lane", "m/s above recorded")
    for axes, unit, most in zip(places, units, (6.0, 45.0, 15.0), strict=True):
        canvas.quiet(axes, "y", y=unit)
        axes.axhline(0, color=canvas.INK, linewidth=0.8)
        axes.set_ylim(-most, most)
    places[-1].set_xlabel("s", fontsize=9)
    picture.note(
        "Cross: the collision at fault, or the first corner off the road. Dotted: after it."
    )
    picture.finding(f"{num_failed} of {len(drives)} drives end in a collision or off the road")
    return picture


def strip(drive: StoredDrive) -> canvas.Picture:
    """Frames of the front camera, one per second."""
    if not len(drive.pictures):
        return canvas.sentence("No pictures are kept of this drive: only of the model's own")
    table, scores = over_time(drive), terms(drive.episode)
    chosen = canvas.evenly(len(drive.pictures), 2 * COLS)
    captions = []
    for place in chosen:
        row = table.iloc[10 * place]
        captions.append(f"{row.time_s:.0f} s, {row.speed_mps:.0f} m/s, {row.left_m:+.1f} m")
    words = f"{scores.failure} after {scores.cut_s:.1f} s" if scores.failure else "no failure"
    title = f"Seed {drive.episode.seed}, scene score {scores.scene_score:.2f}: {words}"
    images = [drive.pictures[place] for place in chosen]
    return canvas.in_rows(images, captions, title, COLS)


def film(drive: StoredDrive, path: Path) -> Path:
    """Write an animated PNG of a drive from above, heading up, at five frames per second.

    The ego is blue, other actors grey, the recorded path orange.
    """
    steps = range(0, len(drive.episode.ego), FRAME_STEPS)
    pictures = [_from_above(drive, step) for step in steps]
    buffer = io.BytesIO()
    pause_ms = FRAME_STEPS * 100
    pictures[0].save(
        buffer, "PNG", save_all=True, append_images=pictures[1:], duration=pause_ms, loop=0
    )
    files.write_bytes(path, buffer.getvalue())
    return path


def _from_above(drive: StoredDrive, step: int) -> Image.Image:
    episode = drive.episode
    x, y, yaw, speed = episode.ego[step]
    cos, sin, scale = np.cos(yaw), np.sin(yaw), FILM_PX / (AHEAD_M + BEHIND_M)

    def pixels(points: np.ndarray) -> list[tuple[float, float]]:
        away = np.asarray(points)[..., :2] - (x, y)
        ahead, left = away @ (cos, sin), away @ (-sin, cos)
        return list(zip(FILM_PX / 2 - scale * left, scale * (AHEAD_M - ahead), strict=True))

    sheet = Image.new("RGB", (FILM_PX, FILM_PX), GRASS)
    draw = ImageDraw.Draw(sheet)
    near = np.hypot(*(episode.road[:, :2] - (x, y)).T) < 2 * AHEAD_M
    road = episode.road[near]
    left, right = _beside(road, episode.drivable[0]), _beside(road, -episode.drivable[1])
    if len(road) > 1:
        draw.polygon(pixels(np.concatenate([left, right[::-1]])), fill=TAR)
        for aside in (episode.lane_width / 2, -episode.lane_width / 2):
            draw.line(pixels(_beside(road, aside)), fill=LINE, width=2)
    draw.line(pixels(episode.reference), fill=canvas.ORANGE, width=2)
    draw.line(pixels(episode.ego[: step + 1]), fill=canvas.BLUE, width=2)
    others = episode.actors[step][:, BOX]
    for box in others[np.isfinite(others).all(axis=1)]:
        draw.polygon(pixels(geometry.corners(box)), fill=OTHER, outline=canvas.INK)
    ego = geometry.corners(geometry.boxes(episode.ego[step], episode.size))
    draw.polygon(pixels(ego), fill=canvas.BLUE, outline=canvas.INK)
    words = f"{episode.time_s[step]:4.1f} s   {speed:4.1f} m/s"
    scores = terms(episode)
    if scores.cut_s is not None and episode.time_s[step] >= scores.cut_s:
        words += f"   {scores.failure}"
    draw.text((8, 6), words, fill=canvas.INK, font=ImageFont.load_default(size=15))
    return sheet


def _beside(road: np.ndarray, left_m: float) -> np.ndarray:
    """(M, 2) points `left_m` to the left of a line (M, 3) x, y, yaw."""
    aside = np.column_stack([-np.sin(road[:, 2]), np.cos(road[:, 2])])
    moved: np.ndarray = road[:, :2] + left_m * aside
    return moved
