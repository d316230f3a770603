"""The GPU measurement script, run on a CPU with the tiny model."""

import json
import os
import subprocess
import sys

import pytest

from avomni_lib import files
from avomni_lib.params import sections
from avomni_lib.training.backbones import Video, backbone, family
from tests.gpu import base, measure, timeline
from tests.gpu.subject import Subject

NEEDS_A_GPU = {"timeline", "4cam_unsloth"}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    out = tmp_path_factory.mktemp("gpu")
    command = [sys.executable, "-m", "tests.gpu.measure", "--quick", "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    ran = subprocess.run(
        command, cwd=files.PROJECT_ROOT, env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads((out / measure.REPORT_FILE).read_text())["parts"]


def test_every_part_runs_or_gives_a_reason(report):
    assert list(report) == [part.name for part in measure.parts()]
    assert not {name: part for name, part in report.items() if "error" in part}
    left_out = {name for name, part in report.items() if "left_out" in part}
    assert left_out - {"pixels"} == NEEDS_A_GPU


def test_training_parts_report_speed_and_memory(report):
    for name in ("4cam", "7cam", "4cam_accumulated", "4cam_bf16"):
        part = report[name]
        assert part["steps_counted"] == 1 and part["seconds_per_step"] > 0
        assert part["tokens_per_s"] > part["windows_per_s"] > 0
        assert 0 <= part["data_wait_share"] < 1
        known = part["arithmetic"]
        assert known["memory_foretold_gb"] > 0
        assert known["tflops_with_recomputation"] > known["tflops_model"] > 0
    assert (report["4cam"]["grid"], report["7cam"]["grid"]) == ("64x64", "96x96")
    assert report["4cam"]["quantisation"] == "stored"
    assert report["4cam_bf16"]["quantisation"] == "none"


def test_adapter_is_unchanged_after_saving_and_loading(report):
    part = report["adapter"]
    assert part["equal"] and part["exported_equals_checkpoint"] and part["all_finite"]
    assert part["adapter_moves_logits_by"] > 0.01
    assert part["optimizer_state"]["in_8_bit"] > 0.5
    assert report["generation"]["all_finite"]


@pytest.mark.parametrize("name", [name for name in sections.BACKBONES if name != "qwen3_vl"])
def test_other_backbones_can_be_measured(name, tmp_path):
    wanted = ["pixels", "base_made", "base_in_4_bit", "4cam", "adapter"]
    chosen = [part for part in measure.parts() if part.name in wanted]
    report_of_backbone = measure.measure(
        Subject(tmp_path, True, name), chosen, tmp_path, seconds=60
    )
    assert report_of_backbone["backbone"] == name
    assert not {
        part: result for part, result in report_of_backbone["parts"].items() if "error" in result
    }
    assert set(report_of_backbone["parts"]["pixels"]) == {"left_out", "part_seconds"}
    assert report_of_backbone["parts"]["4cam"]["arithmetic"]["memory_foretold_gb"] > 0
    assert report_of_backbone["parts"]["adapter"]["equal"]


@pytest.mark.parametrize("name", sections.BACKBONES)
def test_each_backbone_has_a_config_of_a_released_size(name, tmp_path):
    config = base.config_of(Subject(tmp_path, False, name))
    known = family(name).size(config.to_dict())
    assert 4e9 < known.num_weights < 10e9
    kind = backbone(name, config)
    for setup in ("4-cam", "7-cam"):
        width, height = map(int, Subject(tmp_path, False, name).size(setup).split("x"))
        kind.check(Video((0.0,), height, width))


def test_failed_and_skipped_parts_do_not_stop_the_rest(tmp_path):
    def fails(_):
        raise ValueError("no such kernel")

    parts = [
        measure.Part("first", fails, 0),
        measure.Part("second", lambda _: {"found": 1}, 1e9),
        measure.Part("third", lambda _: {"found": 2}, 0),
    ]
    made = measure.measure(Subject(tmp_path), parts, tmp_path, seconds=60)
    assert made == files.read_json(tmp_path / measure.REPORT_FILE)
    assert made["parts"]["first"]["error"] == "ValueError: no such kernel"
    assert "left_out" in made["parts"]["second"]
    assert made["parts"]["third"]["found"] == 2


def test_trace_summary_has_busy_and_hidden_shares(tmp_path):
    def event(cat, name, start, duration, size=0):
        return {"cat": cat, "name": name, "ts": start, "dur": duration, "args": {"bytes": size}}

    upload = "Memcpy HtoD (Pinned -> Device)"
    trace = [
        event("kernel", "flash_fwd_kernel", 0, 40),
        event("kernel", "nvjet_tst_128x256", 30, 30),  # 10 of them overlap the other kernel
        event("gpu_memcpy", upload, 50, 20, 44_040_192),  # half of it overlaps a kernel
        event("gpu_memcpy", upload, 80, 1, 8),  # not a batch's frames
        event("kernel", "kDequantizeBlockwise", 90, 10),
        {"cat": "cpu_op", "name": "aten::mm", "ts": 0, "dur": 500},
    ]
    path = tmp_path / "trace.json"
    path.write_text(json.dumps({"traceEvents": trace}))
    summary = timeline.summary(timeline.read(path))
    assert summary["seconds"] == 0.0001 and summary["busy_share"] == 0.7
    assert summary["share_by_kind"] == {
        "attention": 0.5,
        "products": 0.375,
        "4-bit weights unpacked": 0.125,
    }
    copied = summary["frames_copied"]
    assert (copied["copies"], copied["hidden_share"], copied["share_of_time"]) == (1, 0.5, 0.2)
