"""Params files: loading, defaults and error messages."""

from pathlib import Path

import pytest
import yaml

from avomni_lib import files
from avomni_lib.errors import AvomniError
from avomni_lib.params import Params

SHIPPED = sorted((files.PROJECT_ROOT / "params").glob("*.yaml"))

# A user's two config files.
DATA_CONFIG = """
dataset:
  repo_id: nvidia/PhysicalAI-Autonomous-Vehicles
  local_dir: data/physicalai
download:
  target_chunks: 1
  target_size_gb: 150
processing:
  sequence_length: 16
  stride: 8
"""
FINETUNING_CONFIG = """
vision:
  camera_setup: 4-cam
  window_size: 16
model:
  base_model: unsloth/Qwen3-VL-8B-Instruct-bnb-4bit
  max_seq_length: 65536
  lora_rank: 64
  lora_alpha: 64
training:
  batch_size: 2
  gradient_accumulation_steps: 8
  learning_rate: 1e-4
  num_epochs: 2
  optimizer: paged_adamw_8bit
"""


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_file_loads_and_states_every_section(path: Path):
    """It extends itself, so that changes of other files do not affect it."""
    values = yaml.safe_load(path.read_text())
    assert values.pop("extends") == f"params/{path.name}"
    assert set(values) == set(Params.model_fields)
    assert all(values.values())
    same = {"demo_drive": "demo_future"}  # it drives with that run's model
    assert Params.from_files([path]).run.name == same.get(path.stem, path.stem)


def test_defaults_equal_the_demo_file():
    assert Params() == Params.from_files([files.PROJECT_ROOT / "params" / "demo.yaml"])


def test_mi300x_files_state_the_real_runs_values():
    """No value of the real run defaults to the demo's."""
    for name in ("mi300x", "mi300x_7cam", "mi300x_8gpu"):
        p = Params.from_files([files.PROJECT_ROOT / "params" / f"{name}.yaml"])
        assert (p.dataset.source, p.dataset.audit) == ("hub", "quick")
        assert (p.processing.sample_hz, p.processing.fit) == (2.0, "letterbox")
        assert (p.processing.tile_width, p.processing.tile_height) == (448, 256)
        assert not p.processing.obstacles and p.training.heldout_windows is None
        assert (p.model.lora_rank, p.model.lora_alpha, p.model.max_seq_length) == (64, 64, 65_536)
        assert (p.training.batch_size, p.training.gradient_accumulation_steps) == (2, 8)
        assert (p.training.learning_rate, p.training.num_epochs) == (1e-4, 2)
        assert p.training.gradient_checkpointing and p.training.blind_steps == 100
        assert p.evaluation.max_new_tokens == 96


@pytest.mark.parametrize("below", [[], [files.PROJECT_ROOT / "params" / "mi300x.yaml"]])
def test_users_config_files_load_unchanged(tmp_path: Path, below: list[Path]):
    data, finetuning = tmp_path / "data_config.yaml", tmp_path / "finetuning_config.yaml"
    data.write_text(DATA_CONFIG)
    finetuning.write_text(FINETUNING_CONFIG)
    p = Params.from_files([*below, data, finetuning])
    assert p.processing.tile_width == (448 if below else 48)
    assert p.training.learning_rate == 1e-4
    assert (p.download.target_size_gb, p.model.lora_rank, p.vision.window_size) == (150, 64, 16)


def test_all_mistakes_are_reported_at_once_with_suggestions():
    with pytest.raises(AvomniError) as caught:
        Params.from_values(
            {
                "processing": {"strid": 3, "sequence_length": "many", "sample_hz": 0},
                "dataset": {"lora_rank": 8, "world": {"seconds": 3}},
                "trainin": {},
                "model": 7,
                "run": {"name": "", "outputs_dir": "$HOME/out"},
                "training": {"learning_rate": float("nan"), "max_steps": 1.5},
                "download": {"chunks": [], "clips": {"hours": [24]}},
            }
        )
    text = str(caught.value)
    assert text.startswith("parameters to fix: 13")
    assert "processing.strid: unknown parameter; did you mean processing.stride?" in text
    assert "processing.sequence_length: Input should be a valid integer" in text
    assert "(got 'many')" in text
    assert "processing.sample_hz: Input should be greater than 0 (got 0)" in text
    assert "dataset.lora_rank: unknown parameter; did you mean model.lora_rank?" in text
    assert (
        "dataset.world.seconds: unknown parameter; did you mean dataset.world.clip_seconds?" in text
    )
    assert "trainin: unknown parameter; did you mean training?" in text
    assert "run.outputs_dir: variables such as $HOME are not filled in here" in text
    assert "training.learning_rate: Input should be a finite number" in text
    assert "download.clips.hours.0: Input should be less than or equal to 23" in text
    assert "pydantic" not in text


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"prompt": {"question": ""}}, "prompt.question: is empty"),
        ({"prompt": {"question": "a\nb"}}, "a character that cannot be printed"),
        ({"prompt": {"question": "a" * 1001}}, "longer than 1000 characters"),
        ({"prompt": {"question": "Go?<|im_end|>"}}, r"holds <\|im_end\|>, a token"),
        ({"training": {"save_total_limit": 1}}, "greater than or equal to 2"),
        ({"model": {"lora_targets": [".*"]}}, "String should match pattern"),
        ({"model": {"lora_targets": []}}, "an empty list"),
    ],
)
def test_invalid_question_limit_or_lora_targets_are_refused(keys, message: str):
    with pytest.raises(AvomniError, match=message):
        Params.from_values(keys)


def test_window_size_must_equal_sequence_length():
    with pytest.raises(AvomniError, match="window_size is 8 and processing.sequence_length is 16"):
        Params.from_values({"vision": {"window_size": 8}})


def test_missing_params_file_error_lists_existing_files():
    with pytest.raises(AvomniError, match="params file not found") as caught:
        Params.from_files(["params/dem.yaml"])
    assert "params/demo.yaml" in str(caught.value)


def test_digest_follows_only_the_named_parameters():
    a = Params.from_values({"processing": {"stride": 2}})
    b = Params.from_values({"processing": {"stride": 4}})
    assert a.digest("processing") != b.digest("processing")
    assert a.digest("processing.sample_hz", "model") == b.digest("processing.sample_hz", "model")
