"""The stage's plan, and its training as a notebook starts it: in a process of its own."""

import pytest

from avomni_lib import files
from avomni_lib.errors import AvomniError
from avomni_lib.plan import gigabytes
from avomni_lib.training.fit import trainer
from avomni_lib.training.model import adapter
from tests import cached_training, published_set


@pytest.fixture(scope="module")
def published_run(tmp_path_factory):
    """Parameters of a run whose cache the ETL has made: three clips, one of them to train on."""
    return cached_training.make(tmp_path_factory.mktemp("run"))


def test_a_cache_is_planned_and_trained_as_it_was_planned(published_run):
    # 2 s at 10 Hz are 20 frames: 9 windows of 4 frames, one every 2; 4 windows a step.
    plan = trainer.plan(published_run)
    planned = plan.figures
    assert (planned["num_windows"], planned["num_clips"]) == (9, 1)
    assert planned["optimizer_steps"] == 3
    assert "3 optimizer steps are few" in plan.warnings[0]
    assert not list(published_run.checkpoints_dir.glob("*/checkpoint-*")), "a probe leaves nothing"
    probed = published_run.checkpoints_dir / trainer.PROBE_FILE
    taken = files.state_of(probed)
    assert trainer.plan(published_run).figures == planned
    assert files.state_of(probed) == taken, "it is asked once"

    trained = trainer.train(published_run)
    figures = trained.figures
    assert figures["estimate"] == planned["predicted"]
    assert figures["estimate"].keys() == figures["measured"].keys() == {"memory_gb", "seconds"}
    measured = gigabytes(1e9 * figures["measured"]["memory_gb"])
    assert f"{measured} measured" in str(trainer.compared(trained))
    assert {name: figures[name] for name in planned if name in figures} == {
        name: planned[name] for name in planned if name in figures
    }
    record = adapter.read_record(adapter.adapter_dir(published_run))
    assert record["training_clip_ids"] == [published_set.clip_id_of(0)]
    assert record["notice"] == adapter.CONFIDENTIAL
    card = (adapter.adapter_dir(published_run) / "README.md").read_text()
    assert adapter.CONFIDENTIAL in card


def test_what_the_first_steps_fail_of_is_told_by_the_plan(published_run):
    def plan_with(**keys):
        changed = published_run.training.model_copy(update=keys)
        return trainer.plan(published_run.model_copy(update={"training": changed}))

    with pytest.raises(AvomniError, match="unknown optimizer 'adamw_9bit'") as caught:
        plan_with(optimizer="adamw_9bit")
    assert "near it are" in str(caught.value) and "Traceback" not in str(caught.value)


def test_a_plan_refuses_what_the_training_would(published_run):
    def plan_with(section, **keys):
        changed = getattr(published_run, section).model_copy(update=keys)
        return trainer.plan(published_run.model_copy(update={section: changed}))

    with pytest.raises(AvomniError, match="model.max_seq_length is 100"):
        plan_with("model", max_seq_length=100)
    with pytest.raises(AvomniError, match="no training window"):
        plan_with("processing", sequence_length=64)
    with pytest.raises(AvomniError, match="run 03_etl"):
        plan_with("run", name="empty")
