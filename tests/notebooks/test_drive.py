"""Notebook 08_drive on a small run whose model predicts a path."""

import json
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from PIL import Image

from avomni_lib.driving import ladder
from avomni_lib.notebook.run import runs
from avomni_lib.params import Params
from tests.notebooks.small_run import avomni, write_params

POLICIES = ["expert", "constant_velocity", "ego_motion", "blind", "adapted"]


@pytest.fixture(scope="module")
def params(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A params file whose run has finished 08_drive."""
    path = write_params(
        tmp_path_factory.mktemp("driven"),
        dataset={"world": {"num_chunks": 2, "clips_per_chunk": 5, "clip_seconds": 3.0}},
        training={"target": "future_v1", "max_steps": 2, "blind_steps": 0},
        evaluation={"constrained": True},
        driving={"num_episodes": 2, "seconds": 2.0, "policies": POLICIES, "hop": 4},
    )
    done = avomni("run", str(path), "--only", "01", "02", "03", "05", "08")
    assert done.returncode == 0, done.stdout + done.stderr
    return path


def test_drive_figures_can_be_recomputed_from_the_scores(params: Path):
    p = Params.from_files([params])
    figures = runs.read_result(p, "08_drive")["figures"]
    assert [row["name"] for row in figures["drive"]] == POLICIES
    folder = runs.stage_dir(p, "08_drive")
    scores = pd.read_parquet(folder / "drives.parquet")
    recomputed = ladder.figures(scores, p.run.seed)
    assert json.loads(json.dumps(recomputed["drive"])) == figures["drive"]
    assert len(list((folder / "episodes").glob("*.npz"))) == 2 * len(POLICIES)
    assert Image.open(folder / "worst.png").n_frames == 11
    pictures = {path.stem for path in (folder / "figures").glob("*.png")}
    assert pictures == {"ladder", "lane", "strip", "open_and_closed"}


def test_executed_notebook_shows_scores_and_worst_drive_without_errors(params: Path):
    p = Params.from_files([params])
    path = runs.executed_path(p, runs.BY_NAME["08_drive"])
    outputs = [
        output
        for cell in nbformat.read(path, as_version=4).cells
        if cell.cell_type == "code"
        for output in cell.outputs
    ]
    kinds = [kind for output in outputs for kind in output.get("data", {})]
    assert kinds.count("image/png") == 5  # four plots and the animation of the worst drive
    text = "".join(output.get("data", {}).get("text/plain", "") for output in outputs)
    assert "scene score" in text and "turned_deg" in text
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]


def test_drive_is_stale_only_for_parameters_that_it_reads(params: Path):
    def state(*changes: str) -> runs.StageState:
        return runs.state(Params.from_files([params], changes), "08_drive")

    assert state().done
    assert state("driving.batch_size=3", "live.port=1", "evaluation.num_worst=2").done
    for change in ("driving.seconds=1.0", "driving.traffic=replay", "driving.smoothing=0.1"):
        key = change.partition("=")[0]
        assert key in state(change).reason and not state(change).done
