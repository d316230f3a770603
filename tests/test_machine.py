"""What a machine brings is read as it is, and from stand-ins for what is not here.

The table of platforms agrees with the constraints files, the Makefile and pyproject.toml.
"""

import dataclasses
import re
import subprocess
import sys
import tomllib
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement

from avomni_lib import files, hardware
from avomni_lib.errors import AvomniError
from avomni_lib.etl.video import reader
from avomni_lib.hardware import Choice, Memory
from avomni_lib.params import Params
from avomni_lib.training.doctor import machine
from avomni_lib.training.doctor.findings import Finding
from avomni_lib.training.doctor.machine import PLATFORMS, Installed, Triton

ROOT = files.PROJECT_ROOT
MAKEFILE = (ROOT / "Makefile").read_text()
ROWS = pytest.mark.parametrize("row", PLATFORMS.values(), ids=PLATFORMS)

# What a machine that was set up by `command` reports.
AS_SET_UP = {
    "cpu": Installed("2.13.0+cpu", torch_wheel="2.13.0+cpu"),
    "rocm6.4": Installed(
        "2.9.1+rocm6.4",
        hip="6.4.43484-123eb5128",
        torch_wheel="2.9.1+rocm6.4",
        tritons=(Triton("pytorch-triton-rocm", "3.5.1", True),),
    ),
    "rocm7.2": Installed(
        "2.13.0+rocm7.2",
        hip="7.2.26015-fc0010cf6a",
        torch_wheel="2.13.0+rocm7.2",
        tritons=(Triton("triton-rocm", "3.9.0", True),),
    ),
    "cuda": Installed(
        "2.13.0+cu130",
        cuda="13.0",
        torch_wheel="2.13.0",
        tritons=(Triton("triton", "3.9.0", True),),
    ),
}
MI300X = dataclasses.replace(
    AS_SET_UP["rocm6.4"], bitsandbytes="0.50.2", triton_wanted="pytorch-triton-rocm==3.5.1"
)
# AMD's own image, rocm/pytorch.
IMAGE = dataclasses.replace(
    MI300X,
    torch="2.10.0+rocm7.2.0.lw.git7e1940d4",
    torch_wheel="2.10.0+rocm7.2.0.lw.git7e1940d4",
    hip="7.2.26015-fc0010cf6a",
    tritons=(Triton("triton", "3.6.0+rocm7.2.0.gitba5c1517", True),),
    triton_wanted="triton==3.6.0+rocm7.2.0.gitba5c1517",
)
CPU = Choice("cpu", "torch sees no accelerator")
OF_CPU, OF_CUDA = Installed("2.13.0+cpu"), Installed("2.13.0+cu130", cuda="13.0")
OF_ROCM = Installed("2.13.0+rocm7.2", hip="7.2.26015-fc0010cf6a")


def install(folder: Path, name: str, version: str, sizes: dict[str, int]) -> None:
    """A distribution whose RECORD lists files with their sizes; the files are not made."""
    about = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    record = [f"{path},sha256=abc,{size}" for path, size in sizes.items()]
    (about / "RECORD").write_text("\n".join(record))


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder of packages before all others."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return folder


def test_what_is_installed_here_is_found():
    import bitsandbytes
    import torch

    found = machine.installed()
    assert (found.torch, found.bitsandbytes) == (torch.__version__, bitsandbytes.__version__)
    assert (found.hip, found.cuda) == (torch.version.hip, torch.version.cuda)


@pytest.mark.parametrize("on_top", ["triton", "pytorch-triton-rocm"])
def test_tritons_owner_is_whose_library_lies_there(site, on_top: str):
    sizes = {"triton": 30, "pytorch-triton-rocm": 40}
    for name, size in sizes.items():
        install(site, name, "3.5.1", {"triton/__init__.py": 5, machine.TRITON_LIBRARY: size})
    library = site / machine.TRITON_LIBRARY
    library.parent.mkdir(parents=True)
    library.write_bytes(bytes(sizes[on_top]))
    found = {triton.name: triton for triton in machine.tritons()}
    assert {name: triton.is_owner for name, triton in found.items()} == {
        name: name == on_top for name in sizes
    }
    assert found["pytorch-triton-rocm"].is_for_rocm and not found["triton"].is_for_rocm


def test_without_a_triton_there_is_none(site):
    assert [triton.name for triton in machine.tritons()] == []


def test_this_python_is_named():
    line = machine.python()
    assert line.state == "ok" and sys.version.split()[0] in line.found


def test_the_images_own_python_is_known(monkeypatch):
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    line = machine.python()
    assert line.state == "ok" and "VENV=system" in line.found


def test_a_torch_that_the_images_own_python_brings_is_not_overlooked(monkeypatch, tmp_path):
    packages = tmp_path / "lib" / "python{}.{}".format(*sys.version_info) / "dist-packages"
    install(packages, "torch", "2.9.1+rocm7.0.0.lw.git1234", {})
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path))
    line = machine.python()
    assert line.state == "note" and "2.9.1+rocm7.0.0.lw.git1234" in line.why
    assert "VENV=system" in line.fix


def test_another_python_is_wrong(monkeypatch):
    version = namedtuple("version", "major minor micro")(3, 10, 2)
    monkeypatch.setattr(sys, "version_info", version)
    assert machine.python().state == "wrong"


@pytest.mark.parametrize(
    ("found", "there", "state", "word"),
    [
        (OF_CPU, [], "note", "rent"),
        (OF_CUDA, [], "note", "rent"),
        (OF_CPU, ["AMD"], "note", "make rocm"),
        (OF_CUDA, ["AMD"], "wrong", "make rocm"),
        (OF_ROCM, ["AMD"], "wrong", "groups render and video"),
        (OF_CUDA, ["NVIDIA"], "wrong", "nvidia-smi"),
        (OF_CPU, ["NVIDIA"], "note", "make cuda"),
    ],
)
def test_a_card_that_torch_does_not_see_is_named(tmp_path, monkeypatch, found, there, state, word):
    nodes = {vendor: tmp_path / vendor for vendor in machine.CARD_NODES}
    for vendor in there:
        nodes[vendor].touch()
    monkeypatch.setattr(machine, "CARD_NODES", nodes)
    line = machine.accelerator(CPU, found, "unsloth/Qwen3-VL-8B-Instruct-bnb-4bit", 1)
    assert line.state == state and word in line.fix


def test_a_cpu_is_enough_for_the_tiny_base_model(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "CARD_NODES", {"AMD": tmp_path / "none"})
    assert machine.accelerator(CPU, OF_CPU, "tiny", 1).state == "ok"


def test_more_processes_than_cards_are_wrong(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    device = Choice("cuda:0", "AMD Instinct MI300X (gfx942, 206 GB) by ROCm 7.2")
    assert machine.accelerator(device, OF_ROCM, "tiny", 4).state == "ok"
    line = machine.accelerator(device, OF_ROCM, "tiny", 8)
    assert line.state == "wrong" and line.fix == "training.num_processes: 4"


@pytest.mark.parametrize(
    ("theirs", "state"), [(None, "ok"), ("7.2.0-43", "ok"), ("6.4.1-83\n", "note")]
)
def test_rocm_of_torch_is_held_against_the_machines(tmp_path, monkeypatch, theirs, state):
    version = tmp_path / "version"
    if theirs:
        version.write_text(theirs)
    monkeypatch.setattr(machine, "ROCM_VERSION", version)
    line = machine.runtime(OF_ROCM)
    assert line.state == state and "ROCm 7.2.26015" in line.found
    assert state == "ok" or "ROCM=6.4" in line.fix


def test_unsloth_is_not_used_on_a_cpu():
    assert machine.unsloth("auto", "cpu").state == "ok"
    line = machine.unsloth("unsloth", "cpu")
    assert line.state == "wrong" and "model.backend: auto" in line.fix


@pytest.mark.parametrize(
    ("code", "state", "word"),
    [("", "ok", "can be imported"), ("raise ImportError('no triton')", "wrong", "no triton")],
)
def test_unsloth_is_imported_in_a_process_of_its_own(site, monkeypatch, code, state, word):
    (site / "unsloth.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(site))
    line = machine.unsloth("auto", "cuda:0")
    assert line.state == state and word in line.found
    assert "unsloth" not in sys.modules


def test_a_card_that_others_use_is_a_note(monkeypatch):
    for free, state in ((200, "ok"), (90, "note")):
        monkeypatch.setattr(hardware, "device_memory", lambda on, free=free: Memory(206, free))
        card, host = machine.memory("cuda:0")
        assert (card.state, host.state) == (state, "ok")
    monkeypatch.undo()
    assert [line.name for line in machine.memory("cpu")] == ["host memory"]


def test_little_shared_memory_is_a_note(monkeypatch):
    usage = namedtuple("usage", "free")
    for free, state in ((1 << 26, "note"), (1 << 31, "ok")):
        monkeypatch.setattr(machine.shutil, "disk_usage", lambda _, free=free: usage(free))
        line = machine.shared_memory(1)
        assert line.state == state
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: usage(1 << 26))
    assert "--shm-size" in machine.shared_memory(8).fix
    assert "8 processes" in machine.shared_memory(8).why
    monkeypatch.setattr(machine, "SHARED_MEMORY", Path("/nowhere"))
    assert machine.shared_memory(8).state == "ok"


def test_a_cache_that_does_not_fit_is_a_note(tmp_path):
    p = Params.from_values({"run": {"outputs_dir": str(tmp_path)}})
    assert machine.room(p, None).state == "ok"
    assert machine.room(p, 1000).state == "ok"
    line = machine.room(p, 10**18)
    assert line.state == "note" and "takes 1000000000.0 GB" in line.found
    p.cache_dir.mkdir(parents=True)
    assert machine.room(p, 10**18).state == "ok"


@pytest.mark.parametrize("name", ["auto", "pyav", "decord"])
def test_a_decoder_reads_what_was_written(name: str):
    assert machine.decoder(name).state == "ok"


def test_a_decoder_that_shows_something_else_or_nothing_is_wrong(monkeypatch):
    right = reader.read_frames

    def darker(*arguments, **named):
        frames = right(*arguments, **named)
        return dataclasses.replace(frames, images=(frames.images * 0.5).astype(np.uint8))

    monkeypatch.setattr(reader, "read_frames", darker)
    line = machine.decoder("pyav")
    assert line.state == "wrong" and "60, 120, 180" in line.why

    def missing(*_, **__):
        raise AvomniError("decord is not installed", fix="set processing.decoder to auto")

    monkeypatch.setitem(reader.DECODERS, "decord", missing)
    monkeypatch.setattr(reader, "read_frames", right)
    line = machine.decoder("decord")
    assert (line.state, line.found) == ("wrong", "decord is not installed")


def test_a_token_is_asked_for_where_the_source_asks(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    line = machine.token("hub", is_gated=True)
    assert line.state == "ok" and "hf_secret" not in repr(line)
    from huggingface_hub import constants

    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    assert machine.token("hub", is_gated=True).state == "wrong"
    assert machine.token("hub", is_gated=False).state == "note"
    assert machine.token("world", is_gated=False).state == "ok"
    assert machine.token(None, is_gated=True).state == "note"


def pinned(row: machine.Platform) -> dict[str, str]:
    lines = (ROOT / f"constraints-{row.name}.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))


def bounds(extra: str, name: str) -> list[tuple[int, int]]:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for line in extras["optional-dependencies"][extra]:
        if Requirement(line).name == name:
            return [tuple(map(int, part.split("."))) for part in re.findall(r"[\d.]+", line)]
    raise AssertionError(name)


def judged(found: Installed) -> dict[str, Finding]:
    return {finding.name: finding for finding in machine.fit(found)}


def states(found: Installed) -> dict[str, str]:
    return {name: finding.state for name, finding in judged(found).items()}


def test_there_is_a_row_for_each_constraints_file():
    names = {f"constraints-{name}.txt" for name in PLATFORMS}
    assert names == {path.name for path in ROOT.glob("constraints-*.txt")}


@ROWS
def test_a_row_fits_its_file_and_its_command(row: machine.Platform):
    versions = pinned(row)
    assert row.pinned_torch() == versions["torch"]
    release = tuple(map(int, versions["bitsandbytes"].split(".")[:2]))
    assert machine.BITSANDBYTES_FROM <= release < machine.BITSANDBYTES_BELOW
    is_slow = versions["torch"].startswith("2.9.")
    assert ("Conv3d" in judged(AS_SET_UP[row.name])["torch"].why) == is_slow
    target, *settings = row.command.split()[1:]
    assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE)
    if row.name.startswith("rocm"):
        default = re.search(r"^ROCM \?= (\S+)", MAKEFILE, re.MULTILINE).group(1)
        version = dict(part.split("=") for part in settings).get("ROCM", default)
        assert row.name == f"rocm{version}"
        [address] = set(re.findall(r"index-url (\S+rocm\S+)", MAKEFILE))
        assert (
            address.replace("$(ROCM)", version)
            in (ROOT / f"constraints-{row.name}.txt").read_text()
        )


def test_the_ranges_are_those_of_pyproject():
    assert bounds("train", "torch") == [machine.TORCH_FROM, machine.TORCH_BELOW]
    ours = [machine.BITSANDBYTES_FROM, machine.BITSANDBYTES_BELOW]
    assert bounds("train", "bitsandbytes") == ours


@ROWS
def test_a_machine_that_was_set_up_by_the_makefile_fits_its_row(row: machine.Platform):
    found = dataclasses.replace(AS_SET_UP[row.name], bitsandbytes=pinned(row)["bitsandbytes"])
    assert found.platform is row
    assert set(states(found).values()) == {"ok"}


def test_nvidias_triton_and_an_old_bitsandbytes_on_an_mi300x_are_wrong():
    found = dataclasses.replace(
        MI300X,
        bitsandbytes="0.49.2",
        tritons=(Triton("triton", "3.9.0", True), Triton("pytorch-triton-rocm", "3.5.1", False)),
    )
    lines = judged(found)
    assert [name for name, line in lines.items() if line.state == "wrong"] == [
        "bitsandbytes",
        "triton",
    ]
    assert "NaN" in lines["bitsandbytes"].why
    assert "--no-deps 'bitsandbytes>=0.50,<0.51'" in lines["bitsandbytes"].fix
    assert "NVIDIA's" in lines["triton"].why and "unsloth_zoo" in lines["triton"].why
    fix = lines["triton"].fix
    assert fix.startswith("pip uninstall -y triton ")
    assert (
        "--index-url https://download.pytorch.org/whl/rocm6.4 'pytorch-triton-rocm==3.5.1'" in fix
    )


def test_the_same_bitsandbytes_is_wrong_everywhere_for_a_reason_of_the_platform():
    for found in AS_SET_UP.values():
        line = judged(dataclasses.replace(found, bitsandbytes="0.49.2"))["bitsandbytes"]
        assert line.state == "wrong" and line.why
        row = found.platform
        assert ("MI300X" in line.why) == row.name.startswith("rocm")
    assert states(dataclasses.replace(MI300X, bitsandbytes=None))["bitsandbytes"] == "wrong"
    assert states(dataclasses.replace(MI300X, bitsandbytes="0.51.0"))["bitsandbytes"] == "note"


def test_an_images_own_torch_and_triton_stay_with_a_note():
    lines = judged(IMAGE)
    assert {name: line.state for name, line in lines.items()} == {
        "torch": "ok",
        "platform": "note",
        "bitsandbytes": "ok",
        "triton": "ok",
    }
    assert "an image's own build" in lines["torch"].found
    replaced = dataclasses.replace(IMAGE, tritons=(Triton("triton", "3.9.0", True),))
    fix = judged(replaced)["triton"].fix
    assert "triton==3.6.0+rocm7.2.0.gitba5c1517 from where the image took torch" in fix


@pytest.mark.parametrize(
    ("found", "place"),
    [
        (AS_SET_UP["cpu"], "https://download.pytorch.org/whl/cpu"),
        (AS_SET_UP["rocm7.2"], "https://download.pytorch.org/whl/rocm7.2"),
        (AS_SET_UP["cuda"], "PyPI"),
        (
            Installed("2.13.0+cu128", cuda="12.8", torch_wheel="2.13.0+cu128"),
            "https://download.pytorch.org/whl/cu128",
        ),
        (IMAGE, "an image's own build"),
        (Installed("2.9.0a0+50eac811a6.nv25.09", cuda="13.0"), "an image's own build"),
        (Installed("2.13.0", cuda="12.9", torch_wheel="2.13.0"), "PyPI or conda"),
    ],
)
def test_a_torchs_origin_is_read_from_its_version(found: Installed, place: str):
    assert found.origin == place


@pytest.mark.parametrize(
    ("changes", "line", "state"),
    [
        ({"torch": "2.8.0+rocm6.4"}, "torch", "wrong"),
        ({"torch": "2.9.0a0+50eac811a6.rocm"}, "torch", "ok"),
        ({"torch": "2.15.0+rocm7.2"}, "torch", "note"),
        ({"torch": "2.9.1+rocm6.2", "hip": "6.2.41134-65d174c3e"}, "platform", "wrong"),
        ({"torch": "2.10.0+rocm7.1", "hip": "7.1.25424-4179531dcd"}, "platform", "note"),
        ({"tritons": ()}, "triton", "note"),
        ({"tritons": (Triton("pytorch-triton-rocm", "3.5.1", False),)}, "triton", "wrong"),
        (
            {
                "tritons": (
                    Triton("triton", "3.9.0", False),
                    Triton("pytorch-triton-rocm", "3.5.1", True),
                )
            },
            "triton",
            "note",
        ),
    ],
)
def test_what_does_not_fit_is_named(changes: dict, line: str, state: str):
    finding = judged(dataclasses.replace(MI300X, **changes))[line]
    assert finding.state == state
    assert state == "ok" or (finding.why and finding.fix)


def test_rocms_triton_under_cudas_torch_is_wrong():
    found = dataclasses.replace(AS_SET_UP["cuda"], tritons=(Triton("triton-rocm", "3.9.0", True),))
    line = judged(found)["triton"]
    assert line.state == "wrong" and "index-url" not in line.fix


def test_the_nearest_row_is_taken():
    for hip, name in (("6.2.1", "rocm6.4"), ("7.0.5", "rocm7.2"), ("8.1.0", "rocm7.2")):
        found = dataclasses.replace(MI300X, hip=hip)
        assert found.platform.name == name


def test_the_table_needs_no_torch():
    code = "import sys, avomni_lib.training.doctor.machine; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
