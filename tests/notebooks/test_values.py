"""Values shown by cells of the notebooks, on tables and caches that no whole run produces."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import pytest

from avomni_lib import files
from avomni_lib.dataset.findings import Finding, summary
from avomni_lib.etl.cache import memmap, windows
from avomni_lib.evaluation import metrics
from avomni_lib.evaluation.scores import Scores
from avomni_lib.training.targets import target
from tests import answered, cached_run


def run_section(notebook: str, heading: str, **names: Any) -> dict[str, Any]:
    """The variables that the code of a section defines, run without a kernel."""
    path = files.PROJECT_ROOT / "notebooks" / f"{notebook}.ipynb"
    is_in = False
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown" and cell.source.startswith("## "):
            is_in = cell.source.startswith(f"## {heading}")
        elif cell.cell_type == "code" and is_in:
            exec(cell.source, names)
    return names


def scored(table) -> SimpleNamespace:
    return SimpleNamespace(answers=table, figures=metrics.figures(table))


def test_error_table_scores_unreadable_answers_as_the_mean():
    samples, texts = answered.drives(6)
    texts[3] = "I do not know."
    score = scored(answered.summaries(samples, (14.0, 21.0), adapted=texts, base=texts))
    shown = run_section("06_evaluate", "Look at the answers", scored=score, pd=pd, Scores=Scores)
    assert shown["errors"].adapted.mean() == pytest.approx(
        score.figures["speed_mae_mps"]["adapted"]
    )
    assert shown["in_the_ladder"] == score.figures["speed_mae_mps"]["adapted"]
    assert shown["worst"].error.is_monotonic_decreasing


def test_error_table_of_a_path_target_is_in_metres():
    path_target = target("future_v1")
    samples = [answered.window("a", n, 5.0, 7.5, future=answered.straight(5.0)) for n in range(4)]
    right = [path_target.render(sample.truth) for sample in samples]
    faster = answered.window("a", 0, 6.0, 7.5, future=answered.straight(6.0)).truth
    texts = [path_target.render(faster), *right[1:]]
    score = scored(answered.table(path_target, samples, {"mean": right, "adapted": texts}))
    shown = run_section("06_evaluate", "Look at the answers", scored=score, pd=pd, Scores=Scores)
    assert shown["worst"].index[0] == ("a", 0)
    assert shown["worst"].error.tolist() == pytest.approx(
        [3.25, 0, 0, 0], abs=0.01
    )  # 1 m/s over 3.25 s on average
    assert shown["in_the_ladder"] == pytest.approx(3.25 / 4, abs=0.01)


@pytest.mark.parametrize("storage", ["raw", "jpeg"])
def test_cache_can_be_opened_with_numpy_alone(storage: str, tmp_path: Path):
    p = cached_run.make(tmp_path, processing={"storage": storage})
    built = SimpleNamespace(cache=memmap.Cache.open(p.cache_dir))
    shown = run_section("03_etl", "Open the cache", built=built, memmap=memmap, np=np, pd=pd)
    assert ("frames" in shown["arrays"]) == (storage == "raw")
    assert shown["frame"].dtype == np.uint8 and shown["frame"].shape == shown["shard"].frame_shape
    poses, clip = shown["poses"], shown["clip"]
    assert len(poses) == len(clip) and poses.time_s.is_monotonic_increasing
    distance_m = poses.distance_m.iloc[-1] - poses.distance_m.iloc[0]
    assert shown["driven_m"] == pytest.approx(distance_m, rel=0.01)
    shown = run_section(
        "03_etl",
        "See where the windows lie",
        built=built,
        p=p,
        windows=windows,
        stage=SimpleNamespace(save=lambda *_: None),
        plots=SimpleNamespace(timelines=id),
    )
    assert len(shown["all_windows"]) > 0 and shown["length"] == p.processing.sequence_length


def test_custom_grid_is_made_of_the_runs_tiles():
    from avomni_lib.dataset import cameras
    from avomni_lib.etl.clip import tiling
    from avomni_lib.notebook.tiles.choice import TilingChoice

    grid, tile = cameras.grid("4-cam"), (32, 16)
    frame = np.zeros((2 * tile[1], 2 * tile[0], 3), dtype=np.uint8)
    for number, camera in enumerate(grid.cameras):
        tiling.tile_of(frame[None], grid, tile, camera.name)[:] = 50 * (number + 1)
    view = SimpleNamespace(
        grid_frame=lambda: frame,
        choice=TilingChoice(grid, tile, "stretch", 10.0, 16),
        figure_of=lambda choice: None,
    )
    shown = run_section(
        "04_tiles",
        "Make a grid of your own",
        view=view,
        np=np,
        tiling=tiling,
        stage=SimpleNamespace(save=lambda *_: None),
        canvas=SimpleNamespace(in_rows=lambda *_: None),
    )
    corners = shown["mine"][:: tile[1], :: tile[0], 0]
    assert corners.tolist() == [[50, 50], [150, 200]]
    assert re.fullmatch(r"camera_\w+", shown["names"][0])
    assert [list(row[:2]) for row in shown["larger"].grid.value][:2] == [
        [shown["names"][0]] * 2
    ] * 2


@pytest.mark.parametrize("bad", [[], ["damaged", "lost"]])
def test_audit_and_cache_tables_with_and_without_faults(bad: list[str]):
    sizes = {"bytes_fetched": 4_000_000, "cache_bytes": 250_000, "bytes_evicted": 0}
    ignored = SimpleNamespace(save=lambda *_: None)
    pictures = SimpleNamespace(matrix=id, contact_sheet=id)
    clips = [
        {"clip_id": f"clip-{n}", "split": "train", "state": state, "reason": "why" * (n > 0)}
        for n, state in enumerate(["ok", *bad])
    ]
    audited = SimpleNamespace(
        clips=clips,
        figures={"clips_by_state": {"sound": 1}, "streams": {"front": {"codecs": {"h264": 9}}}},
        summary=summary([Finding("odd", "a gap", "2 frames are missing") for _ in bad]),
    )
    shown = run_section(
        "01_audit",
        "Look at every file",
        audit=SimpleNamespace(audit=lambda *_, **__: audited),
        **{"p": None, "hub": None, "pd": pd, "stage": ignored, "plots": pictures},
        **{"progress": SimpleNamespace(bar=lambda: None), "tables": None},
    )
    assert list(shown["every"].columns) == ["clip_id", "split", "state", "reason"]
    chunks = [{"chunk": 7, "num_clips": 1, "num_read": 1, **sizes}] if bad else []
    built = SimpleNamespace(clips=clips, chunks=chunks, cache=None)
    built.figures = {"seconds": 2.0, "cpu_seconds": 3.0, "num_clips_read": 1}
    p = SimpleNamespace(download=SimpleNamespace(evict_raw=False, target_size_gb=1.0))
    names = {"p": p, "pd": pd, "stage": ignored, "built": built}
    names |= {"build": SimpleNamespace(build=lambda *_: built)}
    names |= {"progress": SimpleNamespace(bar=lambda: None)}
    names |= {"plots": SimpleNamespace(disk=lambda *_: None, contact_sheet=id)}
    shown = run_section("03_etl", "Build the cache", **names)
    assert shown["chunks"].bytes_fetched.tolist() == ([4.0] if bad else [])
    shown = run_section("03_etl", "See what went in", **names)
    assert shown["clips"].state.tolist() == ["ok", *bad]
