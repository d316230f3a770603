"""GPU load and power: the output formats of three programs, and programs that fail."""

import json
import time

import pytest

from avomni_lib.training.fit import energy, worker
from avomni_lib.training.fit.energy import PowerSample, Sampler
from tests import killed_training, training_set

AMD = {
    "gpu": 0,
    "usage": {"gfx_activity": {"value": 53, "unit": "%"}, "umc_activity": "N/A"},
    "power": {"socket_power": {"value": 412, "unit": "W"}, "throttle_status": "UNTHROTTLED"},
    "temperature": {
        "edge": "N/A",
        "hotspot": {"value": 61, "unit": "C"},
        "mem": {"value": 48, "unit": "C"},
    },
}
UNKNOWN = {"gpu": 1, "usage": "N/A", "power": {"socket_power": "N/A"}, "temperature": "N/A"}
ROCM = {
    "card0": {
        "Temperature (Sensor edge) (C)": "N/A",
        "Temperature (Sensor junction) (C)": "61.0",
        "Temperature (Sensor memory) (C)": "48.0",
        "Current Socket Graphics Package Power (W)": "412.0",
        "GPU use (%)": "53",
    },
    "card1": {"Average Graphics Package Power (W)": "N/A (Secondary die)", "GPU use (%)": "7"},
    "system": {"Driver version": "6.12"},
}
NVIDIA = "0, GPU-aa, 53, 412.00, 61\n1, GPU-bb, 7, [N/A], 40\n"
OUTPUTS = {
    "amd-smi": json.dumps([AMD, UNKNOWN]),
    "rocm-smi": json.dumps(ROCM),
    "nvidia-smi": NVIDIA,
}
CARD_0 = PowerSample(53.0, 412.0, 61.0)
LINE = {"gpu_busy_pct": 53.0, "gpu_watts": 412.0, "gpu_celsius": 61.0, "gpu_joules": 824.0}


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Make tmp_path the first folder of PATH; return a function that puts a program there."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    for name in energy.VISIBLE:
        monkeypatch.delenv(name, raising=False)

    def put(name, script):
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    return put


def script_printing(text):
    return f"cat <<'END'\n{text}\nEND"


def first_line(sampler):
    """The first non-empty line of metrics of a step of 2 s; empty after 5 s."""
    until = time.monotonic() + 5
    while time.monotonic() < until:
        if line := sampler.taken(2.0):
            return line
        time.sleep(0.02)
    return {}


@pytest.mark.parametrize("name", energy.PROGRAMS)
def test_output_of_each_program_is_parsed(programs, name):
    programs(name, script_printing(OUTPUTS[name]))
    readings = energy.ask(name)
    assert readings["0"] == CARD_0
    assert readings["1"].watts is None
    sampler = Sampler(["0"], every=0.01)
    assert first_line(sampler) == LINE
    sampler.close()


def test_newer_amd_smi_output_and_gpu_uuids_are_parsed(programs):
    programs("amd-smi", script_printing(json.dumps({"gpu_data": [AMD]})))
    assert energy.ask("amd-smi") == {"0": CARD_0}
    programs("nvidia-smi", script_printing(NVIDIA))
    assert energy.ask("nvidia-smi")["GPU-aa"] == CARD_0


@pytest.mark.parametrize(
    "script", ["exit 3", "echo rubbish", "echo '[1]'", "echo '{}'", "echo '[]'", "sleep 60 | cat"]
)
def test_failing_program_falls_back_to_the_next(programs, monkeypatch, caplog, script):
    monkeypatch.setattr(energy, "TIMEOUT_S", 0.2)
    monkeypatch.setattr(energy, "LONGEST_WAIT_S", 0.01)
    programs("amd-smi", script)
    programs("nvidia-smi", script_printing(NVIDIA))
    sampler = Sampler(["0"], every=0.01)
    assert first_line(sampler) == LINE
    sampler.close()
    assert "amd-smi cannot be used" in caplog.text


def test_no_figures_without_a_program_or_on_a_cpu(programs):
    sampler = Sampler(["0"], every=0.01)
    time.sleep(0.1)
    assert sampler.taken(1.0) == {}
    assert Sampler.of("cpu") is None
    assert energy.figures([{"seconds": 2.0, "samples_per_s": 4.0}]) == {}


def test_watts_of_several_gpus_are_summed(programs):
    second = AMD | {"gpu": 1, "power": {"socket_power": {"value": 100, "unit": "W"}}}
    programs("amd-smi", script_printing(json.dumps([AMD, second])))
    sampler = Sampler(["0", "1"], every=0.01)
    line = first_line(sampler)
    assert (line["gpu_watts"], line["gpu_busy_pct"]) == (512.0, 53.0)
    sampler.close()


def test_gpus_follow_the_visible_devices_variable(monkeypatch):
    for name in energy.VISIBLE:
        monkeypatch.delenv(name, raising=False)
    assert energy.cards_of("cuda:0") == ["0"]
    assert energy.cards_of("cuda:2") == ["2"]
    assert energy.cards_of("cuda:0", 3) == ["0", "1", "2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, GPU-aa")
    assert energy.cards_of("cuda:1") == ["GPU-aa"]
    assert energy.cards_of("cuda:0", 2) == ["5", "GPU-aa"]


def test_energy_is_watts_times_seconds():
    lines = [
        {"seconds": 10.0, "samples_per_s": 2.0, "gpu_watts": 300.0, "gpu_busy_pct": 90.0},
        {"seconds": 30.0, "samples_per_s": 2.0, "gpu_watts": 500.0, "gpu_busy_pct": 50.0},
        # Before the program's first output: counted with the mean of the others.
        {"seconds": 20.0, "samples_per_s": 2.0},
    ]
    assert energy.figures(lines) == {
        "gpu_busy_pct": 60.0,
        "gpu_watts": 450.0,
        "energy_kwh": round(450 * 60 / 3.6e6, 5),
        "joules_per_sample": 450 * 60 / 120,
    }


@pytest.mark.parametrize("script", ["works", "exit 1"])
def test_training_logs_power_and_survives_a_failing_program(
    programs, monkeypatch, tmp_path, script
):
    """On a CPU, with a sampler as on a GPU."""
    programs("rocm-smi", script_printing(OUTPUTS["rocm-smi"]) if script == "works" else script)
    monkeypatch.setattr(worker.Sampler, "of", lambda device, ranks: Sampler(["0"], every=0.01))
    base = training_set.make_base(tmp_path / "base")
    p = training_set.params(tmp_path, base, training={"max_steps": 3})
    trained = worker.work(p, windows=training_set.Stripes(killed_training.NUM_WINDOWS))
    last = trained.metrics[-1]
    if script == "works":
        assert (last["gpu_watts"], last["gpu_busy_pct"], last["gpu_celsius"]) == (412, 53, 61)
        assert last["gpu_joules"] == pytest.approx(412 * last["seconds"], abs=0.1)
        figures = trained.figures
        joules = 412 * sum(line["seconds"] for line in trained.metrics)
        assert figures["joules_per_sample"] == pytest.approx(joules / 12, abs=0.051)  # rounded
        assert figures["energy_kwh"] == pytest.approx(joules / 3.6e6, abs=1e-5)
    else:
        assert "gpu_watts" not in last and "energy_kwh" not in trained.figures
    assert (trained.adapter / "record.json").exists()
