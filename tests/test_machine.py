"""What a machine brings is read from it as it is, and from stand-ins for what is not here."""

import dataclasses
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from avomni_lib import hardware
from avomni_lib.errors import AvomniError
from avomni_lib.etl.video import reader
from avomni_lib.hardware import Choice, Memory
from avomni_lib.params import Params
from avomni_lib.training.doctor import machine
from avomni_lib.training.doctor.platforms import Installed

CPU = Choice("cpu", "torch sees no accelerator")
OF_CPU, OF_CUDA = Installed("2.13.0+cpu"), Installed("2.13.0+cu130", cuda="13.0")
OF_ROCM = Installed("2.13.0+rocm7.2", hip="7.2.26015-fc0010cf6a")


def install(folder: Path, name: str, version: str, files: dict[str, int]) -> None:
    """A distribution whose RECORD lists `files` with their sizes; the files are not made."""
    about = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    record = [f"{path},sha256=abc,{size}" for path, size in files.items()]
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
