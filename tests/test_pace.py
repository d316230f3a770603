from types import SimpleNamespace

import pytest

from avomni_lib.params import Params
from avomni_lib.training.forecast import step_time
from avomni_lib.training.forecast.model_size import anatomy_of
from avomni_lib.training.forecast.step_time import Probe
from avomni_lib.training.prompt.tokens import Tokens

BIG = anatomy_of("Qwen3-VL-8B")


@pytest.mark.parametrize(
    ("vision", "plain", "checkpointed"),
    # PFLOP a window as the design worked them out, with 352 tokens of text and 256 of them logits.
    [
        (896, 0.040, 0.058),
        (2016, 0.081, 0.115),
        (3584, 0.142, 0.201),
        (6272, 0.262, 0.367),
        (8064, 0.353, 0.491),
    ],
)
def test_operations_are_those_of_the_design(vision, plain, checkpointed):
    of_window = step_time.operations(BIG, Tokens(vision, 352, 256), num_frames=16, rank=64)
    assert of_window.step(recomputed=False) / 1e15 == pytest.approx(plain, rel=0.03)
    assert of_window.step(recomputed=True) / 1e15 == pytest.approx(checkpointed, rel=0.03)


def test_operations_grow_as_their_shapes_do():
    def of(vision, frames=16, rank=64):
        return step_time.operations(BIG, Tokens(vision, 0, 1), num_frames=frames, rank=rank)

    one, two = of(1000), of(2000)
    assert two.linears == 2 * one.linears and two.attention == 4 * one.attention
    # Twice the frames, each as before: each attends to itself alone.
    assert of(2000, frames=32).vision == pytest.approx(2 * one.vision)
    assert two.vision > 2 * one.vision
    assert of(1000, rank=128).lora == 2 * one.lora
    # A frame that is missing at the end is the one before it again.
    assert of(1000, frames=15) == one


def test_a_steps_seconds_are_shared_by_the_cards():
    tokens = Tokens(3584, 171, 47)

    def seconds(**training):
        return step_time.expected_seconds(
            Params.from_values({"extends": "params/mi300x.yaml", "training": training}), BIG, tokens
        )

    # 16 windows of 0.19 PFLOP at 35 % of 1,307 TFLOP/s.
    assert seconds() == pytest.approx(16 * 0.191e15 / (0.35 * 1307e12), rel=0.01)
    assert seconds(num_processes=4) == pytest.approx(seconds() / 4)
    assert seconds(gradient_checkpointing=False) == pytest.approx(0.7 * seconds(), rel=0.05)


def trained(seconds, cpu_seconds, memory_gb=0.86):
    lines = zip(seconds, cpu_seconds, strict=True)
    return SimpleNamespace(
        metrics=[{"seconds": wall, "cpu_seconds": cpu} for wall, cpu in lines],
        figures={"measured": {"memory_gb": memory_gb}},
    )


def test_a_probe_leaves_the_first_step_out():
    found = Probe(**step_time.probe_of(trained([9.0, 1.0, 2.0], [5.0, 0.5, 0.7])))
    assert found == Probe(1.5, 0.6, peak_bytes=860_000_000)
    # A training of one step has nothing else.
    assert step_time.probe_of(trained([9.0], [5.0]))["seconds_per_step"] == 9.0


def test_a_probe_tells_the_whole_training():
    probe = Probe(1.5, 0.6, peak_bytes=860_000_000)
    p = Params.from_values({"run": {"price_per_hour": 2.0}})
    told = {"memory_gb": 0.86, "train_hours": 0.5, "train_cost": 1.0}
    assert step_time.after(p, probe, 1200, "cpu") == told | {"seconds": 720.0}
    assert step_time.after(p, probe, 1200) == told | {"seconds": 1800.0}
    assert "train_cost" not in step_time.after(Params(), probe, 1200)


def test_predicted_and_measured_stand_side_by_side_with_the_error():
    rows = step_time.compared(
        {"memory_gb": 0.9, "seconds": 90.0, "train_hours": 1.0},
        {"memory_gb": 1.0, "seconds": 100.0},
    )
    assert rows == [
        ("peak memory", "-10 %", "900.0 MB predicted, 1.00 GB measured"),
        ("time to train", "-10 %", "90 s predicted, 100 s measured"),
    ]
    [row] = step_time.compared({"seconds": 30.0}, {"memory_gb": 1.0, "seconds": 20.0}, "cpu")
    assert row == ("CPU time of training", "+50 %", "30 s predicted, 20 s measured")
    assert step_time.compared({"seconds": 30.0}, {"seconds": 0.0}) == []
