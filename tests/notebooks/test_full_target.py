"""The whole chain on full_v1, with past motion in the prompt and constrained decoding."""

import json
import re

import pyarrow.parquet as pq
import pytest

from avomni_lib.evaluation import metrics
from avomni_lib.evaluation.ladder import ROWS
from avomni_lib.params import Params
from avomni_lib.training.targets import target
from tests.notebooks.small_run import avomni, write_params
from tests.test_targets_full import summary_of

# Past motion alone cannot give this target, so these rows are absent.
EXPECTED_ROWS = [name for name in ROWS if name not in ("constant_velocity", "ctra", "ego_motion")]


@pytest.fixture(scope="module")
def p(tmp_path_factory: pytest.TempPathFactory) -> Params:
    folder = tmp_path_factory.mktemp("full")
    path = write_params(
        folder,
        processing={"obstacles": True},
        prompt={"ego_history": True},
        model={"max_seq_length": 2048},
        training={"target": "full_v1", "blind_steps": 2},
        evaluation={"max_new_tokens": 700, "num_samples": 1, "constrained": True},
    )
    done = avomni("run", str(path), timeout_s=1500)
    assert done.returncode == 0, done.stdout + done.stderr
    return Params.from_files([path])


def result(p: Params, stage: str) -> dict:
    return json.loads((p.run_dir / stage / "result.json").read_text())


def test_every_row_answers_in_the_exact_form(p: Params):
    figures = result(p, "06_evaluate")["figures"]
    assert [row["name"] for row in figures["ladder"]] == EXPECTED_ROWS
    adapted = figures["metrics"]["adapted"]
    for name in ("speed_mae_mps", "ade_m", "min_ade1_m", "macro_f1", "cause_word_f1"):
        assert adapted[name]["value"] >= 0, name
    # Six training steps do not teach the form; constrained decoding enforces it.
    assert figures["constrained"] and figures["ego_history"]
    assert set(figures["exact_share_by_row"].values()) == {1.0}


def test_summary_in_every_answer_gives_its_speed(p: Params):
    table = pq.read_table(p.run_dir / "06_evaluate" / "answers.parquet").to_pylist()
    for row in table:
        assert target("summary_v1").parse(summary_of(row["answer"])).speed_mps == row["speed_mps"]
    assert {row["sample"] for row in table if row["model"] == "adapted"} == {0, 1}
    assert metrics.figures(metrics.read(p.run_dir / "06_evaluate" / "answers.parquet"))


def test_past_motion_is_in_the_prompt_and_causes_have_a_source(p: Params):
    record = json.loads((p.run_dir / "adapter" / "record.json").read_text())
    assert record["ego_history"] is True
    notebook = (p.run_dir / "05_train" / "05_train.ipynb").read_text()
    assert re.search(r"by people", notebook) and re.search(r"by this program's templates", notebook)


def test_report_shows_paths_and_manoeuvres(p: Params):
    drawn = {path.stem for path in (p.run_dir / "06_evaluate" / "figures").glob("*.png")}
    assert {"ladder", "predicted", "horizon", "manoeuvres", "worst", "typical"} <= drawn
    assert (p.run_dir / "06_evaluate" / "report.html").stat().st_size > 100_000
