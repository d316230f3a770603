import os

import pytest

from avomni_lib.errors import AvomniError
from avomni_lib.training.fit.checkpoints import Checkpoints, rename_folder, step_of


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path / "abc", {"seed": 1})


def written(checkpoints, step, content=b"weights"):
    folder = checkpoints.partial / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(content)
    return folder


def names(checkpoints):
    return [path.name for path in checkpoints.all()]


def test_newest_two_checkpoints_are_kept_in_step_order(checkpoints):
    for step in (5, 90, 100):
        written(checkpoints, step)
        assert step_of(checkpoints.adopt(step)) == step
    assert names(checkpoints) == ["checkpoint-90", "checkpoint-100"]
    assert checkpoints.last().name == "checkpoint-100"


def test_number_of_kept_checkpoints_is_configurable(tmp_path):
    checkpoints = Checkpoints(tmp_path / "abc", {"seed": 1}, kept=3)
    for step in (5, 90, 100, 110):
        written(checkpoints, step)
        checkpoints.adopt(step)
    assert names(checkpoints) == ["checkpoint-90", "checkpoint-100", "checkpoint-110"]


def test_partial_checkpoints_are_removed_on_reopening(checkpoints):
    written(checkpoints, 5)
    again = Checkpoints(checkpoints.folder, {"seed": 1})
    assert again.last() is None and not again.partial.exists()


def test_rewritten_checkpoint_replaces_the_old_one(checkpoints):
    for content in (b"old", b"new"):
        written(checkpoints, 5, content)
        checkpoints.adopt(5)
    assert (checkpoints.last() / "weights").read_bytes() == b"new"
    assert names(checkpoints) == ["checkpoint-5"]
    assert not [path for path in checkpoints.folder.iterdir() if path.name.startswith(".")]


def test_checkpoint_that_cannot_be_flushed_is_not_adopted(checkpoints, monkeypatch):
    written(checkpoints, 5)

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(AvomniError, match="No space left"):
        rename_folder(checkpoints.partial / "checkpoint-5", checkpoints.folder / "checkpoint-5")
    assert checkpoints.last() is None


def test_resume_drops_metrics_after_the_checkpoint(checkpoints):
    metrics = checkpoints.metrics
    assert metrics.read() == []
    for step in range(1, 4):
        metrics.add({"step": step, "loss": 1 / step})
    written(checkpoints, 3)
    checkpoints.adopt(3)
    for step in (4, 5):
        metrics.add({"step": step, "loss": 1 / step})
    with open(metrics.path, "ab") as file:
        # Damaged lines, and one cut off by a kill.
        file.write(b'"a word"\n\xff\xfe\n{"step": 6, "lo')
    assert [line["step"] for line in metrics.read()] == [1, 2, 3, 4, 5]
    checkpoints.resume()
    metrics.add({"step": 4, "loss": 9.0})
    assert [(line["step"], line["loss"]) for line in metrics.read()][2:] == [(3, 1 / 3), (4, 9.0)]
