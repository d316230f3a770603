"""What a choice costs: the same figures as the plan of a whole run with that choice."""

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


def of(p, **changes):
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
def test_figures_are_those_of_the_plan_of_such_a_run(changes):
    choice = of(REAL, **changes)
    laid, costed = choice.laid_over(REAL), cost(REAL, choice, footage(REAL)).figures
    plan = estimate.plan_run(laid).figures
    tokens = estimate.tokens_per_sample(laid)
    assert (costed["vision_tokens"], costed["tokens"]) == (tokens.vision, tokens.total)
    own = footage(REAL)
    storages = forecast.storages(laid, own.num_clips, own.seconds, own.video, "pyav")
    by_storage = storages[REAL.processing.storage]
    assert costed["cache_gb"] == pytest.approx(by_storage["cache_bytes"] / 1e9)
    workers = costed["etl_seconds"]
    assert by_storage["cpu_seconds"] / workers == pytest.approx(
        round(by_storage["cpu_seconds"] / workers)
    )
    hours = plan["optimizer_steps"] * costed["step_seconds"] / 3600
    assert hours == pytest.approx(plan["train_hours"], abs=0.0005)  # it has three digits


def test_an_own_list_costs_by_its_cameras_and_cells():
    four = [camera.name for camera in cameras.grid("4-cam").cameras]
    known, own = of(REAL), of(REAL, grid=grid_of(four))
    costed, right = cost(REAL, own, footage(REAL)), cost(REAL, known, footage(REAL))
    for name in ("vision_tokens", "sample_mb", "cache_gb", "etl_seconds"):
        assert costed.figures[name] == pytest.approx(right.figures[name])
    two = cost(REAL, of(REAL, grid=grid_of(four[:2])), footage(REAL)).figures
    for name in ("vision_tokens", "sample_mb"):
        assert 2 * two[name] == right.figures[name]
    for name in ("cache_gb", "etl_seconds"):
        assert 2 * two[name] == pytest.approx(right.figures[name], rel=0.01)


def test_what_05_would_refuse_is_said():
    long = cost(REAL, of(REAL, grid=cameras.grid("7-cam"), tile=(1920, 1088)), footage(REAL))
    assert "too long: 05_train would refuse it" in long.warnings[0]
    assert "(too long: 05_train would refuse it)" in in_short(long)
    odd = cost(REAL, of(REAL, tile=(100, 60)), footage(REAL))
    assert "05_train would refuse it" in odd.warnings[0] and "does not divide" in odd.warnings[0]
    assert "vision_tokens" not in odd.figures and "does not divide" in in_short(odd)


def test_seconds_a_step_are_timed_where_05_has_timed_some(tmp_path):
    run = DEMO.run.model_copy(update={"outputs_dir": str(tmp_path)})
    p = DEMO.model_copy(update={"run": run})
    label, value, note = cost(p, of(p), footage(p)).rows[-1]
    assert (label, value) == ("a step", "not known") and "05_train" in note
    files.write_json(p.checkpoints_dir / "params.json", json.loads(json.dumps(p.values())))
    files.write_json(
        p.checkpoints_dir / "probe.json", {"key": "", "value": {"seconds_per_step": 0.5}}
    )
    assert cost(p, of(p), footage(p)).figures["step_seconds"] == pytest.approx(0.5)
    wider = cost(p, of(p, tile=(96, 64)), footage(p)).figures["step_seconds"]
    assert 1.0 < wider < 4.0, "four times the vision tokens beside the same text"
    other = p.model_copy(update={"training": p.training.model_copy(update={"batch_size": 4})})
    assert "step_seconds" not in cost(other, of(other), footage(other)).figures
    costed = cost(REAL, of(REAL), footage(REAL)).rows[-1]
    assert "estimated on an MI300X" in costed[2]
