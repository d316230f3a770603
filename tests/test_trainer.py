import json
import multiprocessing
import shutil
import signal

import numpy as np
import pytest
import torch

from avomni_lib.dataset import download
from avomni_lib.errors import AvomniError
from avomni_lib.etl import build
from avomni_lib.plan import Bar
from avomni_lib.training import adapter, loader, model, trainer
from avomni_lib.training.backbones import backbone
from avomni_lib.training.conversation import IGNORED
from tests import killed_training, published_set, training_set

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory):
    return training_set.make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def straight(tmp_path_factory, base_folder):
    """A training that nothing interrupts: its parameters and what came out."""
    p = training_set.params(tmp_path_factory.mktemp("straight"), base_folder)
    return p, trainer.train(p, windows=training_set.Stripes(killed_training.NUM_WINDOWS))


def same_but_for_time(metrics):
    timed = ("seconds", "data_wait_s")
    return [{k: v for k, v in line.items() if k not in timed} for line in metrics]


def test_training_leaves_an_adapter_that_knows_what_it_was_made_from(straight):
    p, trained = straight
    assert trained.adapter == p.run_dir / "adapter"
    assert sorted(path.name for path in trained.adapter.iterdir()) == [
        "README.md",
        "adapter_config.json",
        WEIGHTS,
        "record.json",
    ]
    record = adapter.read_record(trained.adapter)
    assert record == trained.record
    assert record["training_clip_ids"] == [f"clip-{n}" for n in range(6)]
    assert record["prompt_form"] == "qwen3_vl/outer_vision_pair"
    assert record["grid_size"] == [64, 96] and record["cache"] == "stripes"
    config = json.loads((trained.adapter / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (64, 64)


def test_training_learns_and_says_how_it_went(straight):
    _, trained = straight
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


def test_the_adapter_changes_what_the_model_says(straight):
    p, trained = straight
    base = model.load_base(p)
    talk = trainer.conversation_of(
        p, training_set.Stripes(24), base.tokenizer, backbone("qwen3_vl")
    )
    windows = training_set.Stripes(24)
    batch = trainer.tokens_of([0, 1], windows, talk)
    batch |= talk.backbone.inputs(
        torch.stack([torch.from_numpy(windows.frames(i)) for i in (0, 1)])
    )
    with torch.inference_mode():
        before = float(base.model(**batch).loss)
        after = float(model.load_adapter(base.model, trained.adapter, p)(**batch).loss)
    assert after < before


# Moments at which a process is killed, one after another, each going on from what the last one
# left; (event, part of a path, which time).
DEATHS = [
    ("open", "metrics.jsonl", 4),  # in the second step, before any checkpoint
    ("open", "partial/checkpoint-2/trainer_state.json", 1),  # in the middle of a checkpoint
    ("os.rename", "partial/checkpoint-2", 1),  # a checkpoint that lacks nothing but its name
    ("os.rename", "partial/checkpoint-4", 1),
    ("shutil.rmtree", "checkpoint-2", 1),  # the third is there, the first is not dropped yet
    ("open", ".adapter.unfinished/record.json", 1),  # trained, the adapter half written
    ("os.rename", ".adapter.unfinished", 1),
]


def test_the_optimizers_state_is_in_8_bit(straight):
    p, _ = straight
    (folder,) = p.checkpoints_dir.iterdir()
    state = torch.load(folder / "checkpoint-6" / "optimizer.pt", weights_only=True)["state"]
    moments = [each["__bnb_optimizer_quant_state__"]["state1"] for each in state.values()]
    # bitsandbytes keeps tensors of less than 4096 numbers in 32 bit.
    assert torch.uint8 in {moment.dtype for moment in moments if moment.numel() >= 4096}
    assert {moment.dtype for moment in moments if moment.numel() < 4096} == {torch.float32}


def test_killed_anywhere_it_ends_with_the_same_bytes(straight, base_folder, tmp_path):
    _, expected = straight
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.killed_training"])
    starts = []
    for death in DEATHS:
        process = context.Process(target=killed_training.train, args=(tmp_path, base_folder, death))
        process.start()
        process.join(timeout=120)
        assert process.exitcode == -signal.SIGKILL, f"it was not killed at {death}"
        found = sorted(path.name for path in tmp_path.glob("test/checkpoints/*/checkpoint-*"))
        starts.append(found)
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
    trained = trainer.train(p, windows=training_set.Stripes(killed_training.NUM_WINDOWS))

    assert trained.figures["resumed_from_step"] == 6
    for path in sorted(expected.adapter.iterdir()):
        assert (trained.adapter / path.name).read_bytes() == path.read_bytes(), path.name
    assert same_but_for_time(trained.metrics) == same_but_for_time(expected.metrics)
    assert not list(tmp_path.rglob("partial")) and not list(tmp_path.rglob("*.unfinished"))


def test_a_checkpoint_without_its_name_is_not_believed(straight, base_folder, tmp_path):
    """What transformers would leave behind when it is killed: a folder that lacks its end."""
    p, trained = straight
    shutil.copytree(p.run_dir, tmp_path / "test")
    (folder,) = (tmp_path / "test" / "checkpoints").iterdir()
    (folder / "partial").mkdir()
    (folder / "checkpoint-6").rename(folder / "partial" / "checkpoint-6")
    (folder / "partial" / "checkpoint-6" / "optimizer.pt").unlink()

    again = trainer.train(
        training_set.params(tmp_path, base_folder),
        windows=training_set.Stripes(killed_training.NUM_WINDOWS),
    )
    assert again.figures["resumed_from_step"] == 4
    assert (again.adapter / WEIGHTS).read_bytes() == (trained.adapter / WEIGHTS).read_bytes()


def test_other_parameters_begin_another_training(straight, base_folder, tmp_path):
    p, trained = straight
    shutil.copytree(p.run_dir, tmp_path / "test")

    def again(**training):
        other = training_set.params(tmp_path, base_folder, training=training)
        return trainer.train(
            other, windows=training_set.Stripes(killed_training.NUM_WINDOWS)
        ).figures["resumed_from_step"]

    assert again(max_steps=2) == 0
    assert again(save_steps=3) == 6, "how often it saves changes nothing about what is learned"
    assert (tmp_path / "test" / "adapter" / WEIGHTS).read_bytes() == (
        trained.adapter / WEIGHTS
    ).read_bytes()


def test_a_loss_that_is_no_number_stops_the_training(base_folder, tmp_path):
    p = training_set.params(
        tmp_path, base_folder, training={"learning_rate": 1e30, "save_steps": 1, "warmup_ratio": 0}
    )
    with pytest.raises(AvomniError, match=r"(loss|grad_norm) is (nan|inf) at step \d") as caught:
        trainer.train(p, windows=training_set.Stripes(24))
    assert "training.learning_rate" in str(caught.value)
    assert not adapter.adapter_dir(p).exists()


def test_damaged_data_stops_the_training_with_its_own_words(base_folder, tmp_path):
    class Damaged(training_set.Stripes):
        def frames(self, index):
            if index == 7:
                raise AvomniError("window 7 is damaged", fix="run 03_etl again")
            return super().frames(index)

    p = training_set.params(tmp_path, base_folder)
    with pytest.raises(AvomniError, match="window 7 is damaged"):
        trainer.train(p, windows=Damaged(24))


def test_an_unknown_optimizer_is_named_with_its_neighbours(base_folder, tmp_path):
    p = training_set.params(tmp_path, base_folder, training={"optimizer": "paged_adam_8bit"})
    with pytest.raises(AvomniError, match="paged_adamw_8bit"):
        trainer.train(p, windows=training_set.Stripes(24))


def test_a_sample_that_is_too_long_is_refused_before_the_first_step(base_folder, tmp_path):
    p = training_set.params(tmp_path, base_folder, model={"max_seq_length": 100})
    with pytest.raises(AvomniError, match="model.max_seq_length is 100"):
        trainer.train(p, windows=training_set.Stripes(24))


@pytest.fixture(scope="module")
def published_run(tmp_path_factory, base_folder):
    """Parameters of a run whose cache the ETL has made: three clips, one of them to train on."""
    folder = tmp_path_factory.mktemp("run")
    published = published_set.write_published_set(folder / "set", num_chunks=1)
    p = training_set.params(
        folder,
        base_folder,
        dataset={"source": "folder", "local_dir": str(published), "license_accepted": True},
        processing={"num_workers": 1},
    )
    download.fetch(p, None)
    build.build(p)
    return p


def test_a_cache_is_planned_and_trained_as_it_was_planned(published_run):
    # 2 s at 10 Hz are 20 frames: 9 windows of 4 frames, one every 2; 4 windows a step.
    planned = trainer.plan(published_run).figures
    assert (planned["num_windows"], planned["num_clips"]) == (9, 1)
    assert planned["optimizer_steps"] == 3
    assert "3 optimizer steps are few" in trainer.plan(published_run).warnings[0]
    figures = trainer.train(published_run).figures
    assert {name: figures[name] for name in planned if name in figures} == {
        name: planned[name] for name in planned if name in figures
    }
    record = adapter.read_record(adapter.adapter_dir(published_run))
    assert record["training_clip_ids"] == [published_set.clip_id_of(0)]
    assert record["notice"] == adapter.CONFIDENTIAL
    card = (adapter.adapter_dir(published_run) / "README.md").read_text()
    assert adapter.CONFIDENTIAL in card


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


def test_the_bar_moves_by_one_a_step(base_folder, tmp_path):
    bars = []

    class Kept(Bar):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            bars.append(self)

    p = training_set.params(tmp_path, base_folder, training={"max_steps": 3})
    windows = training_set.Stripes(24)
    trainer.train(p, progress=Kept, windows=windows)
    trainer.train(p, progress=Kept, windows=windows)
    assert [(bar.total, bar.count, bar.unit) for bar in bars] == [(3, 3, "step")] * 2


def test_gradients_are_recomputed_to_the_same_end(straight, base_folder, tmp_path):
    _, trained = straight
    p = training_set.params(tmp_path, base_folder, training={"gradient_checkpointing": True})
    again = trainer.train(p, windows=training_set.Stripes(killed_training.NUM_WINDOWS))
    losses = [[line["loss"] for line in each.metrics] for each in (again, trained)]
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_the_loss_of_a_step_is_that_of_its_answers(straight):
    # The first step is taken before anything is learned, so the base model has the same loss: the
    # mean over all answer tokens of the step's windows, however they are spread over its batches.
    p, trained = straight
    order = loader.Order(killed_training.NUM_WINDOWS, 2, 12, p.run.seed)
    base, windows = model.load_base(p), training_set.Stripes(killed_training.NUM_WINDOWS)
    talk = trainer.conversation_of(p, windows, base.tokenizer, backbone("qwen3_vl"))
    total = count = 0
    for index in order[0] + order[1]:
        batch = trainer.tokens_of([index], windows, talk)
        batch |= talk.backbone.inputs(torch.from_numpy(windows.frames(index))[None])
        labels = batch.pop("labels")[0, 1:]
        with torch.inference_mode():
            logits = base.model(**batch).logits[0, :-1].float()
        said = labels != IGNORED
        total += float(
            torch.nn.functional.cross_entropy(logits[said], labels[said], reduction="sum")
        )
        count += int(said.sum())
    assert trained.metrics[0]["loss"] == pytest.approx(total / count, rel=1e-4)
