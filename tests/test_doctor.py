"""The doctor's lines, its refusal, its choice of an optimizer, and its command."""

import dataclasses
import json
import subprocess
import sys

import pytest
from torch.nn import functional

from avomni_lib import files, hardware
from avomni_lib.errors import AvomniError
from avomni_lib.hardware import Choice
from avomni_lib.params import Params
from avomni_lib.training.doctor import doctor, findings, machine, probes
from avomni_lib.training.doctor.findings import Finding, Report
from avomni_lib.training.doctor.machine import Installed, Triton

bitsandbytes = probes.load_bitsandbytes()
DEMO = files.PROJECT_ROOT / "params" / "demo.yaml"
LINES = (
    "python, accelerator, runtime, torch, platform, bitsandbytes, triton, bitsandbytes' library, "
    "unsloth, attention, host memory, 4-bit linear, paged_adamw_8bit step, adamw_8bit step, "
    "attention, vision tower, attention, language model, patch embedding, /dev/shm, disk, decoder, "
    "token"
)
ON_CPU = {
    "device": Choice("cpu", ""),
    "quantisation": Choice("nf4", ""),
    "optimizer": Choice("adamw_8bit", ""),
}


def run(*words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "avomni_lib", "doctor", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=files.PROJECT_ROOT)


@pytest.fixture
def demo() -> Params:
    return Params.from_files([DEMO])


@pytest.fixture
def on_a_card(monkeypatch):
    """The rule as it is with a card; what is proved is proved on the CPU."""
    monkeypatch.setattr(
        hardware, "optimizer", lambda wanted, _: Choice(wanted, "asked for by training.optimizer")
    )


def test_nothing_is_wrong_here(demo):
    report = doctor.examine(demo)
    assert report.wrong == []
    names = [finding.name for finding in report.findings if finding.name != "device memory"]
    assert ", ".join(names) == LINES
    assert len(set(names)) == len(names)
    report.raise_if_wrong()


def test_the_machine_alone_is_looked_at_without_a_run():
    report = doctor.examine()
    assert report.wrong == []
    [disk] = [finding for finding in report.findings if finding.name == "disk"]
    assert "cache" not in disk.found


def test_a_report_is_a_table_in_a_terminal_and_in_a_notebook():
    report = Report(
        (
            Finding("torch", "ok", "2.13.0", "said only where something is to be done"),
            Finding("4-bit linear", "wrong", "a < b " * 40, "as & such", "pip install 'x>=1,<2'"),
            Finding("token", "note", "none"),
        )
    )
    lines = str(report).splitlines()
    assert max(map(len, lines)) <= findings.LINE_WIDTH
    assert lines[0] == "torch         ok     2.13.0"
    assert lines[1].startswith("4-bit linear  wrong  a < b a < b")
    assert lines[-3].strip() == "what to do: pip install 'x>=1,<2'"
    assert lines[-2] == "token         note   none"
    assert lines[-1] == report.headline == "1 of 3 is wrong, 1 note"
    assert repr(report) == str(report)
    page = report._repr_html_()
    assert "a &lt; b" in page and "as &amp; such" in page and "1 of 3 is wrong" in page


def test_the_command_says_so_and_ends_with_0():
    done = run("--set", "dataset.source=world", "--set", "model.base_model=tiny")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4-bit linear" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("nothing is wrong")
    assert done.stderr == ""


def test_the_command_ends_with_1_where_something_is_wrong_also_as_json():
    """Unsloth trains no vision model on a CPU."""
    done = run(str(DEMO), "--json", "--set", "model.backend=unsloth")
    made = json.loads(done.stdout)
    wrong = [line["name"] for line in made["findings"] if line["state"] == "wrong"]
    assert (done.returncode, wrong) == (1, ["unsloth"])
    assert made["headline"].startswith(f"1 of {len(made['findings'])} is wrong")
    assert set(made["findings"][0]) == {"name", "state", "found", "why", "fix"}


def test_a_mistake_in_the_params_is_still_the_message_of_the_params():
    done = run(str(DEMO), "--set", "model.lora_rnk=3")
    assert done.returncode == 1 and "did you mean model.lora_rank?" in done.stderr


def test_an_mi300x_with_nvidias_triton_and_an_old_bitsandbytes_is_refused(demo, monkeypatch):
    """From its versions alone, with every wrong line and what to do in one message."""
    found = Installed(
        torch="2.9.1+rocm6.4",
        hip="6.4.43484-123eb5128",
        torch_wheel="2.9.1+rocm6.4",
        bitsandbytes="0.49.2",
        tritons=(Triton("triton", "3.9.0", True),),
        triton_wanted="pytorch-triton-rocm==3.5.1",
    )
    monkeypatch.setattr(machine, "installed", lambda: found)
    report = doctor.examine(demo)
    assert [finding.name for finding in report.wrong] == ["bitsandbytes", "triton"]
    with pytest.raises(AvomniError) as refused:
        report.raise_if_wrong()
    for finding in report.wrong:
        assert finding.name in refused.value.what and finding.fix in refused.value.what
    assert "python -m avomni_lib doctor" in refused.value.fix


def test_a_training_starts_where_its_probes_are_right(demo):
    names = [finding.name for finding in doctor.check(demo, ON_CPU)]
    assert names == [
        "attention, vision tower",
        "attention, language model",
        "4-bit linear",
        "adamw_8bit step",
    ]


def test_a_training_asks_only_for_what_it_relies_on(demo, monkeypatch):
    def die(*_, **__):
        raise RuntimeError("HIP error: invalid device function")

    monkeypatch.setattr(bitsandbytes, "matmul_4bit", die)
    monkeypatch.setattr(bitsandbytes.functional, "optimizer_update_8bit_blockwise", die)
    plain = {"quantisation": Choice("none", ""), "optimizer": Choice("adamw_torch", "")}
    assert len(doctor.check(demo, ON_CPU | plain)) == 2
    with pytest.raises(AvomniError) as refused:
        doctor.check(demo, ON_CPU)
    assert refused.value.what.count("invalid device function") == 2
    assert "model.load_in_4bit: false" in refused.value.what


def test_a_training_does_not_start_on_attention_that_sees_what_is_not_there(demo, monkeypatch):
    monkeypatch.setattr(functional, "scaled_dot_product_attention", lambda q, k, v, **_: q)
    with pytest.raises(AvomniError, match="attention, vision tower"):
        doctor.check(demo, ON_CPU)


def test_several_processes_look_at_the_shared_memory_too(demo):
    training = demo.training.model_copy(update={"num_processes": 2})
    p = demo.model_copy(update={"training": training})
    assert doctor.check(p, ON_CPU)[-1].name == "/dev/shm"


def test_a_cpu_has_the_optimizer_that_pages_nothing_and_proves_it():
    choice = doctor.optimizer("paged_adamw_8bit", "cpu")
    assert choice.value == hardware.optimizer("paged_adamw_8bit", "cpu").value == "adamw_8bit"
    assert "there is no GPU" in choice.reason and "steps of it here are AdamW's" in choice.reason


@pytest.mark.parametrize("name", ["adamw_torch", "lion_8bit", "paged_lion_8bit", "sgd"])
def test_other_optimizers_are_taken_as_the_rule_takes_them(name: str):
    assert doctor.optimizer(name, "cpu") == hardware.optimizer(name, "cpu")


@pytest.mark.parametrize("name", probes.OPTIMIZERS)
def test_an_optimizer_is_taken_where_its_steps_are_right(name: str, on_a_card):
    choice = doctor.optimizer(name, "cpu")
    assert choice.value == name
    assert choice.reason.startswith("asked for by training.optimizer; 4 steps of it here")


def test_the_next_one_is_taken_where_pages_fail(on_a_card, monkeypatch):
    right = bitsandbytes.optim.AdamW

    def without_pages(*arguments, is_paged=False, **named):
        if is_paged:
            raise RuntimeError("hipErrorNotSupported: managed memory")
        return right(*arguments, **named)

    monkeypatch.setattr(bitsandbytes.optim, "AdamW", without_pages)
    choice = doctor.optimizer("paged_adamw_8bit", "cpu")
    assert choice.value == "adamw_8bit"
    told = "paged_adamw_8bit does not work here (fails: hipErrorNotSupported: managed memory)"
    assert told in choice.reason


def test_torchs_own_is_taken_where_8_bits_do_not_move(on_a_card, monkeypatch):
    monkeypatch.setattr(
        bitsandbytes.functional, "optimizer_update_8bit_blockwise", lambda *_, **__: None
    )
    choice = doctor.optimizer("paged_adamw_8bit", "cpu")
    assert choice.value == "adamw_torch"
    for name in probes.OPTIMIZERS:
        assert f"{name} does not work here" in choice.reason


def test_the_library_that_bitsandbytes_loaded_is_named():
    line = doctor.native_library(machine.installed(), "cpu")
    assert line.state == "ok" and line.found.startswith("libbitsandbytes_cpu.so")


def test_a_library_that_was_not_loaded_or_is_for_cpus_is_wrong(monkeypatch):
    found = dataclasses.replace(machine.installed(), hip="9.9.1")
    line = doctor.native_library(found, "cuda:0")
    assert line.state == "wrong" and "for CPUs" in line.why and "ROCm" in line.why
    cextension = bitsandbytes.cextension
    broken = cextension.ErrorHandlerMockBNBNativeLibrary("No compatible ROCm binary found")
    monkeypatch.setattr(cextension, "lib", broken)
    line = doctor.native_library(found, "cuda:0")
    assert line.state == "wrong" and "BNB_ROCM_VERSION" in line.fix
    none = dataclasses.replace(found, bitsandbytes=None)
    assert doctor.native_library(none, "cpu").state == "wrong"
