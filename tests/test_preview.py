"""The preview of 05_train: the modules that LoRA adapts, and the trainer's arguments."""

import pytest

from avomni_lib import files
from avomni_lib.params import Params
from avomni_lib.training.fit import preview
from avomni_lib.training.forecast import memory

DEMO = files.PROJECT_ROOT / "params" / "demo.yaml"


@pytest.mark.parametrize("rank", [8, 64])
def test_lora_modules_equal_the_trained_modules(rank: int):
    p = Params.from_files([DEMO], [f"model.lora_rank={rank}"])
    rows = preview.lora_modules(p)
    size = memory.size_of(p)
    assert sum(row["lora_weights"] for row in rows) == size.num_adapter(
        rank, memory.lora_targets(p)
    )
    assert {row["layer"] for row in rows} == set(range(size.language.layers))
    assert {row["module"] for row in rows} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    for row in rows:
        assert "language_model" in row["name"] and row["weights"] > 0


def test_trainer_arguments_follow_the_parameters():
    changes = ["training.learning_rate=2.0e-3", "training.max_steps=7", "training.batch_size=3"]
    shown = preview.arguments(Params.from_files([DEMO], changes), num_windows=100)
    assert (shown["learning_rate"], shown["max_steps"]) == (2e-3, 7)
    assert shown["per_device_train_batch_size"] == 3
    assert not set(shown) & set(preview.NOT_SHOWN)
