"""Environment variables left in a shell do not change what a training learns."""

import os
import subprocess
import sys

import pytest

from avomni_lib import files
from avomni_lib.training.fit import trainer
from avomni_lib.training.model import adapter
from tests import cached_training

# Read by Accelerate, transformers, torchrun, MPI and the libraries below torch.
LEFT_IN_A_SHELL = {
    "ACCELERATE_MIXED_PRECISION": "bf16",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "7",
    "ACCELERATE_USE_FSDP": "true",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "true",
    "ACCELERATE_USE_MEGATRON_LM": "true",
    "ACCELERATE_DYNAMO_BACKEND": "inductor",
    "ACCELERATE_TORCH_DEVICE": "meta",
    "ACCELERATE_USE_DEEPSPEED": "true",
    "FSDP_VERSION": "2",
    "NVIDIA_TF32_OVERRIDE": "1",
    "ONEDNN_DEFAULT_FPMATH_MODE": "BF16",
    "RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "1",
    "PMI_SIZE": "4",
    "PMI_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "PET_NNODES": "2",
    "TORCHELASTIC_RUN_ID": "another",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    training = {"max_steps": 3, "blind_steps": 0}
    return cached_training.make(tmp_path_factory.mktemp("made"), training=training)


@pytest.fixture(scope="module")
def expected(made):
    """The bytes of each file of the adapter, trained in a clean shell."""
    trainer.train(made)
    return contents(adapter.adapter_dir(made))


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_environment_variables_do_not_change_the_adapter(made, expected, tmp_path, monkeypatch):
    for name, value in LEFT_IN_A_SHELL.items():
        monkeypatch.setenv(name, value)
    home = tmp_path / "home" / "accelerate"
    home.mkdir(parents=True)
    (home / "default_config.yaml").write_text("mixed_precision: bf16\nuse_cpu: false\n")
    monkeypatch.setenv("HF_HOME", str(home.parent))
    p = cached_training.moved(made, tmp_path / "run")
    trained = trainer.train(p)
    assert contents(trained.adapter) == expected
    assert trained.choices["dtype"].value == "float32"
    for name in ("ACCELERATE_MIXED_PRECISION", "NVIDIA_TF32_OVERRIDE", "PMI_SIZE"):
        choice = trained.choices.get("environment")
        assert name.startswith("PMI_") or name in choice.reason
    assert "ACCELERATE_MIXED_PRECISION" in (p.checkpoints_dir / "train.log").read_text()


def test_environment_variables_do_not_change_two_process_training(
    made, expected, tmp_path, monkeypatch
):
    for name, value in LEFT_IN_A_SHELL.items():
        monkeypatch.setenv(name, value)
    p = cached_training.moved(made, tmp_path, num_processes=2)
    trained = trainer.train(p)
    assert trained.figures["num_processes"] == 2
    weights = "adapter_model.safetensors"
    assert contents(trained.adapter)[weights] == expected[weights], "a sum of two has no order"


def test_environment_variables_do_not_change_a_manually_started_worker(made, expected, tmp_path):
    p = cached_training.moved(made, tmp_path)
    params = tmp_path / "params.json"
    files.write_json(params, p.values())
    variables = {
        name: LEFT_IN_A_SHELL[name] for name in LEFT_IN_A_SHELL if name != "TORCHELASTIC_RUN_ID"
    }
    ran = subprocess.run(
        [sys.executable, "-m", "avomni_lib.training.fit.worker", str(params)],
        capture_output=True,
        text=True,
        env=os.environ | variables,
        cwd=files.PROJECT_ROOT,
    )
    assert ran.returncode == 0, ran.stderr
    assert contents(adapter.adapter_dir(p)) == expected
    assert "not taken from the environment: ACCELERATE_" in ran.stderr
