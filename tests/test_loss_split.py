"""The loss of an optimizer step is the mean over its answer tokens, however the step is split."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from avomni_lib import files
from avomni_lib.training.backbones import backbone
from avomni_lib.training.feed import loader
from avomni_lib.training.fit import worker
from avomni_lib.training.fit.checkpoints import METRICS_FILE, Metrics
from avomni_lib.training.model import adapter, load
from avomni_lib.training.prompt import samples
from avomni_lib.training.prompt.conversation import IGNORED
from avomni_lib.training.prompt.samples import sample_of
from tests import training_set
from tests.training_set import Uneven

NUM_WINDOWS, STEPS = 16, 4
WEIGHTS = "adapter_model.safetensors"
SECTIONS = {
    "model": {"load_in_4bit": False, "max_seq_length": 1024},
    "processing": {"obstacles": True},
}
# (batch_size, gradient_accumulation_steps): four windows a step.
SPLITS = [(1, 4), (2, 2), (4, 1)]


def params(folder, base, batch, accumulated, **changes):
    training = {
        "batch_size": batch,
        "gradient_accumulation_steps": accumulated,
        "max_steps": STEPS,
        "target": "coc_v1",
        # In 8 bit a rounding difference would be a whole level.
        "optimizer": "adamw_torch",
        "learning_rate": 1e-2,
    }
    return training_set.params(folder, base, training=training | changes, **SECTIONS)


def adapter_weights(p):
    return load_file(adapter.adapter_dir(p) / WEIGHTS)


def logged(metrics, name):
    return [line[name] for line in metrics]


@pytest.fixture(scope="module")
def one_by_one(tmp_path_factory, base_folder):
    """A training with batches of one window."""
    p = params(tmp_path_factory.mktemp("one"), base_folder, *SPLITS[0])
    return p, worker.work(p, windows=Uneven(NUM_WINDOWS)).metrics


def compare(p, metrics, expected):
    other, lines = expected
    for name in ("loss", "token_accuracy"):
        np.testing.assert_allclose(logged(metrics, name), logged(lines, name), rtol=1e-6)
    np.testing.assert_allclose(logged(metrics, "grad_norm"), logged(lines, "grad_norm"), rtol=1e-4)
    weights, expected_weights = adapter_weights(p), adapter_weights(other)
    moved = max(
        float(np.abs(values).max()) for name, values in expected_weights.items() if "lora_B" in name
    )
    assert moved > 1e-3, "nothing was learned"
    for name in expected_weights:
        np.testing.assert_allclose(
            weights[name], expected_weights[name], atol=1e-3 * moved, err_msg=name
        )


def test_answer_lengths_of_the_test_set_vary():
    conversation, windows = training_set.conversation(asked="coc_v1"), Uneven(NUM_WINDOWS)
    lengths = [
        int((sample_of(index, windows, conversation).labels[1:] != -100).sum())
        for index in range(NUM_WINDOWS)
    ]
    assert min(lengths) < 35 and max(lengths) > 60


@pytest.mark.parametrize("split", SPLITS[1:], ids=str)
def test_training_does_not_depend_on_the_batch_split(one_by_one, base_folder, tmp_path, split):
    p = params(tmp_path, base_folder, *split)
    compare(p, worker.work(p, windows=Uneven(NUM_WINDOWS)).metrics, one_by_one)


def test_token_count_of_another_library_is_ignored(one_by_one, base_folder, tmp_path, monkeypatch):
    """Unsloth replaces methods of transformers' Trainer and attributes of the model in this way."""
    from transformers import Qwen3VLForConditionalGeneration, Trainer

    def counted(self, epoch_iterator, num_batches, device=None):
        return [next(epoch_iterator) for _ in range(num_batches)], 7

    monkeypatch.setattr(Trainer, "get_batch_samples", counted)
    monkeypatch.setattr(Qwen3VLForConditionalGeneration, "accepts_loss_kwargs", True)
    p = params(tmp_path, base_folder, 2, 2)
    compare(p, worker.work(p, windows=Uneven(NUM_WINDOWS)).metrics, one_by_one)


def test_two_processes_train_like_one(one_by_one, base_folder, tmp_path):
    p = params(tmp_path, base_folder, 2, 2)
    settings = {
        "outputs": str(tmp_path),
        "base": str(base_folder),
        "uneven": NUM_WINDOWS,
        **SECTIONS,
        "training": p.values("training")["training"] | {"num_processes": 2},
    }
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    ran = subprocess.run(
        [*launch, "2", "-m", "tests.ranked_training", json.dumps(settings)],
        capture_output=True,
        text=True,
        cwd=files.PROJECT_ROOT,
    )
    assert ran.returncode == 0, ran.stderr
    (path,) = p.checkpoints_dir.glob(f"*/{METRICS_FILE}")
    compare(p, Metrics(path).read(), one_by_one)


def test_training_resumes_with_another_batch_split(one_by_one, base_folder, tmp_path):
    first = params(tmp_path, base_folder, 4, 1)
    worker.work(first, windows=Uneven(NUM_WINDOWS))
    (folder,) = first.checkpoints_dir.glob("*")
    files_of_last = folder / f"checkpoint-{STEPS}" / "adapter_model.safetensors"
    files_of_last.write_bytes(b"")  # so that it resumes from step 2
    second = params(tmp_path, base_folder, 1, 4)
    trained = worker.work(second, windows=Uneven(NUM_WINDOWS))
    assert trained.figures["resumed_from_step"] == 2
    compare(second, trained.metrics, one_by_one)


def test_logged_loss_is_the_mean_over_the_answer_tokens(one_by_one):
    """Before the first step nothing is learned, so the base model has the same loss."""
    p, metrics = one_by_one
    base, windows = load.load_base(p), Uneven(NUM_WINDOWS)
    conversation = samples.conversation_of(p, base.tokenizer, backbone("qwen3_vl"))
    losses, tokens = [], []
    for index in loader.Order(NUM_WINDOWS, 4, 1, p.run.seed)[0]:
        batch = samples.batch_of([index], windows, conversation)
        tokens.append(int((batch["labels"][:, 1:] != IGNORED).sum()))
        batch |= conversation.inputs(torch.from_numpy(windows.frames(index))[None])
        with torch.inference_mode():
            losses.append(float(base.model(**batch).loss))
    assert len(set(tokens)) > 1
    assert metrics[0]["loss"] == pytest.approx(np.average(losses, weights=tokens), rel=1e-6)
    assert metrics[0]["loss"] != pytest.approx(np.mean(losses), rel=5e-6), "a mean of means"
