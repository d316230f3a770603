"""`avomni drive`: its parameters, reuse of finished episodes, and figures from its table."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from avomni_lib.__main__ import main
from avomni_lib.driving import drive, ladder
from avomni_lib.errors import AvomniError
from avomni_lib.notebook.plots import driving as plots
from avomni_lib.notebook.run import pipeline, runs
from avomni_lib.params import Params

OWN = """
import numpy as np

def half_speed(observation):
    assert observation["cameras"].shape == (4, 72, 128, 3)
    speed = observation["ego"][-1, 3] / 2
    return np.stack([speed * 0.4 * np.arange(1, 17), np.zeros(16)], axis=1)
"""
SHORT = {
    "num_episodes": 2,
    "seconds": 1.0,
    "policies": ["expert", "constant_velocity", "slow_policy:half_speed"],
}


@pytest.fixture(scope="module")
def params(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("driven")
    (folder / "slow_policy.py").write_text(OWN)
    path = folder / "short.yaml"
    path.write_text(
        json.dumps(
            {
                "extends": "params/demo_future.yaml",
                "run": {"outputs_dir": str(folder)},
                "driving": SHORT,
            }
        )
    )
    return path


def driven(params: Path, capsys: pytest.CaptureFixture, *changes: str) -> dict:
    words = [word for change in changes for word in ("--set", change)]
    code = main(["drive", str(params), *words, "--json"])
    output = json.loads(capsys.readouterr().out)
    assert code == 0, output
    return output


def dates_of(output: dict) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in Path(output["episodes"]).glob("*.npz")}


def test_only_missing_or_damaged_episodes_are_driven_again(
    params: Path, capsys: pytest.CaptureFixture
):
    first = driven(params, capsys)
    rows = {row["name"]: row for row in first["drive"]}
    assert list(rows) == SHORT["policies"]
    assert {row["num_episodes"] for row in rows.values()} == {2}
    assert rows["slow_policy:half_speed"]["terms"]["progress"] < rows["expert"]["terms"]["progress"]
    before = dates_of(first)
    assert len(before) == 6
    missing, damaged = sorted(before)[:2]
    (Path(first["episodes"]) / missing).unlink()
    (Path(first["episodes"]) / damaged).write_bytes(b"PK")
    again = driven(params, capsys)
    assert again["drive"] == first["drive"] and again["notes"] == first["notes"]
    assert "expert" in first["notes"]
    after = dates_of(again)
    assert {name for name in before if after[name] != before[name]} == {missing, damaged}
    user_module = params.with_name("slow_policy.py")
    user_module.write_text(OWN.replace("/ 2", "/ 3"))
    changed = dates_of(driven(params, capsys))
    assert {name.partition("_3")[0] for name in after if changed[name] != after[name]} == {
        "slow_policy..half_speed"
    }, "the policy's code has changed"


def test_figures_and_plots_are_made_from_the_table(params: Path, tmp_path: Path):
    p = Params.from_files([params])
    made = drive.drive(p, p.run_dir / "08_drive")
    scores = pd.read_parquet(made.write(tmp_path / "drives.parquet"))
    assert ladder.figures(scores, p.run.seed)["drive"] == made.figures["drive"]
    ends = made.ends("expert")
    assert ends.index.tolist() == sorted(drive.seeds_of(p), key=ends.index.tolist().index)
    assert ends.time_s.tolist() == pytest.approx([1.0, 1.0]) and ends.failure.isna().all()
    one = made.of("expert", ends.index[0])
    table = drive.over_time(one)
    assert len(table) == 11 and table.left_m.abs().max() < 0.5
    np.testing.assert_allclose(table.speed_mps, one.episode.ego[:, 3])
    movie = Image.open(plots.film(one, tmp_path / "worst.png"))
    assert movie.n_frames == 6 and len(np.unique(movie.convert("RGB"))) > 4
    assert plots.ladder(made.figures).png() and plots.lane(made.drives["expert"]).png()
    assert "no pictures" in plots.strip(one).get_suptitle().lower()
    error = {"metric": "ade_m", "value": 3.0, "low": 2.0, "high": 4.0}
    beside = plots.open_and_closed(made.figures, [{"name": "constant_velocity", **error}])
    assert "constant velocity" in beside.get_suptitle()


def test_all_mistakes_in_the_section_are_reported_at_once():
    wrong = {"policies": ["expert", "driver"], "seconds": 1.25, "num_episodes": 0, "events": ["x"]}
    with pytest.raises(AvomniError) as error:
        Params.from_values({"driving": {**wrong, "traffic": "none", "smoothing": 1}})
    assert "parameters to fix: 6" in str(error.value)
    for words in ("'driver'", "not a number of steps", "driving.events", "driving.traffic"):
        assert words in str(error.value), words


def test_run_without_a_path_target_or_episodes_is_refused():
    with pytest.raises(AvomniError, match="no drive is asked for"):
        drive.plan(Params())
    with pytest.raises(AvomniError, match="says no path to drive along"):
        drive.plan(Params.from_values({"driving": {"num_episodes": 2}}))


def test_drive_stage_exists_only_if_episodes_are_requested(params: Path):
    p = Params.from_files([params])
    assert [stage.name for stage in pipeline.choose(p)][-1] == "08_drive"
    assert runs.states(p)[-1].reason == "not run yet"
    assert [stage.name for stage in pipeline.choose(Params())][-1] == "07_live"
    with pytest.raises(AvomniError, match="no stage is called '08'"):
        pipeline.choose(Params(), only=["08"])


def test_plan_names_user_policies(params: Path, capsys: pytest.CaptureFixture):
    assert main(["plan", str(params)]) == 0
    assert "code of your own, slow_policy:half_speed" in capsys.readouterr().err
