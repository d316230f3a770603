"""Damaged checkpoints and adapters are detected, reported and not used."""

import json
import random
import shutil

import pytest

from avomni_lib.errors import AvomniError
from avomni_lib.training.export import merge
from avomni_lib.training.fit import worker
from avomni_lib.training.fit.checkpoints import Checkpoints, Metrics
from avomni_lib.training.model import adapter, load
from tests import killed_training, training_set
from tests.killed_training import same_but_for_time

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory, base_folder):
    """An undisturbed training of six steps, which has kept the checkpoints 4 and 6."""
    p = training_set.params(tmp_path_factory.mktemp("whole"), base_folder)
    return p, worker.work(p, windows=training_set.Stripes(killed_training.NUM_WINDOWS))


@pytest.fixture
def again(whole, tmp_path):
    """A copy of it without its adapter, and the folder of its checkpoints."""
    p, _ = whole
    shutil.copytree(p.run_dir, tmp_path / "test")
    shutil.rmtree(tmp_path / "test" / "adapter")
    (folder,) = (tmp_path / "test" / "checkpoints").iterdir()
    return training_set.params(tmp_path, p.model.base_model), folder


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def metrics_of(folder):
    return same_but_for_time(Metrics(folder / "metrics.jsonl").read())


def same_results(p, folder, whole):
    other, trained = whole
    (expected,) = other.checkpoints_dir.iterdir()
    return (
        contents(adapter.adapter_dir(p)) == contents(trained.adapter)
        and metrics_of(folder) == metrics_of(expected)
        and contents(folder / "checkpoint-6").keys() == contents(expected / "checkpoint-6").keys()
    )


def flip(path, bit):
    """Flip one bit of a file that is not empty."""
    content = bytearray(path.read_bytes())
    content[bit // 8 % len(content)] ^= 1 << bit % 8
    path.write_bytes(content)


def opened(folder):
    record = json.loads((folder / "training.json").read_text())
    return Checkpoints(folder, record)


def test_any_flipped_bit_of_a_checkpoint_is_detected(again):
    _, folder = again
    newest, rng = folder / "checkpoint-6", random.Random(11)
    paths = sorted(newest.iterdir())
    assert {WEIGHTS, "optimizer.pt", "rng_state.pth", "trainer_state.json", "checksums.json"} <= {
        path.name for path in paths
    }
    checkpoints = opened(folder)
    for path in paths:
        content = path.read_bytes()
        for _ in range(20):
            flip(path, rng.randrange(8 * len(content)))
            reason = checkpoints.fault(newest)
            assert reason and (path.name in reason or path.name == "checksums.json")
            path.write_bytes(content)
    assert checkpoints.fault(newest) is None


def cut_file(newest):
    content = (newest / WEIGHTS).read_bytes()
    (newest / WEIGHTS).write_bytes(content[: len(content) // 2])


def longer_file(newest):
    (newest / "rng_state.pth").write_bytes((newest / "rng_state.pth").read_bytes() + b"\0")


def flipped_weights(newest):
    flip(newest / WEIGHTS, 8 * 100_000 + 3)


def flipped_moments(newest):
    flip(newest / "optimizer.pt", 8 * 5_000 + 6)


def a_folder_for_a_file(newest):
    (newest / "trainer_state.json").unlink()
    (newest / "trainer_state.json").mkdir()


def an_older_one_by_its_name(newest):
    shutil.rmtree(newest)
    shutil.copytree(newest.with_name("checkpoint-4"), newest)


def other_checksums(newest, **changes):
    values = json.loads((newest / "checksums.json").read_text())
    (newest / "checksums.json").write_text(json.dumps(values | changes))


DAMAGES = {
    "a missing file": lambda newest: (newest / "optimizer.pt").unlink(),
    "a truncated file": cut_file,
    "an empty file": lambda newest: (newest / "scheduler.pt").write_bytes(b""),
    "a longer file": longer_file,
    "invalid JSON": lambda newest: (newest / "trainer_state.json").write_text("{"),
    "a flipped bit of the weights": flipped_weights,
    "a flipped bit of the optimizer": flipped_moments,
    "no checksums": lambda newest: (newest / "checksums.json").unlink(),
    "checksums are [null]": lambda newest: (newest / "checksums.json").write_text("[null]"),
    "checksums without files": lambda newest: other_checksums(newest, files={}),
    "a folder in place of a file": a_folder_for_a_file,
    "an extra adapter": lambda newest: shutil.copytree(newest, newest / "default"),
    "no files": lambda newest: [path.unlink() for path in newest.iterdir()],
    "an older checkpoint with the name": an_older_one_by_its_name,
    "checksums of another training": lambda newest: other_checksums(
        newest, about={"step": 6, "training": "0" * 64}
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_training_resumes_from_the_checkpoint_before_a_damaged_one(again, damage):
    _, folder = again
    DAMAGES[damage](folder / "checkpoint-6")
    start = opened(folder).resume()
    assert (start.step, start.checkpoint) == (4, folder / "checkpoint-4")
    (message,) = start.passed_over
    assert message.startswith("checkpoint-6 is damaged: ")
    assert (folder / "damaged-checkpoint-6").is_dir() and not (folder / "checkpoint-6").exists()
    assert [line["step"] for line in metrics_of(folder)] == [1, 2, 3, 4]


def test_training_restarts_if_all_checkpoints_are_damaged(again, whole):
    p, folder = again
    cut_file(folder / "checkpoint-6")
    flipped_moments(folder / "checkpoint-4")
    trained = worker.work(p, windows=training_set.Stripes(killed_training.NUM_WINDOWS))
    assert trained.figures["resumed_from_step"] == 0
    assert len(trained.figures["damaged_checkpoints"]) == 2
    assert trained.choices["checkpoint"].value == "none"
    assert "went on from the beginning" in trained.figures["headline"]
    assert same_results(p, folder, whole)
    assert not list(folder.glob("damaged-*")), "swept where the training came to its end"


def test_folders_that_are_not_checkpoints_are_ignored(again, whole):
    p, folder = again
    others = ("checkpoint-6.bak", "checkpoint-", "checkpoint-06", "checkpoint-x", "my checkpoint-9")
    for name in others:
        shutil.copytree(folder / "checkpoint-4", folder / name)
    (folder / "checkpoint-99").write_text("a file")
    (folder / "checkpoint-6" / ".DS_Store").write_text("a file manager's")
    trained = worker.work(p, windows=training_set.Stripes(killed_training.NUM_WINDOWS))
    assert trained.figures["resumed_from_step"] == 6 and "checkpoint" not in trained.choices
    assert all((folder / name).is_dir() for name in others)


def test_damaged_best_checkpoint_restarts_training(base_folder, tmp_path, monkeypatch):
    """The held-out errors are set so that the checkpoint of step 2 is the best."""
    from avomni_lib.training.fit import heldout

    monkeypatch.setattr(heldout.HeldOut, "errors", lambda self, *_: [next(errors)])
    training = {"heldout_windows": 3, "num_epochs": 2}
    p = training_set.params(tmp_path, base_folder, training=training)

    def work():
        return worker.work(p, windows=training_set.Stripes(24), held_out=training_set.Stripes(5))

    errors = iter([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    first = work()
    expected = contents(first.adapter)
    (folder,) = p.checkpoints_dir.glob("*")
    assert (folder / "checkpoint-2").is_dir(), "the best one is kept"
    flipped_weights(folder / "checkpoint-2")
    shutil.rmtree(first.adapter)
    errors = iter([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    second = work()
    assert second.figures["resumed_from_step"] == 0
    assert "the best one before it, checkpoint-2" in second.figures["damaged_checkpoints"][0]
    assert contents(second.adapter) == expected


@pytest.mark.parametrize("name", [WEIGHTS, "adapter_config.json", "record.json", "checksums.json"])
def test_damaged_adapter_is_refused(whole, tmp_path, name):
    p, trained = whole
    rng = random.Random(name)
    base = load.load_base(p).model
    folder = shutil.copytree(trained.adapter, tmp_path / "adapter")
    for damage in ("flip", "cut", "empty", "missing"):
        path, content = folder / name, (folder / name).read_bytes()
        if damage == "flip":
            flip(path, 8 * (len(content) // 2) + rng.randrange(8))
        elif damage == "missing":
            path.unlink()
        else:
            path.write_bytes(content[: len(content) // 2 if damage == "cut" else 0])
        with pytest.raises(AvomniError) as caught:
            load.load_adapter(base, folder, p)
        assert caught.value.fix and caught.value.where == str(folder)
        path.write_bytes(content)
    moved = training_set.params(tmp_path, p.model.base_model)
    (tmp_path / "test").mkdir()
    shutil.copytree(folder, adapter.adapter_dir(moved))
    (adapter.adapter_dir(moved) / name).write_bytes(b"")
    with pytest.raises(AvomniError, match="no trained adapter|the adapter is damaged"):
        merge.merge(moved)
    (folder / "README.md").write_text("a card that a person has edited")
    load.load_adapter(base, folder, p)
