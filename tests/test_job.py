"""Training in a separate process: followed, found again, stopped, killed; and in two processes.

Some processes are forked from a server that has loaded the slow imports (seven seconds); they run
the same `worker.main`.
"""

import contextlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys

import pytest

from avomni_lib import files
from avomni_lib.errors import AvomniError
from avomni_lib.params import Params
from avomni_lib.plan import Bar
from avomni_lib.training.fit import job, trainer
from avomni_lib.training.fit.checkpoints import Metrics, step_of
from avomni_lib.training.model import adapter
from tests import cached_training, killed_training
from tests.killed_training import same_but_for_time, wait_for

WEIGHTS = "adapter_model.safetensors"
STEPS = 40


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Params:
    training = {"num_epochs": 100, "max_steps": STEPS, "save_steps": 3, "blind_steps": 0}
    return cached_training.make(tmp_path_factory.mktemp("made"), training=training)


@pytest.fixture(scope="module")
def undisturbed(made):
    """The run after an uninterrupted training."""
    trainer.train(made)
    return made


@pytest.fixture
def p(made, undisturbed, tmp_path) -> Params:
    """The same run, untrained, in its own folder."""
    moved = cached_training.moved(made, tmp_path)
    yield moved
    worker = job.running(moved)
    if worker:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker["pid"], signal.SIGKILL)


@contextlib.contextmanager
def forked(p):
    """The run's training as `job` would start it, in a process that starts quickly."""
    path = p.checkpoints_dir / job.PARAMS_FILE
    files.write_json(path, p.values())
    for name in (job.JOB_FILE, job.OUTCOME_FILE):
        (p.checkpoints_dir / name).unlink(missing_ok=True)
    process = killed_training.CONTEXT.Process(target=killed_training.main, args=(path,))
    process.start()
    wait_for(lambda: (p.checkpoints_dir / job.JOB_FILE).exists())
    try:
        yield process
    finally:
        process.kill()
        process.join()


def with_training(p, **changes):
    return p.model_copy(update={"training": p.training.model_copy(update=changes)})


def weights(p):
    return (adapter.adapter_dir(p) / WEIGHTS).read_bytes()


def metrics_of(p):
    (path,) = p.checkpoints_dir.glob("*/metrics.jsonl")
    return Metrics(path).read()


def steps_taken(p):
    return [
        line["step"]
        for path in p.checkpoints_dir.glob("*/metrics.jsonl")
        for line in Metrics(path).read()
    ]


def test_finished_training_is_followed_without_new_steps(undisturbed):
    trained = trainer.train(undisturbed)  # again: all steps are done
    assert trained.figures["resumed_from_step"] == trained.figures["optimizer_steps"] == STEPS
    assert trained.figures["measured"]["seconds"] > 0
    assert [line["step"] for line in trained.metrics] == list(range(1, STEPS + 1))
    assert trained.choices["optimizer"].value == "adamw_8bit"
    assert trained.record == adapter.read_record(trained.adapter)
    assert job.running(undisturbed) is None


def test_training_outlives_its_notebook_and_is_found_again(p, undisturbed, kept_bars):
    context = multiprocessing.get_context("spawn")
    notebook = context.Process(target=trainer.train, args=(p,))
    notebook.start()
    wait_for(lambda: len(steps_taken(p)) > 2)
    notebook.kill()
    notebook.join()
    assert job.running(p)["pid"] != notebook.pid
    progress, bars = kept_bars
    watched = []
    trained = trainer.train(p, progress, watched.append)
    assert [(bar.total, bar.count) for bar in bars] == [(STEPS, STEPS)]
    assert watched[-1][-1]["step"] == STEPS
    assert weights(p) == weights(undisturbed)
    assert trained.figures["resumed_from_step"] == 0, "it was the same training all the time"


def test_second_start_attaches_or_is_refused(p):
    p = with_training(p, max_steps=12 * STEPS)  # longer than the commands take; it is stopped below
    process, _ = job.start_or_attach(p)
    again, how = job.start_or_attach(p)
    assert again is None and how.startswith(f"attached to process {process.pid}, started 20")
    other = with_training(p, learning_rate=1e-3)
    with pytest.raises(AvomniError, match=r"other parameters \(training\) works") as caught:
        job.start_or_attach(other)
    assert f"process {process.pid}" in caught.value.what
    path = p.checkpoints_dir / job.PARAMS_FILE
    by_hand = python("avomni_lib.training.fit.worker", path)
    assert by_hand.returncode == 1 and job.BUSY in by_hand.stderr
    assert "Traceback" not in by_hand.stderr

    stages = json.loads(python("avomni_lib", "status", "--json", path).stdout)["stages"]
    (reason,) = [row["reason"] for row in stages if row["stage"] == "05_train"]
    assert reason.startswith(f"training now: process {process.pid} since 20")
    forced = python("avomni_lib", "run", path, "--only", "05", "--force")
    assert forced.returncode == 1 and "stop it first" in forced.stderr
    assert python("avomni_lib", "stop", path).stdout.startswith("stopped and saved")
    assert process.wait(10) == 0
    assert python("avomni_lib", "stop", path).stdout.startswith("no training works in this")


def python(module, *words):
    command = [sys.executable, "-m", module, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True)


def test_sigterm_saves_a_checkpoint(p, undisturbed):
    with forked(p) as process:
        wait_for(lambda: len(steps_taken(p)) > 3)
        process.terminate()
        with pytest.raises(AvomniError, match=r"stopped after step \d+ and has saved"):
            job.follow(p, None)
    last = steps_taken(p)[-1]
    assert list(p.checkpoints_dir.glob(f"*/checkpoint-{last}")), "the step that ran is saved"
    assert not adapter.adapter_dir(p).exists()
    with forked(p):
        outcome = job.follow(p, None)
    assert outcome["figures"]["resumed_from_step"] == last
    assert weights(p) == weights(undisturbed)
    assert same_but_for_time(metrics_of(p)) == same_but_for_time(metrics_of(undisturbed))


def test_interrupting_the_follower_stops_the_training(p):
    class Interrupted(Bar):
        def update(self, amount=1, note=""):
            raise KeyboardInterrupt

    with forked(p), pytest.raises(KeyboardInterrupt):
        job.follow(p, None, Interrupted)
    assert job.running(p) is None
    outcome = files.read_json(p.checkpoints_dir / job.OUTCOME_FILE)
    assert list(p.checkpoints_dir.glob(f"*/checkpoint-{outcome['stopped_at']}"))


def test_training_killed_at_random_moments_ends_with_the_same_bytes(p, undisturbed):
    seed = random.SystemRandom().randrange(10**6)
    print(f"{seed=}")
    moments, kills = random.Random(seed), 0
    while True:
        with forked(p) as process:
            before = steps_taken(p)
            wait_for(lambda b=before, ended=process: steps_taken(p) != b or not ended.is_alive())
            # Longer and longer, so that the training makes progress.
            process.join(moments.uniform(0, 0.2) + 0.15 * kills)
            if not process.is_alive():
                break
            process.kill()
            kills += 1
            with pytest.raises(AvomniError, match="was killed, usually because memory ran out"):
                job.follow(p, None)
    assert kills >= 4 and process.exitcode == 0
    assert weights(p) == weights(undisturbed)
    assert same_but_for_time(metrics_of(p)) == same_but_for_time(metrics_of(undisturbed))


def test_follower_raises_the_workers_error(p):
    wild = with_training(p, learning_rate=1e12, weight_decay=1e12, warmup_ratio=0.0)
    expected = r"is (nan|inf) at step \d+, at window \d"
    with forked(wild), pytest.raises(AvomniError, match=expected) as caught:
        job.follow(wild, None)
    assert "training.learning_rate" in caught.value.fix
    assert job.running(p) is None


def test_damaged_checkpoint_is_reported_and_training_ends_with_the_same_bytes(p, undisturbed):
    shutil.copytree(undisturbed.checkpoints_dir, p.checkpoints_dir)
    *_, newest = sorted(p.checkpoints_dir.glob("*/checkpoint-*"), key=step_of)
    path = newest / WEIGHTS
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    trained = trainer.train(p)
    assert weights(p) == weights(undisturbed)
    assert same_but_for_time(metrics_of(p)) == same_but_for_time(metrics_of(undisturbed))
    message = (
        f"checkpoint-{STEPS} is damaged: {WEIGHTS} is not what was written: its sha256 differs"
    )
    assert trained.choices["checkpoint"].value == "checkpoint-39"
    assert trained.choices["checkpoint"].reason == f"{message}; went on from checkpoint-39"
    assert message in trained.figures["headline"]
    assert trained.figures["damaged_checkpoints"] == [message]
    assert (
        f"{message}: going on from checkpoint-39" in (p.checkpoints_dir / job.LOG_FILE).read_text()
    )


@pytest.fixture
def small_disk(tmp_path):
    """A volume of 6 MB: a checkpoint takes 0.5 MB, but 256 MiB are kept in reserve."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_full_disk_stops_the_training_which_then_resumes(p, undisturbed, small_disk):
    p.checkpoints_dir.symlink_to(small_disk)
    with forked(p), pytest.raises(AvomniError, match="no room on the disk for a checkpoint"):
        job.follow(p, None)
    assert not list(p.checkpoints_dir.glob("*/checkpoint-*"))
    subprocess.run(["mount", "-o", "remount,size=600m", small_disk], check=True)
    with forked(p):
        job.follow(p, None)
    assert weights(p) == weights(undisturbed)


def test_two_processes_train_like_one_and_one_resumes(p, undisturbed):
    """4 windows a step are two batches of two: in sequence in one process, at once in two."""
    both = with_training(p, num_processes=2)
    process, _ = job.start_or_attach(both, pauses=True)
    wait_for((p.checkpoints_dir / job.PROBE_FILE).exists)
    assert job.start_or_attach(both)[0] is process, "the one that has paused goes on"
    wait_for(lambda: len(steps_taken(p)) > 3)
    assert job.stop(both)
    process.wait(60)
    trained = trainer.train(p)  # with one process, which repeats no window of the two
    assert 3 < trained.figures["resumed_from_step"] < STEPS
    losses = [[line["loss"] for line in metrics_of(run)] for run in (p, undisturbed)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert weights(p) == weights(undisturbed), "a sum of two is the same in either order"
