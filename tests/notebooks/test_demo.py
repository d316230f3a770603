"""The demo as `make demo` runs it: its model must learn from the pixels."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from avomni_lib import files
from avomni_lib.dataset.select import split
from avomni_lib.evaluation import metrics
from avomni_lib.evaluation.ladder import ROWS
from avomni_lib.params import Params
from tests.notebooks.small_run import avomni

CONSTANTS = ("mean", "median")
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def p(tmp_path_factory: pytest.TempPathFactory) -> Params:
    """The finished demo, with all its files below a temporary folder."""
    folder = tmp_path_factory.mktemp("demo")
    demo = str(files.PROJECT_ROOT / "params" / "demo.yaml")
    changes = [f"run.outputs_dir={folder}", f"dataset.local_dir={folder}/data"]
    words = ["run", demo, "--set", changes[0], "--set", changes[1]]
    done = avomni(*words, timeout_s=3000)
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    return Params.from_files([demo], changes)


@pytest.fixture(scope="module")
def figures(p: Params) -> dict:
    return json.loads((p.run_dir / "06_evaluate" / "result.json").read_text())["figures"]


@pytest.fixture(scope="module")
def answers(p: Params) -> dict[str, dict[str, np.ndarray]]:
    """Model -> its rows, read with pyarrow and pandas only."""
    table = pq.read_table(p.run_dir / "06_evaluate" / "answers.parquet").to_pandas()
    return dict(list(table.groupby("model")))


def test_demo_holds_out_enough_clips(figures: dict, p: Params):
    assert figures["num_windows"] >= 200
    assert figures["num_clips"] >= 20
    chosen = json.loads((p.run_dir / "chosen.json").read_text())["clip_ids"]
    rows = pq.read_table(p.run_dir / "06_evaluate" / "answers.parquet").to_pydict()
    assert set(rows["clip_id"]) <= set(chosen["test"])
    assert not set(chosen["test"]) & (set(chosen["train"]) | set(chosen["val"]))


def test_adapter_beats_constants_base_and_blind_models(figures: dict):
    """The intervals over held-out clips exclude zero."""
    rows = {row["name"]: row for row in figures["ladder"]}
    assert list(rows) == list(ROWS)
    for name in ("mean", "median", "base", "blind", "trained_blind", "shuffled", "one_camera"):
        assert rows[name]["difference_low"] > 0, name
    assert rows["adapted"]["value"] <= 0.25 * rows["mean"]["value"]
    assert figures["displacement_mae_m"]["adapted"] < figures["displacement_mae_m"]["mean"]
    assert {row["num_clips"] for row in rows.values()} == {figures["num_clips"]}


def test_claims_compare_the_adapter_with_past_motion(figures: dict):
    """After 1.5 s a car is nearly as fast as before, so past motion is a strong baseline."""
    claims = {claim["text"].split(":")[0]: claim["holds"] for claim in figures["claims"]}
    helps = next(text for text in claims if text.startswith("vision helps by"))
    assert claims[helps]
    rows = {row["name"]: row for row in figures["ladder"]}
    alone = next(text for text in claims if "past motion alone" in text)
    assert claims[alone] == (rows["ego_motion"]["difference_low"] > 0)


def test_blind_models_are_no_better_than_a_constant(figures: dict):
    """They predict a constant; which constant is nearest to the held-out clips is chance."""
    mae = figures["speed_mae_mps"]
    assert min(mae["blind"], mae["trained_blind"]) >= 0.9 * min(mae[name] for name in CONSTANTS)


def test_answers_are_valid_and_have_the_exact_form(figures: dict):
    assert figures["valid_share"] >= 0.99
    assert figures["exact_share_by_row"]["adapted"] >= 0.99


def test_figures_can_be_recomputed_from_the_answers(figures: dict, answers: dict):
    """Computed here, without avomni_lib.evaluation."""
    mean = answers["mean"]["speed_mps"].iloc[0]
    for model, rows in answers.items():
        predicted = rows["speed_mps"].fillna(mean)
        mae = float(np.abs(predicted - rows["speed_true_mps"]).mean())
        assert mae == pytest.approx(figures["speed_mae_mps"][model], rel=1e-9), model
        assert len(rows) == figures["num_windows"]
    assert set(answers) == set(ROWS)


def test_metrics_recomputed_from_the_saved_answers_agree(figures: dict, p: Params):
    recomputed = metrics.figures(metrics.read(p.run_dir / "06_evaluate" / "answers.parquet"))
    assert {name: figures[name] for name in recomputed} == recomputed


def test_every_stage_after_the_split_records_its_hash(figures: dict, p: Params):
    frozen = split.sha256_of(p)
    assert figures["split_sha256"] == frozen
    for name in ("02_download", "03_etl", "04_tiles", "05_train", "06_evaluate", "07_live"):
        result = json.loads((p.run_dir / name / "result.json").read_text())
        assert result["split_sha256"] == frozen, name


def test_memory_estimate_matches_the_measurement(p: Params):
    """The time is not compared, because it depends on the load of the machine."""
    trained = json.loads((p.run_dir / "05_train" / "result.json").read_text())["figures"]
    assert trained["estimate"].keys() == trained["measured"].keys() == {"memory_gb", "seconds"}
    estimated, measured = trained["estimate"]["memory_gb"], trained["measured"]["memory_gb"]
    assert estimated == pytest.approx(measured, rel=0.15)


def test_adapter_is_the_best_checkpoint_on_held_out_clips(p: Params):
    trained = json.loads((p.run_dir / "05_train" / "result.json").read_text())["figures"]
    best = min(trained["heldout"], key=lambda row: row["speed_mae_mps"])
    (checkpoint,) = p.checkpoints_dir.glob(f"*/checkpoint-{best['step']}")
    adapter, expected = (
        load_file(folder / WEIGHTS) for folder in (p.run_dir / "adapter", checkpoint)
    )
    assert adapter.keys() == expected.keys()
    assert all(np.array_equal(adapter[name], expected[name]) for name in adapter)


def test_live_session_is_answered_in_the_form_of_the_target(p: Params):
    """The session plays a held-out clip; nearly all answers must have the form."""
    live = json.loads((p.run_dir / "07_live" / "result.json").read_text())["figures"]
    assert live["num_answers"] >= 2 and live["num_gaps"] <= 0.1 * live["num_ticks"]
    assert live["num_answers"] + live["num_overtaken"] <= 17
    assert set(live["latency_s"]) == {"camera", "grid", "wait", "model", "total"}
    lines = (p.run_dir / "07_live" / "session" / "live.jsonl").read_text().splitlines()
    answers = [json.loads(line)["text"] for line in lines if '"kind": "answer"' in line]
    assert len(answers) == live["num_answers"]
    assert sum("Avg Velocity" in text for text in answers) >= 0.9 * len(answers)


@pytest.fixture(scope="module")
def path_rows(p: Params) -> dict[str, dict]:
    """Row name -> row of the ladder of demo_future.yaml, run on the clips of the demo."""
    second = str(files.PROJECT_ROOT / "params" / "demo_future.yaml")
    changes = [f"run.outputs_dir={p.run.outputs_dir}", f"dataset.local_dir={p.dataset.local_dir}"]
    words = ["run", second, "--set", changes[0], "--set", changes[1]]
    done = avomni(*words, timeout_s=3000)
    assert done.returncode == 0, done.stderr
    result = Params.from_files([second], changes).run_dir / "06_evaluate" / "result.json"
    figures = json.loads(result.read_text())["figures"]
    assert figures["exact_share_by_row"]["adapted"] == 1.0
    return {row["name"]: row for row in figures["ladder"]}


def test_path_model_beats_constant_velocity_and_blind_models(path_rows: dict[str, dict]):
    assert path_rows["adapted"]["value"] <= 0.5 * path_rows["mean"]["value"]
    assert path_rows["adapted"]["value"] < path_rows["constant_velocity"]["value"]
    for name in ("mean", "base", "blind", "trained_blind", "shuffled"):
        assert path_rows[name]["difference_low"] > 0, name
