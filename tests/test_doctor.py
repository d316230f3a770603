"""The doctor's lines, its refusal, its choice of an optimizer, and its command.

The real machine is read where possible; other hardware is simulated. The table of platforms agrees
with the constraints files, the Makefile and pyproject.toml.
"""

import dataclasses
import json
import re
import subprocess
import sys
import tomllib
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from torch.nn import functional

from avomni_lib import files, hardware
from avomni_lib.__main__ import main
from avomni_lib.errors import AvomniError
from avomni_lib.etl.video import reader
from avomni_lib.hardware import Choice, Memory
from avomni_lib.params import Params
from avomni_lib.training.doctor import doctor, machine, probes
from avomni_lib.training.doctor.machine import PLATFORMS, DoctorFinding, Installed, Triton

bitsandbytes = probes.load_bitsandbytes()
ROOT = files.PROJECT_ROOT
DEMO, MAKEFILE = ROOT / "params" / "demo.yaml", (ROOT / "Makefile").read_text()
ROWS = pytest.mark.parametrize("row", PLATFORMS.values(), ids=PLATFORMS)
LINES = (
    "python, accelerator, torch, platform, bitsandbytes, triton, bitsandbytes' library, "
    "nvidia wheels, unsloth, attention, host memory, 4-bit linear, paged_adamw_8bit step, "
    "adamw_8bit step, "
    "attention, vision tower, attention, language model, /dev/shm, open files, triton cache, "
    "disk, decoder, "
    "token"
)
CPU = Choice("cpu", "torch sees no accelerator")
ON_CPU = {
    "device": Choice("cpu", ""),
    "quantisation": Choice("nf4", ""),
    "optimizer": Choice("adamw_8bit", ""),
}
OLD, NEW = "6.4.43484-123eb5128", "7.2.26015-fc0010cf6a"  # ROCm's own versions


def built(torch: str, *triton: str, **more) -> Installed:
    """What a machine reports after set-up with the Makefile."""
    tritons = (Triton(*triton, True),) if triton else ()
    return Installed(torch, tritons=tritons, **{"torch_wheel": torch} | more)


AS_SET_UP = {
    "cpu": built("2.13.0+cpu"),
    "rocm6.4": built("2.9.1+rocm6.4", "pytorch-triton-rocm", "3.5.1", hip=OLD),
    "rocm7.2": built("2.13.0+rocm7.2", "triton-rocm", "3.9.0", hip=NEW),
    "cuda": built("2.13.0+cu130", "triton", "3.9.0", cuda="13.0", torch_wheel="2.13.0"),
}
MI300X = dataclasses.replace(
    AS_SET_UP["rocm6.4"], bitsandbytes="0.50.2", triton_wanted="pytorch-triton-rocm==3.5.1"
)
NVIDIAS = dataclasses.replace(  # what unsloth's dependencies leave on an MI300X
    MI300X,
    bitsandbytes="0.49.2",
    tritons=(Triton("triton", "3.9.0", True), Triton("pytorch-triton-rocm", "3.5.1", False)),
)
IMAGE = dataclasses.replace(  # AMD's own, rocm/pytorch
    MI300X,
    torch="2.10.0+rocm7.2.0.lw.git7e1940d4",
    torch_wheel="2.10.0+rocm7.2.0.lw.git7e1940d4",
    hip=NEW,
    tritons=(Triton("triton", "3.6.0+rocm7.2.0.gitba5c1517", True),),
    triton_wanted="triton==3.6.0+rocm7.2.0.gitba5c1517",
)


@pytest.fixture
def demo() -> Params:
    return Params.from_files([DEMO])


@pytest.fixture
def gpu_rule(monkeypatch):
    """The rule for a machine with a GPU; the probes still run on the CPU."""
    rule = lambda wanted, _: Choice(wanted, "asked for by training.optimizer")  # noqa: E731
    monkeypatch.setattr(hardware, "optimizer", rule)


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder of packages that comes first on sys.path."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return folder


def install(folder: Path, name: str, version: str, sizes: dict[str, int]) -> None:
    """A distribution whose RECORD lists files with their sizes; the files are not made."""
    about = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    record = [f"{path},sha256=abc,{size}" for path, size in sizes.items()]
    (about / "RECORD").write_text("\n".join(record))


def findings_by_name(found: Installed) -> dict[str, DoctorFinding]:
    return {finding.name: finding for finding in machine.fit(found)}


def test_doctor_finds_nothing_wrong_on_this_machine(demo):
    report = doctor.examine(demo)
    assert report.wrong == []
    names = [finding.name for finding in report.findings if finding.name != "device memory"]
    assert ", ".join(names) == LINES
    report.raise_if_wrong()
    assert doctor.examine().wrong == []


def test_doctor_command_exits_1_only_if_something_is_wrong(capsys):
    assert main(["doctor", "--set", "dataset.source=world", "--set", "model.base_model=tiny"]) == 0
    printed = capsys.readouterr()
    assert "4-bit linear" in printed.out and printed.err == ""
    assert printed.out.splitlines()[-1].startswith("nothing of ")
    # Unsloth trains no vision model on a CPU.
    assert main(["doctor", str(DEMO), "--json", "--set", "model.backend=unsloth"]) == 1
    made = json.loads(capsys.readouterr().out)
    wrong = [line["name"] for line in made["findings"] if line["state"] == "wrong"]
    assert wrong == ["unsloth"]
    assert set(made["findings"][0]) == {"name", "state", "found", "why", "fix"}


def test_mi300x_with_nvidia_triton_and_old_bitsandbytes_is_refused(demo, monkeypatch):
    """From the versions alone; one message has every wrong line and its fix."""
    monkeypatch.setattr(machine, "installed", lambda: NVIDIAS)
    report = doctor.examine(demo)
    assert [finding.name for finding in report.wrong] == ["bitsandbytes", "triton"]
    with pytest.raises(AvomniError) as refused:
        report.raise_if_wrong()
    for finding in report.wrong:
        assert finding.name in refused.value.what and finding.fix in refused.value.what
    assert "python -m avomni_lib doctor" in refused.value.fix
    old, triton = report.wrong
    assert "NaN" in old.why and "--no-deps 'bitsandbytes>=0.50,<0.51'" in old.fix
    assert "NVIDIA's" in triton.why and "unsloth_zoo" in triton.why
    assert triton.fix.startswith("pip uninstall -y triton ")
    index = "--index-url https://download.pytorch.org/whl/rocm6.4 'pytorch-triton-rocm==3.5.1'"
    assert index in triton.fix


def test_training_checks_only_what_it_uses(demo, monkeypatch):
    names = [finding.name for finding in doctor.check(demo, ON_CPU)]
    assert names == [
        "attention, vision tower",
        "attention, language model",
        "4-bit linear",
        "adamw_8bit step",
    ]
    training = demo.training.model_copy(update={"num_processes": 2})
    two = demo.model_copy(update={"training": training})
    assert doctor.check(two, ON_CPU)[-1].name == "/dev/shm"

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
    monkeypatch.setattr(functional, "scaled_dot_product_attention", lambda q, k, v, **_: q)
    with pytest.raises(AvomniError, match="attention, vision tower"):
        doctor.check(demo, ON_CPU | plain)


def test_cpu_uses_the_unpaged_optimizer_after_a_probe():
    choice = doctor.optimizer("paged_adamw_8bit", "cpu")
    assert choice.value == hardware.optimizer("paged_adamw_8bit", "cpu").value == "adamw_8bit"
    assert "there is no GPU" in choice.reason and "steps of it here are AdamW's" in choice.reason


def test_failing_optimizers_fall_back_to_the_next_one(gpu_rule, monkeypatch):
    original = bitsandbytes.optim.AdamW
    for name in probes.OPTIMIZERS:
        choice = doctor.optimizer(name, "cpu")
        assert choice.value == name
        assert choice.reason.startswith("asked for by training.optimizer; 4 steps of it here")

    def without_pages(*arguments, is_paged=False, **named):
        if is_paged:
            raise RuntimeError("hipErrorNotSupported: managed memory")
        return original(*arguments, **named)

    monkeypatch.setattr(bitsandbytes.optim, "AdamW", without_pages)
    choice = doctor.optimizer("paged_adamw_8bit", "cpu")
    assert choice.value == "adamw_8bit"
    why = "paged_adamw_8bit does not work here (fails: hipErrorNotSupported: managed memory)"
    assert why in choice.reason
    no_update = lambda *_, **__: None  # noqa: E731
    monkeypatch.setattr(bitsandbytes.functional, "optimizer_update_8bit_blockwise", no_update)
    choice = doctor.optimizer("paged_adamw_8bit", "cpu")
    assert choice.value == "adamw_torch" and choice.reason.count("does not work here") == 2


def test_bitsandbytes_native_library_is_checked(monkeypatch):
    line = doctor.native_library(machine.installed(), "cpu")
    assert line.state == "ok" and line.found.startswith("libbitsandbytes_cpu.so")
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


def test_installed_versions_are_read():
    import torch

    found = machine.installed()
    assert (found.torch, found.bitsandbytes) == (torch.__version__, bitsandbytes.__version__)
    assert (found.hip, found.cuda) == (torch.version.hip, torch.version.cuda)
    line = machine.python()
    assert line.state == "ok" and sys.version.split()[0] in line.found


@pytest.mark.parametrize("on_top", ["triton", "pytorch-triton-rocm"])
def test_triton_owner_is_the_package_whose_library_is_installed(site, on_top: str):
    assert machine.tritons() == ()
    sizes = {"triton": 30, "pytorch-triton-rocm": 40}
    for name, size in sizes.items():
        install(site, name, "3.5.1", {"triton/__init__.py": 5, machine.TRITON_LIBRARY: size})
    library = site / machine.TRITON_LIBRARY
    library.parent.mkdir(parents=True)
    library.write_bytes(bytes(sizes[on_top]))
    found = {triton.name: triton for triton in machine.tritons()}
    assert [name for name, triton in found.items() if triton.is_owner] == [on_top]
    assert found["pytorch-triton-rocm"].is_for_rocm and not found["triton"].is_for_rocm


def test_torch_of_the_images_system_python_is_noted(monkeypatch, tmp_path):
    packages = tmp_path / "lib" / "python{}.{}".format(*sys.version_info) / "dist-packages"
    install(packages, "torch", "2.9.1+rocm7.0.0.lw.git1234", {})
    with monkeypatch.context() as moved:
        moved.setattr(sys, "base_prefix", str(tmp_path))
        line = machine.python()
    assert line.state == "note" and "2.9.1+rocm7.0.0.lw.git1234" in line.why
    assert "VENV=system" in line.fix
    with monkeypatch.context() as moved:
        moved.setattr(sys, "prefix", sys.base_prefix)
        assert "VENV=system" in machine.python().found
    version = namedtuple("version", "major minor micro")(3, 10, 2)
    monkeypatch.setattr(sys, "version_info", version)
    assert machine.python().state == "wrong"


@pytest.mark.parametrize(
    ("found", "there", "state", "word"),
    [
        ("cpu", [], "note", "rent"),
        ("cuda", [], "note", "rent"),
        ("cpu", ["AMD"], "note", "make rocm"),
        ("cuda", ["AMD"], "wrong", "make rocm"),
        ("rocm7.2", ["AMD"], "wrong", "groups render and video"),
        ("cuda", ["NVIDIA"], "wrong", "nvidia-smi"),
        ("cpu", ["NVIDIA"], "note", "make cuda"),
    ],
)
def test_gpu_that_torch_does_not_see_is_reported(tmp_path, monkeypatch, found, there, state, word):
    nodes = {vendor: tmp_path / vendor for vendor in machine.CARD_NODES}
    for vendor in there:
        nodes[vendor].touch()
    monkeypatch.setattr(machine, "CARD_NODES", nodes)
    base_model = "unsloth/Qwen3-VL-8B-Instruct-bnb-4bit"
    line = machine.accelerator(CPU, AS_SET_UP[found], base_model, 1)
    assert line.state == state and word in line.fix
    assert there or machine.accelerator(CPU, AS_SET_UP[found], "tiny", 1).state == "ok"


def test_more_processes_than_gpus_are_wrong(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    device = Choice("cuda:0", "AMD Instinct MI300X (gfx942, 206 GB) by ROCm 7.2")
    assert machine.accelerator(device, MI300X, "tiny", 4).state == "ok"
    line = machine.accelerator(device, MI300X, "tiny", 8)
    assert line.state == "wrong" and line.fix == "training.num_processes: 4"


def test_unsloth_is_not_used_on_a_cpu():
    assert machine.unsloth("auto", "cpu").state == "ok"
    line = machine.unsloth("unsloth", "cpu")
    assert line.state == "wrong" and "model.backend: auto" in line.fix


@pytest.mark.parametrize(
    ("code", "state", "word"),
    [("", "ok", "can be imported"), ("raise ImportError('no triton')", "wrong", "no triton")],
)
def test_unsloth_is_imported_in_a_subprocess(site, monkeypatch, code, state, word):
    (site / "unsloth.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(site))
    line = machine.unsloth("auto", "cuda:0")
    assert line.state == state and word in line.found
    assert "unsloth" not in sys.modules


def test_low_memory_disk_and_shared_memory_are_notes(monkeypatch, tmp_path):
    assert [line.name for line in machine.memory("cpu")] == ["host memory"]
    usage = namedtuple("usage", "free")
    for free, shared, state in ((90, 1 << 26, "note"), (200, 1 << 31, "ok")):
        monkeypatch.setattr(hardware, "device_memory", lambda on, free=free: Memory(206, free))
        assert [line.state for line in machine.memory("cuda:0")] == [state, "ok"]
        monkeypatch.setattr(machine.shutil, "disk_usage", lambda _, free=shared: usage(free))
        assert machine.shared_memory(8).state == state
    monkeypatch.undo()
    monkeypatch.setattr(machine, "SHARED_MEMORY", Path("/nowhere"))
    assert machine.shared_memory(8).state == "ok"
    p = Params.from_values({"run": {"outputs_dir": str(tmp_path)}})
    assert machine.room(p, None).state == machine.room(p, 1000).state == "ok"
    line = machine.room(p, 10**18)
    assert line.state == "note" and "takes 1000000000.0 GB" in line.why
    p.cache_dir.mkdir(parents=True)
    assert machine.room(p, 10**18).state == "ok"


@pytest.mark.parametrize("name", ["auto", "pyav", "decord"])
def test_decoders_read_the_test_video(name: str):
    assert machine.decoder(name).state == "ok"


def test_wrong_or_missing_decoder_is_reported(monkeypatch):
    original = reader.read_frames

    def darker(*arguments, **named):
        frames = original(*arguments, **named)
        return dataclasses.replace(frames, images=(frames.images * 0.5).astype(np.uint8))

    monkeypatch.setattr(reader, "read_frames", darker)
    line = machine.decoder("pyav")
    assert line.state == "wrong" and "60, 120, 180" in line.why

    def missing(*_, **__):
        raise AvomniError("decord is not installed", fix="set processing.decoder to auto")

    monkeypatch.setattr(reader, "read_frames", missing)
    line = machine.decoder("pyav")
    assert (line.state, line.found) == ("wrong", "decord is not installed")


def test_hub_token_is_required_only_for_gated_sources(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    line = machine.token("hub", is_gated=True)
    assert line.state == "ok" and "hf_secret" not in repr(line)
    from huggingface_hub import constants

    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    asked = {("hub", True): "wrong", ("hub", False): "note", ("world", False): "ok"}
    for (source, is_gated), state in (asked | {(None, True): "note"}).items():
        assert machine.token(source, is_gated).state == state


def pinned(row: machine.Platform) -> dict[str, str]:
    lines = (ROOT / f"constraints-{row.name}.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))


@ROWS
def test_platform_row_agrees_with_constraints_and_makefile(row: machine.Platform):
    versions = pinned(row)
    assert row.pinned_torch() == versions["torch"]
    target, *settings = row.command.split()[1:]
    assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE)
    if row.name.startswith("rocm"):
        default = re.search(r"^ROCM \?= (\S+)", MAKEFILE, re.MULTILINE).group(1)
        version = dict(part.split("=") for part in settings).get("ROCM", default)
        assert row.name == f"rocm{version}"
        [address] = set(re.findall(r"index-url (\S+rocm\S+)", MAKEFILE))
        index = address.replace("$(ROCM)", version)
        assert index in (ROOT / f"constraints-{row.name}.txt").read_text()
    found = dataclasses.replace(AS_SET_UP[row.name], bitsandbytes=versions["bitsandbytes"])
    assert found.platform is row
    assert {line.state for line in findings_by_name(found).values()} == {"ok"}


def test_platform_table_agrees_with_constraints_and_pyproject():
    names = {f"constraints-{name}.txt" for name in PLATFORMS}
    assert names == {path.name for path in ROOT.glob("constraints-*.txt")}
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ranges = {
        Requirement(line).name: [tuple(map(int, n.split("."))) for n in re.findall(r"[\d.]+", line)]
        for line in extras["optional-dependencies"]["train"]
    }
    assert ranges["torch"] == [machine.TORCH_FROM, machine.TORCH_BELOW]
    expected = [machine.BITSANDBYTES_FROM, machine.BITSANDBYTES_BELOW]
    assert ranges["bitsandbytes"] == expected


def test_image_builds_of_torch_and_triton_are_kept_with_a_note():
    lines = findings_by_name(IMAGE)
    assert [line.state for line in lines.values()] == ["ok", "note", "ok", "ok"]
    assert "an image's own build" in lines["torch"].found
    replaced = dataclasses.replace(IMAGE, tritons=(Triton("triton", "3.9.0", True),))
    fix = findings_by_name(replaced)["triton"].fix
    assert "triton==3.6.0+rocm7.2.0.gitba5c1517 from where the image took torch" in fix


@pytest.mark.parametrize(
    ("found", "place"),
    [
        (AS_SET_UP["cpu"], "https://download.pytorch.org/whl/cpu"),
        (AS_SET_UP["cuda"], "PyPI"),
        (built("2.13.0+cu128", cuda="12.8"), "https://download.pytorch.org/whl/cu128"),
        (Installed("2.9.0a0+50eac811a6.nv25.09", cuda="13.0"), "an image's own build"),
        (built("2.13.0", cuda="12.9"), "PyPI or conda"),
    ],
)
def test_torch_origin_is_read_from_its_version(found: Installed, place: str):
    assert found.origin == place


@pytest.mark.parametrize(
    ("changes", "line", "state"),
    [
        ({"torch": "2.8.0+rocm6.4"}, "torch", "wrong"),
        ({"torch": "2.9.0a0+50eac811a6.rocm"}, "torch", "ok"),
        ({"torch": "2.15.0+rocm7.2"}, "torch", "note"),
        ({"torch": "2.9.1+rocm6.2", "hip": "6.2.41134-65d174c3e"}, "platform", "wrong"),
        ({"torch": "2.10.0+rocm7.1", "hip": "7.1.25424-4179531dcd"}, "platform", "note"),
        ({"bitsandbytes": None}, "bitsandbytes", "wrong"),
        ({"bitsandbytes": "0.51.0"}, "bitsandbytes", "note"),
        ({"tritons": ()}, "triton", "note"),
        ({"tritons": (Triton("pytorch-triton-rocm", "3.5.1", False),)}, "triton", "wrong"),
        ({"tritons": (*MI300X.tritons, Triton("triton", "3.9.0", False))}, "triton", "note"),
        ({"hip": None, "cuda": "13.0"}, "triton", "wrong"),
    ],
)
def test_mismatched_version_is_reported(changes: dict, line: str, state: str):
    finding = findings_by_name(dataclasses.replace(MI300X, **changes))[line]
    assert finding.state == state
    assert state == "ok" or (finding.why and finding.fix)


def test_nearest_platform_row_is_chosen():
    for hip, name in (("6.2.1", "rocm6.4"), ("7.0.5", "rocm7.2"), ("8.1.0", "rocm7.2")):
        assert dataclasses.replace(MI300X, hip=hip).platform.name == name


def test_machine_module_does_not_import_torch():
    code = "import sys, avomni_lib.training.doctor.machine; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
