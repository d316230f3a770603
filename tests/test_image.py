"""The image for AMD GPUs: its own check, its locked versions, and three findings of doctor."""

import re
import resource

import pytest

from avomni_lib import files
from avomni_lib.training.doctor import image

ROOT = files.PROJECT_ROOT
DOCKERFILE = (ROOT / "docker" / "rocm.Dockerfile").read_text()
LOCK = [
    line.partition("==")[::2]
    for line in (ROOT / "constraints-rocm7.2.txt").read_text().splitlines()
    if line and not line.startswith("#")
]
# A dependency of torch's ROCm wheel, from the same index.
INSTALLED = [*(name for name, _ in LOCK), "triton-rocm"]


def test_locked_versions_have_no_faults():
    assert image.faults("7.2.26015", INSTALLED, None) == []
    versions = dict(LOCK)
    assert versions["torch"].endswith("+rocm7.2") and versions["torchvision"].endswith("+rocm7.2")
    assert "bitsandbytes" in versions and "jupyterlab" in versions
    assert not {"triton", "xformers"} & set(versions)


@pytest.mark.parametrize(
    ("hip", "more", "fault", "message"),
    [
        (None, (), None, "torch.version.hip is None"),
        ("7.2", ("triton",), None, "not one triton but triton, triton-rocm"),
        ("7.2", ("nvidia-cublas-cu12", "nvidia_cudnn_cu12"), None, "nvidia-cublas-cu12, nvidia-"),
        ("7.2", (), "OSError: libamdhip64.so", "bitsandbytes cannot be imported: OSError"),
    ],
)
def test_forbidden_packages_are_reported(hip, more, fault, message):
    (fault_text,) = image.faults(hip, [*INSTALLED, *more], fault)
    assert message in fault_text


def test_image_without_triton_is_refused():
    assert image.faults("7.2", INSTALLED[:-1], None) == ["not one triton but none"]


def test_image_check_fails_on_a_cpu(capsys):
    assert image.main() == 1
    assert "torch is not built for ROCm" in capsys.readouterr().err


def test_dockerfile_runs_make_and_then_the_image_check():
    assert re.search(r"^FROM rocm/\S+:7\.2$", DOCKERFILE, re.MULTILINE)
    steps = re.findall(r"^RUN (.+)", DOCKERFILE, re.MULTILINE)
    assert steps[-2].startswith("make rocm ROCM=7.2")
    assert steps[-1] == ".venv/bin/python -m avomni_lib.training.doctor.image"
    assert '"jupyter", "lab", "--ip=127.0.0.1"' in DOCKERFILE
    assert "Never built or run on the card" in DOCKERFILE
    assert "constraints-rocm$(ROCM).txt" in (ROOT / "Makefile").read_text()


def test_nvidia_wheels_are_wrong_only_with_rocm_torch(monkeypatch):
    monkeypatch.setattr(image, "installed_wheels", lambda: ["nvidia-nccl-cu13", "torch"])
    assert image.wheels("7.2").state == "wrong"
    assert "pip uninstall -y nvidia-nccl-cu13" in image.wheels("7.2").fix
    assert image.wheels(None).state == "ok"


def test_low_open_file_limit_is_a_note(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 1_048_576))
    line = image.open_files()
    assert (line.state, line.found) == ("note", "1,024") and "ulimit -n 65536" in line.fix
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)
    assert image.open_files().state == "ok"


def test_triton_cache_should_be_persistent(monkeypatch, tmp_path):
    monkeypatch.delenv(image.CACHE, raising=False)
    assert image.triton_cache("cpu").state == "ok"
    assert image.triton_cache("cuda:0").state == "note"
    monkeypatch.setenv(image.CACHE, str(tmp_path / "kernels"))
    assert image.triton_cache("cuda:0").state == "ok"
    monkeypatch.setattr(image.os, "access", lambda *_: False)
    assert image.triton_cache("cuda:0").state == "wrong"
