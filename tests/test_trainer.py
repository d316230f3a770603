"""The stage as a notebook runs it: plan, answers and two trainings, all in one worker process."""

import contextlib
import ctypes
import multiprocessing
import os
import struct

import pytest

from avomni_lib import files
from avomni_lib.errors import AvomniError
from avomni_lib.evaluation import answer
from avomni_lib.params import CONFIDENTIAL
from avomni_lib.plan import gigabytes
from avomni_lib.training.fit import job, trainer
from avomni_lib.training.model import adapter, load
from tests import cached_training, published_set
from tests.killed_training import wait_for


@pytest.fixture(scope="module")
def published_run(tmp_path_factory):
    """Parameters of a run with a built cache: three clips, one of them in train."""
    return cached_training.make(tmp_path_factory.mktemp("run"))


class Opens:
    """Counts how often any process opens a file, by inotify."""

    IN_OPEN = 0x20

    def __init__(self, path):
        libc = ctypes.CDLL(None, use_errno=True)
        self.events = libc.inotify_init1(os.O_NONBLOCK)
        assert libc.inotify_add_watch(self.events, os.fsencode(path), self.IN_OPEN) > 0

    def count(self):
        """Number of opens since the last call."""
        num_opens = 0
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.events, 4096):
                place = 0
                while place < len(data):
                    num_opens += 1
                    place += 16 + struct.unpack_from("iIII", data, place)[3]
        return num_opens


def test_stage_plans_trains_and_answers_with_one_model_load(published_run):
    # This file is opened only where weights are loaded.
    loads = Opens(f"{published_run.model.base_model}/generation_config.json")
    load.load_base(published_run)
    once = loads.count()
    assert once > 0
    # 2 s at 10 Hz are 20 frames: 9 windows of 4 frames, one every 2; 4 windows a step.
    plan = trainer.plan(published_run)
    planned = plan.figures
    assert (planned["num_windows"], planned["num_clips"]) == (9, 1)
    assert planned["optimizer_steps"] == 3
    assert "3 optimizer steps are few" in plan.warnings[0]
    probed = published_run.checkpoints_dir / job.PROBE_FILE
    probe_state = files.state_of(probed)
    assert trainer.plan(published_run).figures == planned
    assert files.state_of(probed) == probe_state, "it is asked once"
    before = answer.before(published_run)
    assert job.running(published_run)["waits"], "it trains when it is told to"

    trained = trainer.train(published_run)
    figures = trained.figures
    assert figures["estimate"] == planned["predicted"]
    assert figures["estimate"].keys() == figures["measured"].keys() == {"memory_gb", "seconds"}
    measured = gigabytes(1e9 * figures["measured"]["memory_gb"])
    assert f"{measured} measured" in str(trainer.compared(trained))
    assert {name: figures[name] for name in planned if name in figures} == {
        name: planned[name] for name in planned if name in figures
    }
    blind = trainer.train_blind(published_run)
    assert blind.adapter.name == "adapter_blind" and blind.record["training"]["blind"]
    after = answer.after(published_run)
    assert [row.base for row in after] == [row.base for row in before]
    assert {row.adapted for row in after} != {row.base for row in before}
    assert job.running(published_run) is None
    assert loads.count() == once, "the base is loaded once for all of it"

    record = adapter.read_record(adapter.adapter_dir(published_run))
    assert record["training_clip_ids"] == [published_set.clip_id_of(0)]
    assert record["notice"] == CONFIDENTIAL
    card = (adapter.adapter_dir(published_run) / "README.md").read_text()
    assert CONFIDENTIAL in card


def test_waiting_worker_ends_with_its_notebook_or_a_changed_plan(published_run, tmp_path):
    p = cached_training.moved(published_run, tmp_path)
    notebook = multiprocessing.get_context("spawn").Process(target=trainer.plan, args=(p,))
    notebook.start()
    wait_for(lambda: (p.checkpoints_dir / job.PROBE_FILE).exists())
    first = job.running(p)["pid"]
    notebook.kill()
    notebook.join()
    wait_for(lambda: job.running(p) is None)
    assert not list(p.checkpoints_dir.glob("*/checkpoint-*")), "a plan alone leaves nothing"

    def with_rate(rate):
        training = p.training.model_copy(update={"learning_rate": rate, "blind_steps": 0})
        return p.model_copy(update={"training": training})

    answer.before(with_rate(1e-3))
    second = job.running(p)["pid"]
    trained = trainer.train(with_rate(2e-3))
    assert trained.record["training"]["learning_rate"] == 2e-3
    assert job.running(p) is None and len({first, second, os.getpid()}) == 3
    assert not (p.run_dir / "adapter_blind").exists()


@pytest.mark.parametrize(
    ("section", "keys", "message"),
    [
        (
            "training",
            {"optimizer": "adamw_9bit"},
            "unknown optimizer 'adamw_9bit'(.|\n)*near it are",
        ),
        ("model", {"max_seq_length": 100}, "model.max_seq_length is 100"),
        ("processing", {"sequence_length": 64}, "no training window"),
        ("run", {"name": "empty"}, "run 03_etl"),
    ],
)
def test_plan_refuses_invalid_training_parameters(published_run, section, keys, message):
    changed = getattr(published_run, section).model_copy(update=keys)
    with pytest.raises(AvomniError, match=message) as caught:
        trainer.plan(published_run.model_copy(update={section: changed}))
    assert "Traceback" not in str(caught.value)
