import json
import subprocess
import sys

import pytest

from avomni_lib.errors import AvomniError
from avomni_lib.files import PROJECT_ROOT
from avomni_lib.params import Params
from avomni_lib.training.backbones import family
from avomni_lib.training.backbones.shared.size import VisionWork
from avomni_lib.training.forecast import estimate
from avomni_lib.training.forecast.answer_time import answer_time
from avomni_lib.training.forecast.estimate import Probe
from avomni_lib.training.prompt.tokens import Tokens
from tests import training_set


def mi300x(**changes):
    return Params.from_values({"extends": "params/mi300x.yaml"} | changes)


def test_plan_needs_neither_torch_nor_network():
    code = f"""
import socket, sys
def no_network(*_, **__): raise AssertionError("network")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = no_network
from avomni_lib.__main__ import main
assert main(["plan", {str(PROJECT_ROOT / "params" / "mi300x.yaml")!r}, "--json"]) == 0
loaded = [name for name in ("torch", "transformers", "huggingface_hub") if name in sys.modules]
assert not loaded, loaded
"""
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    planned = json.loads(ran.stdout)
    assert planned["vision_tokens"] == 3584
    assert 3700 < planned["tokens_per_sample"] < 3900
    assert planned["max_seq_length"] == 65536
    assert planned["num_chunks"] == 1 and 8 < planned["fetch_gb"] < 9
    # 100 clips of 40 frames of 896×512 RGB
    assert planned["cache_gb"] == pytest.approx(100 * 40 * 896 * 512 * 3 / 1e9, rel=1e-3)
    assert planned["cache_gb_by_storage"] == {
        "raw": planned["cache_gb"],
        "jpeg": pytest.approx(0.5, abs=0.01),
    }
    # (40 - 16) // 8 + 1 = 4 windows a clip, half of the clips, 2 epochs, 16 windows a step
    assert planned["num_windows"] == 400 and planned["optimizer_steps"] == 25
    assert any("25 optimizer steps are few" in warning for warning in planned["warnings"])


def test_size_limit_decides_the_number_of_chunks():
    def chunks(target_size_gb):
        download = {"target_chunks": 50, "target_size_gb": target_size_gb}
        return estimate.plan_run(mi300x(download=download)).figures["num_chunks"]

    assert (chunks(150), chunks(10), chunks(5)) == (18, 1, 0)
    seven = mi300x(
        download={"target_chunks": 50, "target_size_gb": 150}, vision={"cameras": "7-cam"}
    )
    assert estimate.plan_run(seven).figures["num_chunks"] == 9


def test_plan_reports_impossible_settings():
    def warnings(**changes):
        return " ".join(estimate.plan_run(mi300x(**changes)).warnings)

    with pytest.raises(AvomniError, match="the longest has 40 frames at 2 Hz .20 s.") as caught:
        warnings(processing={"sequence_length": 64}, vision={"window_size": 64})
    assert "lower processing.sequence_length to 40 at most, or raise" in str(caught.value)
    assert "no window fits" in warnings(
        processing={"sequence_length": 64}, vision={"window_size": 64}, dataset={"source": "folder"}
    )
    assert "not one chunk fits" in warnings(download={"target_size_gb": 1})
    assert "05_train will refuse it" in warnings(model={"max_seq_length": 2048})
    with pytest.raises(AvomniError, match="multiples of 32"):
        warnings(processing={"tile_height": 252})


def test_estimated_tokens_are_near_the_tokenizers_count():
    # Qwen's tokenizer splits words more often than this one, and punctuation less often.
    conversation = training_set.conversation()
    sample = conversation.sample(
        conversation.target.render(training_set.Truth(0.3, 211.04, 211.0, 28.13))
    )
    p = training_set.params("unused", "unused")
    tokens = estimate.tokens_per_sample(p)
    assert tokens.vision == conversation.num_vision_tokens
    assert tokens.total == pytest.approx(len(sample), rel=0.1)


def test_steps_follow_epochs_up_to_max_steps():
    def steps(num_windows, **training):
        return estimate.optimizer_steps(mi300x(training=training), num_windows)

    assert steps(200) == 25
    assert steps(201) == 26
    assert steps(200, num_epochs=0.5) == 7
    assert steps(200, max_steps=3) == 3
    assert steps(200, max_steps=300) == 25


def test_frames_per_clip_include_the_first_frame():
    p = mi300x(processing={"sample_hz": 10})
    assert estimate.frames_per_clip(p, 8.0) == 80
    assert estimate.frames_per_clip(p, 8.01) == 81
    assert estimate.frames_per_clip(p, 1.1) == 11, "1.1 × 10 is a little more than 11 in floats"


def test_rendered_clips_are_counted_by_split():
    demo = estimate.plan_run(Params.from_files([PROJECT_ROOT / "params" / "demo.yaml"])).figures
    assert (demo["num_clips"], demo["frames_per_clip"]) == (100, 80)
    assert demo["num_windows"] == 100 * ((80 - 16) // 8 + 1)
    assert demo["num_train_windows"] == 60 * ((80 - 16) // 8 + 1)


def test_vision_tokens_follow_the_base_models_patch_size():
    tiny = Params.from_files([PROJECT_ROOT / "params" / "demo.yaml"])
    # 16 frames are 8 temporal patches; a grid of 96×64 px has 6 × 4 squares of 16 px (patch 8).
    assert estimate.tokens_per_sample(tiny).vision == 8 * 6 * 4


def test_plan_with_eviction_warns_if_the_disk_budget_is_too_small():
    def plan(**changes):
        download = {"evict_raw": True, "target_chunks": 23} | changes
        return estimate.plan_run(mi300x(download=download))

    assert plan(target_size_gb=152).rows[4][:2] == ("on the disk", "147.1 GB of 152.0 GB")
    assert not [w for w in plan(target_size_gb=152).warnings if "go through" in w]
    [refused] = [w for w in plan(target_chunks=40).warnings if "go through" in w]
    assert refused.startswith("23 of 40 chunks go through with a budget of 150 GB")
    fitting = plan(target_chunks=40).figures["num_chunks_fitting"]
    assert not [w for w in plan(target_chunks=fitting).warnings if "go through" in w]
    assert [w for w in plan(target_chunks=fitting + 1).warnings if "go through" in w]


def rows_of(p, tokens=None, steps=25, device="cuda", **arguments):
    tokens = tokens or estimate.tokens_per_sample(p)
    rows, warnings, figures = estimate.training_rows(p, steps, tokens, device=device, **arguments)
    return {name: (value, note) for name, value, note in rows}, warnings, figures


def test_expected_memory_is_shown_only_for_its_settings():
    rows, _, figures = rows_of(mi300x())
    assert rows["memory on the GPU"][0].startswith("11.6 GB")
    value, note = rows["what was expected"]
    assert value == "40–60 GB" and "without training.gradient_checkpointing they take 44" in note
    assert figures["memory_gb_without_checkpointing"] > 3.5 * figures["memory_gb"]
    parts = figures["memory_by_part_gb"]
    assert list(parts) == ["weights", "adapter", "optimizer", "activations", "vision", "logits"]
    # At the peak, while a layer's gradients are computed, logits and vision are not in memory.
    at_peak = ("weights", "adapter", "optimizer", "activations")
    assert sum(parts[name] for name in at_peak) == pytest.approx(figures["memory_gb"], abs=0.01)

    for other in ({"model": {"lora_rank": 16}}, {"training": {"batch_size": 4}}):
        assert "what was expected" not in rows_of(mi300x(**other))[0]
    # The length of the training has no effect on memory.
    assert "what was expected" in rows_of(mi300x(training={"num_epochs": 9}))[0]


def test_training_time_is_marked_as_estimated_before_a_probe():
    rows, _, figures = rows_of(mi300x())
    value, note = rows["time to train"]
    assert value == "4 min" and "estimated, not measured" in note and "27 % of the peak" in note
    assert figures["train_hours"] == pytest.approx(25 * 8.67 / 3600, abs=0.001)
    assert "cost to train" not in rows and "train_cost" not in figures

    eight = mi300x(training={"num_processes": 8})
    assert rows_of(eight)[2]["train_hours"] == pytest.approx(figures["train_hours"] / 8, rel=0.1)
    demo = Params.from_files([PROJECT_ROOT / "params" / "demo.yaml"])
    assert "time to train" not in rows_of(demo, device="cpu")[0], "05_train will time two steps"


def test_price_per_hour_gives_the_training_cost():
    priced = mi300x(run={"price_per_hour": 1.99})
    rows, _, figures = rows_of(priced, steps=20_000)
    assert figures["train_cost"] == pytest.approx(1.99 * figures["train_hours"], abs=0.01)
    assert rows["cost to train"][0] == f"{figures['train_cost']:.2f}"


def test_timed_steps_replace_the_estimate():
    demo = Params.from_files([PROJECT_ROOT / "params" / "demo.yaml"], ["run.price_per_hour=3.6"])
    probe = Probe(0.9, 0.5, peak_bytes=850_000_000)
    rows, _, figures = rows_of(demo, steps=100, device="cpu", probe=probe)
    assert rows["time to train"] == ("2 min", "100 steps of 0.9 s, as timed on this machine")
    assert "the first steps took 850.0 MB" in rows["memory"][1]
    # On a CPU, CPU time is compared and wall time is paid.
    assert figures["predicted"] == {"seconds": 50.0, "memory_gb": 0.85}
    spent = {"train_hours": 0.025, "train_cost": 0.09}
    assert figures["probed"] == figures["predicted"] | spent and spent.items() <= figures.items()
    assert figures["memory_gb"] < figures["predicted"]["memory_gb"], "tensors are not all"

    on_gpu = rows_of(mi300x(), steps=100, device="cuda:0", probe=probe)[2]
    assert on_gpu["predicted"] == {"seconds": 90.0, "memory_gb": on_gpu["memory_gb"]}


def test_plan_warns_of_too_little_device_memory():
    assert not rows_of(mi300x())[1]
    [refused] = rows_of(mi300x(), capacity=8e9)[1]
    assert "about 11.6 GB of 8.00 GB" in refused and "training.batch_size" in refused
    large = mi300x(training={"batch_size": 64, "gradient_checkpointing": False})
    assert "of 192.0 GB" in rows_of(large)[1][0]


def test_unknown_base_model_has_time_but_no_memory_estimate():
    other = mi300x(model={"base_model": "somebody/Another-VL-9B"})
    tokens = of_qwen(3584, 171, 47)
    rows, warnings, figures = rows_of(other, tokens)
    assert rows["memory"][0] == "not known" and not warnings and not figures
    probe = Probe(2.0, 1.0, peak_bytes=9)
    figures = rows_of(other, tokens, steps=1800, probe=probe)[2]
    assert figures["train_hours"] == 1.0 and figures["predicted"] == {"seconds": 3600.0}


def test_run_plan_has_memory_and_hours():
    figures = estimate.plan_run(mi300x(run={"price_per_hour": 2})).figures
    assert {"memory_gb", "memory_by_part_gb", "train_hours", "train_cost"} <= figures.keys()
    demo = estimate.plan_run(Params.from_files([PROJECT_ROOT / "params" / "demo.yaml"]))
    [memory] = [row for row in demo.rows if row[0] == "memory"]
    assert memory[1].startswith("over ") and 0.05 < demo.figures["memory_gb"] < 0.5


QWEN = family("qwen3_vl")
QWEN_8B = QWEN.released("Qwen3-VL-8B")


def of_qwen(vision, text, answer, num_frames=16):
    """Tokens of a window whose temporal patches have 4 patches a token."""
    times = -(-num_frames // 2)
    return Tokens(vision, text, answer, VisionWork(4 * vision, times * (4 * vision / times) ** 2))


@pytest.mark.parametrize(
    ("vision", "plain", "checkpointed"),
    # PFLOP a window from the design, with 352 tokens of text, 256 of them with logits.
    [
        (896, 0.040, 0.058),
        (2016, 0.081, 0.115),
        (3584, 0.142, 0.201),
        (6272, 0.262, 0.367),
        (8064, 0.353, 0.491),
    ],
)
def test_operations_equal_the_published_figures(vision, plain, checkpointed):
    of_window = estimate.operations(QWEN_8B, of_qwen(vision, 352, 256), 64, QWEN.lora_targets)
    assert of_window.step(recomputed=False) / 1e15 == pytest.approx(plain, rel=0.03)
    assert of_window.step(recomputed=True) / 1e15 == pytest.approx(checkpointed, rel=0.03)


def test_operations_scale_with_tokens_frames_and_rank():
    def of(vision, frames=16, rank=64):
        return estimate.operations(QWEN_8B, of_qwen(vision, 0, 1, frames), rank, QWEN.lora_targets)

    one, two = of(1000), of(2000)
    assert two.linears == 2 * one.linears and two.attention == 4 * one.attention
    # Twice the frames of the same size: each frame attends only to itself.
    assert of(2000, frames=32).vision == pytest.approx(2 * one.vision)
    assert two.vision > 2 * one.vision
    assert of(1000, rank=128).lora == 2 * one.lora
    # A missing last frame is filled with the one before it.
    assert of(1000, frames=15) == one


def test_step_time_is_divided_by_the_number_of_gpus():
    tokens = of_qwen(3584, 171, 47)

    def seconds(**training):
        return estimate.expected_seconds(
            Params.from_values({"extends": "params/mi300x.yaml", "training": training}),
            QWEN_8B,
            tokens,
        )

    # 16 windows of 0.19 PFLOP at 27 % of 1,307 TFLOP/s.
    assert seconds() == pytest.approx(16 * 0.191e15 / (0.27 * 1307e12), rel=0.01)
    assert seconds(num_processes=4) == pytest.approx(seconds() / 4)
    assert seconds(gradient_checkpointing=False) == pytest.approx(0.7 * seconds(), rel=0.05)


def test_probe_ignores_the_first_step():
    probe = Probe(**estimate.probe_of([(9.0, 5.0), (1.0, 0.5), (2.0, 0.7)], memory_gb=0.86))
    assert probe == Probe(1.5, 0.6, peak_bytes=860_000_000)
    # With only one step, that one is used.
    assert estimate.probe_of([(9.0, 5.0)], 0.86)["seconds_per_step"] == 9.0


def test_comparison_shows_prediction_measurement_and_error():
    rows = estimate.compared(
        {"memory_gb": 0.9, "seconds": 90.0, "train_hours": 1.0},
        {"memory_gb": 1.0, "seconds": 100.0},
    )
    assert rows == [
        ("peak memory", "-10 %", "900.0 MB predicted, 1.00 GB measured"),
        ("time to train", "-10 %", "90 s predicted, 100 s measured"),
    ]
    [row] = estimate.compared({"seconds": 30.0}, {"memory_gb": 1.0, "seconds": 20.0}, "cpu")
    assert row == ("CPU time of training", "+50 %", "30 s predicted, 20 s measured")
    assert estimate.compared({"seconds": 30.0}, {"seconds": 0.0}) == []


def test_answer_time_of_the_8b_follows_from_operations_and_bytes():
    full = answer_time(mi300x(live={"hop": 16}))
    assert 70e12 < full.work < 76e12
    # 8.2e9 weights without the vision tower and the embedding, in 16 bit.
    assert full.text / full.num_tokens == pytest.approx(15.1e9 / (0.7 * 5.3e12), rel=0.02)
    summary, path = answer_time(mi300x()), answer_time(mi300x(training={"target": "future_v1"}))
    assert summary.vision == pytest.approx(full.vision / 4)
    assert summary.num_tokens < 60 and 200 < path.num_tokens < 320
    assert summary.least_hop(2.0) == 1 and summary.total < 0.5 < path.total
    assert (path.least_hop(2.0) - 1) / 2.0 < path.total <= path.least_hop(2.0) / 2.0
    assert answer_time(mi300x(model={"base_model": "nobody/knows"})) is None


def test_live_page_states_the_computed_answer_times():
    page = (PROJECT_ROOT / "docs" / "live.md").read_text()
    for target in ("summary_v1", "future_v1"):
        for hop in (1, 4):
            time = answer_time(mi300x(training={"target": target}, live={"hop": hop}))
            parts = (time.vision, time.window, time.text, time.total)
            seconds = " | ".join(f"{each:.3f}" for each in parts)
            row = f"| `{target}` | {hop} | {time.num_tokens} | {time.work / 1e12:.0f} | {seconds} |"
            assert row in page, row
