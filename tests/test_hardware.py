import subprocess
import sys

import pytest

from avomni_lib import hardware
from avomni_lib.errors import AvomniError
from avomni_lib.params.sections import TrainingParams


def test_provenance_does_not_import_torch():
    code = (
        "import sys\nfrom avomni_lib import hardware\nmade = hardware.provenance()\n"
        "assert 'torch' not in sys.modules and 'device' not in made\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_provenance_has_packages_memory_and_device():
    import torch

    provenance = hardware.provenance()
    assert provenance["packages"]["torch"] == torch.__version__
    assert provenance["packages"]["unsloth"] is None or provenance["packages"]["unsloth"]
    assert provenance["host_memory_gb"] > 0.5
    assert provenance["device"]["value"] and provenance["device"]["reason"]


def test_cpu_uses_float32_and_transformers():
    assert hardware.dtype("cpu").value == "float32"
    assert hardware.attention("cpu").value == "sdpa"
    assert hardware.backend("auto", "cpu").value == "transformers"
    assert hardware.device_memory("cpu") is None


def test_unsloth_is_refused_on_a_cpu():
    with pytest.raises(AvomniError, match="model.backend: auto"):
        hardware.backend("unsloth", "cpu")


@pytest.mark.parametrize("on", ["cpu", "cuda:0"])
def test_backend_asked_for_by_name_is_used(on):
    assert hardware.backend("transformers", on) == (
        "transformers",
        "asked for by model.backend",
    )


@pytest.mark.parametrize(
    ("wanted", "on", "taken"),
    [
        (TrainingParams().optimizer, "cpu", "adamw_8bit"),
        ("paged_adamw_32bit", "cpu", "adamw_torch"),
        ("paged_lion_8bit", "cpu", "lion_8bit"),
        ("paged_adamw_8bit", "cuda:0", "paged_adamw_8bit"),
        ("adamw_torch", "cpu", "adamw_torch"),
    ],
)
def test_unavailable_optimizer_is_replaced_by_the_nearest(wanted, on, taken):
    from transformers.training_args import OptimizerNames

    choice = hardware.optimizer(wanted, on)
    assert choice.value == taken
    assert ("asked for" if taken == wanted else "no GPU") in choice.reason
    assert taken in {name.value for name in OptimizerNames}


def test_memory_is_counted_in_bytes():
    memory = hardware.host_memory()
    assert 1e8 < memory.free < memory.total
    before = hardware.peak_memory()["host_gb"]
    block = bytearray(200_000_000)
    block[::4096] = b"x" * len(block[::4096])
    assert hardware.peak_memory()["host_gb"] >= before
    assert hardware.peak_memory()["host_gb"] > 0.2


def test_subprocess_does_not_inherit_the_parents_peak_memory():
    """Linux's ru_maxrss is inherited: a worker would report the notebook's memory."""
    block = bytearray(400_000_000)
    block[::4096] = b"x" * len(block[::4096])
    code = "from avomni_lib import hardware; print(hardware.peak_memory()['host_gb'])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0.005 < float(ran.stdout) < 0.3
