import json
import shutil
import signal
import threading
from importlib import util
from typing import get_args

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from avomni_lib.errors import AvomniError
from avomni_lib.params.sections import Reporter
from avomni_lib.training.backbones import backbone
from avomni_lib.training.feed import loader
from avomni_lib.training.fit import checkpoints, worker
from avomni_lib.training.model import adapter, generate
from avomni_lib.training.model import load as model
from tests import killed_training, training_set
from tests.killed_training import same_but_for_time

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, base_folder):
    """An uninterrupted training: its parameters and its outcome."""
    p = training_set.params(tmp_path_factory.mktemp("straight"), base_folder)
    return p, worker.work(p, windows=training_set.Stripes(killed_training.NUM_WINDOWS))


def test_training_writes_an_adapter_with_its_record(uninterrupted):
    p, trained = uninterrupted
    assert trained.adapter == p.run_dir / "adapter"
    assert sorted(path.name for path in trained.adapter.iterdir()) == [
        "README.md",
        "adapter_config.json",
        WEIGHTS,
        "checksums.json",
        "record.json",
    ]
    record = adapter.read_record(trained.adapter)
    assert record == trained.record
    assert record["training_clip_ids"] == [f"clip-{n}" for n in range(6)]
    assert record["prompt_form"] == "qwen3_vl/outer_vision_pair"
    assert record["grid_size"] == [64, 96] and record["cache"] == "stripes"
    config = json.loads((trained.adapter / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (64, 64)


def test_training_lowers_the_loss_and_reports_figures(uninterrupted):
    _, trained = uninterrupted
    # 24 windows, 2 × 2 a step
    assert [line["step"] for line in trained.metrics] == [1, 2, 3, 4, 5, 6]
    assert trained.metrics[-1]["epoch"] == 1.0
    assert trained.metrics[-1]["loss"] < trained.metrics[0]["loss"] - 0.1
    figures = trained.figures
    assert figures["optimizer_steps"] == 6 and figures["resumed_from_step"] == 0
    assert figures["trainable_parameters"] == 2 * 64 * 2 * (64 + 64 + 64 + 32)
    assert 0 <= figures["data_wait_share"] < 1
    assert figures["train_seconds"] > 0 and figures["peak_memory"]["host_gb"] > 0.1
    assert trained.choices["optimizer"].value == "adamw_8bit"


# Points at which the process is killed, in sequence; each run resumes from the one before. A point
# is (audit event, part of a path, occurrence).
DEATHS = [
    ("open", "metrics.jsonl", 4),  # in the second step, before any checkpoint
    ("open", "partial/checkpoint-2/trainer_state.json", 1),  # in the middle of a checkpoint
    ("os.rename", "partial/checkpoint-2", 1),  # a complete checkpoint, not yet renamed
    ("os.rename", "partial/checkpoint-4", 1),
    ("shutil.rmtree", "checkpoint-2", 1),  # the third is written, the first not yet removed
    ("open", ".adapter.unfinished/record.json", 1),  # trained, with the adapter partly written
    ("os.rename", ".adapter.unfinished", 1),
]


def test_optimizer_state_is_in_8_bit(uninterrupted):
    p, _ = uninterrupted
    (folder,) = p.checkpoints_dir.iterdir()
    state = torch.load(folder / "checkpoint-6" / "optimizer.pt", weights_only=True)["state"]
    moments = [
        weight_state["__bnb_optimizer_quant_state__"]["state1"] for weight_state in state.values()
    ]
    # bitsandbytes keeps tensors of less than 4096 numbers in 32 bit.
    assert torch.uint8 in {moment.dtype for moment in moments if moment.numel() >= 4096}
    assert {moment.dtype for moment in moments if moment.numel() < 4096} == {torch.float32}


def test_training_killed_at_any_point_ends_with_the_same_bytes(
    uninterrupted, base_folder, tmp_path
):
    _, expected = uninterrupted
    starts = []
    for death in DEATHS:
        killed = killed_training.exit_code(killed_training.train, tmp_path, base_folder, death)
        assert killed == -signal.SIGKILL, f"it was not killed at {death}"
        names = sorted(path.name for path in tmp_path.glob("test/checkpoints/*/checkpoint-*"))
        starts.append(names)
        assert not adapter.adapter_dir(training_set.params(tmp_path, base_folder)).exists()
    assert starts == [
        [],
        [],
        [],
        ["checkpoint-2"],
        ["checkpoint-2", "checkpoint-4", "checkpoint-6"],
        ["checkpoint-4", "checkpoint-6"],
        ["checkpoint-4", "checkpoint-6"],
    ]
    p = training_set.params(tmp_path, base_folder)
    trained = worker.work(p, windows=training_set.Stripes(killed_training.NUM_WINDOWS))

    assert trained.figures["resumed_from_step"] == 6
    for path in sorted(expected.adapter.iterdir()):
        assert (trained.adapter / path.name).read_bytes() == path.read_bytes(), path.name
    assert same_but_for_time(trained.metrics) == same_but_for_time(expected.metrics)
    assert not list(tmp_path.rglob("partial")) and not list(tmp_path.rglob("*.unfinished"))


def test_changed_parameters_start_a_new_training(uninterrupted, base_folder, tmp_path):
    p, trained = uninterrupted
    shutil.copytree(p.run_dir, tmp_path / "test")

    def again(**training):
        other = training_set.params(tmp_path, base_folder, training=training)
        return worker.work(
            other, windows=training_set.Stripes(killed_training.NUM_WINDOWS)
        ).figures["resumed_from_step"]

    assert again(max_steps=2) == 0
    # The save interval and the split of a step into batches do not change the training.
    split = {"batch_size": 1, "gradient_accumulation_steps": 4, "gradient_checkpointing": True}
    assert again(save_steps=3, **split) == 6
    assert (tmp_path / "test" / "adapter" / WEIGHTS).read_bytes() == (
        trained.adapter / WEIGHTS
    ).read_bytes()


def test_resumed_training_follows_the_new_save_steps(base_folder, tmp_path):
    def work(stop=None, **training):
        settings = {"max_steps": 12, "num_epochs": 9} | training
        p = training_set.params(tmp_path, base_folder, training=settings)
        return worker.work(p, windows=training_set.Stripes(24), stop=stop)

    def written():
        (folder,) = (tmp_path / "test" / "checkpoints").iterdir()
        return sorted(checkpoints.step_of(path) for path in folder.glob("checkpoint-*"))

    class AfterStep(threading.Event):
        """An event that is set after `steps` steps."""

        def __init__(self, steps):
            super().__init__()
            self.steps = steps

        def is_set(self):
            self.steps -= 1
            return self.steps < 0

    assert work(AfterStep(3), save_steps=3).stopped_at == 4
    assert written() == [3, 4]
    assert work(save_steps=5).figures["resumed_from_step"] == 4
    assert written() == [10, 12], "at 5 and 10, not at 6 and 9"


def test_model_is_not_split_over_visible_gpus(base_folder, tmp_path, monkeypatch):
    """A machine with two cards, of which one process drives one."""
    from avomni_lib.hardware import Choice
    from avomni_lib.training.fit import sft

    cuda = torch.cuda
    for name, value in {
        "is_available": lambda: True,
        "device_count": lambda: 2,
        "current_device": lambda: 0,
        "set_device": lambda _: None,
    }.items():
        monkeypatch.setattr(cuda, name, value)
    p = training_set.params(tmp_path, base_folder)
    store = checkpoints.Checkpoints(tmp_path / "kept", {})
    values = {"device": "cuda:0", "dtype": "float32", "optimizer": "adamw_torch"}
    choices = {name: Choice(value, "") for name, value in values.items()}
    arguments = sft.arguments_of(p, store, choices, steps=1, accumulation=2)
    assert arguments.device == torch.device("cuda:0") and arguments.n_gpu == 1
    assert arguments.train_batch_size == p.training.batch_size
    assert arguments.parallel_mode.value == "not_parallel"


def test_nan_loss_stops_the_training(base_folder, tmp_path):
    p = training_set.params(tmp_path, base_folder, training={"save_steps": 1, "warmup_ratio": 0})
    too_high = p.training.model_copy(update={"learning_rate": 1e30})  # refused in a params file
    p = p.model_copy(update={"training": too_high})
    with pytest.raises(AvomniError, match=r"(loss|grad_norm) is (nan|inf) at step \d") as caught:
        worker.work(p, windows=training_set.Stripes(24))
    assert "training.learning_rate" in str(caught.value)
    assert not adapter.adapter_dir(p).exists()


def test_sample_with_a_nan_loss_is_named(base_folder, tmp_path, monkeypatch):
    class Glaring(training_set.Stripes):
        def read_into(self, index, out):
            super().read_into(index, out)
            if index == 6:
                out[:] = 255

    def inputs(self, frames, dtype=None, videos=()):
        model_inputs = original(self, frames, dtype, videos)
        bad = (
            (frames[0] == 255)
            .flatten(1)
            .all(1)
            .repeat_interleave(len(model_inputs["pixel_values_videos"]) // len(frames[0]))
        )
        model_inputs["pixel_values_videos"][bad] = torch.nan
        return model_inputs

    kind = type(backbone("qwen3_vl"))
    original = kind.inputs
    monkeypatch.setattr(kind, "inputs", inputs)
    p = training_set.params(tmp_path, base_folder, training={"save_steps": 1})
    with pytest.raises(AvomniError) as caught:
        worker.work(p, windows=Glaring(24))
    order = loader.Order(24, 2, 12, p.run.seed)
    (batch,) = [number for number in range(12) if 6 in order[number]]
    step = batch // 2
    last_checkpoint = f"checkpoint-{step} is whole" if step else "no checkpoint was made yet"
    # Clips have four windows: that of index 6 is number 2 of clip-1.
    culprit = f"training diverged: loss is nan at step {step + 1}, at window 2 of clip clip-1"
    assert caught.value.what == f"{culprit}; {last_checkpoint}"
    # The optimizer has made no step with it, so nothing on the disk is NaN.
    assert not adapter.adapter_dir(p).exists()


def test_damaged_window_stops_the_training_with_its_error(base_folder, tmp_path):
    class Damaged(training_set.Stripes):
        def read_into(self, index, out):
            if index == 7:
                raise AvomniError("window 7 is damaged", fix="run 03_etl again")
            super().read_into(index, out)

    p = training_set.params(tmp_path, base_folder)
    with pytest.raises(AvomniError, match="window 7 is damaged"):
        worker.work(p, windows=Damaged(24))


def test_best_checkpoint_on_held_out_windows_is_exported(base_folder, tmp_path, monkeypatch):
    """The answers at each checkpoint are fixed here; windows, steps and weights are real."""
    errors = {2: 3.0, 4: 1.0, 6: 2.0, 8: 4.0}
    batch_sizes = []

    def generate_fixed_errors(model, conversation, frames, max_new_tokens, **options):
        batch_sizes.append(len(frames))
        error = errors[2 * len(batch_sizes)]
        answer = training_set.Truth(0.3, 1.0, 1.0, 1.0 + error)
        return [conversation.target.render(answer)] * len(frames)

    class Slow(training_set.Stripes):
        def truth(self, index):
            return training_set.Truth(0.3, 1.0, 1.0, 1.0)

    monkeypatch.setattr(generate, "generate_texts", generate_fixed_errors)
    training = {"num_epochs": 2, "heldout_windows": 3, "patience": 2}
    p = training_set.params(tmp_path, base_folder, training=training)
    trained = worker.work(p, windows=training_set.Stripes(24), held_out=Slow(7))
    assert batch_sizes == [3] * 4
    figures = trained.figures
    assert [row["step"] for row in figures["heldout"]] == [2, 4, 6, 8]
    errors_found = [row["speed_mae_mps"] for row in figures["heldout"]]
    assert errors_found == pytest.approx([3.0, 1.0, 2.0, 4.0])
    assert (figures["optimizer_steps"], figures["planned_steps"]) == (8, 12)
    (folder,) = p.checkpoints_dir.iterdir()
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == [
        "checkpoint-4",  # the best one is kept beside the newest two
        "checkpoint-6",
        "checkpoint-8",
    ]
    best, last = (load_file(folder / f"checkpoint-{step}" / WEIGHTS) for step in (4, 8))
    exported = load_file(trained.adapter / WEIGHTS)
    assert all(np.array_equal(exported[name], best[name]) for name in best)
    assert any(not np.array_equal(exported[name], last[name]) for name in last)
    # A second run neither evaluates nor trains: the best checkpoint is exported again.
    again = worker.work(p, windows=training_set.Stripes(24), held_out=Slow(7))
    assert len(batch_sizes) == 4
    assert (again.adapter / WEIGHTS).read_bytes() == (trained.adapter / WEIGHTS).read_bytes()


def test_held_out_evaluation_does_not_change_the_training(uninterrupted, base_folder, tmp_path):
    _, trained = uninterrupted
    training = {"heldout_windows": 2}
    p = training_set.params(tmp_path, base_folder, training=training)
    again = worker.work(p, windows=training_set.Stripes(24), held_out=training_set.Stripes(4))
    assert [row["step"] for row in again.figures["heldout"]] == [2, 4, 6]
    assert same_but_for_time(again.metrics) == same_but_for_time(trained.metrics)


def test_missing_held_out_windows_are_an_error(base_folder, tmp_path):
    p = training_set.params(tmp_path, base_folder, training={"heldout_windows": 2})
    with pytest.raises(AvomniError, match="no clip of the split 'val' has a window"):
        worker.work(p, windows=training_set.Stripes(24), held_out=training_set.Stripes(0))


def test_tensorboard_has_all_metrics_after_a_restart(base_folder, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    stop = threading.Event()
    stop.set()
    p = training_set.params(tmp_path, base_folder, training={"report_to": "tensorboard"})
    assert worker.work(p, windows=training_set.Stripes(24), stop=stop).stopped_at == 1
    trained = worker.work(p, windows=training_set.Stripes(24))
    (folder,) = p.checkpoints_dir.glob("*/tensorboard")
    events = EventAccumulator(str(folder)).Reload()
    for name in ("loss", "samples_per_s", "tokens_per_s", "data_wait_s", "memory_gb"):
        scalars = events.Scalars(name)
        assert [scalar.step for scalar in scalars] == [1, 2, 3, 4, 5, 6]
        written = [line[name] for line in trained.metrics]
        assert [scalar.value for scalar in scalars] == pytest.approx(written, rel=1e-5, abs=1e-6)


def test_every_reporter_of_transformers_is_allowed():
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    assert {*get_args(Reporter)} == {"none", *INTEGRATION_TO_CALLBACK}


def test_transformers_reporter_receives_each_metrics_line(base_folder, tmp_path, monkeypatch):
    from transformers import TrainerCallback
    from transformers.integrations import integration_utils

    called = []

    class Recording(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **_):
            called.append(("begin", model is not None))

        def on_log(self, args, state, control, logs=None, **_):
            called.append((state.global_step, logs))

        def on_train_end(self, args, state, control, **_):
            called.append(("end", state.global_step))

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "mlflow", Recording)
    p = training_set.params(tmp_path, base_folder, training={"report_to": "mlflow", "max_steps": 3})
    trained = worker.work(p, windows=training_set.Stripes(24))
    assert called[0] == ("begin", True) and called[-1] == ("end", 3)
    assert [step for step, _ in called[1:-1]] == [1, 2, 3]
    for (_, logs), line in zip(called[1:-1], trained.metrics, strict=True):
        assert logs == {k: v for k, v in line.items() if k != "step" and v is not None}


@pytest.mark.parametrize(
    ("kind", "what", "fix"),
    [
        ("wandb", "report_to is wandb, which cannot be used here", "install its package"),
        ("trackio", "trackio, which is not installed", "pip install trackio"),
    ],
)
def test_missing_reporter_package_is_an_error(kind, what, fix, base_folder, tmp_path, monkeypatch):
    find = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name, *_: None if name == kind else find(name))
    p = training_set.params(tmp_path, base_folder, training={"report_to": kind})
    with pytest.raises(AvomniError, match=what) as caught:
        worker.work(p, windows=training_set.Stripes(24))
    assert fix in caught.value.fix


def test_reusing_a_loaded_model_does_not_change_the_training(uninterrupted, tmp_path):
    p, alone = uninterrupted
    moved = p.model_copy(update={"run": p.run.model_copy(update={"outputs_dir": str(tmp_path)})})
    shared, windows = model.Trainable(), training_set.Stripes(killed_training.NUM_WINDOWS)
    worker.work(moved.blinded(), windows=windows, model=shared)
    again = worker.work(moved, windows=windows, model=shared)
    for path in sorted(alone.adapter.iterdir()):
        assert (again.adapter / path.name).read_bytes() == path.read_bytes(), path.name
    assert same_but_for_time(again.metrics) == same_but_for_time(alone.metrics)
    assert again.choices == alone.choices


def test_gradient_checkpointing_gives_the_same_losses(uninterrupted, base_folder, tmp_path):
    _, trained = uninterrupted
    p = training_set.params(tmp_path, base_folder, training={"gradient_checkpointing": True})
    again = worker.work(p, windows=training_set.Stripes(killed_training.NUM_WINDOWS))
    losses = [[line["loss"] for line in outcome.metrics] for outcome in (again, trained)]
    np.testing.assert_allclose(*losses, rtol=1e-4)
