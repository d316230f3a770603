"""The cost of a tiling choice equals the figures of the plan of a run with that choice."""

import dataclasses
import json

import pytest

from avomni_lib import files
from avomni_lib.dataset import cameras
from avomni_lib.etl.run import forecast
from avomni_lib.notebook.tiles.choice import Footage, TilingChoice, cost, grid_of, in_short
from avomni_lib.params import Params
from avomni_lib.training.forecast import estimate

REAL = Params.from_files([files.PROJECT_ROOT / "params" / "mi300x.yaml"])
DEMO = Params.from_files([files.PROJECT_ROOT / "params" / "demo.yaml"])


def footage(p):
    return Footage.of(p, 100, None)


def choice_of(p, **changes):
    return dataclasses.replace(TilingChoice.of(p), **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"grid": cameras.grid("7-cam")},
        {"tile": (224, 128), "fit": "crop"},
        {"sample_hz": 4.0, "sequence_length": 24},
    ],
    ids=str,
)
def test_cost_equals_the_plan_of_a_run_with_the_choice(changes):
    choice = choice_of(REAL, **changes)
    changed, costed = choice.laid_over(REAL), cost(REAL, choice, footage(REAL)).figures
    plan = estimate.plan_run(changed).figures
    tokens = estimate.tokens_per_sample(changed)
    assert (costed["vision_tokens"], costed["tokens"]) == (tokens.vision, tokens.total)
    clips = footage(REAL)
    storages = forecast.storages(changed, clips.num_clips, clips.seconds, clips.video, "pyav")
    by_storage = storages[REAL.processing.storage]
    assert costed["cache_gb"] == pytest.approx(by_storage["cache_bytes"] / 1e9)
    workers = costed["etl_seconds"]
    assert by_storage["cpu_seconds"] / workers == pytest.approx(
        round(by_storage["cpu_seconds"] / workers)
    )
    hours = plan["optimizer_steps"] * costed["step_seconds"] / 3600
    # The plan rounds to three digits.
    assert hours == pytest.approx(plan["train_hours"], abs=0.0005)


def test_custom_grid_cost_scales_with_cameras_and_cells():
    four = [camera.name for camera in cameras.grid("4-cam").cameras]
    known, custom = choice_of(REAL), choice_of(REAL, grid=grid_of(four))
    costed, expected = cost(REAL, custom, footage(REAL)), cost(REAL, known, footage(REAL))
    for name in ("vision_tokens", "sample_mb", "cache_gb", "etl_seconds"):
        assert costed.figures[name] == pytest.approx(expected.figures[name])
    two = cost(REAL, choice_of(REAL, grid=grid_of(four[:2])), footage(REAL)).figures
    for name in ("vision_tokens", "sample_mb"):
        assert 2 * two[name] == expected.figures[name]
    for name in ("cache_gb", "etl_seconds"):
        assert 2 * two[name] == pytest.approx(expected.figures[name], rel=0.01)


def test_cost_warns_of_choices_that_training_would_refuse():
    too_long = cost(
        REAL, choice_of(REAL, grid=cameras.grid("7-cam"), tile=(1920, 1088)), footage(REAL)
    )
    assert "too long: 05_train would refuse it" in too_long.warnings[0]
    assert "(too long: 05_train would refuse it)" in in_short(too_long)
    not_divisible = cost(REAL, choice_of(REAL, tile=(100, 60)), footage(REAL))
    assert (
        "05_train would refuse it" in not_divisible.warnings[0]
        and "does not divide" in not_divisible.warnings[0]
    )
    assert "vision_tokens" not in not_divisible.figures and "does not divide" in in_short(
        not_divisible
    )


def test_step_time_is_scaled_from_the_training_probe(tmp_path):
    run = DEMO.run.model_copy(update={"outputs_dir": str(tmp_path)})
    p = DEMO.model_copy(update={"run": run})
    label, value, note = cost(p, choice_of(p), footage(p)).rows[-1]
    assert (label, value) == ("a step", "not known") and "05_train" in note
    files.write_json(p.checkpoints_dir / "params.json", json.loads(json.dumps(p.values())))
    files.write_json(
        p.checkpoints_dir / "probe.json", {"key": "", "value": {"seconds_per_step": 0.5}}
    )
    assert cost(p, choice_of(p), footage(p)).figures["step_seconds"] == pytest.approx(0.5)
    wider = cost(p, choice_of(p, tile=(96, 64)), footage(p)).figures["step_seconds"]
    assert 1.0 < wider < 4.0, "four times the vision tokens beside the same text"
    other = p.model_copy(update={"training": p.training.model_copy(update={"batch_size": 4})})
    assert "step_seconds" not in cost(other, choice_of(other), footage(other)).figures
    costed = cost(REAL, choice_of(REAL), footage(REAL)).rows[-1]
    assert "estimated on an MI300X" in costed[2]
